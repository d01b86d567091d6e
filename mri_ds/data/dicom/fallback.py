"""What we do not read ourselves: dcm2niix converts it in a temporary folder, and `nifti.py` reads the result.

Used where a decoder is missing or a Siemens mosaic has lost its private header; never for what `geometry.py` refuses, and never
for damaged data. The program's words are not passed on: it prints names and descriptions.
Source: Li et al. 2016, "The first step for neuroimaging data analysis: DICOM to NIfTI conversion" (dcm2niix).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mri_ds.data.dicom.elements import INSTALL
from mri_ds.data.dicom.files import Source
from mri_ds.data.nifti import read_image
from mri_ds.errors import InputError

if TYPE_CHECKING:
    from mri_ds.sample import Volume

TIMEOUT_S = 600
MAX_OUTPUT_BYTES = 2**32
MAX_MEMORY_BYTES = 2**34


def convert(sources: Sequence[Source], why: str, where: Path) -> Volume:
    """One volume, voxels (C, D, H, W) float32. Raises InputError when dcm2niix is absent, fails, or makes none or several."""
    program = _program(why, where)
    with tempfile.TemporaryDirectory(prefix="mri_ds_dicom_") as folder:  # readable by this user alone
        inside, outside = Path(folder, "in"), Path(folder, "out")
        inside.mkdir()
        outside.mkdir()
        for number, source in enumerate(sources):
            with source.open() as read, (inside / f"{number:06d}.dcm").open("wb") as written:
                shutil.copyfileobj(read, written)
        _run([program, "-b", "n", "-z", "n", "-x", "i", "-f", "volume", "-o", str(outside), str(inside)], why, where)
        volumes = sorted(outside.glob("*.nii"))
        if len(volumes) != 1:
            what = f"is {why}, of which dcm2niix makes {len(volumes)} volumes"
            raise InputError(what, where=where, fix="convert it yourself and give the .nii.gz that you want")
        try:
            return read_image(volumes[0])
        except InputError as err:
            reason = str(err).removeprefix(f"{volumes[0]}: ")  # the temporary file is gone by the time anyone reads this
            raise InputError(f"is {why}, as dcm2niix converts it: {reason}", where=where) from None


def _program(why: str, where: Path) -> str:
    try:
        import dcm2niix
    except ImportError:
        raise InputError(f"is {why}, which needs dcm2niix", where=where, fix=INSTALL) from None
    return str(dcm2niix.bin)


def _run(command: list[str], why: str, where: Path) -> None:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _limit(process.pid)
        try:
            process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise InputError(f"is {why}, and dcm2niix takes too long", where=where, fix="convert it yourself") from None
        finally:
            process.kill()


def _limit(pid: int) -> None:
    """Bounds on memory and on the size of a file, and no core file, which would hold the patient's image. Linux only."""
    try:
        from resource import prlimit
    except ImportError:
        return
    import resource

    for limit, value in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, MAX_OUTPUT_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # it has ended, or may not be limited here
            prlimit(pid, limit, (value, value))
