"""Tracker: what is written can be read back by TensorBoard, a resumed run supersedes, other ranks write nothing."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mri_ds.errors import InputError
from mri_ds.training.heat_map import draw_heat_map
from mri_ds.training.tracker import Tracker


def read_events(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_dir))
    events.Reload()
    return events


def read_lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_scalars_are_read_back_from_both_files(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, is_writer=True)
    tracker.scalars(10, {"loss/total": 0.75, "lr": 1e-3})
    tracker.scalars(20, {"loss/total": 0.5, "lr": 2e-3})
    # before close: everything told so far survives a kill
    points = read_events(tmp_path).Scalars("loss/total")
    assert [(point.step, point.value) for point in points] == [(10, 0.75), (20, 0.5)]
    assert read_lines(tmp_path) == [{"step": 10, "loss/total": 0.75, "lr": 1e-3}, {"step": 20, "loss/total": 0.5, "lr": 2e-3}]
    tracker.close()


def test_image_is_read_back_with_its_pixels(tmp_path: Path) -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[1, 2] = (255, 128, 7)
    tracker = Tracker(tmp_path, is_writer=True)
    tracker.image(3, "slice/tissue", picture)
    tracker.close()
    (image,) = read_events(tmp_path).Images("slice/tissue")
    assert (image.step, image.height, image.width) == (3, 4, 6)
    png = tmp_path / "read_back.png"
    png.write_bytes(image.encoded_image_string)
    from PIL import Image

    np.testing.assert_array_equal(np.asarray(Image.open(png).convert("RGB")), picture)


def test_resume_supersedes_what_the_killed_run_told_after_its_checkpoint(tmp_path: Path) -> None:
    killed = Tracker(tmp_path, is_writer=True)
    for step in (10, 20, 30):
        killed.scalars(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 4')  # torn by the kill
    resumed = Tracker(tmp_path, is_writer=True, start_step=20)  # no close(): the first process died
    resumed.scalars(30, {"loss": -30.0})
    resumed.close()
    assert read_lines(tmp_path) == [{"step": 10, "loss": 10.0}, {"step": 20, "loss": 20.0}, {"step": 30, "loss": -30.0}]
    points = read_events(tmp_path).Scalars("loss")
    assert [(point.step, point.value) for point in points] == [(10, 10.0), (20, 20.0), (30, -30.0)]


def test_a_new_run_in_an_old_folder_starts_empty(tmp_path: Path) -> None:
    Tracker(tmp_path, is_writer=True).scalars(10, {"loss": 1.0})
    Tracker(tmp_path, is_writer=True).close()
    assert read_lines(tmp_path) == []


def test_not_finite_is_null_in_the_line_and_stays_valid_json(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, is_writer=True)
    tracker.scalars(1, {"loss": float("nan"), "norm": float("inf"), "lr": 0.5})
    tracker.close()
    assert read_lines(tmp_path) == [{"step": 1, "loss": None, "norm": None, "lr": 0.5}]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    tracker = Tracker(run_dir, is_writer=False)
    tracker.scalars(1, {"loss": 1.0})
    tracker.image(1, "slice", np.zeros((2, 2, 3), np.uint8))
    tracker.close()
    assert not run_dir.exists()


def test_a_wrong_picture_is_caught(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, is_writer=True)
    with pytest.raises(AssertionError):
        tracker.image(1, "slice", np.zeros((2, 2), np.uint8))
    tracker.close()


def test_hyper_parameters_are_read_back_beside_the_final_figures(tmp_path: Path) -> None:
    """As TensorBoard's HPARAMS page reads them: by its own protocol buffers."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    tracker = Tracker(tmp_path, is_writer=True)
    tracker.scalars(5, {"loss": 0.25})
    values = {"training": {"lr": 0.002, "steps": 5, "betas": [0.9, 0.98]}, "model": {"use_moe": True, "scale": "tiny"}}
    tracker.hyper_parameters(values, {"loss": 0.25})
    tracker.close()
    content = read_events(tmp_path).PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    told = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.items()}
    assert told == {"training.lr": 0.002, "training.steps": 5.0, "model.use_moe": True, "model.scale": "tiny"}
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["loss"]


def test_a_heat_map_shows_who_has_more(tmp_path: Path) -> None:
    """Red where an expert has more than the mean, blue where less, white at the mean; a row per layer."""
    table = np.array([[1.0, 1, 1, 1], [0, 0, 0, 4]])
    picture = draw_heat_map(table, rows=["layer0", "layer1"], title="expert load").astype(int)
    red = (picture[..., 0] > 90) & (picture[..., 1] < 40) & (picture[..., 2] < 60)
    blue = (picture[..., 0] < 40) & (picture[..., 1] < 70) & (picture[..., 2] > 80)
    middle = picture.shape[1] // 2
    assert red[:, : middle // 2].sum() == 0 and blue[:, : middle // 2].sum() > 100 and red.sum() > 100
    assert np.argwhere(red)[:, 0].mean() > np.argwhere((picture == 247).all(axis=-1))[:, 0].mean()  # the second row is below


def test_nothing_is_imported_for_those_who_do_not_ask(tmp_path: Path) -> None:
    Tracker(tmp_path, is_writer=True).close()
    assert "wandb" not in sys.modules


def test_asking_for_an_absent_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"wandb is not installed.*pip install 'mri_ds\[track\]'"):
        Tracker(tmp_path, is_writer=True, wandb_project="trial")


@pytest.mark.timeout(240)
def test_wandb_without_a_network(tmp_path: Path) -> None:
    """In a process of its own, offline; its files hold what was told, and a second start goes on under the same id."""
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed (extra `track`)")
    code = """
import sys, numpy as np
from pathlib import Path
from mri_ds.training.tracker import Tracker
for start in (0, 20):
    tracker = Tracker(Path(sys.argv[1]), is_writer=True, start_step=start, wandb_project="trial")
    tracker.scalars(start + 10, {"loss": 0.5 - start / 100})
    tracker.image(start + 10, "slice", np.zeros((4, 4, 3), np.uint8))
    tracker.hyper_parameters({"training": {"lr": 0.125}}, {"loss": 0.25})
    tracker.close()
"""
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_CONFIG_DIR": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path)}
    run = tmp_path / "run"
    command = [sys.executable, "-c", code, str(run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    own_id = (run / "wandb_id").read_text().strip()
    first, second = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert first.stem == second.stem == f"run-{own_id}"
    for path, loss in ((first, "0.5"), (second, "0.3")):
        records = read_wandb(path)
        told = {".".join(item.nested_key) or item.key: item.value_json for r in records for item in r.history.item}
        assert told["loss"] == loss and told["slice._type"] == '"image-file"'
        assert any("0.125" in item.value_json for r in records for item in r.config.update)


def read_wandb(path: Path) -> list:
    """Records of a .wandb file: LevelDB's log format, blocks of 32 KiB with (checksum, length, kind) before each piece."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, records = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no piece begins in the last bytes of a block
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole in one piece, or the last of several
            records.append(Record.FromString(whole))
            whole = b""
    return records
