"""Small real data, made once per test session: subjects as NIfTI files, and their shards."""

import signal
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


# a shell that puts the tests into its background has them, and every process that they start and interrupt, ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts launches goes first: it takes minutes a file, and would else be left to one worker at the end."""
    items.sort(key=lambda item: "tests/distributed/" not in item.path.as_posix())


@pytest.fixture(scope="session")
def subjects_folder(tmp_path_factory) -> Path:
    """Ten subjects of 24 x 20 x 16 voxels in the folder layout: a bright ball per subject, whose size sets all labels.

    Tasks: ball (segmentation), size (classification), radius (regression, missing for two subjects).
    """
    from mri_ds.data.nifti import write_image, write_label

    folder = tmp_path_factory.mktemp("subjects")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(24), np.arange(20), np.arange(16), indexing="ij"), axis=-1)
    rows = ["participant_id\tsize\tradius"]
    for i in range(10):
        radius = rng.uniform(3, 7)
        ball = np.linalg.norm(grid - rng.uniform([9, 8, 6], [14, 11, 9]), axis=-1) < radius
        image = (100 + 80 * ball + rng.normal(0, 10, ball.shape)).astype(np.float32)
        write_image(folder / "images" / f"sub-{i:02d}.nii.gz", image, np.diag([1.0, 1.0, 1.5, 1.0]))
        write_label(folder / "labels" / f"sub-{i:02d}_ball.nii.gz", ball.astype(np.int16), np.diag([1.0, 1.0, 1.5, 1.0]))
        rows.append(f"sub-{i:02d}\t{'large' if radius > 5 else 'small'}\t{'n/a' if i in (3, 7) else f'{radius:.3f}'}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    (folder / "dataset.yaml").write_text(
        "channels: [T1w]\n"
        "tasks:\n"
        "  ball: {kind: segmentation, classes: [background, ball]}\n"
        "  size: {kind: classification, classes: [small, large]}\n"
        "  radius: {kind: regression, unit: mm}\n"
    )
    return folder


@pytest.fixture(scope="session")
def shards(subjects_folder, tmp_path_factory) -> Path:
    """The shards of `subjects_folder`: eight subjects to train on, two held out."""
    from mri_ds.data.layouts import find_dataset
    from mri_ds.data.shards import write_shards

    out = tmp_path_factory.mktemp("shards")
    write_shards(find_dataset(subjects_folder), out)
    return out
