"""Frames -> series, each with a key to ask for it by.

A series is what one volume can be made of: one SeriesInstanceUID, and within it one echo, one component (magnitude or phase) and
one kind of image, as dcm2niix splits them. Its key is the series number ("11"), with the part where there are several ("11.2"),
or its place in the list ("#3") where the number is missing or used twice. Numbers differ from study to study, so a series can be
asked for by its description as well, as a pattern. UIDs and descriptions may be asked for but are never told.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mri_ds.data.dicom.frame import Frame
from mri_ds.data.dicom.tags import Acquisition, common
from mri_ds.errors import InputError

MAX_LISTED = 12  # series in an error's line
UID = re.compile(r"[\d.*?]{16,}")


@dataclass(frozen=True, eq=False)
class Series:
    """The frames of one series, in the order of the files."""

    key: str
    frames: list[Frame]

    @property
    def acquisition(self) -> Acquisition:
        return common(frame.acquisition for frame in self.frames)

    @property
    def description(self) -> str:
        """As the first file says it, upper case; "" where it says nothing."""
        return self.frames[0].description

    @property
    def is_localiser(self) -> bool:
        return any("LOCALIZER" in frame.image_type for frame in self.frames)

    def __str__(self) -> str:
        rows, columns = self.frames[0].shape
        told = {name: self.acquisition.get(name) for name in ("repetition_time_ms", "echo_time_ms", "inversion_time_ms")}
        times = "".join(f", {short} {value:g}" for short, value in zip(("TR", "TE", "TI"), told.values()) if value is not None)
        return f"{self.key} ({len(self.frames)} of {columns} x {rows}{times}{', localiser' if self.is_localiser else ''})"


def group_series(frames: Sequence[Frame]) -> list[Series]:
    """Sorted by series number, then UID, then contrast: the same files give the same list wherever they lie."""
    groups = defaultdict[tuple[int, str], dict[tuple[str, ...], list[Frame]]](lambda: defaultdict(list))
    for frame in frames:
        number = frame.series_number if frame.series_number is not None else -1
        groups[number, frame.series_uid][frame.contrast].append(frame)
    uses = Counter(number for number, _ in groups)
    series: list[Series] = []
    for number, uid in sorted(groups):
        parts = groups[number, uid]
        for part, contrast in enumerate(sorted(parts), start=1):
            named = number >= 0 and uses[number] == 1
            key = f"{number}.{part}" if len(parts) > 1 else str(number)
            series.append(Series(key if named else f"#{len(series) + 1}", parts[contrast]))
    return series


def choose(series: Sequence[Series], wanted: str | int | Sequence[str | int] | None, where: Path) -> list[Series]:
    """The series asked for, in that order; without a wish, the only one that is no localiser.

    A wish is a key, or a pattern with * and ? for the whole description or SeriesInstanceUID, capitals or not; "A|B" is what B
    says where A finds nothing. Raises InputError that lists the keys where a wish finds none, or several.
    """
    if wanted is None:
        candidates = [one for one in series if not one.is_localiser] or list(series)
        if len(candidates) > 1:
            raise InputError(
                f"holds {len(candidates)} series: {_listed(candidates)}",
                where=where,
                fix="choose one of them by --series NAME=PATTERN (or series=), or give its folder",
            )
        return candidates
    names = [wanted] if isinstance(wanted, str | int) else list(wanted)
    chosen = []
    for name in map(str, names):
        found = _matching(series, name)
        if len(found) != 1:
            asked = "of that UID" if UID.fullmatch(name) else name
            what = f"{len(found)} series are {asked}: {_listed(found)}" if found else f"no series {asked}"
            raise InputError(
                what, where=where, fix=f"choose from {_listed(series)}" if not found else "narrow the pattern, or take a number"
            )
        chosen += found
    if not chosen or len({one.key for one in chosen}) < len(chosen):
        raise InputError("no series, or one twice, asked for", where=where, fix=f"choose from {_listed(series)}")
    return chosen


def _matching(series: Sequence[Series], wish: str) -> list[Series]:
    for pattern in (part.strip() for part in wish.split("|")):
        if by_name := [one for one in series if pattern in (one.key, one.frames[0].series_uid)]:
            return by_name
        alike = [one for one in series if any(_is_like(text, pattern) for text in (one.description, one.frames[0].series_uid))]
        if alike:
            return [one for one in alike if not one.is_localiser] or alike
    return []


def _is_like(text: str, pattern: str) -> bool:
    return bool(text and pattern) and fnmatchcase(text.upper(), pattern.upper())


def _listed(series: Sequence[Series]) -> str:
    more = f", and {len(series) - MAX_LISTED} more" if len(series) > MAX_LISTED else ""
    return ", ".join(map(str, series[:MAX_LISTED])) + more
