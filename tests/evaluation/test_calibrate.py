"""Calibration of a small network that really learned, on subjects of various contrast: what the JSON says holds for others.

The network is trained here on volumes made in memory; 24 subjects as files are the validation split, 24 others are held out.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special, stats
from torch import nn

from mri_ds.config import DataConfig, RunConfig
from mri_ds.data.index import ShardDataset
from mri_ds.data.layouts import find_dataset
from mri_ds.data.nifti import write_image, write_label
from mri_ds.data.shards import write_shards
from mri_ds.errors import InputError
from mri_ds.evaluation.calibrate import calibrate, write_calibration
from mri_ds.evaluation.evaluate import evaluate
from mri_ds.inference.calibration import read_calibration
from mri_ds.inference.conformal import quantile, volume_interval_ml
from mri_ds.inference.quality import entropy, fit_line, soft_dice
from mri_ds.inference.run import Run
from mri_ds.inference.subject import predict_sample
from mri_ds.inference.uncertainty import assess
from mri_ds.metrics.overlap import dice

SHAPE = (20, 18, 16)
GRID = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
NUM = 48
DATASET_YAML = """
channels: [T1w]
tasks:
  ball: {kind: segmentation, classes: [background, ball]}
  size: {kind: classification, classes: [small, large]}
  radius: {kind: regression, unit: mm}
"""


def subject(dice: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """A ball in noise, hardly or clearly brighter than what surrounds it; image, mask, radius."""
    radius, contrast = dice.uniform(2.5, 5.5), dice.uniform(0.3, 2.5)
    ball = np.linalg.norm(GRID - dice.uniform([8, 7, 6], [12, 11, 10]), axis=-1) < radius
    return (contrast * ball + dice.normal(0, 1, SHAPE)).astype(np.float32), ball, radius


class SmallNet(nn.Module):
    """Each voxel is judged by its neighbourhoods' means; size and radius are read off the soft volume, too sure of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(4, 16, 1), nn.ReLU(), nn.Conv3d(16, 2, 1))

    def forward(self, image, spacing_mm=None):
        means = [F.avg_pool3d(image, k, 1, k // 2, count_include_pad=False) for k in (3, 5, 7)]
        logits = self.body(torch.cat([image, *means], dim=1))
        radius = (3 / (4 * torch.pi) * logits.softmax(dim=1)[:, 1].sum(dim=(1, 2, 3))) ** (1 / 3)
        return {"ball": logits, "size": 20 * (radius - 4)[:, None] * torch.tensor([-1.0, 1.0]), "radius": radius}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(Run, folder of shards): split test is for calibration, split train is held out; the network saw neither."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards")
    (source / "images").mkdir()
    (source / "labels").mkdir()
    rows, rng = ["participant_id\tsize\tradius"], np.random.default_rng(0)
    for i in range(NUM):
        image, ball, radius = subject(rng)
        write_image(source / "images" / f"s{i:02d}.nii.gz", image, np.eye(4))
        write_label(source / "labels" / f"s{i:02d}_ball.nii.gz", ball.astype(np.int16), np.eye(4))
        rows.append(f"s{i:02d}\t{'large' if radius > 4 else 'small'}\t{radius:.4f}")
    (source / "participants.tsv").write_text("\n".join(rows) + "\n")
    (source / "dataset.yaml").write_text(DATASET_YAML)
    manifest = write_shards(find_dataset(source), out, num_folds=2, fold=0, num_workers=1)
    tasks = {name: task.model_copy(update={"smallest_part_ml": []}) for name, task in manifest.tasks.items()}
    config = RunConfig(data=DataConfig(spacing_mm=(1, 1, 1), patch=SHAPE, clip_percentiles=(0, 100)), tasks=tasks)
    return Run(trained(), config, ["T1w"], torch.device("cpu")), out


def trained() -> nn.Module:
    torch.manual_seed(0)
    net, rng = SmallNet(), np.random.default_rng(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(150):
        images, balls, _ = zip(*(subject(rng) for _ in range(4)))
        x = torch.from_numpy(np.stack(images))[:, None]
        x = (x - x.mean(dim=(2, 3, 4), keepdim=True)) / x.std(dim=(2, 3, 4), keepdim=True)  # as the harness prepares it
        y = torch.from_numpy(np.stack(balls)).long()
        loss = F.cross_entropy(net(x)["ball"], y, weight=torch.tensor([1.0, 1.5]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def fitted(made):
    heard = []
    result = calibrate(*made, coverage=0.8, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (NUM, NUM) and len(heard) == NUM  # 24 subjects, twice
    return result


def test_what_it_was_fitted_on_is_told(made, fitted):
    assert fitted["split"] == "test" and fitted["coverage"] == 0.8
    assert fitted["subjects"] == ShardDataset(made[1], "test").subject_ids and len(fitted["subjects"]) == NUM // 2
    assert {name: task["kind"] for name, task in fitted["tasks"].items()} == {
        "ball": "segmentation", "size": "classification", "radius": "regression"
    }  # fmt: skip


def test_bounds_are_those_of_the_evaluation_s_own_figures(made, fitted):
    """Recomputed from what `evaluate` tells of the same subjects: the 20th smallest of 24 errors."""
    told = evaluate(*made, split="test")["subjects"]
    errors = sorted(abs(s["radius"]["truth"] - s["radius"]["prediction"]) for s in told)
    assert fitted["tasks"]["radius"]["half_width"] == pytest.approx(errors[19], rel=1e-5)
    temperature = fitted["tasks"]["size"]["temperature"]
    p = np.array([[s["size"]["probabilities"][name] for name in ("small", "large")] for s in told])
    softened = special.softmax(np.log(np.maximum(p, 1e-300)) / temperature, axis=1)
    of_truth = sorted((row[int(s["size"]["truth"] == "large")] for row, s in zip(softened, told)), reverse=True)
    assert temperature > 1.5  # it was made much too sure
    assert fitted["tasks"]["size"]["threshold"] == pytest.approx(of_truth[19], rel=1e-4)
    for name in ("size", "ball"):
        assert fitted["tasks"][name]["nll"]["after"] < fitted["tasks"][name]["nll"]["before"]


def test_the_quality_score_orders_held_out_subjects_by_their_dice(made, fitted):
    run, shards = made
    held_out, scores, real = ShardDataset(shards, "train"), [], []
    covered, dice_covered = [], []
    half = fitted["tasks"]["ball"]["quality_half_width"]["ball"]
    for i in range(len(held_out)):
        sample = held_out.read(i)
        doubt = assess(run, sample, fitted["tasks"])["ball"]
        labels = predict_sample(run, sample)["ball"].labels
        scores.append(doubt.quality["ball"])
        real.append(dice(sample["targets"]["ball"] == 1, labels == 1))
        dice_covered.append(abs(scores[-1] - real[-1]) <= half)
        assert doubt.entropy.shape == SHAPE and 0 <= doubt.entropy.min() < doubt.entropy.max() <= 1
        is_wrong = labels != sample["targets"]["ball"]
        assert doubt.entropy[is_wrong].mean() > doubt.entropy[~is_wrong].mean()  # it doubts where it errs
        low, high = volume_interval_ml(float((labels == 1).sum()) / 1000, **fitted["tasks"]["ball"]["volume_ml"]["ball"])
        covered.append(low <= float((sample["targets"]["ball"] == 1).sum()) / 1000 <= high)
        region = doubt.regions["ball"]
        assert region.shape == SHAPE and region.dtype == bool and region.any()
    assert np.std(real) > 0.05  # there is something to order
    assert stats.spearmanr(scores, real).statistic >= 0.6
    assert np.mean(np.abs(np.array(scores) - real)) < 0.15  # and it is on the scale of Dice
    assert np.mean(covered) >= stats.binom(len(covered), 0.8).ppf(0.001) / len(covered)
    assert np.mean(dice_covered) >= stats.binom(len(covered), 0.8).ppf(0.001) / len(covered) and half < 0.5


def test_the_file_is_whole_and_refusals(made, fitted, tmp_path):
    path = write_calibration(tmp_path, fitted)
    assert json.loads(path.read_text()) == fitted and [p.name for p in tmp_path.iterdir()] == ["calibration.json"]
    with pytest.raises(InputError, match=r"coverage 1\.5"):
        calibrate(*made, coverage=1.5)
    with pytest.raises(InputError, match="split"):
        calibrate(*made, split="validation")


def test_another_coverage_is_found_in_the_same_file(made, fitted, tmp_path):
    """At its own coverage the scores say what the file says; at another, the bound that as many of them lie below."""
    write_calibration(tmp_path, fitted)
    known = read_calibration(tmp_path)
    assert known.at(0.8) is known and known.at(None) is known
    again, half = (known.at(coverage) for coverage in (0.8 + 1e-12, 0.5))
    for name, (key, sign) in {"radius": ("half_width", 1), "size": ("threshold", -1)}.items():
        scores = np.array(fitted["tasks"][name]["scores"])
        assert getattr(again.of(name), key) == fitted["tasks"][name][key] == getattr(known.of(name), key)
        assert len(scores) == NUM // 2 and getattr(half.of(name), key) == sign * quantile(sign * scores, 0.5)
    ball = fitted["tasks"]["ball"]
    assert again.of("ball").volume_ml["ball"].relative == ball["volume_ml"]["ball"]["relative"]
    assert again.of("ball").quality_half_width == ball["quality_half_width"] and ball["quality_half_width"]["ball"] > 0
    assert half.of("ball").volume_ml["ball"].relative == sorted(ball["scores"]["volume_ml"]["ball"])[12]  # of 24: ceil(12.5)
    assert half.of("ball").quality_half_width["ball"] == sorted(ball["scores"]["quality"]["ball"])[12]
    assert known.at(0.99).of("radius").half_width is None and known.at(0.99).of("size").threshold == 0  # of 24: no promise
    assert len({one.digest for one in (known, again, half)}) == 3
    with pytest.raises(InputError, match=r"coverage 2"):
        known.at(2)
    with pytest.raises(InputError, match="no calibration"):
        read_calibration(tmp_path / "nowhere").at(0.9)
    bare = {name: {key: value for key, value in task.items() if key != "scores"} for name, task in fitted["tasks"].items()}
    write_calibration(tmp_path, {**fitted, "tasks": bare})
    with pytest.raises(InputError, match=r"knows a coverage of 0\.8 alone"):
        read_calibration(tmp_path).at(0.9)


def test_soft_dice_and_entropy_by_hand():
    p = np.zeros((3, 1, 1, 4))
    p[0], p[1], p[2] = [[0.7, 0.2, 0.1, 1.0]], [[0.2, 0.8, 0.5, 0.0]], [[0.1, 0.0, 0.4, 0.0]]
    labels = p.argmax(axis=0)  # 0 1 1 0: class 2 is nowhere
    expected = 2 * (0.8 + 0.5) / (0.2 + 0.8 + 0.5 + 2)
    assert soft_dice(p, labels)[0] == pytest.approx(expected) and np.isnan(soft_dice(p, labels)[1])
    assert soft_dice(p, labels, is_always_present=[True, True, True]) == [pytest.approx(expected), 0.0]
    np.testing.assert_allclose(entropy(p)[0, 0], stats.entropy(p[:, 0, 0], base=3), atol=1e-6)


def test_a_line_needs_subjects_and_a_rise():
    x = np.array([0.5, 0.6, np.nan, 0.8, 0.9])
    line = fit_line(x, 2 * x - 0.9)
    assert (line.slope, line.intercept) == (pytest.approx(2), pytest.approx(-0.9)) and line.at(0.2) == 0 and line.at(0.99) == 1
    slope, intercept, *_ = stats.linregress([0.1, 0.4, 0.9], [0.2, 0.3, 0.9])
    line = fit_line(np.array([0.1, 0.4, 0.9]), np.array([0.2, 0.3, 0.9]))
    assert (line.slope, line.intercept) == (pytest.approx(slope), pytest.approx(intercept))
    for few in (fit_line(x[:2], x[:2]), fit_line(x, -x), fit_line(np.ones(5), x)):
        assert (few.intercept, few.slope) == (0, 1)
