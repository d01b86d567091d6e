"""Label maps as a cohort on disk: read as a dataset, the same bytes for the same seed, refused in one line."""

import numpy as np
import pytest
from synthesis_maps import nested_ellipsoids, write_map

from mri_ds.config import SynthesisConfig
from mri_ds.data.layouts import find_dataset, load_subject
from mri_ds.data.synthesis.from_labels import apply, sample_params
from mri_ds.data.synthesis.label_cohort import STORED_PER_UNIT, synthesize_from_labels
from mri_ds.data.synthesis.label_map import LabelMaps
from mri_ds.errors import InputError


@pytest.fixture(scope="module")
def label_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label_maps")
    for name in ("one", "two"):
        write_map(folder / f"{name}.nii.gz", nested_ellipsoids())
    return folder


@pytest.fixture(scope="module")
def cohort(label_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("cohort") / "out"
    steps: list[tuple[int, int]] = []
    synthesize_from_labels(label_folder, out, num_subjects=3, seed=4, num_workers=1, progress=lambda *s: steps.append(s))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    return out


def test_is_read_as_a_dataset(cohort, label_folder):
    dataset = find_dataset(cohort)
    assert dataset.channels == ["synthetic"] and dataset.problems == []
    assert dataset.tasks["structure"].classes == LabelMaps(label_folder).table.classes
    assert [subject.subject_id for subject in dataset.subjects] == ["sub-001", "sub-002", "sub-003"]
    rows = [line.split("\t") for line in (cohort / "participants.tsv").read_text().splitlines()]
    assert rows == [["participant_id", "label_map"], ["sub-001", "one"], ["sub-002", "two"], ["sub-003", "one"]]


def test_files_hold_what_the_seed_draws(cohort, label_folder):
    dataset, maps = find_dataset(cohort), LabelMaps(label_folder)
    for number, files in enumerate(dataset.subjects):
        sample, label_map = load_subject(files, dataset.tasks), maps[number % 2]
        params = sample_params(
            np.random.default_rng([4, number]),
            label_map,
            shape=tuple(np.ceil(label_map.size_mm).astype(int)),
            spacing_mm=(1.0, 1.0, 1.0),
            num_channels=1,
            centre_mm=label_map.size_mm / 2,
            strengths=SynthesisConfig(),
            may_flip=True,
        )
        image, labels = apply(label_map, params)
        np.testing.assert_array_equal(sample["image"], np.rint(image.numpy() * STORED_PER_UNIT))
        np.testing.assert_array_equal(sample["targets"]["structure"], labels.numpy())
        assert sample["affine"][:3, :3].tolist() == np.eye(3).tolist()


def test_same_bytes_whatever_the_processes_and_the_number(cohort, label_folder, tmp_path):
    synthesize_from_labels(label_folder, tmp_path / "out", num_subjects=2, seed=4, num_workers=2)
    files = sorted((tmp_path / "out").glob("*/*.nii.gz"))
    assert len(files) == 4
    for path in files:
        assert path.read_bytes() == (cohort / path.relative_to(tmp_path / "out")).read_bytes()


def test_size_and_spacing(label_folder, tmp_path):
    synthesize_from_labels(label_folder, tmp_path, num_subjects=1, seed=0, size=20, spacing_mm=1.5, num_workers=1)
    dataset = find_dataset(tmp_path)
    sample = load_subject(dataset.subjects[0], dataset.tasks)
    assert sample["image"].shape == (1, 20, 20, 20) and sample["spacing_mm"].tolist() == [1.5] * 3
    corners = sample["affine"] @ np.array([[0, 0, 0, 1], [19, 19, 19, 1]]).T
    np.testing.assert_allclose(corners[:3, 0], -corners[:3, 1])  # the middle is the origin


def test_what_cannot_be(label_folder, tmp_path):
    for wrong in ({"num_subjects": 0}, {"seed": -1}, {"size": 8}):
        with pytest.raises(InputError, match="choose at least"):
            synthesize_from_labels(label_folder, tmp_path, **{"num_subjects": 1, "seed": 0, **wrong})
    with pytest.raises(InputError, match="16 to 512"):
        synthesize_from_labels(label_folder, tmp_path, num_subjects=1, seed=0, spacing_mm=5)
    with pytest.raises(InputError, match="spacing_mm"):
        synthesize_from_labels(label_folder, tmp_path, num_subjects=1, seed=0, spacing_mm=float("nan"))
    with pytest.raises(InputError, match="is the folder of the label maps"):
        synthesize_from_labels(label_folder, label_folder, num_subjects=1, seed=0)
    assert not list(tmp_path.iterdir())
