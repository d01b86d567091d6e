"""How a NIfTI header says where its voxels lie, word for word, so that a prediction says it the same way.

In: the header of an input file.  Out: the same s-form, q-form, codes, voxel sizes, units and NIfTI version over other voxels.
A header has two forms, which may disagree and may be in metres. An affine alone would keep the one that counts for us; programs
that believe the other would then lay the prediction beside its image. Numbers only: no free text (which can name a patient) is kept.
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


def read_geometry(path: str | Path) -> Geometry | None:
    """The geometry of a NIfTI file that was read without complaint; None for another kind of file (a DICOM folder)."""
    try:
        image = nib.load(path, mmap=False)
    except (OSError, nib.filebasedimages.ImageFileError):
        return None
    if not isinstance(image, nib.Nifti1Pair):  # NIfTI-1 and -2, one file or two, are all subclasses
        return None
    header = image.header
    fields = {name: np.array(header[name][:4] if name == "pixdim" else header[name]) for name in FIELDS}
    return Geometry(version=2 if isinstance(header, nib.Nifti2Header) else 1, fields=fields)
