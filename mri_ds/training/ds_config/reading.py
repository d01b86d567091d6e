"""From a JSON file and `--ds` overrides to a mapping whose every key and value is known to mean something."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mri_ds.config import RunConfig, apply_override, read_section
from mri_ds.errors import InputError
from mri_ds.training.ds_config.schema import AUTO_KEYS, SCIENCE_KEYS, schema


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """JSON file -> mapping, with `overrides` ("zero_optimization.stage=2") written over it.

    Raises InputError for a missing file, broken JSON, a key given twice, an unknown key, a knob of the YAML, a value of the
    wrong kind, and "auto" where nothing decides.
    """
    try:
        raw = json.loads(Path(path).read_text(), object_pairs_hook=_once_each)
    except OSError as err:
        raise InputError(err.strerror or str(err), where=path, fix="give one of ds_configs/*.json") from None
    except _Twice as err:
        raise InputError(f"{err} stands twice in one section", where=path, fix="keep one") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise InputError(f"is not JSON: {err}", where=path, fix="correct the syntax") from None
    if not isinstance(raw, dict):
        raise InputError(f"holds a {type(raw).__name__}, not an object", where=path, fix="see ds_configs/small.json")
    for item in overrides:
        apply_override(raw, item, option="--ds", example="zero_optimization.stage=2")
    check(raw, where=path)
    return raw


def check(raw: Mapping[str, Any], *, where: str | Path) -> None:
    """Raises InputError that names the first key of `raw` that may not stand there, or whose value is of the wrong kind."""
    settled: dict[str, Any] = {}
    for key, value in _leaves(raw):
        section = key.partition(".")[0]
        if section in RunConfig.model_fields:
            raise InputError(f"{key!r} is science", where=where, fix="set it in the YAML, or with --set")
        for name in (key, section):
            if name in SCIENCE_KEYS:
                raise InputError(f"{name!r} is set in the JSON", where=where, fix=f"set {SCIENCE_KEYS[name]} in the YAML instead")
        if value == "auto" and key in AUTO_KEYS:
            continue
        if value == "auto":
            raise InputError(
                f'{key} = "auto", which nothing decides', where=where, fix=f"give a value; auto is for {_told(AUTO_KEYS)}"
            )
        _write(settled, key, value)
    for key, value in raw.items():
        field = schema().model_fields.get(key)
        if field is not None and field.default == {} and not isinstance(value, dict):
            raise InputError(f"{key} = {value!r} is not an object", where=where, fix=f'write "{key}": {{...}}')
    read_section(schema(), settled, where=str(where))


def _leaves(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("section.key", value) of every value that is no section; an empty section is a value."""
    for key, value in raw.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _write(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
    raw[last] = value


def _told(keys: Sequence[str]) -> str:
    return ", ".join(keys)


class _Twice(ValueError):
    pass


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise _Twice(repr(key))
        out[key] = value
    return out
