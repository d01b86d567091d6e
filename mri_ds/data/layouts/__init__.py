"""Dataset layouts: a folder (or a table) on disk -> subjects and tasks, without reading a voxel.

A layout is a row of LAYOUTS. The first that recognises a folder has it, unless the user names another.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mri_ds.config import nearest
from mri_ds.data.layouts.bids import find_bids, is_bids
from mri_ds.data.layouts.csv_table import find_csv, is_csv
from mri_ds.data.layouts.folder import find_folder, is_folder
from mri_ds.data.layouts.msd import find_msd, is_msd
from mri_ds.data.layouts.nnunet import find_nnunet, is_nnunet
from mri_ds.data.layouts.studies import is_study, with_series
from mri_ds.data.layouts.subject import Dataset, SubjectFiles, load_subject
from mri_ds.data.layouts.webdataset import find_webdataset, is_webdataset
from mri_ds.errors import InputError

__all__ = ["LAYOUTS", "Dataset", "SubjectFiles", "describe", "find_dataset", "load_subject"]


class Layout(NamedTuple):
    """How a layout is recognised, and found. `sign` is what tells it, in a user's words."""

    recognises: Callable[[Path], bool]
    find: Callable[[Path], Dataset]
    sign: str


LAYOUTS = {
    "csv": Layout(is_csv, find_csv, "a .csv table with columns subject and image"),
    "nnunet": Layout(is_nnunet, find_nnunet, "dataset.json with imagesTr/<case>_0000.nii.gz (nnU-Net raw)"),
    "msd": Layout(is_msd, find_msd, "dataset.json with imagesTr/ (Medical Segmentation Decathlon)"),
    "folder": Layout(is_folder, find_folder, "images/ with participants.tsv"),
    "bids": Layout(is_bids, find_bids, "sub-*/anat/ or sub-*/ses-*/anat/ (BIDS)"),
    "webdataset": Layout(is_webdataset, find_webdataset, "*.tar with <key>.nii.gz or <key>.<channel>.nii.gz (WebDataset)"),
}


def find_dataset(src: Path, layout: str = "auto", series: Mapping[str, str] | None = None) -> Dataset:
    """Recognises the layout of `src` ("auto"), or takes the named one, and lists its subjects, sorted.

    series: {channel: number or pattern} of the series to read where each subject's image is a DICOM study, as dicom.read_dicom
    takes them. Raises InputError for what no layout, or not the named one, takes.
    """
    return with_series(_find(Path(src), layout), series or {}, Path(src))


def _find(src: Path, layout: str) -> Dataset:
    if layout not in LAYOUTS and layout != "auto":
        what = f"no format {layout!r}; there are {', '.join(['auto', *LAYOUTS])}"
        raise InputError(what, where="--format", fix=nearest(layout, ["auto", *LAYOUTS]))
    if not src.exists():
        raise InputError("no such folder", where=src, fix="give the folder of a dataset")
    if layout != "auto":
        if not LAYOUTS[layout].recognises(src):
            raise InputError(f"is no dataset of format {layout}", where=src, fix=f"it needs {LAYOUTS[layout].sign}")
        return LAYOUTS[layout].find(src)
    for known in LAYOUTS.values():
        if known.recognises(src):
            return known.find(src)
    if is_study(src):
        fix = "put one study per subject at images/<subject> beside participants.tsv, or list them in a .csv (subject, image)"
        raise InputError(
            "is DICOM, and no dataset of several subjects", where=src, fix=f"{fix}; `mri-ds series` lists what is in it"
        )
    if not src.is_dir():
        raise InputError("is not a folder", where=src, fix="give the folder of a dataset, or a .csv table")
    raise InputError("no known layout", where=src, fix=f"it needs {', or '.join(known.sign for known in LAYOUTS.values())}")


def describe(dataset: Dataset) -> str:
    """One line: what was recognised.

    >>> describe(Dataset("MSD", ["MRI"], {}, [SubjectFiles("a", [])]))
    'MSD layout: 1 subject; channels MRI; tasks none'
    """
    num, patients = len(dataset.subjects), len({subject.patient_id for subject in dataset.subjects})
    of = f" of {patients} patient{'s' * (patients != 1)}" if patients != num else ""
    tasks = ", ".join(f"{name} ({task.kind})" for name, task in dataset.tasks.items()) or "none"
    counted = f"{num} subject{'s' * (num != 1)}{of}"
    return f"{dataset.layout} layout: {counted}; channels {', '.join(dataset.channels)}; tasks {tasks}"
