"""The DeepSpeed JSON: read, checked, and every "auto" resolved before DeepSpeed sees it.

The JSON holds speed (precision, ZeRO, expert parallelism, recomputation, micro-batch, clipping). Science (optimiser, schedule,
global batch) comes from the YAML; a knob of one in the other is an error, so that nothing has two values.
"""

from mri_ds.training.ds_config.precision import supports_bf16
from mri_ds.training.ds_config.reading import check, read
from mri_ds.training.ds_config.resolution import for_deepspeed, resolve

__all__ = ["check", "for_deepspeed", "read", "resolve", "supports_bf16"]
