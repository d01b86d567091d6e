"""DICOM in (extra `dicom`): a file, a folder, a zip or a whole study -> the volume that `nifti.read_image` would give."""

from mri_ds.data.dicom.read import list_series, read_dicom

__all__ = ["list_series", "read_dicom"]
