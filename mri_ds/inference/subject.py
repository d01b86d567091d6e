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
from mri_ds.data.parts import small_parts
from mri_ds.data.preprocess import Placement, border_minimum, prepare_placed, scores_to_labels, settings
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
    outputs, placement = _network_outputs(run, sample, overlap=overlap, window_batch=window_batch)
    predictions: dict[str, Prediction] = {}
    for name, task in run.config.tasks.items():
        if task.kind == "segmentation":
            voxel_ml = float(np.prod(sample["spacing_mm"])) / 1000
            predictions[name] = _label_map(outputs[name][0], placement, task, voxel_ml, keep_small_parts=keep_small_parts)
        elif task.kind == "classification":
            predictions[name] = ClassScores(outputs[name][0].double().softmax(dim=0).cpu().numpy(), task.classes)
        else:
            predictions[name] = Value(float(outputs[name][0]), task.unit)
    return predictions


def _label_map(
    scores: torch.Tensor, placement: Placement, task: TaskConfig, voxel_ml: float, *, keep_small_parts: bool
) -> LabelMap:
    """The network's scores (K, D', H', W') -> labels on the native grid; small parts go to the next best class."""
    labels = scores_to_labels(scores, placement)
    if keep_small_parts or not task.smallest_part_ml:  # tasks from before parts were measured have no smallest one
        return LabelMap(labels, task.classes)
    is_always_present = [share == 1 for share in task.class_presence]
    is_small, dropped_ml = small_parts(labels, task.smallest_part_ml, is_always_present, voxel_ml)
    if is_small.any():
        labels[is_small] = scores_to_labels(scores, placement, excluded=np.where(is_small, labels, -1))[is_small]
    return LabelMap(labels, task.classes, {name: ml for name, ml in zip(task.classes, dropped_ml) if ml})


def _network_outputs(run: Run, sample: Sample, *, overlap: float, window_batch: int) -> tuple[dict[str, torch.Tensor], Placement]:
    """The network's raw outputs on its own grid: (1, K, D', H', W') logits, (1, K) logits, (1,) numbers; and where that lies."""
    data = run.config.data
    assert data.patch != "auto", "a run's config is resolved"
    assert sample["image"].shape[0] == len(run.channels), "the caller checks the channels"
    unlabelled = Sample(**{**sample, "targets": {}})  # type: ignore[typeddict-item]
    prepared, placement = prepare_placed(unlabelled, **settings(data))
    image = torch.from_numpy(prepared["image"])[None].to(run.device)
    spacing_mm = torch.as_tensor(prepared["spacing_mm"], dtype=torch.float32, device=run.device)[None]
    outputs = sliding_window(
        lambda windows: run.net(windows, spacing_mm.expand(len(windows), 3)),
        image,
        patch=data.patch,
        overlap=overlap,
        window_batch=window_batch,
        pad_value=border_minimum(prepared["image"]),
    )
    return outputs, placement
