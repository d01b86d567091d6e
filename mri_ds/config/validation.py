"""Plain mappings to sections of the configuration, with errors that a person can act on."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from mri_ds.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


def read_section(model: type[Model], raw: Mapping[str, Any], *, where: str) -> Model:
    """Plain mapping -> section. Raises InputError that names the first bad key, its value and the nearest valid key."""
    try:
        return model.model_validate(raw)
    except ValidationError as err:
        first = next((e for e in err.errors() if e["type"] == "extra_forbidden"), err.errors()[0])
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, first["loc"][:-1])
            raise InputError(f"unknown key {key!r}", where=where, fix=nearest(str(first["loc"][-1]), known)) from None
        allowed = re.findall(r"'([^']*)'", first.get("ctx", {}).get("expected", "")) if first["type"] == "literal_error" else []
        fix = nearest(str(first["input"]), allowed) if allowed else f"correct {key}"
        raise InputError(f"{key} = {first['input']!r}: {first['msg']}", where=where, fix=fix) from None


def nearest(word: str, known: Sequence[str]) -> str:
    """A fix for a misspelt word: its closest match, or all that is allowed."""
    match = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"use one of {', '.join(sorted(known))}"


def _known_keys(section: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """Keys of the section that stands at `loc` (names of sections, of tasks, numbers of stages)."""
    for part in loc:
        field = section.model_fields.get(str(part))
        section = _section_in(field.annotation) or section if field is not None else section
    return [name for key, field in section.model_fields.items() for name in (field.alias, key) if name]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """TaskConfig of dict[str, TaskConfig], SynthesisConfig of SynthesisConfig | None, ..."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part)) is not None), None)
