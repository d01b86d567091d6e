"""`mri-ds shard` on a dataset with one bad file: exit code 2 and one line that names the file, and nothing is written."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import call, refusal

from mri_ds.data.nifti import write_image, write_label

SUBJECTS = [f"sub-0{i}" for i in range(1, 6)]
SHAPE = (6, 7, 8)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
DESCRIPTION = """\
channels: [T1w, T2w]
tasks:
  tissue: {kind: segmentation, classes: [background, grey, white]}
  lesion: {kind: classification, classes: [none, few, many]}
  age: {kind: regression, unit: years}
"""
IMAGE, LABEL = "images/sub-03_T2w.nii.gz", "labels/sub-03_tissue.nii.gz"
TABLE, YAML = "participants.tsv", "dataset.yaml"

Damage = Callable[[Path], object]  # does its worst to one file


def shard(source: Path, out: Path) -> list[str | Path]:
    return ["shard", source, "--out", out, "--folds", "2"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five subjects of two channels and three tasks."""
    folder, rng = tmp_path_factory.mktemp("good"), np.random.default_rng(0)
    rows = ["participant_id\tlesion\tage"]
    for i, subject in enumerate(SUBJECTS):
        for channel in ("T1w", "T2w"):
            write_image(folder / "images" / f"{subject}_{channel}.nii.gz", random_image(rng), AFFINE)
        write_label(folder / "labels" / f"{subject}_tissue.nii.gz", rng.integers(0, 3, size=SHAPE), AFFINE)
        rows.append(f"{subject}\t{['none', 'few', 'many'][i % 3]}\t{20 + i}")
    (folder / TABLE).write_text("\n".join(rows) + "\n")
    (folder / YAML).write_text(DESCRIPTION)
    return folder


@pytest.fixture
def source(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "source"))


def random_image(rng: np.random.Generator, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return rng.normal(100, 20, size=shape).astype(np.float32)


# ---- kinds of damage ---------------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def truncate_at_the_checksum(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def text(path: Path) -> None:
    path.write_bytes(gzip.compress(b"404 not found\n" * 100))


def voxels(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(path: Path) -> None:
        nib.save(nib.Nifti1Image(change(np.asarray(nib.load(path).dataobj)), AFFINE), path)

    return damage


def affine(matrix: np.ndarray) -> Damage:
    return lambda path: nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), matrix), path)


FLAT = np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # two axes run one way


def replaced(old: str, new: str) -> Damage:
    def damage(path: Path) -> None:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return damage


def one_nan(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[1, 2, 3] = np.nan
    return image


def rgb(image: np.ndarray) -> np.ndarray:
    return np.zeros(image.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


def unknown_class(label: np.ndarray) -> np.ndarray:
    return np.where(label == 2, 7, label).astype(np.uint8)


SHIFTED = np.array([[1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        pytest.param("images", shutil.rmtree, "no known layout", id="no images"),
        pytest.param(IMAGE, remove, "sub-03_T2w.nii.gz is missing", id="missing channel"),
        pytest.param(IMAGE, empty, "file is empty", id="empty image"),
        pytest.param(IMAGE, truncate, "cannot be read", id="truncated image"),
        pytest.param(IMAGE, truncate_at_the_checksum, "voxels cannot be read", id="image without its last byte"),
        pytest.param(IMAGE, text, "cannot be read as NIfTI", id="an error page named .nii.gz"),
        pytest.param(IMAGE, voxels(one_nan), "1 of 336 voxels are NaN or infinite", id="NaN image"),
        pytest.param(IMAGE, voxels(np.zeros_like), "image is constant (every voxel 0)", id="constant image"),
        pytest.param(IMAGE, voxels(lambda image: image[..., 0]), "image is 2-D (shape 6 x 7", id="2-D image"),
        pytest.param(IMAGE, voxels(rgb), "voxels are RGB", id="RGB image"),
        pytest.param(IMAGE, voxels(lambda image: image[1:]), "shape 5 x 7 x 8 differs from 6 x 7 x 8", id="shape of a channel"),
        pytest.param(IMAGE, affine(SHIFTED), "affine places its corners up to 3 mm from", id="affine of a channel"),
        pytest.param(IMAGE, affine(FLAT), "affine is singular", id="singular affine"),
        pytest.param(LABEL, empty, "file is empty", id="empty label"),
        pytest.param(LABEL, truncate, "cannot be read", id="truncated label"),
        pytest.param(LABEL, voxels(unknown_class), "label value 7 is none of the 3 classes (0 to 2)", id="unknown label value"),
        pytest.param(LABEL, voxels(lambda x: x / np.float32(4)), "is not an integer", id="label that is not whole"),
        pytest.param(LABEL, voxels(lambda x: x.astype(np.int16) - 1), "label value -1 is outside", id="negative label"),
        pytest.param(LABEL, voxels(lambda label: label[:, 2:]), "shape 6 x 5 x 8 differs from 6 x 7 x 8", id="shape of a label"),
        pytest.param(LABEL, affine(SHIFTED), "affine places its corners up to 3 mm from", id="affine of a label"),
        pytest.param(TABLE, remove, "no known layout", id="no table"),
        pytest.param(TABLE, empty, "has no column participant_id", id="empty table"),
        pytest.param(TABLE, replaced("\tmany\t", "\tmeny\t"), "sub-03: lesion = 'meny' is no class", id="unknown class"),
        pytest.param(TABLE, replaced("\t22\n", "\told\n"), "sub-03: age = 'old' is not a finite number", id="no number"),
        pytest.param(TABLE, replaced("\t22\n", "\tinf\n"), "sub-03: age = 'inf' is not a finite number", id="infinite number"),
        pytest.param(TABLE, replaced("sub-04", "sub-03"), "'sub-03' stands in two rows", id="doubled participant"),
        pytest.param(YAML, replaced("classes: [none", "clases: [none"), "unknown key 'tasks.lesion.clases'", id="misspelt key"),
        pytest.param(YAML, replaced("age:", "agee:"), "task 'agee' is no column", id="unknown task"),
        pytest.param(YAML, replaced("tissue:", "vessel:"), "task 'vessel' has no label map", id="no label map of a task"),
    ],
)
def test_a_bad_file_is_one_line(source: Path, tmp_path: Path, file: str, damage: Damage, words: str) -> None:
    damage(source / file)
    line = refusal(*shard(source, tmp_path / "out"), "--strict")
    assert words in line and " Fix: " in line
    named = source if "no known layout" in words else source / file
    assert str(named) in line or (str(named.parent) in line and named.name in line)
    assert {path.name for path in tmp_path.glob("out/*")} <= {".writing"}, "shards of half a dataset"


@pytest.mark.parametrize("damage", [empty, truncate, voxels(one_nan)])
def test_a_bad_subject_can_be_skipped(source: Path, tmp_path: Path, damage: Damage) -> None:
    damage(source / IMAGE)
    result = call(*shard(source, tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    manifest = json.loads(result.stdout)
    (skipped,) = manifest["skipped"]
    assert skipped.startswith("sub-03: ") and str(source) not in skipped
    assert sum(split["num_samples"] for split in manifest["splits"].values()) == len(SUBJECTS) - 1


def test_the_undamaged_dataset_is_fine(source: Path, tmp_path: Path) -> None:
    result = call(*shard(source, tmp_path / "out"))
    assert result.exit_code == 0, result.output


# ---- Medical Segmentation Decathlon ------------------------------------------------------------------------------------


@pytest.fixture
def msd(source: Path) -> Path:
    """The same subjects, listed by a dataset.json."""
    pairs = [{"image": f"./images/{s}_T1w.nii.gz", "label": f"./labels/{s}_tissue.nii.gz"} for s in SUBJECTS]
    labels = {"0": "background", "1": "grey", "2": "white"}
    (source / "dataset.json").write_text(json.dumps({"name": "Tissue", "labels": labels, "training": pairs}))
    return source


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        pytest.param("images/sub-03_T1w.nii.gz", remove, "image './images/sub-03_T1w.nii.gz' is missing", id="missing image"),
        pytest.param(LABEL, remove, "label './labels/sub-03_tissue.nii.gz' is missing", id="missing label"),
        pytest.param(LABEL, voxels(unknown_class), "label value 7 is none of the 3 classes", id="unknown label value"),
        pytest.param("dataset.json", empty, "is not JSON", id="empty dataset.json"),
        pytest.param("dataset.json", replaced('"./images/sub-03', '"../images/sub-03'), "lies outside", id="path escape"),
        pytest.param("dataset.json", replaced("sub-04", "sub-03"), "'sub-03_T1w' is listed twice", id="doubled subject"),
    ],
)
def test_a_bad_file_of_the_decathlon_is_one_line(msd: Path, tmp_path: Path, file: str, damage: Damage, words: str) -> None:
    damage(msd / file)
    line = refusal(*shard(msd, tmp_path / "out"), "--strict")
    assert words in line and " Fix: " in line and Path(file).name in line and str(msd) in line
    assert {path.name for path in tmp_path.glob("out/*")} <= {".writing"}, "shards of half a dataset"
