"""`--set section.key=value` and `--ds section.key=value`: one key of a nested mapping, from the command line."""

from typing import Any

import yaml

from mri_ds.errors import InputError


def apply_override(raw: dict[str, Any], item: str, *, option: str = "--set", example: str = "training.steps=200") -> None:
    """Writes the value of `item` ("section.key=value", the value as YAML reads it) into `raw`.

    Raises InputError for an item without a value, and where a part of the key is no section.

    >>> raw = {"a": {"b": 1}}
    >>> apply_override(raw, "a.b=2"), raw
    (None, {'a': {'b': 2}})
    """
    key, sep, text = item.partition("=")
    if not sep or not key:
        raise InputError(f"{option} {item!r} has no value", fix=f"write {option} section.key=value, as {example}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"{option} {item!r}: {text!r} is not a YAML value", fix="quote it") from None
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"{option} {item!r}: {parent!r} is not a section", fix="write section.key=value")
    node[last] = value
