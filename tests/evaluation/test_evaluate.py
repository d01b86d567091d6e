"""Evaluation on shards of a few made-up subjects whose every figure is worked out by hand, and the guards."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from mri_ds.config import DataConfig, RunConfig, TaskConfig
from mri_ds.data.layouts import find_dataset
from mri_ds.data.shards import write_shards
from mri_ds.errors import InputError
from mri_ds.evaluation.evaluate import draw_first_case, evaluate
from mri_ds.evaluation.figures import json_ready, score_subject, summarize
from mri_ds.evaluation.table import print_result
from mri_ds.inference.run import Run
from mri_ds.inference.subject import LabelMap

SHAPE, SPACING = (16, 16, 16), (2.0, 1.0, 1.0)
NUM_VOXELS = 16**3
DIAGONAL = 16 * (4 + 1 + 1) ** 0.5
TASKS = {
    "cube": TaskConfig(kind="segmentation", classes=["background", "cube", "never"]),
    "lesion": TaskConfig(kind="classification", classes=["none", "some"]),
    "age": TaskConfig(kind="regression", unit="years"),
}

#             true cube from  seen from  lesion  age     what it is for
SUBJECTS = {
    "s0": (4, 5, "none", "62"),  # found, one voxel (2 mm) off
    "s1": (4, 4, "none", "50"),  # training
    "s2": (4, None, "none", "41"),  # missed
    "s3": (4, 4, "some", "70"),  # training
    "s4": (None, 4, "some", "55"),  # false alarm
    "s5": (4, 4, "some", "60"),  # training
    "s6": (None, None, "some", "n/a"),  # nothing there, nothing seen; and of unknown age
}
DATASET_YAML = """
channels: [T1w]
tasks:
  cube: {kind: segmentation, classes: [background, cube, never]}
  lesion: {kind: classification, classes: [none, some]}
  age: {kind: regression, unit: years}
"""


class SeesCubes(nn.Module):
    """Calls what is far brighter than the rest the cube; says `some` (0.8) and 60 years where it sees one, else 0.2 and 40."""

    def forward(self, image: torch.Tensor, spacing_mm: torch.Tensor) -> dict[str, torch.Tensor]:
        cube = image[:, 0] > 2
        seen = cube.flatten(1).any(dim=1).float()
        some = 0.2 + 0.6 * seen
        logits = torch.stack([torch.full_like(image[:, 0], 0.5), cube.float(), torch.full_like(image[:, 0], -9.0)], dim=1)
        return {"cube": logits, "lesion": torch.stack([1 - some, some], dim=1).log(), "age": 40 + 20 * seen}


def cube(start: int | None) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    if start is not None:
        mask[start : start + 4, 6:10, 6:10] = 1
    return mask


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards")
    (source / "images").mkdir()
    (source / "labels").mkdir()
    affine = np.diag([*SPACING, 1])
    checkers = 10 + np.indices(SHAPE).sum(axis=0) % 2  # no voxel is far brighter than the rest
    rows = ["participant_id\tlesion\tage"]
    for name, (truth, seen, lesion, age) in SUBJECTS.items():
        image = (checkers + 100 * cube(seen)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, affine), source / "images" / f"{name}_T1w.nii.gz")
        nib.save(nib.Nifti1Image(cube(truth), affine), source / "labels" / f"{name}_cube.nii.gz")
        rows.append(f"{name}\t{lesion}\t{age}")
    (source / "participants.tsv").write_text("\n".join(rows) + "\n")
    (source / "dataset.yaml").write_text(DATASET_YAML)
    write_shards(find_dataset(source), out, num_folds=2, fold=0, num_workers=1)
    return out


def make_run(tasks=None, channels=("T1w",)) -> Run:
    config = RunConfig(data=DataConfig(spacing_mm=SPACING, patch=(16, 16, 16)), tasks=tasks or TASKS)
    return Run(SeesCubes(), config, list(channels), torch.device("cpu"))


@pytest.fixture(scope="module")
def result(shards):
    heard = []
    result = evaluate(make_run(), shards, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    return result


def test_segmentation_counts_every_kind_of_empty_mask(result):
    figures = result["tasks"]["cube"]
    # s0: 48 of 64 voxels shared, Dice 0.75, the leading faces 2 mm apart; s2 missed; s4 false alarm; s6 not scored
    assert figures["dice"] == {"cube": pytest.approx(0.75 / 3), "never": None}
    assert figures["hd95_mm"] == {"cube": pytest.approx((2 + 2 * DIAGONAL) / 3), "never": None}
    assert figures["dice_mean"] == pytest.approx(0.25)
    assert [figures[f"num_{key}"]["cube"] for key in ("scored", "missed", "false_alarm", "empty")] == [3, 1, 1, 1]
    assert [figures[f"num_{key}"]["never"] for key in ("scored", "missed", "false_alarm", "empty")] == [0, 0, 0, 4]


def test_a_miss_and_a_false_alarm_are_not_the_same():
    task = TaskConfig(kind="segmentation", classes=["background", "cube"])
    cases = [(4, None), (4, None), (None, 4)]  # missed twice, one false alarm
    scored = [score_subject(LabelMap(cube(seen), task.classes), cube(truth), np.ones(3)) for truth, seen in cases]
    figures = summarize(task, task, scored)
    assert (figures["num_missed"]["cube"], figures["num_false_alarm"]["cube"], figures["num_scored"]["cube"]) == (2, 1, 3)
    assert figures["dice_mean"] == 0.0 and figures["hd95_mm"]["cube"] == pytest.approx(16 * 3**0.5)


def test_segmentation_beside_the_constant_predictor(result):
    constant = result["tasks"]["cube"]["constant"]
    everywhere = 2 * 64 / (64 + NUM_VOXELS)  # s0 and s2; s4 and s6 have no cube to find: 0
    assert constant["dice"]["cube"] == pytest.approx(everywhere / 2)
    assert constant["dice"]["never"] == 0 and constant["dice_mean"] == pytest.approx(everywhere / 4)


def test_classification(result):
    figures = result["tasks"]["lesion"]
    # none: s0 called some, s2 right; some: s4 right, s6 called none
    assert figures["confusion"] == [[1, 1], [1, 1]] and figures["classes"] == ["none", "some"]
    assert figures["balanced_accuracy"] == 0.5 and figures["auc"] == 0.5
    constant = {key: figures["constant"][key] for key in ("balanced_accuracy", "auc")}
    assert constant == {"balanced_accuracy": 0.5, "auc": 0.5} and figures["num_scored"] == 4


def test_regression_leaves_out_the_unlabelled_and_compares_with_the_training_mean(result):
    figures = result["tasks"]["age"]
    assert figures["num_scored"] == 3 and figures["unit"] == "years"
    assert figures["mae"] == pytest.approx((2 + 1 + 5) / 3)  # 60, 40, 60 for 62, 41, 55
    assert figures["rmse"] == pytest.approx((30 / 3) ** 0.5)
    assert figures["r"] == pytest.approx(np.corrcoef([62, 41, 55], [60, 40, 60])[0, 1])
    assert figures["mae_constant"] == figures["constant"]["mae"] == pytest.approx((2 + 19 + 5) / 3)  # mean of 50, 70, 60


def test_every_subject_is_reported(result):
    subjects = {subject["subject_id"]: subject for subject in result["subjects"]}
    assert list(subjects) == ["s0", "s2", "s4", "s6"] and result["num_subjects"] == 4
    assert subjects["s0"]["cube"]["dice"]["cube"] == pytest.approx(0.75)
    assert subjects["s0"]["cube"]["hd95_mm"]["cube"] == pytest.approx(2.0)
    assert subjects["s0"]["cube"]["truth_ml"]["cube"] == pytest.approx(64 * 2 / 1000)
    assert subjects["s4"]["lesion"] == {
        "truth": "some",
        "prediction": "some",
        "probabilities": pytest.approx({"none": 0.2, "some": 0.8}),
    }
    assert subjects["s2"]["age"] == {"truth": 41.0, "prediction": pytest.approx(40.0)} and "age" not in subjects["s6"]
    json.dumps(result, allow_nan=False)


def test_a_subset_of_the_tasks_may_be_evaluated(shards):
    result = evaluate(make_run({"age": TASKS["age"]}), shards, split="train")
    assert list(result["tasks"]) == ["age"] and result["num_subjects"] == 3
    assert result["tasks"]["age"]["mae"] == pytest.approx(20 / 3)  # 60 for 50, 70 and 60
    assert result["tasks"]["age"]["r"] is None  # all predictions are the same


def test_no_subject_with_a_label_gives_none_and_no_crash():
    for task in TASKS.values():
        figures = json_ready(summarize(task, task, []))
        json.dumps(figures, allow_nan=False)
        assert [figures.get(key) for key in ("dice_mean", "balanced_accuracy", "auc", "mae", "r")] == [None] * 5


def test_shards_of_another_study_are_refused(shards):
    other = {**TASKS, "volume": TaskConfig(kind="regression")}
    with pytest.raises(InputError, match=r"no task volume here \(found: .*cube.*\)"):
        evaluate(make_run(other), shards)
    renamed = {"lesion": TaskConfig(kind="classification", classes=["no", "yes"])}
    with pytest.raises(InputError, match="lesion is classification"):
        evaluate(make_run(renamed), shards)
    with pytest.raises(InputError, match="channels T1w, and the run was trained on T2w"):
        evaluate(make_run(channels=("T2w",)), shards)
    with pytest.raises(InputError, match="split"):
        evaluate(make_run(), shards, split="validation")


def test_first_case_is_drawn(shards, tmp_path):
    path = draw_first_case(make_run(), shards, "test", tmp_path / "case.png")
    assert path == tmp_path / "case.png" and path.read_bytes().startswith(b"\x89PNG")
    assert draw_first_case(make_run({"age": TASKS["age"]}), shards, "test", tmp_path / "none.png") is None
    assert [file.name for file in tmp_path.iterdir()] == ["case.png"]


def test_table_shows_every_figure_and_a_dash_for_none(result):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_result(result, console)
    text = console.export_text()
    for shown in ("cube", "0.250", "never", "none", "balanced accuracy", "0.500", "years", "2.667", "8.667", "4 subjects"):
        assert shown in text
    never = next(line for line in text.splitlines() if "never" in line)
    assert never.count(" - ") == 2  # neither Dice nor HD95 is defined
