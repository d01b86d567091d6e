"""Small subjects for the tests of the data path: in memory, and as a folder of shards. `servers` is imported by bare name."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from mri_ds.config import TaskConfig
from mri_ds.data.manifest import FORMAT_VERSION, MANIFEST, Fingerprint, Manifest, Split, Summary, write_manifest
from mri_ds.data.members import encode_sample, key_of
from mri_ds.data.packing import EncodedSubject, ShardWriter
from mri_ds.sample import Sample

sys.path.insert(0, str(Path(__file__).parent))

TASKS = {
    "tissue": TaskConfig(kind="segmentation", classes=["background", "grey", "white"]),
    "lesion": TaskConfig(kind="classification", classes=["none", "few", "many"]),
    "age": TaskConfig(kind="regression", unit="years"),
}


@pytest.fixture
def tasks() -> dict[str, TaskConfig]:
    return TASKS


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    """make_sample(i, shape=..., spacing=..., without=("age",)) -> subject number i, the same each time."""

    def make(i: int, *, shape=(8, 9, 10), spacing=(1.0, 1.0, 1.0), channels=2, without: Sequence[str] = ()) -> Sample:
        rng = np.random.default_rng(i)
        targets = {"tissue": rng.integers(0, 3, size=shape).astype(np.int16), "lesion": i % 3, "age": 20.0 + i}
        return Sample(
            subject_id=f"sub-{i:03d}",
            image=rng.normal(100, 20, size=(channels, *shape)).astype(np.float32),
            affine=np.diag([*spacing, 1.0]),
            spacing_mm=np.array(spacing, dtype=np.float64),
            targets={name: value for name, value in targets.items() if name not in without},
        )

    return make


@pytest.fixture(scope="session")
def write_into() -> Callable[..., Path]:
    """write_into(folder, samples, per_shard=3) -> the folder, whose split "train" holds these samples."""

    def write(folder: Path, samples: Sequence[Sample], *, per_shard: int = 3) -> Path:
        folder.mkdir()
        writer = ShardWriter(folder, "train")
        for i, sample in enumerate(samples):
            if i % per_shard == 0:
                writer.close()
            writer.add(EncodedSubject(key_of(sample["subject_id"]), encode_sample(sample), Summary((1, 1, 1), (1, 1, 1), {}, {})))
        writer.close()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            layout="folder",
            channels=["T1w", "T2w"],
            tasks=TASKS,
            splits={"train": Split(shards=writer.names, num_samples=len(samples)), "test": Split(shards=[], num_samples=0)},
            fingerprint=Fingerprint(median_spacing_mm=(1, 1, 1), median_shape=(8, 9, 10)),
        )
        write_manifest(manifest, folder / MANIFEST)
        return folder

    return write


@pytest.fixture
def write_folder(tmp_path, write_into) -> Callable[..., Path]:
    """write_folder(samples, per_shard=3) -> a new folder of them."""
    return lambda samples, *, per_shard=3, name="shards": write_into(tmp_path / name, samples, per_shard=per_shard)
