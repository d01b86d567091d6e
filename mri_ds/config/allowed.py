"""What a key of the configuration may hold, in words: the other half of an error that names a wrong value.

In: a field's type as pydantic keeps it.  Out: "auto or 3 whole numbers", "a number of at least 0 and at most 1".
"""

import types
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
SAID = "allowed"  # in a field's json_schema_extra: what its type does not tell
PLURAL = {"a whole number": "whole numbers", "a number": "numbers", "a text": "texts"}


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a value of this type looks like.

    >>> allowed(Literal["auto"] | tuple[int, int, int]), allowed(float, [Ge(0), Lt(1)])
    ('auto or 3 whole numbers, as [.., .., ..]', 'a number of at least 0 and below 1')
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, FieldInfo):
        told = annotation.json_schema_extra
        return str(told[SAID]) if isinstance(told, dict) and SAID in told else allowed(annotation.annotation, annotation.metadata)
    if origin is Annotated:
        of_field = [item for part in parts[1:] for item in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return allowed(parts[0], [*of_field, *metadata])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(allowed(part, () if part is type(None) else metadata) for part in parts))
    if origin is tuple:
        return f"{len(parts)} {_plural(allowed(parts[0]))}, as [{', '.join(['..'] * len(parts))}]"
    if origin in (list, set, Sequence):
        return f"a list of {_plural(allowed(parts[0])) if parts else 'values'}"
    if values := literals(annotation):
        return ", ".join(values[:-1]) + (" or " if len(values) > 1 else "") + values[-1]
    if origin in (dict, Mapping) or annotation is dict or _is_section(annotation):
        return "a section, {key: value}"
    return PLAIN.get(annotation, "a value of another kind") + _bounds(metadata)


def literals(annotation: Any) -> list[str]:
    """The words (or numbers) that a type lists; [] for one that lists none."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    if isinstance(annotation, FieldInfo):
        return literals(annotation.annotation)
    is_nested = get_origin(annotation) in (Union, types.UnionType, Annotated, list)
    return [word for part in get_args(annotation) for word in literals(part)] if is_nested else []


def _bounds(metadata: Iterable[Any]) -> str:
    words = {Ge: "at least {0.ge:g}", Gt: "above {0.gt:g}", Le: "at most {0.le:g}", Lt: "below {0.lt:g}"}
    told = [text.format(item) for item in metadata for kind, text in words.items() if isinstance(item, kind)]
    return f"{' of' if told[0].startswith('at') else ''} {' and '.join(told)}" if told else ""


def _plural(told: str) -> str:
    one = next((name for name in PLURAL if told.startswith(name)), "")
    return PLURAL.get(one, "") + told.removeprefix(one)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
