"""How a NIfTI header says where its voxels lie, word for word, so that a prediction says it the same way.

In: the header of an input file.  Out: the same s-form, q-form, codes, voxel sizes, units and NIfTI version over other voxels.
A header has two forms, which may disagree and may be in metres. An affine alone would keep the one that counts for us; programs
that believe the other would then lay the prediction beside its image. Numbers only: free text, which can name a patient, stays.
Source: nifti1.h (2003), "3D image (volume) orientation and location in space".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

FIELDS = (
    *("sform_code", "srow_x", "srow_y", "srow_z"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("pixdim", "xyzt_units"),
)

MM = {"meter": 1000.0, "micron": 1e-3}  # as nibabel names xyzt_units; mm or unknown is 1
TOLERANCE_MM = 1e-3


@dataclass(frozen=True)
class Geometry:
    """The geometric fields of a header, by their names in nifti1.h; pixdim with its first four numbers, as of a 3-D volume."""

    version: int  # of NIfTI, 1 or 2
    fields: dict[str, Any]

    def image(self, voxels: np.ndarray) -> nib.Nifti1Image:
        """Voxels (D, H, W), in the file's axis order, under this header."""
        kind = nib.Nifti2Image if self.version == 2 else nib.Nifti1Image
        header = kind.header_class()
        header.set_data_dtype(voxels.dtype)
        header.set_data_shape(voxels.shape)
        for name, value in self.fields.items():
            if name == "pixdim":
                header[name][:4] = value
            else:
                header[name] = value
        return kind(voxels, header.get_best_affine(), header)


def read_geometry(path: str | Path, affine: np.ndarray) -> Geometry | None:
    """The geometry of a NIfTI file whose voxels were found to lie at `affine` (4, 4), mm.

    None for another kind of file (a DICOM folder), and for a header that nibabel mends in a way that puts its voxels elsewhere.
    """
    try:
        image = nib.load(path, mmap=False)
    except Exception:  # on what it does not know nibabel raises a dozen kinds
        return None
    if not isinstance(image, nib.Nifti1Pair):  # NIfTI-1 and -2, one file or two, are all subclasses
        return None
    header = image.header
    corners = np.array(np.meshgrid(*([0, n - 1] for n in image.shape[:3]), [1], indexing="ij"), dtype=float).reshape(4, -1)
    unit_mm = MM.get(header.get_xyzt_units()[0], 1.0)
    found = np.diag([unit_mm, unit_mm, unit_mm, 1]) @ header.get_best_affine()
    if not np.abs((found - affine) @ corners).max() < TOLERANCE_MM:
        return None
    fields = {name: np.array(header[name][:4] if name == "pixdim" else header[name]) for name in FIELDS}
    return Geometry(version=2 if isinstance(header, nib.Nifti2Header) else 1, fields=fields)
