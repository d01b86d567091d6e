"""What evaluate adds to the means: intervals, groups of subjects, several readers, and the files that hold them all."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats
from sklearn import metrics as sk
from torch import nn

from mri_ds.config import DataConfig, LossConfig, RunConfig, TaskConfig
from mri_ds.data.layouts import find_dataset
from mri_ds.data.shards import write_shards
from mri_ds.errors import InputError
from mri_ds.evaluation.evaluate import evaluate
from mri_ds.evaluation.figures import score_subject, summarize
from mri_ds.evaluation.files import write_files
from mri_ds.evaluation.strata import STRATA
from mri_ds.evaluation.table import print_result
from mri_ds.inference.run import Run
from mri_ds.inference.subject import LabelMap

SHAPE, SPACING = (16, 16, 16), (1.0, 1.0, 2.0)
CLASSES = ["background", "cube", "unsure"]
TASKS = {
    "cube": TaskConfig(kind="segmentation", classes=CLASSES),
    "grade": TaskConfig(kind="classification", classes=["low", "high"]),
    "score": TaskConfig(kind="regression"),
}
NUM_SUBJECTS = 12


class SeesCubes(nn.Module):
    """Calls what is bright the cube; says `high` and a score by how bright the volume is on average."""

    def forward(self, image: torch.Tensor, spacing_mm: torch.Tensor) -> dict[str, torch.Tensor]:
        cube = image[:, 0] > 2
        mean = cube.flatten(1).float().mean(dim=1)
        high = (20 * mean).clamp(0.05, 0.95)
        logits = torch.stack([torch.full_like(image[:, 0], 0.5), cube.float(), torch.full_like(image[:, 0], -9.0)], dim=1)
        return {"cube": logits, "grade": torch.stack([1 - high, high], dim=1).log(), "score": 100 * mean}


def cube(start: int, edge: int) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[start : start + edge, 6 : 6 + edge, 6:10] = 1
    return mask


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Cubes that reader b draws one voxel further on, and reader c, for some subjects only, as the model sees them."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards")
    (source / "images").mkdir()
    (source / "labels").mkdir()
    affine = np.diag([*SPACING, 1])
    checkers = 10 + np.indices(SHAPE).sum(axis=0) % 2
    columns = ["participant_id", "grade", "grade_b", "score", "score_b", "site", "sex", "age"]
    rows = ["\t".join(columns)]
    for i in range(NUM_SUBJECTS):
        edge = 3 + i % 4
        seen, truth = cube(3 + i % 2, edge), cube(4, edge)
        truth[truth > 0] = np.where(np.indices(SHAPE)[2][truth > 0] == 9, 2, 1)  # its last slice is unsure
        nib.save(nib.Nifti1Image((checkers + 100 * seen).astype(np.float32), affine), source / "images" / f"s{i:02d}_T1w.nii.gz")
        maps = {"cube": truth, "cube_b": cube(5, edge)} | ({"cube_c": seen} if i % 3 else {})
        for name, label in maps.items():
            nib.save(nib.Nifti1Image(label, affine), source / "labels" / f"s{i:02d}_{name}.nii.gz")
        grades = ["low" if i % 4 < 2 else "high", "low" if i % 4 < 3 else "high"]
        cells = [
            f"s{i:02d}",
            *grades,
            f"{edge * 10 + i}",
            f"{edge * 10 + 1.5}",
            "AB"[i % 3 == 0],
            "F" if i < 4 else "n/a",
            f"{50 + i}",
        ]
        rows.append("\t".join(cells))
    (source / "participants.tsv").write_text("\n".join(rows) + "\n")
    task = "{kind: segmentation, classes: [background, cube, unsure]}"
    (source / "dataset.yaml").write_text(
        f"channels: [T1w]\ntasks:\n  cube: {task}\n  cube_b: {task}\n  cube_c: {task}\n"
        "  grade: {kind: classification, classes: [low, high]}\n  grade_b: {kind: classification, classes: [low, high]}\n"
        "  score: {kind: regression}\n  score_b: {kind: regression}\n"
    )
    write_shards(find_dataset(source), out, num_folds=2, fold=0, num_workers=1)
    return out


def make_run() -> Run:
    loss = LossConfig.model_validate({"tasks": {"cube": {"ignore": "unsure"}}})
    config = RunConfig(data=DataConfig(spacing_mm=SPACING, patch=(16, 16, 16)), tasks=TASKS, loss=loss)
    return Run(SeesCubes(), config, ["T1w"], torch.device("cpu"))


READERS = {"cube": ["cube_b", "cube_c"], "grade": ["grade_b"], "score": ["score_b"]}


@pytest.fixture(scope="module")
def result(shards):
    return evaluate(make_run(), shards, readers=READERS, tolerance_mm=1.0)


def column(result, task, figure, name=None):
    found = [subject[task][figure] for subject in result["subjects"]]
    return np.array([each[name] if name else each for each in found], dtype=float)


def test_intervals_are_scipys_on_the_figures_of_the_subjects(result):
    def mean(values: np.ndarray, axis: int) -> np.ndarray:
        return np.round(values.mean(axis=axis), 13)  # of subjects that are alike, in any order: one figure

    task = result["tasks"]["cube"]
    for key in ("dice", "assd_mm", "surface_dice_area", "volume_error"):
        values = column(result, "cube", key, "cube")
        options = {"n_resamples": 2000, "rng": np.random.default_rng(0), "vectorized": True, "axis": -1}
        theirs = stats.bootstrap((values,), mean, **options).confidence_interval
        assert task["interval"][key]["cube"] == pytest.approx(list(theirs), abs=1e-9), key
        assert task[key]["cube"] == pytest.approx(values.mean())
        assert task["interval"]["mean"][key] == task["interval"][key]["cube"]  # one class is the mean of all
    age = result["tasks"]["score"]
    truth, guess = column(result, "score", "truth"), column(result, "score", "prediction")
    assert age["r2"] == pytest.approx(sk.r2_score(truth, guess)) and age["bias"] == pytest.approx((guess - truth).mean())
    for key in ("mae", "rmse", "bias", "r2"):
        low, high = age["interval"][key]
        assert low <= age[key] <= high and low < high


def test_unsure_voxels_count_in_no_figure_and_have_none(result, shards):
    task = result["tasks"]["cube"]
    assert list(task["dice"]) == ["cube"] and task["ignore"] == "unsure" and list(task["num_missed"]) == ["cube"]
    labels = np.zeros((4, 4, 4), dtype=np.int16)
    labels[1:3], labels[3] = 1, 2
    right = score_subject(LabelMap(np.where(labels == 2, 1, labels), CLASSES), labels, np.ones(3), ignore="unsure")
    assert right["dice"] == {"cube": 1.0} and right["specificity"] == {"cube": 1.0} and right["hd95_mm"] == {"cube": 0.0}
    assert right["prediction_ml"]["cube"] == pytest.approx(32 / 1000)
    assert right["dice_constant"]["cube"] == pytest.approx(2 * 32 / (32 + 48)), "of the 48 voxels that count"
    wrong = score_subject(LabelMap(np.where(labels == 2, 1, labels), CLASSES), labels, np.ones(3))
    assert wrong["dice"]["cube"] == pytest.approx(2 * 32 / (32 + 48)) and wrong["dice"]["unsure"] == 0.0


def test_misses_are_counted_beside_figures_that_are_not_defined():
    task = TaskConfig(kind="segmentation", classes=CLASSES[:2])
    full, none = cube(4, 4), np.zeros(SHAPE, dtype=np.uint8)
    scored = [
        score_subject(LabelMap(seen, task.classes), truth, np.ones(3))
        for truth, seen in [(full, none), (none, full), (full, full)]
    ]
    found = summarize(task, task, scored)
    assert [found["num_defined"][key]["cube"] for key in ("dice", "precision", "sensitivity", "assd_mm")] == [3, 2, 2, 3]
    assert found["precision"]["cube"] == found["sensitivity"]["cube"] == 0.5 and found["lesion_f1"]["cube"] == pytest.approx(
        1 / 3
    )
    assert found["constant"]["sensitivity"]["cube"] == 1.0 and found["constant"]["surface_dice"]["cube"] == 0.0
    assert found["constant"]["assd_mm"]["cube"] == pytest.approx(16 * 3**0.5)


def test_classification_by_class_equals_scikit_learn(result):
    task = result["tasks"]["grade"]
    truth = np.array([subject["grade"]["truth"] == "high" for subject in result["subjects"]])
    scores = np.array([subject["grade"]["probabilities"]["high"] for subject in result["subjects"]])
    high = task["by_class"]["high"]
    assert high["auc"] == pytest.approx(sk.roc_auc_score(truth, scores))
    assert high["sensitivity"] == pytest.approx(sk.recall_score(truth, scores > 0.5))
    assert high["average_precision"] == pytest.approx(sk.average_precision_score(truth, scores))
    assert task["brier"] == pytest.approx(sk.brier_score_loss(truth, scores))
    assert task["num"] == {"low": int((~truth).sum()), "high": int(truth.sum())}
    assert task["constant"]["auc"] == 0.5 and task["interval"]["by_class"]["high"]["auc"][1] >= high["auc"]


def test_groups_have_the_figures_of_their_subjects(result):
    assert list(result["strata"]) == ["site", "sex", "age_band"]  # of scanners nothing is known
    levels = {
        stratum: {level: group["num_subjects"] for level, group in groups.items()} for stratum, groups in result["strata"].items()
    }
    assert all(sum(counts.values()) == result["num_subjects"] for counts in levels.values())
    assert set(levels["site"]) == {"A", "B"} and set(levels["sex"]) == {"F", "unknown"}
    assert set(levels["age_band"]) <= {"50-59", "60-69"}
    of = result["strata_of_subjects"]
    own = [subject["cube"]["dice"]["cube"] for subject in result["subjects"] if of[subject["subject_id"]]["site"] == "B"]
    group = result["strata"]["site"]["B"]
    assert group["tasks"]["cube"]["dice"]["cube"] == pytest.approx(np.mean(own)) and group["num_subjects"] == len(own)


def test_readers_are_compared_with_the_model_and_one_another(result):
    pairs = {(pair["a"], pair["b"]): pair for pair in result["agreement"]["cube"]}
    names = ["model", "cube", "cube_b", "cube_c"]
    assert set(pairs) == {(a, b) for i, a in enumerate(names) for b in names[i + 1 :]}
    model = pairs["model", "cube"]
    assert model["figures"]["dice"]["cube"] == pytest.approx(result["tasks"]["cube"]["dice"]["cube"])
    assert model["interval"]["dice"] == result["tasks"]["cube"]["interval"]["dice"]
    # c draws what the model sees, and has not seen every third subject
    assert pairs["model", "cube_c"]["figures"]["dice"]["cube"] == 1.0
    assert pairs["model", "cube_c"]["num_subjects"] < pairs["model", "cube_b"]["num_subjects"] == result["num_subjects"]
    answers = {(pair["a"], pair["b"]): pair["figures"] for pair in result["agreement"]["grade"]}
    assert set(answers) == {("model", "grade"), ("model", "grade_b"), ("grade", "grade_b")}
    truth = [subject["grade"]["truth"] for subject in result["subjects"]]
    said = [subject["grade"]["prediction"] for subject in result["subjects"]]
    assert answers["model", "grade"]["kappa"] == pytest.approx(sk.cohen_kappa_score(truth, said))
    assert answers["model", "grade"]["accuracy"] == pytest.approx(sk.accuracy_score(truth, said))
    numbers = {(pair["a"], pair["b"]): pair["figures"] for pair in result["agreement"]["score"]}
    assert numbers["model", "score"]["mae"] == pytest.approx(result["tasks"]["score"]["mae"])


def test_files_hold_what_the_dictionary_holds(result, tmp_path):
    written = write_files(result, tmp_path)
    assert sorted(written) == ["agreement", "classes", "evaluation", "strata", "subjects", "tasks"]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    tables = {name: list(csv.DictReader(open(path))) for name, path in written.items() if name != "evaluation"}  # noqa: SIM115
    first = result["subjects"][0]
    row = next(row for row in tables["subjects"] if row["subject_id"] == first["subject_id"] and row["task"] == "cube")
    assert float(row["hd95_mm"]) == first["cube"]["hd95_mm"]["cube"] and row["class"] == "cube" and row["site"] in "AB"
    assert len(tables["subjects"]) == 3 * result["num_subjects"] and set(STRATA) < set(row)
    task = result["tasks"]["cube"]
    row = next(row for row in tables["classes"] if row["task"] == "cube" and row["figure"] == "dice")
    low, high = task["interval"]["dice"]["cube"]
    assert [float(row[key]) for key in ("value", "low", "high")] == [task["dice"]["cube"], low, high]
    assert float(row["constant"]) == task["constant"]["dice"]["cube"] and row["num_missed"] == "0"
    row = next(row for row in tables["tasks"] if row["figure"] == "mae")
    assert float(row["value"]) == result["tasks"]["score"]["mae"] and row["num_subjects"] == str(result["num_subjects"])
    assert {row["stratum"] for row in tables["strata"]} == set(result["strata"])
    row = next(row for row in tables["agreement"] if (row["a"], row["b"]) == ("model", "cube_c") and row["figure"] == "dice")
    assert float(row["value"]) == 1.0
    write_files(result | {"agreement": {}}, tmp_path)
    assert not (tmp_path / "agreement.csv").exists(), "of an earlier call"


def test_people_see_intervals_groups_and_readers(result):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_result(result, console)
    text = console.export_text()
    low, high = result["tasks"]["cube"]["interval"]["dice_mean"]
    for shown in (
        f"{low:.3f} to {high:.3f}",
        "site A",
        "age_band 50-59",
        "model and readers",
        "cube_b",
        "kappa",
        "limit of agreement",
    ):
        assert shown in text, shown


def test_wrong_readers_are_refused(shards):
    for readers, message in [
        ({"cubes": ["cube_b"]}, "the run has no task cubes"),
        ({"cube": ["cube_d"]}, "no further labels cube_d"),
        ({"cube": ["grade_b"]}, "grade_b is classification"),
    ]:
        with pytest.raises(InputError, match=message):
            evaluate(make_run(), shards, readers=readers)
