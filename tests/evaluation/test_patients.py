"""A table that names patients: from its column to intervals, counts and pooled folds that know which scans belong together."""

import csv
import io
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from mri_ds.config import DataConfig, RunConfig
from mri_ds.data.folds import summarize_all
from mri_ds.data.index import ShardDataset
from mri_ds.data.layouts import find_dataset
from mri_ds.data.manifest import read_manifest
from mri_ds.data.shards import write_shards
from mri_ds.evaluation.calibrate import calibrate
from mri_ds.evaluation.compare import compare
from mri_ds.evaluation.cross_validate import pool
from mri_ds.evaluation.evaluate import evaluate
from mri_ds.evaluation.files import write_files
from mri_ds.evaluation.table import print_result
from mri_ds.inference.run import Run
from mri_ds.metrics import paired
from mri_ds.metrics.statistics import mean_interval

SHAPE = (12, 12, 12)
NUM_PATIENTS, NUM_SCANS = 6, 3


class SeesCubes(nn.Module):
    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, image: torch.Tensor, spacing_mm: torch.Tensor) -> dict[str, torch.Tensor]:
        bright = (image[:, 0] > self.threshold).float()
        return {"cube": torch.stack([1 - bright, bright], dim=1), "score": 100 * bright.mean(dim=(1, 2, 3))}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(shards, evaluation of all eighteen scans by one network, and by another that sees less)."""
    source, out, rng = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    rows = ["subject,patient,image:T1w,label:cube,score"]
    for number in range(NUM_PATIENTS * NUM_SCANS):
        patient, name = number % NUM_PATIENTS, f"scan{number:02d}"
        cube = np.zeros(SHAPE, dtype=np.uint8)
        cube[3:8, 3 : 6 + patient // 2, 3:8] = 1
        image = 100 * cube + rng.normal(10, 5 + 5 * patient, SHAPE)
        for what, voxels in (("image", image.astype(np.float32)), ("label", cube)):
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), source / f"{name}_{what}.nii.gz")
        rows.append(f"{name},person{patient},{name}_image.nii.gz,{name}_label.nii.gz,{cube.sum() / 10 + rng.normal():.3f}")
    (source / "table.csv").write_text("\n".join(rows) + "\n")
    (source / "table.yaml").write_text(
        "tasks: {cube: {kind: segmentation, classes: [background, cube]}, score: {kind: regression}}\n"
    )
    write_shards(find_dataset(source / "table.csv"), out, num_folds=NUM_PATIENTS, fold=0, num_workers=1)
    config = RunConfig(
        data=DataConfig(spacing_mm=(1, 1, 1), patch=SHAPE, clip_percentiles=(0, 100)), tasks=read_manifest(out).tasks
    )
    runs = [Run(SeesCubes(threshold), config, ["T1w"], torch.device("cpu")) for threshold in (1.5, 2.2)]
    return out, *(evaluate(run, out, split="train") for run in runs), runs[0]


def test_the_evaluation_draws_patients_and_says_how_many(told, tmp_path):
    _, result, *_ = told
    num, patients = NUM_PATIENTS - 1, result["patients"]  # one is held out
    assert (
        (result["num_subjects"], result["num_patients"]) == (NUM_SCANS * num, num) == (len(patients), len({*patients.values()}))
    )
    assert "person" not in json.dumps(result), "a table's names of patients are nobody's business"
    for subject, patient in patients.items():
        assert int(subject.removeprefix("scan")) % NUM_PATIENTS == int(patient.removeprefix("scan")) % NUM_PATIENTS
    values = np.array([subject["cube"]["dice"]["cube"] for subject in result["subjects"]])
    whose = [patients[subject["subject_id"]] for subject in result["subjects"]]
    assert result["tasks"]["cube"]["interval"]["dice"]["cube"] == pytest.approx(mean_interval(values, patients=whose))
    assert mean_interval(values, patients=whose) != mean_interval(values)
    assert [task["num_patients"] for task in result["tasks"].values()] == [num] * 2
    seen = io.StringIO()
    print_result(result, Console(file=seen, width=160))
    assert seen.getvalue().count("15 scans of 5 patients") == 3  # both tasks, and below
    for name, path in write_files(result, tmp_path).items():
        if name in ("subjects", "tasks"):
            with open(path) as file:
                rows = list(csv.DictReader(file))
            given = [(row["subject_id"], row["patient"]) for row in rows] if name == "subjects" else []
            assert set(given) == set(patients.items()) if given else {row["num_patients"] for row in rows} == {str(num)}


def test_folds_are_pooled_by_patient(told, tmp_path):
    shards, result, *_ = told
    for fold in range(2):  # of a patient's scans all are in one
        chosen = [s for s in result["subjects"] if int(result["patients"][s["subject_id"]][4:]) % 2 == fold]
        names = {s["subject_id"]: result["patients"][s["subject_id"]] for s in chosen}
        (tmp_path / f"fold-{fold}").mkdir()
        part = {**result, "subjects": chosen, "patients": names, "num_subjects": len(chosen)}
        (tmp_path / f"fold-{fold}" / "evaluation.json").write_text(json.dumps(part))
    pooled = pool(tmp_path, read_manifest(shards), summarize_all(shards))
    assert (pooled["num_subjects"], pooled["num_patients"], pooled["patients"]) == (15, 5, result["patients"])
    values = np.array([s["cube"]["dice"]["cube"] for s in pooled["subjects"]])
    whose = [result["patients"][s["subject_id"]] for s in pooled["subjects"]]
    assert pooled["tasks"]["cube"]["interval"]["dice"]["cube"] == pytest.approx(mean_interval(values, patients=whose))


def test_calibration_looks_at_the_first_scan_of_each_patient(told):
    shards, result, _, run = told
    heard = []
    fitted = calibrate(run, shards, split="train", coverage=0.5, progress=lambda *counts: heard.append(counts))
    names = ShardDataset(shards, "train").subject_ids
    firsts = sorted({result["patients"][name]: name for name in reversed(names)}.values(), key=names.index)
    assert fitted["subjects"] == firsts and len(firsts) == NUM_PATIENTS - 1 and heard[-1] == (10, 10)
    errors = {s["subject_id"]: abs(s["score"]["truth"] - s["score"]["prediction"]) for s in result["subjects"]}
    assert fitted["tasks"]["score"]["scores"] == pytest.approx(sorted(errors[name] for name in firsts), rel=1e-5)
    assert fitted["tasks"]["score"]["half_width"] == fitted["tasks"]["score"]["scores"][2]  # of five: ceil(6 x 0.5)


def test_runs_are_compared_by_patient(told):
    shards, a, b, _ = told
    result = compare(a, b)
    row = next(row for row in result["comparisons"] if row["figure"] == "dice")
    assert (row["num_subjects"], row["num_patients"], result["num_patients"]) == (15, 5, 5)
    difference = np.array([y["cube"]["dice"]["cube"] - x["cube"]["dice"]["cube"] for x, y in zip(a["subjects"], b["subjects"])])
    whose = [a["patients"][subject["subject_id"]] for subject in a["subjects"]]
    means = [difference[[w == name for w in whose]].mean() for name in dict.fromkeys(whose)]
    assert row["difference"] == pytest.approx(difference.mean()) and np.ptp(means) > 0
    assert row["p"] == pytest.approx(paired.wilcoxon_p(np.array(means))) and row["p"] >= 2 / 2**5  # of five patients no less
    assert row["p_permutation"] == pytest.approx(paired.sign_flip_p(np.array(means)))  # three scans each
    assert len(ShardDataset(shards, "train")) == 15
