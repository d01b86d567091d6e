"""What a scanner makes of a head: T1- and T2-like images with its own contrast, shading, noise and slices.

Axes: C channel (T1w, T2w), (n, n, n) isotropic voxels towards right, anterior, superior.
In: tissue ids (n, n, n), a Scanner, a generator.  Out: images (C, n, n, n) float32, about 0 to 1,000.
Source: Rician noise, Gudbjartsson and Patz 1995.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from mri_ds.data.synthesis.fields import smooth_field

CHANNELS = ["T1w", "T2w"]
NUM_SCANNERS = 4
# air, csf, grey, white, ventricles, deep grey, lesion, bone, fat, muscle, eye: signal at gamma 1, brightest about 1
SIGNAL = np.array(
    [
        [0.00, 0.22, 0.55, 0.85, 0.20, 0.66, 0.62, 0.10, 0.95, 0.42, 0.25],
        [0.00, 0.95, 0.58, 0.40, 0.97, 0.50, 0.90, 0.07, 0.70, 0.30, 0.92],
    ]
)


@dataclass(frozen=True)
class Scanner:
    """A site's habits: contrast curve and gain per channel, strength of shading, noise."""

    gamma: np.ndarray  # (C,)
    gain: np.ndarray  # (C,)
    shading: float  # standard deviation of the log gain over the field of view
    noise: float  # of the complex signal, relative to the brightest tissue
    blur_voxels: float  # point spread, which mixes tissues at their borders


def scanner(number: int) -> Scanner:
    """Scanner 0 to NUM_SCANNERS - 1, the same in every data set."""
    rng = np.random.default_rng([0x5CA, number])
    return Scanner(
        gamma=rng.uniform(0.8, 1.25, size=len(CHANNELS)),
        gain=rng.uniform(400, 1000, size=len(CHANNELS)),
        shading=float(rng.uniform(0.08, 0.2)),
        noise=float(rng.uniform(0.015, 0.04)),
        blur_voxels=float(rng.uniform(0.3, 0.5)),
    )


def scan(tissue: np.ndarray, machine: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Images of one head: per-person tissue signal, point spread, shading, Rician noise."""
    images = []
    for signal, gamma, gain in zip(SIGNAL, machine.gamma, machine.gain, strict=True):
        own = np.clip(signal * rng.normal(1, 0.03, size=signal.shape), 0, None) ** gamma
        clean = gaussian_filter(own.astype(np.float32)[tissue], machine.blur_voxels)
        clean *= np.exp(machine.shading * smooth_field(rng, len(tissue), 70))
        real, imaginary = np.float32(machine.noise) * rng.standard_normal((2, *tissue.shape), dtype=np.float32)
        images.append(gain * np.hypot(clean + real, imaginary))
    return np.stack(images).astype(np.float32)
