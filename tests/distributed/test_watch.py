"""What two ranks tell of a run, and that telling it leaves the run as it is."""

import gzip
import json
import math

import forked
import launches
import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS, PATCH = 6, [16, 16, 16]
SETS = [f"training.steps={STEPS}", "training.log_every=1", "training.global_batch=2", f"data.patch={PATCH}", "model.num_layers=1"]
SILENT = ["training.validate_every=0", "training.image_every=1000"]
WATCHED = ["training.validate_every=3", "training.image_every=2", "training.validate_subjects=9"]


@pytest.fixture(scope="module")
def uneven_shards(tmp_path_factory):
    """Six subjects of two sizes, three of them held out, one of these without a class: two ranks have different wind

    ows to look at.
    """
    from mri_ds.data.layouts import find_dataset
    from mri_ds.data.nifti import write_image, write_label
    from mri_ds.data.shards import write_shards

    folder = tmp_path_factory.mktemp("uneven")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    rng, rows = np.random.default_rng(1), ["participant_id\tsize\tradius"]
    for i in range(6):
        shape = (24, 20, 16) if i % 4 else (40, 20, 16)
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        ball = np.linalg.norm(grid - np.array(shape) / 2, axis=-1) < 3 + i
        image = (100 + 80 * ball + rng.normal(0, 10, shape)).astype(np.float32)
        write_image(folder / "images" / f"sub-{i}.nii.gz", image, np.eye(4))
        write_label(folder / "labels" / f"sub-{i}_ball.nii.gz", ball.astype(np.int16), np.eye(4))
        rows.append(f"sub-{i}\t{'n/a' if i == 2 else 'large' if i > 2 else 'small'}\t{3 + i}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    (folder / "dataset.yaml").write_text(
        "channels: [T1w]\n"
        "tasks:\n"
        "  ball: {kind: segmentation, classes: [background, ball]}\n"
        "  size: {kind: classification, classes: [small, large]}\n"
        "  radius: {kind: regression, unit: mm}\n"
    )
    out = tmp_path_factory.mktemp("shards")
    write_shards(find_dataset(folder), out, num_folds=2)
    return out


def settings(shards, folder, sets, *options):
    ds_config = launches.ROOT / "ds_configs/tiny.json"
    return {"data": shards, "run": folder / "run", "ds_config": ds_config, "sets": [*SETS, *sets], "more": options}


@pytest.fixture(scope="module")
def silent(uneven_shards, tmp_path_factory):
    """Each rank's words in a file of its own, beside the run."""
    folder = tmp_path_factory.mktemp("silent")
    program, *options = launches.train_command(2, **settings(uneven_shards, folder, SILENT))
    launches.run([program, "--enable_each_rank_log", str(folder / "ranks"), *options], folder / "log")
    return folder / "run"


@pytest.fixture(scope="module")
def watched(uneven_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    forked.train(2, folder / "log", **settings(uneven_shards, folder, WATCHED, "--profile", "3-4"))
    return folder / "run"


def rows(run):
    return {row["step"]: row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


@pytest.mark.timeout(480)
def test_watching_changes_nothing(silent, watched):
    """Validation, pictures and profiler look at the net between and during steps; the experts' counts stay untouched too."""
    expected, got = rows(silent), rows(watched)
    assert list(got) == list(range(1, STEPS + 1))
    for step, row in expected.items():
        for name in ("loss", "gradient_norm", "expert_load/layer0", "loss/ball", "task_weight/radius", "learning_rate"):
            assert got[step][name] == row[name], (step, name)


@pytest.mark.timeout(480)
def test_validation_is_what_the_weights_give_on_one_process(uneven_shards, watched):
    """Of the last step, against the exported weights, window by window, and scikit-learn."""
    from mri_ds.data.index import ShardDataset
    from mri_ds.data.preprocess import border_minimum, prepare, settings
    from mri_ds.inference.run import load_run
    from mri_ds.nn.sliding_window import sliding_window

    run = load_run(watched)
    dataset = ShardDataset(uneven_shards, "test")
    dice, truth, guess, errors, num_windows = [], [], [], [], []
    for i in range(len(dataset)):
        subject, calls = prepare(dataset.read(i), **settings(run.config.data)), []
        spacing_mm = torch.as_tensor(subject["spacing_mm"], dtype=torch.float32)[None]

        def look(x, spacing_mm=spacing_mm, calls=calls):
            calls.append(len(x))
            return run.net(x, spacing_mm.expand(len(x), 3))

        with torch.no_grad():
            image = torch.from_numpy(subject["image"])[None]
            out = sliding_window(look, image, patch=PATCH, overlap=0.0, pad_value=border_minimum(subject["image"]))
        num_windows.append(len(calls))
        a, b = subject["targets"]["ball"] == 1, out["ball"][0].argmax(0).numpy() == 1
        dice.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
        errors.append(abs(float(out["radius"]) - subject["targets"]["radius"]))
        if "size" in subject["targets"]:
            truth.append(subject["targets"]["size"])
            guess.append(int(out["size"].argmax()))
    assert len(set(num_windows)) == 2 and len(dice) == 3  # the ranks had unequal work, and one of them none in the second round
    told = rows(watched)
    assert "validation/ball/dice" in told[3] and "validation/ball/dice" not in told[4]
    assert told[STEPS]["validation/ball/dice"] == pytest.approx(np.mean(dice), rel=1e-4)
    assert told[STEPS]["validation/radius/mae"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert told[STEPS]["validation/size/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, guess))


@pytest.mark.timeout(480)
def test_figures_of_the_machine(watched):
    row = rows(watched)[STEPS]
    voxels, tokens = 2 * 16**3, 2 * 2**3
    assert row["throughput/tokens_per_s"] / row["throughput/voxels_per_s"] == pytest.approx(tokens / voxels)
    assert row["throughput/voxels_per_s"] * row["throughput/step_s"] == pytest.approx(
        voxels, rel=0.05
    )  # means over ranks, each with its clock
    assert 0 < row["throughput/share_of_peak"] < 1 and row["throughput/flops_per_s"] > 0
    assert 0 < row["time_share/communication"] <= row["time_share/communication_worst"] < 1
    assert row["time_share/data"] <= row["time_share/data_worst"] < 1
    assert 0.1 < row["memory/peak_gib"] < 8
    assert row["loss_scale"] == 1 and row["nonfinite/skipped_steps"] == 0


@pytest.mark.timeout(480)
def test_tensorboard_has_pictures_and_hyper_parameters(watched):
    events = EventAccumulator(str(watched)).Reload()
    assert set(events.Tags()["images"]) == {"prediction", "expert_load", "validation/slice"}
    assert [e.step for e in events.Images("expert_load")] == [2, 4, 6]
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")


@pytest.mark.timeout(480)
def test_profile_is_read_back(watched):
    folder = watched / "profile"
    for rank in range(2):
        trace = json.loads(gzip.decompress((folder / f"trace-step000003-rank{rank}.json.gz").read_bytes()))
        names = {event.get("name") for event in trace["traceEvents"]}
        assert {"step 3", "step 4", "aten::convolution"} <= names and "step 5" not in names
        told = json.loads((folder / f"communication-rank{rank}.json").read_text())
        assert told["metadata"]["world_size"] == 2 and told["metadata"]["rank"] == rank
        kinds = {name: sum(size["count"] for size in sizes.values()) for name, sizes in told["summary"].items()}
        assert kinds["all_to_all_single"] > 0 and any("reduce" in name for name in kinds)
        assert all(math.isfinite(s["total_latency_ms"]) for sizes in told["summary"].values() for s in sizes.values())
    assert "params of model" in (folder / "flops-step000003.txt").read_text()
    assert len(list(folder.glob("flops-*"))) == 1


@pytest.mark.timeout(480)
def test_only_the_first_rank_speaks(silent):
    first, second = (next((silent.parent / "ranks").glob(f"*_rank{rank}.log")).read_text().splitlines() for rank in range(2))
    assert any(line.startswith(f"step {STEPS}/{STEPS}  loss ") and line.endswith("0:00 left") for line in first)
    assert [line for line in second if "built successfully" not in line] == []  # DeepSpeed says that of its operators
