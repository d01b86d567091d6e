"""mri_ds: one network, many MRI tasks, from a laptop to a cluster, on DeepSpeed."""

__version__ = "0.1.0"
