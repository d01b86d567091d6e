"""Synthetic subjects with known anatomy: data to try everything on, without a patient."""

from mri_ds.data.synthesis.dataset import Subject, synthesize_dataset, synthesize_subject

__all__ = ["Subject", "synthesize_dataset", "synthesize_subject"]
