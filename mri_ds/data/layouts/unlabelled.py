"""The images of a dataset for a network that is to predict them: as the layouts lay them out, but no label or target is needed.

In: a folder or table of any layout, and the network's channels.  Out: SubjectFiles without labels, each with its channels in that
order; and a line for each subject that is left out.
Where a dataset names its channels otherwise than the network and has as many, they are taken in the dataset's order.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mri_ds.config import nearest
from mri_ds.data.images import image_name
from mri_ds.data.layouts import bids, csv_table, folder, msd, nnunet, webdataset
from mri_ds.data.layouts.dataset_json import DESCRIPTION, listed_file, names_by_number
from mri_ds.data.layouts.subject import SubjectFiles
from mri_ds.data.layouts.text import is_missing, read_json, read_table
from mri_ds.errors import InputError

Found = tuple[list[SubjectFiles], list[str]]
Channels = Sequence[str]


def find_unlabelled(src: Path, channels: Channels, series: Channels = ()) -> Found | None:
    """Subjects, sorted, and the lines; None where `src` is of no layout.

    series: of images that are DICOM studies, as `dicom.read_dicom` takes them. Raises InputError for a dataset that is not as its
    layout says, and for one without the network's channels.
    """
    for recognises, find in FINDERS:
        if recognises(src):
            subjects, lines = find(src, list(channels))
            if not subjects:
                raise InputError("holds no image with the network's channels", where=src, fix=f"it takes {', '.join(channels)}")
            chosen = [one if one.series or not series else replace(one, series=tuple(series)) for one in subjects]
            return sorted(chosen, key=lambda one: one.subject_id), lines
    return None


def _csv(src: Path, channels: Channels) -> Found:
    table = read_table(src, csv_table.ID, delimiters=csv_table.DELIMITERS)
    columns = list(next(iter(table.values())))
    images = _columns(src, columns, csv_table.IMAGE, channels)
    named = [c for c in columns if c.startswith(csv_table.SERIES + ":")]
    series = _columns(src, columns, csv_table.SERIES, channels) if named else []
    subjects, lines = [], []
    for name, row in table.items():
        cells = [row[column] for column in images]
        if any(map(is_missing, cells + [row[column] for column in series])):
            lines.append(f"{name} has an empty cell: left out")
            continue
        files = [csv_table.file_of(name, column, row[column], src) for column in images]
        subjects.append(SubjectFiles(name, files, series=tuple(row[column] for column in series)))
    return subjects, lines


def _columns(src: Path, columns: Sequence[str], kind: str, channels: Channels) -> list[str]:
    """`image`, or image:CHANNEL of each channel."""
    if kind in columns:
        return [kind]
    named = [column for column in columns if column.startswith(kind + ":")]
    wanted = [f"{kind}:{channel}" for channel in channels]
    absent = [column for column in wanted if column not in named]
    if len(absent) == len(wanted) == len(named):
        return named
    if absent:
        raise InputError(f"has no column {absent[0]}", where=src, fix=nearest(absent[0], named) if named else f"add {absent[0]}")
    return wanted


def _bids(src: Path, channels: Channels) -> Found:
    scans, lines = bids.find_scans(src)
    if not any(bids.pick(scan, channel) for scan in scans for channel in channels):
        own = bids.common_channels(scans, src)
        channels = own if len(own) == len(channels) else channels
    subjects = []
    for scan in scans:
        files = [bids.pick(scan, channel) for channel in channels]
        if missing := [channel for channel, file in zip(channels, files) if file is None]:
            lines.append(f"{scan.sample_id} has no {missing[0]}: left out")
        else:
            subjects.append(SubjectFiles(scan.sample_id, [file.path for file in files if file], patient=f"sub-{scan.patient}"))
    return subjects, lines


def _msd(src: Path, channels: Channels) -> Found:
    """What dataset.json lists for training and for testing."""
    where = src / DESCRIPTION
    raw = read_json(where)
    entries = [*(raw.get("training") or []), *(raw.get("test") or [])]
    names = [entry.get("image") if isinstance(entry, dict) else entry for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise InputError("lists an entry without an image", where=where, fix='write {"image": ..., "label": ...} or a path')
    files = [listed_file(src, str(name), "image", where) for name in names]
    return [SubjectFiles(image_name(file) or file.name, [file]) for file in files], []


def _nnunet(src: Path, channels: Channels) -> Found:
    where = src / DESCRIPTION
    raw = read_json(where)
    key = "channel_names" if "channel_names" in raw else "modality"
    num_channels = len(names_by_number(raw.get(key), key, where))
    cases = nnunet.find_images(src) | nnunet.find_images(src, "imagesTs")
    return [SubjectFiles(case, nnunet.channels_of(case, own, num_channels, src)) for case, own in cases.items()], []


def _folder(src: Path, channels: Channels) -> Found:
    table = read_table(src / folder.TABLE, folder.ID)
    images = folder.files_by_subject(src / "images", table.keys(), image_name)
    own_names = {name for own in images.values() for name in own if name}
    if not own_names & set(channels) and len(own_names) == len(channels):
        channels = sorted(own_names)
    found = {name: own for name, own in images.items() if all(channel in own for channel in channels) or folder.NAMELESS in own}
    lines = [f"{name} has not all of {', '.join(channels)}: left out" for name in table if name not in found]
    files = {name: folder.images_for(name, own, list(channels), src / "images") for name, own in found.items()}
    return [SubjectFiles(name, own) for name, own in files.items()], lines


def _webdataset(src: Path, channels: Channels) -> Found:
    volumes = {key: webdataset.volumes_of(sample) for key, sample in webdataset.find_samples(src).items()}
    found = {key: webdataset.images_for(own, list(channels)) for key, own in volumes.items()}
    lines = [f"{key} has not all of {', '.join(channels)}: left out" for key, images in found.items() if not images]
    return [SubjectFiles(key, images) for key, images in found.items() if images], lines


FINDERS: list[tuple[Callable[[Path], bool], Callable[[Path, Channels], Found]]] = [
    (csv_table.is_csv, _csv),
    (nnunet.is_nnunet, _nnunet),
    (msd.is_msd, _msd),
    (folder.is_folder, _folder),
    (bids.is_bids, _bids),
    (webdataset.is_webdataset, _webdataset),
]
