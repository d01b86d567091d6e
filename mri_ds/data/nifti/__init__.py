"""NIfTI files in and out: the only reader and writer of voxels on disk in this format.

In: `.nii`, `.nii.gz`, or a pair `.hdr` + `.img` (either may be gzipped), NIfTI-1 or -2, either byte order.
Out: Volume, voxels (C, D, H, W) float32 for an image, (D, H, W) int16 for a label.
Axes: D H W are the file's own i, j, k, never transposed. What a file holds along its 4th axis (channels, echoes, time points)
becomes C, as does the 5th of a file whose 4th is 1 (a vector per voxel).
Nothing but voxels and affine is carried: a header's free text (descrip, db_name, aux_file, intent_name, extensions) can name
a patient, and is not even read.

`files.py` names, `stream.py` bytes, `header.py` the header, `affine.py` where voxels lie, `read.py` and `write.py` the verbs.
Source: NIfTI-1 standard (nifti1.h, 2003) and NIfTI-2 (nifti2.h, 2011).
"""

from mri_ds.data.nifti.affine import corner_distance_mm
from mri_ds.data.nifti.files import stem
from mri_ds.data.nifti.header import MAX_VOXELS
from mri_ds.data.nifti.read import read_image, read_label
from mri_ds.data.nifti.write import write_channels, write_image, write_label, write_map

__all__ = [
    "MAX_VOXELS",
    "corner_distance_mm",
    "read_image",
    "read_label",
    "stem",
    "write_channels",
    "write_image",
    "write_label",
    "write_map",
]
