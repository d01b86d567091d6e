"""The folder RUN/checkpoints: which checkpoints are complete and sound, which one counts, which ones stay.

    step000100.part/   being written; nobody reads it
    step000100/        complete: it got this name, and manifest.json before that, once every file lay on the disk
    latest, best       names of one of them, for people; a reader takes the newest complete one
manifest.json lists every file with its size and SHA-256, so that a file that rots is refused by its name.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mri_ds.errors import CorruptError, InputError

MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = "state.safetensors"


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step{step:06d}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step"))


def complete(run_dir: Path) -> list[Path]:
    """Folders of the complete checkpoints, by step."""
    found = [p for p in (run_dir / "checkpoints").glob("step*") if re.fullmatch(r"step\d{6,}", p.name)]
    return sorted((p for p in found if (p / MANIFEST).is_file()), key=step_of)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises CorruptError for a manifest that is no JSON object with a `files` section."""
    return _read_json(folder / MANIFEST, needs="files")


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint keeps beside tensors. Raises CorruptError where it cannot be read."""
    return _read_json(folder / STATE, needs="step")


def remove_leftovers(run_dir: Path) -> None:
    """What killed writes, conversions and removals left. One process calls it, when nobody writes."""
    for old in (run_dir / "checkpoints").glob("step*.old"):  # killed between the two renames of `commit`
        if not old.with_suffix("").exists():
            os.rename(old, old.with_suffix(""))
    for path in (run_dir / "checkpoints").glob("step*"):
        if path.is_dir() and not (re.fullmatch(r"step\d{6,}", path.name) and (path / MANIFEST).is_file()):
            shutil.rmtree(path, ignore_errors=True)


def commit(part: Path, files: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Turns a fully written `step000100.part` into the complete checkpoint `step000100`, and `latest` into its name.

    The rename is the moment it counts from: a process killed before leaves the older ones as they are.
    """
    folder = part.with_suffix("")
    write_durably(part / MANIFEST, json.dumps({**facts, "files": dict(files)}, indent=1).encode())
    _sync_folder(part)
    old = folder.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():  # the same step once more, after going back; or what a killed removal left
        os.rename(folder, old)
    os.rename(part, folder)
    _sync_folder(folder.parent)
    name(folder.parent / "latest", folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def name(pointer: Path, folder: Path) -> None:
    """Writes the name of a checkpoint's folder into `latest` or `best`, whole or not at all."""
    part = pointer.with_suffix(".part")
    write_durably(part, folder.name.encode())
    os.replace(part, pointer)


def write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def retain(run_dir: Path, *, last: int, every: int = 0, best_by: str = "") -> list[Path]:
    """Removes all complete checkpoints but the `last` ones, those of every `every`-th step and the best; returns what went.

    `best_by`: a scalar of the log, the lower the better; "-" before it: the higher the better.
    """
    folders = complete(run_dir)
    keep = {*folders[-last:], *(p for p in folders if every and step_of(p) % every == 0)}
    if best := best_of(folders, best_by):
        keep.add(best)
        name(run_dir / "checkpoints" / "best", best)
    gone = [p for p in folders if p not in keep]
    for folder in gone:
        (folder / MANIFEST).unlink()  # first, so that a killed removal leaves nothing that looks complete
        shutil.rmtree(folder, ignore_errors=True)
    return gone


def best_of(folders: Iterable[Path], best_by: str) -> Path | None:
    """The folder whose scalar `best_by` is best (see `retain`), the later of equals; None where none tells it."""
    if not best_by:
        return None
    key, sign = best_by.removeprefix("-"), -1.0 if best_by.startswith("-") else 1.0
    told = [(p, read_manifest(p).get("scalars", {}).get(key)) for p in folders]
    ranked = [(sign * value, -step_of(p), p) for p, value in told if value is not None and value == value]
    return min(ranked)[2] if ranked else None


def verify(folder: Path, *, rank: int = 0, world_size: int = 1) -> str:
    """What is wrong with this rank's share of the files, compared with the manifest: "" or the first finding."""
    files = read_manifest(folder)["files"]
    for name_ in sorted(files)[rank::world_size]:
        path = folder / name_
        if not path.is_file():
            return f"{name_} is missing"
        if path.stat().st_size != files[name_]["bytes"]:
            return f"{name_} has {path.stat().st_size:,} bytes, and {files[name_]['bytes']:,} were written"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != files[name_]["sha256"]:
                return f"{name_} is not what was written: its SHA-256 differs from the manifest's"
    return ""


def refuse(folder: Path, finding: str) -> CorruptError:
    """The error for a checkpoint that must not be gone on with, and the way back to the one before."""
    others = [p for p in complete(folder.parent.parent) if p != folder]
    way = f"remove {folder}: " + (f"{others[-1].name} is taken then" if others else "the run starts over")
    return CorruptError(finding, where=folder, fix=f"put the file back, or {way}")


def _read_json(path: Path, needs: str) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise CorruptError("is missing", where=path, fix="remove this checkpoint") from None
    except OSError as err:
        raise InputError(err.strerror or str(err), where=path, fix="make it readable") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raw = None
    if not isinstance(raw, dict) or needs not in raw:
        raise CorruptError("is damaged", where=path, fix="remove this checkpoint")
    return raw


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
