"""Maps that lie beside a run as NIfTI, as `mri-ds explain` writes expert maps: each as a picture of its three middle planes.

In: a folder.  Out: [(name, WebP as base64)]. A map of whole numbers (which expert each voxel's token visited) gets a colour per
number, any other a scale from its least to its largest value. A 4-D map gives a picture of its first volume.
"""

import base64
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mri_ds.data.nifti import read_image
from mri_ds.data.preprocess import to_canonical
from mri_ds.errors import InputError
from mri_ds.inference.picture import BACKGROUND, INK, PLANES, page_slice
from mri_ds.sample import Sample

FOLDER = "explain"
MOST = 24


def find_maps(folder: Path) -> list[Path]:
    """The first MOST maps of a folder and those below it, those of experts first."""
    found = sorted(folder.rglob("*.nii.gz")) + sorted(folder.rglob("*.nii"))
    return sorted(found, key=lambda path: "expert" not in path.name)[:MOST]


def draw_maps(folder: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Pictures, and a line for each map that cannot be read."""
    drawn, notes = [], []
    for path in find_maps(folder):
        try:
            drawn.append((path.name.removesuffix(".gz").removesuffix(".nii"), _draw(path)))
        except InputError as err:
            notes.append(f"Map left out: {err}")
    return drawn, notes


def _draw(path: Path) -> str:
    volume = read_image(path)
    own = Sample(subject_id="", image=volume.voxels, affine=volume.affine, spacing_mm=volume.spacing_mm, targets={})
    upright = to_canonical(own)
    voxels, sides = upright["image"][0], upright["spacing_mm"]
    is_whole = bool((voxels == np.round(voxels)).all() and voxels.min() >= 0 and voxels.max() < 256)
    figure = Figure(figsize=(6, 2.3), facecolor=BACKGROUND)
    for number, plane in enumerate(PLANES):
        axes = figure.add_subplot(1, 3, number + 1)
        shown = page_slice(voxels, plane, voxels.shape[plane.axis] // 2)
        extent = (0, shown.shape[1] * sides[plane.across], 0, shown.shape[0] * sides[plane.up])
        colours = {"cmap": "tab20", "vmin": 0, "vmax": max(float(voxels.max()), 1)} if is_whole else {"cmap": "magma"}
        axes.imshow(shown, origin="lower", extent=extent, interpolation="nearest", **colours)
        axes.set_title(plane.name, color=INK, fontsize=8)
        axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=110, facecolor=BACKGROUND, bbox_inches="tight")
    return base64.b64encode(buffer.getvalue()).decode()
