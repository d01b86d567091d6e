"""What is to be predicted: paths that a user gives -> subjects as files, each once, each under a name of its own.

A path is an image (NIfTI, a DICOM file, folder or zip, .npy), a folder of such images, or a dataset of any layout (BIDS, MSD,
nnU-Net, a folder with participants.tsv, WebDataset tars, a CSV table), where labels are neither needed nor looked at.
"""

from collections.abc import Sequence
from pathlib import Path

from mri_ds.data import nifti
from mri_ds.data.images import image_name
from mri_ds.data.layouts import SubjectFiles
from mri_ds.data.layouts.unlabelled import find_unlabelled
from mri_ds.errors import InputError


def find_inputs(
    paths: Sequence[str | Path], channels: Sequence[str], series: Sequence[str] = ()
) -> tuple[list[SubjectFiles], list[str]]:
    """The subjects in the order of the paths, and a line about each that is left out.

    Several files of one subject's channels are one subject. Raises InputError for a dataset that cannot be listed, a channel's
    file that is missing, and two subjects of one name, whose results would overwrite one another. A file that does not exist is
    a subject like any other: reading it fails.
    """
    subjects: dict[str, tuple[Path, SubjectFiles]] = {}
    lines: list[str] = []
    for path in map(Path, paths):
        found, left_out = find_unlabelled(path, channels, series) or (_images_in(path, channels, series), [])
        lines += left_out
        for one in found:
            first, known = subjects.setdefault(one.subject_id, (path, one))
            if known.images != one.images:
                fix = "predict them into separate folders"
                raise InputError(f"would overwrite the results of {first}", where=path, fix=fix)
    return [one for _, one in subjects.values()], lines


def find_channels(path: Path, channels: Sequence[str]) -> tuple[str, list[Path]]:
    """The subject's name and its files: one (3-D or 4-D), or one per channel in the order of `channels`.

    Raises InputError that names the first channel whose file is not there.
    """
    name = image_name(path) or path.name  # a name that is no image's is refused, with its reason, when it is read
    suffix = path.name[len(name) :]
    longest_first = sorted(channels, key=len, reverse=True)  # "sub_post_T1" is channel post_T1, where there is one
    channel = next((c for c in longest_first if name.endswith(f"_{c}")), None)
    if channel is None:
        return name, [path]
    subject_id = name.removesuffix(f"_{channel}")
    files = [path.with_name(f"{subject_id}_{c}{suffix}") for c in channels]
    for channel, file in zip(channels, files):
        if not file.exists():
            fix = f"the network was trained on {', '.join(channels)}: put them side by side"
            raise InputError(f"no such file: channel {channel} of subject {subject_id}", where=file, fix=fix)
    return subject_id, files


def _images_in(path: Path, channels: Sequence[str], series: Sequence[str]) -> list[SubjectFiles]:
    """The image at `path`; of a folder that holds NIfTI files, each of them; of any other folder the DICOM series in it."""
    files = sorted(file for file in path.iterdir() if nifti.stem(file)) if path.is_dir() else []
    found = [find_channels(file, channels) for file in files or [path]]
    return [SubjectFiles(name, images, series=tuple(series)) for name, images in found]
