"""dataset.yaml: what the files of a dataset cannot say for themselves. Where it says something, it wins.

channels: [T1w, T2w]
tasks:
  tissue: {kind: segmentation, classes: [background, csf, grey, white]}
  age: {kind: regression, unit: years}
series: {T1w: "*t1*post*", FLAIR: "*flair*|*tirm*"}   # where images are DICOM studies: the series that become channels
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mri_ds.config import TaskConfig, nearest, validate
from mri_ds.data.layouts.text import read_yaml
from mri_ds.errors import InputError

DESCRIPTION = "dataset.yaml"
HOW_TO_NAME_CLASSES = "tasks: {NAME: {kind: segmentation, classes: [background, ...]}}"


class NamesMissing(InputError):
    """Label maps whose classes nobody has named: a person can be asked (`mri-ds init`).

    file: where names belong; maps: the label maps of each task; tasks: what the dataset's table tells to learn beside them.
    """

    def __init__(
        self, where: Path, fix: str, *, file: Path, maps: Mapping[str, list[Path]], tasks: Mapping[str, TaskConfig]
    ) -> None:
        super().__init__("label maps need class names", where=where, fix=fix)
        self.file, self.maps, self.tasks = file, dict(maps), dict(tasks)


class Description(NamedTuple):
    """Each is empty where the file does not say it; tasks are None."""

    channels: list[str]
    tasks: dict[str, TaskConfig] | None
    series: dict[str, str]


def read_description(where: Path) -> Description:
    """A file that is not there says nothing. Raises InputError for one that cannot be understood."""
    if not where.is_file():
        return Description([], None, {})
    raw = read_yaml(where, "`channels:` and `tasks:`")
    if unknown := [key for key in raw if key not in Description._fields]:
        fix = nearest(str(unknown[0]), list(Description._fields))
        raise InputError(f"unknown key {str(unknown[0])!r}", where=where, fix=fix)
    channels = raw.get("channels") or []
    named = isinstance(channels, list) and all(isinstance(channel, str) and channel for channel in channels)
    if not named or len(set(channels)) < len(channels):
        what = f"channels = {channels!r} is not a list of different names"
        raise InputError(what, where=where, fix="write channels: [T1w, T2w]")
    series = raw.get("series") or {}
    texts = [text for item in series.items() for text in item] if isinstance(series, dict) else [None]
    if not all(isinstance(text, str | int) and str(text) for text in texts):
        what = f"series = {series!r} names no patterns"
        raise InputError(what, where=where, fix='write series: {T1w: "*t1*", FLAIR: "*flair*"}')
    tasks = validate({"tasks": raw["tasks"]}, where=str(where)).tasks if raw.get("tasks") else None
    return Description(channels, tasks, {str(name): str(pattern) for name, pattern in series.items()})
