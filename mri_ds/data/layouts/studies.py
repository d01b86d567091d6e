"""Channels out of DICOM studies: each subject is one folder or zip of several series, and patterns say which of them to read.

In: a Dataset whose subjects have one image each.  Out: the same, its channels being the named series.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mri_ds.data.layouts.subject import Dataset
from mri_ds.errors import InputError

HOW = 'write --series NAME=PATTERN, as --series "FLAIR=*flair*"'
LOOKED_AT = 50  # files of a folder


def parse_series(options: Sequence[str]) -> dict[str, str]:
    """["T1w=*t1*", "FLAIR=4"] -> {"T1w": "*t1*", "FLAIR": "4"}. Raises InputError for what is no pair, or names one twice."""
    series: dict[str, str] = {}
    for option in options:
        name, sign, pattern = (part.strip() for part in option.partition("="))
        if not (name and sign and pattern):
            raise InputError(f"--series {option!r} names no channel and series", fix=HOW)
        if name in series:
            raise InputError(f"--series names channel {name!r} twice", fix='give alternatives as "A|B"')
        series[name] = pattern
    return series


def series_of_channels(series: Mapping[str, str], channels: Sequence[str]) -> list[str]:
    """The patterns in the order of a network's channels; [] where none is given. Raises InputError for other channels."""
    if series and set(series) != set(channels):
        what = f"--series names the channels {', '.join(series)}, and the network has {', '.join(channels)}"
        raise InputError(what, fix="name each of its channels once")
    return [series[channel] for channel in channels] if series else []


def with_series(dataset: Dataset, series: Mapping[str, str], where: Path) -> Dataset:
    """Every subject reads these series of its study. {}: as the dataset itself says, if it does.

    Channels are in the order of the dataset's description where that has the same names. A single series may be named as several
    channels there: its time points.
    """
    asked = dict(series) or dataset.series
    if not asked:
        return dataset
    if several := next((subject for subject in dataset.subjects if len(subject.images) > 1), None):
        what = f"series are of one DICOM study, and {several.subject_id} has an image for each channel"
        raise InputError(what, where=where, fix="leave --series out, or put one study per subject")
    if any(subject.series for subject in dataset.subjects):
        raise InputError("names the series of each subject in columns", where=where, fix="leave --series out, or take them out")
    names = dataset.channels if set(dataset.channels) == set(asked) else list(asked)
    channels = dataset.channels if len(asked) == 1 < len(dataset.channels) else names
    chosen = tuple(asked[name] for name in names) if set(names) == set(asked) else tuple(asked.values())
    return replace(dataset, channels=channels, subjects=[replace(subject, series=chosen) for subject in dataset.subjects])


def is_study(src: Path) -> bool:
    """Whether a path that no layout takes is DICOM: it, or one of the first files in it."""
    from mri_ds.data.dicom.files import MARK, PREAMBLE, is_dicom_bytes, open_sources

    try:
        with open_sources(src) as sources:
            for source in sources[:LOOKED_AT]:
                with source.open() as file:
                    if is_dicom_bytes(file.read(PREAMBLE + len(MARK))):
                        return True
    except (InputError, OSError):
        pass
    return False
