"""Plain mappings to sections of the configuration, with errors that a person can act on."""

import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mri_ds.config.allowed import allowed, literals
from mri_ds.config.spelling import closest, nearest_key
from mri_ds.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


def read_section(model: type[Model], raw: Mapping[str, Any], *, where: str) -> Model:
    """Plain mapping -> section.

    Raises InputError that names the first bad key, its value, what is allowed there and the nearest valid key or word.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as err:
        first = next((e for e in err.errors() if e["type"] == "extra_forbidden"), err.errors()[0])
        loc = first["loc"]
        if first["type"] == "extra_forbidden":
            key = ".".join(str(part) for part in loc)
            fix = nearest_key(str(loc[-1]), _known_keys(model, loc[:-1]))
            raise InputError(f"unknown key {key!r}", where=where, fix=fix) from None
        if first["type"] == "value_error":  # of a rule of ours, which says itself what to do
            key = ".".join(str(part) for part in loc)
            told, _, fix = str(first["ctx"]["error"]).partition(" Fix: ")
            raise InputError(f"{key} = {first['input']!r}: {told}", where=where, fix=fix or f"correct {key}") from None
        raise _wrong_value(model, loc, first, raw, where) from None


def _wrong_value(model: type[BaseModel], loc: Sequence[Any], first: Any, raw: Any, where: str) -> InputError:
    """A value that is not what its field takes; of a union, pydantic tells only that it is not the first of its kinds."""
    field, depth = _field_at(model, loc)
    if field is None:
        return InputError(f"{'.'.join(map(str, loc))} = {first['input']!r}: {first['msg']}", where=where, fix="correct it")
    rest = loc[depth:]
    is_inside = any(isinstance(part, str) for part in rest)  # a key of a mapping, or pydantic's name of one of a union's kinds
    is_union = is_inside and _is_union(field.annotation)
    shown = loc[:depth] if is_union or first["type"] == "missing" else loc
    key = ".".join(str(part) for part in shown)
    value, is_given = _at(raw, loc[:depth]) if shown != loc else (first["input"], True)
    wanted = allowed(field)
    told = f"Input should be {wanted}" if is_union or (first["type"] == "missing" and is_given) else first["msg"]
    words = literals(field)
    match = closest(value, words) if isinstance(value, str) else None
    if match:
        fix = f"did you mean {match!r}?"
    elif first["type"] in ("literal_error", "enum") and not is_union:
        fix = f"use one of {', '.join(sorted(words))}"
    else:
        fix = f"correct {key}" if is_inside and not is_union else f"give {wanted}"
    return InputError(f"{key} = {value!r}: {told}" if is_given else f"{key}: {told}", where=where, fix=fix)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _field_at(model: type[BaseModel], loc: Sequence[Any]) -> tuple[FieldInfo | None, int]:
    """The innermost field that `loc` leads to, and how many of its parts that takes."""
    section: type[BaseModel] | None = model
    found, depth = None, 0
    for number, part in enumerate(loc):
        field = _fields(section).get(str(part)) if section is not None else None
        if field is not None:
            found, depth, section = field, number + 1, _section_in(field.annotation)
    return found, depth


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """By name and by alias: DeepSpeed's `stage3_...` keys are aliases."""
    return {name: field for key, field in section.model_fields.items() for name in (key, field.alias) if name}


def _at(raw: Any, loc: Sequence[Any]) -> tuple[Any, bool]:
    for part in loc:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return None, False
    return raw, True


def _known_keys(section: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """Keys of the section that stands at `loc` (names of sections, of tasks, numbers of stages)."""
    for part in loc:
        field = _fields(section).get(str(part))
        section = _section_in(field.annotation) or section if field is not None else section
    return [name for key, field in section.model_fields.items() for name in (field.alias, key) if name]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """TaskConfig of dict[str, TaskConfig], SynthesisConfig of SynthesisConfig | None, ..."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part)) is not None), None)
