"""Tracker: what is written can be read back by TensorBoard, a resumed run supersedes, other ranks write nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
