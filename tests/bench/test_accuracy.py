"""The peers' harness: their networks train on a fold and are scored as ours; clock, schedule and padding do what they say."""

import json

import pytest
import torch

from mri_ds.bench.accuracy import OURS, bench_accuracy
from mri_ds.bench.peer_networks import PEERS, PeerNet
from mri_ds.bench.plain import Cycle, fit
from mri_ds.config import TaskConfig, dump_config, load_config
from mri_ds.data.folds import deal, summarize_all, write_fold
from mri_ds.errors import InputError
from mri_ds.evaluation.evaluate import evaluate
from mri_ds.inference.run import Run
from mri_ds.mri_network import BaseMRINet
from mri_ds.training.loop import complete

TISSUE = {"tissue": TaskConfig(kind="segmentation", classes=["background", "grey", "white"], class_prior=[0.9, 0.09, 0.01])}


@pytest.fixture(scope="module")
def cross_validation(shards, tmp_path_factory):
    """As `cross-validate` leaves it after fold 1 of 5, with a network that has learned nothing."""
    folder = tmp_path_factory.mktemp("cv")
    summaries = summarize_all(shards, kept=folder / "summaries.json")
    fold_of = deal(shards, num_folds=5, seed=0, summaries=summaries)
    manifest = write_fold(shards, folder / "shards" / "fold-1", fold_of, 1, summaries)
    sets = ["data.patch=[24,20,16]", "data.num_workers=0", "training.global_batch=2", "training.steps=3"]
    config = complete(load_config(scale="tiny", overrides=sets), manifest, where=folder)
    run = folder / "fold-1"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(config))
    (run / "ds_config.json").write_text(json.dumps({"bf16": {"enabled": False}}))
    (run / "train_seconds.json").write_text(json.dumps({"train_s": 1.0}))
    net = BaseMRINet(config.model, config.tasks).eval()
    told = evaluate(Run(net, config, manifest.channels, torch.device("cpu")), folder / "shards" / "fold-1")
    (run / "evaluation.json").write_text(json.dumps(told))
    return folder


def test_a_peer_is_trained_and_scored_as_ours(cross_validation, tmp_path):
    result = bench_accuracy(cross_validation, tmp_path, contenders=["BasicUNet"])
    assert result["folds"] == [1] and list(result["contenders"]) == [OURS, "BasicUNet"]
    for name, row in result["contenders"].items():
        assert row["num_subjects"] == 2 and 0 <= row["tasks"]["ball"]["dice"]["ball"] <= 1
        assert row["parameters"] > 1000 and row["train_s"] > 0 and (name == OURS or row["steps"] >= 1)
    told = json.loads((tmp_path / "BasicUNet" / "fold-1" / "evaluation.json").read_text())
    assert list(told["tasks"]) == ["ball"]  # the tasks that MONAI's networks have
    assert {row["test"] for row in result["comparisons"]["BasicUNet"]["comparisons"]} == {"Wilcoxon"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/fold-1/*")}
    assert bench_accuracy(cross_validation, tmp_path, contenders=["BasicUNet"]) == result
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/fold-1/*")} == before


def test_refusals(cross_validation, tmp_path):
    with pytest.raises(InputError, match="unknown network 'UNETR'"):
        bench_accuracy(cross_validation, tmp_path, contenders=["UNETR"])
    with pytest.raises(InputError, match="no finished fold"):
        bench_accuracy(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_starts_at_the_priors_on_any_size(name):
    """Its body's part in the logits is small at first: what remains is the log of the priors."""
    torch.manual_seed(0)
    net = PeerNet(PEERS[name], TISSUE, in_channels=2).eval()
    with torch.no_grad():
        logits = net(torch.zeros(1, 2, 20, 33, 17))["tissue"]
    assert logits.shape == (1, 3, 20, 33, 17)
    assert logits.softmax(dim=1).mean(dim=(0, 2, 3, 4)).argmax() == 0
    bias = net.net.get_parameter(PEERS[name].last_bias).detach()
    assert bias.softmax(dim=0).tolist() == pytest.approx([0.9, 0.09, 0.01], rel=1e-4)


class Clock:
    """Two seconds for every micro-batch, of a clock that nothing else moves."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


class Slow(torch.nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.weight, self.clock = torch.nn.Parameter(torch.zeros(1)), clock

    def forward(self, batch):
        self.clock.now += 2
        return {"loss": self.weight.sum()}


def test_a_deadline_is_kept_and_accumulation_is_one_update(monkeypatch):
    clock, batches = Clock(), iter(lambda: {}, None)
    monkeypatch.setattr("mri_ds.bench.plain.time", clock)
    assert fit(Slow(clock), batches, Cycle(0.1), deadline=141.0, began=90.0, accumulation=2) == 10
    assert clock.now == 140.0  # an eleventh would have ended at 144
    assert fit(Slow(clock), batches, Cycle(0.1), deadline=0, began=0) == 1  # one at least
    assert fit(Slow(clock), batches, Cycle(0.1), deadline=0, began=0, max_steps=3) == 3


def test_the_cycle_ends_where_it_should():
    cycle = Cycle(2.0, warmup=0.25, lowest=0.1)
    rates = [cycle.at(i / 100) for i in range(101)]
    assert rates[0] == 0 and max(rates) == rates[25] == 2.0 and rates[-1] == pytest.approx(0.2)
    assert rates[:26] == sorted(rates[:26]) and rates[25:] == sorted(rates[25:], reverse=True)
