"""How sure a run is of one subject: what `calibration.json` says, applied to the network's own probabilities.

Axes: K classes, D H W voxels of the network's grid, D' H' W' of the subject's own.
In: a Run, a canonical Sample and the calibration's entry of each task.  Out: maps of entropy on the subject's own grid, the
expected Dice of each structure, regions that hold it.
temperature.py, conformal.py and quality.py say what the numbers mean; evaluation/calibrate.py fits them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_ds.data.preprocess import Placement, border_minimum, prepare_placed, scores_to_shape, settings
from mri_ds.inference.calibration import Calibration, TaskCalibration
from mri_ds.inference.run import Run
from mri_ds.inference.subject import LabelMap, predict_sample
from mri_ds.nn.sliding_window import sliding_window
from mri_ds.sample import Sample


@dataclass(frozen=True)
class Doubt:
    """Of one segmentation. entropy (D', H', W') float32, 0 sure .. 1 undecided; by class the Dice to be expected (None: the
    class was not found), and where it may be: a region (D', H', W') that holds `region_share` of it at the chosen coverage."""

    entropy: np.ndarray
    quality: dict[str, float | None]
    regions: dict[str, np.ndarray] = field(default_factory=dict)


@torch.inference_mode()
def assess(run: Run, sample: Sample, calibration: Mapping[str, Any]) -> dict[str, Doubt]:
    """{segmentation task: Doubt}; calibration: {task: its entry in calibration.json's "tasks"}, and may lack any.

    Memory: the scores of all classes on the network's grid. The sample's targets are not looked at.
    """
    tasks = {name: TaskCalibration.model_validate(fitted) for name, fitted in calibration.items()}
    predictions = predict_sample(replace(run, calibration=Calibration(tasks=tasks)), sample, entropy=True)
    outputs, _, placement = network_outputs(run, sample)
    found: dict[str, Doubt] = {}
    for name, task in run.config.tasks.items():
        if task.kind != "segmentation":
            continue
        fitted = calibration.get(name, {})
        p = probabilities(outputs[name][0], fitted.get("temperature", 1.0))
        prediction = predictions[name]
        assert isinstance(prediction, LabelMap)
        assert prediction.entropy is not None
        expected = {label: prediction.quality[label].dice if label in prediction.quality else None for label in task.classes[1:]}
        thresholds = fitted.get("region", {}).get("threshold", {})
        regions = {
            label: _to_own_grid(p[k], placement) >= thresholds[label]
            for k, label in enumerate(task.classes)
            if thresholds.get(label) is not None
        }
        found[name] = Doubt(prediction.entropy, expected, regions)
    return found


@torch.inference_mode()
def network_outputs(run: Run, sample: Sample) -> tuple[dict[str, Tensor], dict[str, Any], Placement]:
    """The network's raw outputs for a whole subject on its own grid, (1, K, D, H, W), (1, K), (1,); the targets on that grid."""
    data = run.config.data
    assert data.patch != "auto", "a run's config is resolved"
    prepared, placement = prepare_placed(sample, **settings(data))
    image = torch.from_numpy(prepared["image"])[None].to(run.device)
    spacing_mm = torch.as_tensor(prepared["spacing_mm"], dtype=torch.float32, device=run.device)[None]
    outputs = sliding_window(
        lambda windows: run.net(windows, spacing_mm.expand(len(windows), 3)),
        image,
        patch=data.patch,
        pad_value=border_minimum(prepared["image"]),
    )
    return outputs, prepared["targets"], placement


def probabilities(logits: Tensor, temperature: float) -> np.ndarray:
    """(K, ...) -> (K, ...) float32."""
    scaled: np.ndarray = (logits / temperature).softmax(dim=0).cpu().numpy()
    return scaled


def _to_own_grid(values: np.ndarray, placement: Placement) -> np.ndarray:
    """(D, H, W) of the network's grid -> (D', H', W'), linearly; 0, which is sure background, outside of what it was shown."""
    inside = [side.stop - side.start for side in placement.box]
    whole = np.zeros(placement.shape, dtype=np.float32)
    whole[placement.box] = scores_to_shape(torch.from_numpy(values)[None], inside)[0].numpy()
    return whole
