"""Values for config fields that are left to the data.

In: the manifest of the shards.  Out: plain values in mm and voxels.
"""

import math
from collections.abc import Sequence
from typing import Any

from mri_ds.data.manifest import Manifest
from mri_ds.data.preprocess.grid import grid_shape

PATCH_MULTIPLE, MAX_PATCH = 8, 96
MAX_TOKENS = 2048  # of a patch at the fine token stride


def propose(
    manifest: Manifest, *, spacing_mm: Sequence[float] | None = None, patch: Sequence[int] | None = None
) -> dict[str, Any]:
    """Values for config fields that are "auto": {"spacing_mm", "patch", "token_stride"}; what is given is kept and built on.

    spacing_mm: the median of the training subjects. patch: their median volume on that grid, each axis rounded up to a
    multiple of 8, at most 96. token_stride: 4 voxels where that makes at most 2,048 tokens of a patch, else 8.
    """
    native = manifest.fingerprint
    spacing = tuple(float(s) for s in spacing_mm or native.median_spacing_mm)
    if patch is None:
        shape = grid_shape(native.median_shape, native.median_spacing_mm, spacing)
        patch = [min(MAX_PATCH, math.ceil(n / PATCH_MULTIPLE) * PATCH_MULTIPLE) for n in shape]
    num_tokens = math.prod(math.ceil(n / 4) for n in patch)
    stride = 4 if num_tokens <= MAX_TOKENS else 8
    return {"spacing_mm": spacing, "patch": tuple(patch), "token_stride": (stride, stride, stride)}
