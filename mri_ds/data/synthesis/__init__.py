"""Synthetic subjects with known anatomy, from nothing or from label maps: data to try on and to train with."""

from mri_ds.data.synthesis.dataset import Subject, synthesize_dataset, synthesize_subject

__all__ = ["Subject", "synthesize_dataset", "synthesize_subject"]
