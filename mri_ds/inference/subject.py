"""From one subject to one prediction per task.

Axes: C channels, D H W voxels of the native grid, K classes.
In: a Sample in canonical orientation on its native grid.  Out: {task: LabelMap | ClassScores | Value}, label maps on that grid.
The image is prepared exactly as in training: resampled to the network's spacing, normalised, seen in patches. Scores, not labels,
are brought back to the native grid, so that borders stay as fine as the scores are. All in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mri_ds.data.preprocess import Placement, border_minimum, prepare_placed, settings
from mri_ds.inference.cleanup import clean_up
from mri_ds.inference.expected import Expected, Interval, expected_dice, volume_intervals
from mri_ds.inference.native import Map, Stream, label_maps
from mri_ds.inference.run import Run
from mri_ds.nn.window_stream import Compute, WindowStream
from mri_ds.sample import Sample

BUFFER_BYTES = 2**30  # of blended scores, whatever the number of classes
Share = Callable[[Callable[[torch.Tensor], dict[str, torch.Tensor]]], Compute]


@dataclass(frozen=True)
class LabelMap:
    """Segmentation: labels (D, H, W) int16, indices into `classes` (background first)."""

    labels: np.ndarray
    classes: list[str]
    dropped_ml: dict[str, float] = field(default_factory=dict)  # by class: parts too small to be believed, see data/parts.py
    probabilities: np.ndarray | None = None  # (K, D, H, W) float32, where they were asked for
    entropy: np.ndarray | None = None  # (D, H, W) float32, 0 sure .. 1 undecided, where it was asked for; see native.Map
    sums: np.ndarray | None = None  # (3, K) float64, see native.Map
    quality: dict[str, Expected] = field(default_factory=dict)  # by class, the Dice to be expected; {}: not calibrated
    volume_interval_ml: dict[str, Interval] = field(default_factory=dict)  # by class; {}: not calibrated
    coverage: float | None = None  # of both intervals


@dataclass(frozen=True)
class ClassScores:
    """Classification: probabilities (K,) float64 that sum to 1."""

    probabilities: np.ndarray
    classes: list[str]
    likely: list[str] | None = None  # classes that hold the truth with probability `coverage`; None: not calibrated
    coverage: float | None = None

    @property
    def index(self) -> int:
        return int(self.probabilities.argmax())

    @property
    def class_name(self) -> str:
        return self.classes[self.index]


@dataclass(frozen=True)
class Value:
    """Regression: a number in `unit`."""

    value: float
    unit: str
    interval: tuple[float, float] | None = None  # holds the truth with probability `coverage`; None: not calibrated
    coverage: float | None = None


Prediction = LabelMap | ClassScores | Value


@torch.inference_mode()
def predict_sample(
    run: Run,
    sample: Sample,
    *,
    overlap: float | None = None,
    window_batch: int = 1,
    keep_small_parts: bool = False,
    probabilities: Path | None = None,
    entropy: bool = False,
    quality: bool | None = None,
    buffer_bytes: int = BUFFER_BYTES,
    share: Share | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Prediction]:
    """Predicts every task of the run for a canonical sample; its `targets` are not looked at.

    overlap of the windows: by default the config's predict.overlap. keep_small_parts: label maps are the plain argmax, also where
    a part is smaller than any that training showed. probabilities: an existing folder for the files of 4 K bytes a voxel that
    back the label maps' probabilities; the caller removes them. entropy: the label maps have theirs. quality: they have the sums
    that it is told from; by default where the run's calibration can make something of them. buffer_bytes bounds the sums of
    overlapping windows. share: hands a volume's windows out to several ranks (training/shared_windows.py).

    >>> predict_sample(load_run("runs/first"), sample)["tissue"].labels.shape    # doctest: +SKIP
    (182, 218, 182)
    """
    overlap = run.config.predict.overlap if overlap is None else overlap
    streams, placements = zip(*(_stream(one, sample, overlap, window_batch, share) for one in (run, *run.others)), strict=True)
    tasks = run.config.tasks
    voxel_tasks = {name: task for name, task in tasks.items() if task.kind == "segmentation"}
    maps = {
        name: _blank_map(
            sample["image"].shape[1:],
            num_classes=task.num_outputs,
            has_second=not keep_small_parts and bool(task.smallest_part_ml or run.keep_largest.get(name)),
            file=probabilities / f"{name}.raw" if probabilities else None,
            has_entropy=entropy,
            has_sums=bool(run.calibration.of(name).quality) if quality is None else quality,
        )
        for name, task in voxel_tasks.items()
    }
    label_maps(
        streams,
        placements[0],
        maps,
        {name: task.num_outputs for name, task in voxel_tasks.items()},
        buffer_bytes=buffer_bytes,
        temperature={name: run.calibration.of(name).temperature for name in voxel_tasks},
        progress=progress,
    )
    predictions: dict[str, Prediction] = {}
    for name in tasks:
        if name in voxel_tasks:
            predictions[name] = _label_map(run, name, maps[name], float(np.prod(sample["spacing_mm"])) / 1000)
        else:
            predictions[name] = _of_volume(run, name, [(stream.windows.vectors()[name][0], stream.weight) for stream in streams])
    return predictions


def _stream(run: Run, sample: Sample, overlap: float, window_batch: int, share: Share | None) -> tuple[Stream, Placement]:
    """One run's windows over the image as its network wants it; and where that lies."""
    data = run.config.data
    assert data.patch != "auto", "a run's config is resolved"
    assert sample["image"].shape[0] == len(run.channels), "the caller checks the channels"
    unlabelled = Sample(**{**sample, "targets": {}})  # type: ignore[typeddict-item]
    prepared, placement = prepare_placed(unlabelled, **settings(data))
    image = torch.from_numpy(prepared["image"])[None].to(run.device)
    spacing_mm = torch.as_tensor(prepared["spacing_mm"], dtype=torch.float32, device=run.device)[None]

    def look(windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return run.net(windows, spacing_mm.expand(len(windows), 3))  # type: ignore[no-any-return]

    windows = WindowStream(
        look,
        image,
        patch=data.patch,
        overlap=overlap,
        window_batch=window_batch,
        pad_value=border_minimum(prepared["image"]),
        compute=share(look) if share else None,
    )
    return Stream(windows, weight=run.num_members), placement


def _blank_map(
    shape: tuple[int, ...], *, num_classes: int, has_second: bool, file: Path | None, has_entropy: bool, has_sums: bool
) -> Map:
    """All background, certainly."""
    probabilities = None
    if file is not None:
        probabilities = np.memmap(file, dtype=np.float32, mode="w+", shape=(num_classes, *shape))
        probabilities[0] = 1
    labels = np.zeros(shape, dtype=np.int16)
    entropy = np.zeros(shape, dtype=np.float32) if has_entropy else None
    sums = np.zeros((3, num_classes)) if has_sums else None
    return Map(labels, np.zeros_like(labels) if has_second else None, probabilities, entropy, sums)


def _label_map(run: Run, name: str, found: Map, voxel_ml: float) -> LabelMap:
    task, calibration, dropped_ml = run.config.tasks[name], run.calibration.of(name), dict[str, float]()
    if found.second is not None:
        dropped_ml = clean_up(found.labels, found.second, task, run.keep_largest.get(name, []), voxel_ml)
    counts = np.bincount(found.labels.ravel(), minlength=len(task.classes))
    volumes_ml = {label: float(n) * voxel_ml for label, n in zip(task.classes[1:], counts[1:])}
    return LabelMap(
        found.labels,
        task.classes,
        dropped_ml,
        found.probabilities,
        found.entropy,
        found.sums,
        expected_dice(found.sums, task, calibration, volumes_ml) if found.sums is not None else {},
        volume_intervals(volumes_ml, calibration),
        run.calibration.coverage,
    )


def _of_volume(run: Run, name: str, looks: list[tuple[torch.Tensor, float]]) -> ClassScores | Value:
    """Streams' outputs for the whole volume, averaged by their weights: probabilities, or values."""
    task, calibration = run.config.tasks[name], run.calibration.of(name)
    total = sum(weight for _, weight in looks)
    if task.kind == "regression":
        value = sum(float(seen) * weight for seen, weight in looks) / total
        half = calibration.half_width
        if half is None:
            return Value(value, task.unit)
        return Value(value, task.unit, (value - half, value + half), run.calibration.coverage)
    shares = [(seen.double() / calibration.temperature).softmax(dim=0) * weight for seen, weight in looks]
    chances = (torch.stack(shares).sum(dim=0) / total).cpu().numpy()
    if calibration.threshold is None:
        return ClassScores(chances, task.classes)
    likely = [name for name, chance in zip(task.classes, chances) if chance >= calibration.threshold]
    return ClassScores(chances, task.classes, likely, run.calibration.coverage)
