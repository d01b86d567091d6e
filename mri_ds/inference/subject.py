"""From one subject to one prediction per task.

Axes: C channels, D H W voxels of the native grid, K classes.
In: a Sample in canonical orientation on its native grid.  Out: {task: LabelMap | ClassScores | Value}, label maps on that grid.
The image is prepared exactly as in training: resampled to the network's spacing, normalised, seen in patches. Scores, not labels,
are brought back to the native grid, so that borders stay as fine as the scores are. All in float32.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from mri_ds.config import TaskConfig
from mri_ds.data.parts import drop_small_parts
from mri_ds.data.preprocess import border_minimum, prepare, scores_to_shape
from mri_ds.inference.run import Run
from mri_ds.nn.sliding_window import sliding_window
from mri_ds.sample import Sample


@dataclass(frozen=True)
class LabelMap:
    """Segmentation: labels (D, H, W) int16, indices into `classes` (background first)."""

    labels: np.ndarray
    classes: list[str]
    dropped_ml: dict[str, float] = field(default_factory=dict)  # by class: parts too small to be believed, see data/parts.py


@dataclass(frozen=True)
class ClassScores:
    """Classification: probabilities (K,) float64 that sum to 1."""

    probabilities: np.ndarray
    classes: list[str]

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


Prediction = LabelMap | ClassScores | Value


@torch.inference_mode()
def predict_sample(
    run: Run, sample: Sample, *, overlap: float = 0.5, window_batch: int = 1, keep_small_parts: bool = False
) -> dict[str, Prediction]:
    """Predicts every task of the run for a canonical sample; its `targets` are not looked at.

    keep_small_parts: label maps are the plain argmax, also where a part is smaller than any that training showed.
    """
    outputs = _network_outputs(run, sample, overlap=overlap, window_batch=window_batch)
    native_shape = sample["image"].shape[1:]
    predictions: dict[str, Prediction] = {}
    for name, task in run.config.tasks.items():
        if task.kind == "segmentation":
            scores = scores_to_shape(outputs[name][0], native_shape)
            predictions[name] = _label_map(scores, task, sample["spacing_mm"], keep_small_parts=keep_small_parts)
        elif task.kind == "classification":
            predictions[name] = ClassScores(outputs[name][0].double().softmax(dim=0).cpu().numpy(), task.classes)
        else:
            predictions[name] = Value(float(outputs[name][0]), task.unit)
    return predictions


def _label_map(scores: torch.Tensor, task: TaskConfig, spacing_mm: np.ndarray, *, keep_small_parts: bool) -> LabelMap:
    """scores (K, D, H, W) on the native grid -> labels. Tasks from before parts were measured have no smallest one."""
    smallest = [0.0] * len(task.classes) if keep_small_parts else task.smallest_part_ml or [0.0] * len(task.classes)
    labels, dropped = drop_small_parts(
        scores,
        smallest_ml=smallest,
        is_always_present=[share == 1 for share in task.class_presence or [1.0] * len(task.classes)],
        voxel_ml=float(np.prod(spacing_mm)) / 1000,
    )
    return LabelMap(labels, task.classes, {name: ml for name, ml in zip(task.classes, dropped) if ml})


def _network_outputs(run: Run, sample: Sample, *, overlap: float, window_batch: int) -> dict[str, torch.Tensor]:
    """The network's raw outputs on its own grid: (1, K, D', H', W') logits, (1, K) logits, (1,) numbers."""
    data = run.config.data
    assert data.spacing_mm != "auto" and data.patch != "auto", "a run's config is resolved"
    assert sample["image"].shape[0] == len(run.channels), "the caller checks the channels"
    unlabelled = Sample(**{**sample, "targets": {}})  # type: ignore[typeddict-item]
    prepared = prepare(unlabelled, spacing_mm=data.spacing_mm, clip_percentiles=data.clip_percentiles)
    image = torch.from_numpy(prepared["image"])[None].to(run.device)
    spacing_mm = torch.as_tensor(prepared["spacing_mm"], dtype=torch.float32, device=run.device)[None]
    return sliding_window(
        lambda windows: run.net(windows, spacing_mm.expand(len(windows), 3)),
        image,
        patch=data.patch,
        overlap=overlap,
        window_batch=window_batch,
        pad_value=border_minimum(prepared["image"]),
    )
