"""Dataset layouts: a folder on disk -> subjects and tasks, without reading a voxel."""

from pathlib import Path

from mri_ds.data.layouts.folder import find_folder, is_folder
from mri_ds.data.layouts.msd import find_msd, is_msd
from mri_ds.data.layouts.subject import Dataset, SubjectFiles, load_subject
from mri_ds.errors import InputError

__all__ = ["Dataset", "SubjectFiles", "find_dataset", "load_subject"]


def find_dataset(src: Path) -> Dataset:
    """Recognises the layout of `src` and lists its subjects, sorted. Raises InputError for what no layout takes."""
    src = Path(src)
    if not src.is_dir():
        what = "is not a folder" if src.exists() else "no such folder"
        raise InputError(what, where=src, fix="give the folder of a dataset")
    if is_msd(src):
        return find_msd(src)
    if is_folder(src):
        return find_folder(src)
    known = "dataset.json with imagesTr/ (Medical Segmentation Decathlon), or images/ with participants.tsv"
    raise InputError("no known layout", where=src, fix=f"it needs {known}")
