"""dataset.yaml: what the files of a dataset cannot say for themselves. Where it says something, it wins.

channels: [T1w, T2w]
tasks:
  tissue: {kind: segmentation, classes: [background, csf, grey, white]}
  age: {kind: regression, unit: years}
"""

from pathlib import Path

from mri_ds.config import TaskConfig, nearest, validate
from mri_ds.data.layouts.text import read_yaml
from mri_ds.errors import InputError

DESCRIPTION = "dataset.yaml"
HOW_TO_NAME_CLASSES = "tasks: {NAME: {kind: segmentation, classes: [background, ...]}}"


def read_description(where: Path) -> tuple[list[str], dict[str, TaskConfig] | None]:
    """Channels ([]: not said) and tasks (None: not said). A file that is not there says nothing."""
    if not where.is_file():
        return [], None
    raw = read_yaml(where, "`channels:` and `tasks:`")
    if unknown := [key for key in raw if key not in ("channels", "tasks")]:
        fix = nearest(str(unknown[0]), ["channels", "tasks"])
        raise InputError(f"unknown key {str(unknown[0])!r}", where=where, fix=fix)
    channels = raw.get("channels") or []
    named = isinstance(channels, list) and all(isinstance(channel, str) and channel for channel in channels)
    if not named or len(set(channels)) < len(channels):
        what = f"channels = {channels!r} is not a list of different names"
        raise InputError(what, where=where, fix="write channels: [T1w, T2w]")
    return channels, validate({"tasks": raw["tasks"]}, where=str(where)).tasks if raw.get("tasks") else None
