"""Small canonical subjects with any affine, and oblique affines for them."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mri_ds.sample import Sample


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("MRI_DS_REAL_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real MRI in {folder}: set MRI_DS_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def oblique() -> Callable[..., np.ndarray]:
    """oblique(spacing, degrees) -> an affine turned about x and z, away from the origin."""

    def make(spacing=(1.0, 2.0, 3.0), degrees=(7.0, 12.0)) -> np.ndarray:
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xz", degrees, degrees=True).as_matrix() @ np.diag(spacing)
        affine[:3, 3] = (-30, 12, 7)
        return affine

    return make


@pytest.fixture(scope="session")
def subject() -> Callable[..., Sample]:
    """subject(shape=..., affine=..., channels=..., image=..., targets=...) -> noise with a label map, a class and a value."""

    def make(shape=(6, 7, 8), affine=None, channels=1, seed=0, image=None, targets=None) -> Sample:
        rng = np.random.default_rng(seed)
        affine = np.eye(4) if affine is None else affine
        noise = rng.normal(size=(channels, *shape)).astype(np.float32)
        labels = {"tissue": rng.integers(0, 4, size=shape).astype(np.int16), "lesion": 1, "age": 40.5}
        return Sample(
            subject_id="s1",
            image=noise if image is None else image,
            affine=affine,
            spacing_mm=np.linalg.norm(affine[:3, :3], axis=0),
            targets=labels if targets is None else targets,
        )

    return make
