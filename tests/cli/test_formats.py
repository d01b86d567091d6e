"""`mri-ds shard` on every layout: what it says it recognised, what --format decides, and bad input as one line, exit code 2."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import call, refusal

from mri_ds.data.nifti import write_image, write_label

SHAPE = (6, 7, 8)
NAMES = ("a", "b", "c", "d")


def image(path: Path) -> None:
    write_image(path, np.random.default_rng(len(str(path))).normal(100, 20, SHAPE).astype(np.float32), np.eye(4))


def label(path: Path) -> None:
    write_label(path, np.arange(np.prod(SHAPE)).reshape(SHAPE) % 2, np.eye(4))


def make_msd(src: Path) -> Path:
    pairs = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in NAMES]
    return _decathlon(src, "", labels={"0": "background", "1": "lesion"}, modality={"0": "T1w"}, training=pairs)


def make_nnunet(src: Path) -> Path:
    return _decathlon(src, "_0000", labels={"background": 0, "lesion": 1}, channel_names={"0": "T1w"}, file_ending=".nii.gz")


def _decathlon(src: Path, channel: str, **content: object) -> Path:
    for name in NAMES:
        image(src / "imagesTr" / f"{name}{channel}.nii.gz")
        label(src / "labelsTr" / f"{name}.nii.gz")
    image(src / "imagesTr" / f"unlabelled{channel}.nii.gz")
    label(src / "labelsTr" / "widow.nii.gz")
    (src / "dataset.json").write_text(json.dumps(content | {"name": "lesion"}))
    return src


def make_bids(src: Path) -> Path:
    for name in NAMES:
        image(src / f"sub-{name}" / "ses-1" / "anat" / f"sub-{name}_ses-1_T1w.nii.gz")
        label(src / "derivatives" / "m" / f"sub-{name}" / "ses-1" / "anat" / f"sub-{name}_ses-1_label-lesion_mask.nii.gz")
    image(src / "sub-a" / "ses-1" / "anat" / "sub-a_ses-1_FLAIR.nii.gz")
    label(src / "derivatives" / "m" / "sub-x" / "ses-1" / "anat" / "sub-x_ses-1_label-lesion_mask.nii.gz")
    return src


def make_folder(src: Path) -> Path:
    for name in NAMES:
        image(src / "images" / f"{name}_T1w.nii.gz")
        label(src / "labels" / f"{name}_lesion.nii.gz")
    image(src / "images" / "orphan_T1w.nii.gz")
    label(src / "labels" / "orphan_lesion.nii.gz")
    (src / "participants.tsv").write_text("participant_id\n" + "\n".join(NAMES) + "\n")
    (src / "dataset.yaml").write_text("tasks: {lesion: {kind: segmentation, classes: [background, lesion]}}\n")
    return src


def make_csv(src: Path) -> Path:
    make_folder(src)
    lines = ["subject,image:T1w,label:lesion", *(f"{n},images/{n}_T1w.nii.gz,labels/{n}_lesion.nii.gz" for n in NAMES)]
    (src / "table.csv").write_text("\n".join(lines) + "\n")
    (src / "dataset.yaml").rename(src / "table.yaml")
    return src / "table.csv"


LAYOUTS = {"msd": make_msd, "nnunet": make_nnunet, "bids": make_bids, "folder": make_folder, "csv": make_csv}
TITLES = {"msd": "MSD", "nnunet": "nnU-Net", "bids": "BIDS", "folder": "folder", "csv": "CSV"}


@pytest.mark.parametrize(("name", "make"), LAYOUTS.items(), ids=LAYOUTS)
class TestEveryLayout:
    def test_is_recognised_and_lists_orphans(self, tmp_path: Path, name: str, make: Callable[[Path], Path]) -> None:
        source = make(tmp_path / "data")
        result = call("shard", source, "--out", tmp_path / "auto", "--folds", "2", "--json")
        assert result.exit_code == 0, result.output
        said, *others = result.stderr.splitlines()
        assert said == f"recognised {TITLES[name]} layout: 4 subjects; channels T1w; tasks lesion (segmentation)"
        assert len([line for line in others if line.startswith("not used: ")]) == 2
        manifest = json.loads(result.stdout)
        assert manifest["layout"] == TITLES[name] and sum(s["num_samples"] for s in manifest["splits"].values()) == 4

    def test_format_names_it(self, tmp_path: Path, name: str, make: Callable[[Path], Path]) -> None:
        source = make(tmp_path / "data")
        result = call("shard", source, "--out", tmp_path / "a", "--folds", "2", "--format", name)
        assert result.exit_code == 0, result.output
        assert f"read as {TITLES[name]} layout" in result.stderr and result.stdout.count("not used: ") == 2
        other = "bids" if name != "bids" else "folder"
        assert f"is no dataset of format {other}. Fix: it needs " in refusal(
            "shard", source, "--format", other, "--out", tmp_path
        )

    def test_a_bad_image_is_one_line(self, tmp_path: Path, name: str, make: Callable[[Path], Path]) -> None:
        source = make(tmp_path / "data")
        (victim,) = [p for p in (tmp_path / "data").rglob("*b_*.nii.gz" if name != "msd" else "imagesTr/b.nii.gz") if is_image(p)]
        victim.write_bytes(victim.read_bytes()[:-3])
        line = refusal("shard", source, "--out", tmp_path / "out", "--folds", "2", "--strict")
        assert line.startswith(f"error: {victim}: voxels cannot be read") and not list(tmp_path.glob("out/*"))


def is_image(path: Path) -> bool:
    return "lesion" not in path.name and "labels" not in path.parts[-2]


def test_a_format_that_there_is_not(tmp_path: Path) -> None:
    there_are = "auto, csv, nnunet, msd, folder, bids, webdataset"
    assert refusal("shard", tmp_path, "--format", "bid") == (
        f"error: --format: no format 'bid'; there are {there_are}. Fix: did you mean 'bids'?"
    )


def test_forms_that_disagree_are_told_kept_and_shown_by_lint(tmp_path: Path) -> None:
    """Named with angle and distance, without a path, and sharded all the same."""
    source = make_msd(tmp_path / "data")
    path = source / "imagesTr" / "b.nii.gz"
    scan = nib.load(path)
    scan.set_qform(np.diag([1, -1, -1, 1]), code=1)  # turned by 180 degrees about x
    nib.save(nib.Nifti1Image(scan.get_fdata(), None, scan.header), path)
    result = call("shard", source, "--out", tmp_path / "out", "--folds", "2")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("note on ")]
    wanted = "b: its file: s-form (scanner) and q-form (scanner) are turned by 180.00 degrees and place the first voxel"
    assert line.startswith(f"note on {wanted}") and str(tmp_path) not in line
    (note,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["notes"]
    assert line == f"note on {note}"
    result = call("lint", tmp_path / "out", "--workers", "1", "--json")
    found = [finding for finding in json.loads(result.stdout)["findings"] if finding["check"] == "notes"]
    assert found == [{"severity": "warning", "check": "notes", "where": "b", "what": note.removeprefix("b: ")}]
