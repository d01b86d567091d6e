"""The curves that the Kolmogorov-Arnold heads have learned: a fact about the run, whatever the subject.

Axes: I inputs, O outputs, P points of a curve.
In: a Run.  Out: for every volume task its two layers, inputs -> hidden -> outputs. A layer's output is the sum of its curves over
the inputs, plus a bias: where a curve is flat its input does not matter, where it rises the output rises with it.
"""

from dataclasses import dataclass
from typing import Any

import torch

from mri_ds.errors import InputError
from mri_ds.inference.run import Run
from mri_ds.mri_network import BaseMRINet
from mri_ds.nn.kan import OptimizedKANLayer

POINTS = 81


@dataclass(frozen=True)
class Curves:
    """x (P, I), y (O, I, P): curve (o, i) is y[o, i] over x[:, i]."""

    inputs: list[str]
    outputs: list[str]
    x: torch.Tensor
    y: torch.Tensor

    def as_dict(self) -> dict[str, Any]:
        """Numbers of six digits: x by input, y by input and output."""
        return {
            "x": {name: _digits(self.x[:, i]) for i, name in enumerate(self.inputs)},
            "y": {name: {out: _digits(self.y[o, i]) for o, out in enumerate(self.outputs)} for i, name in enumerate(self.inputs)},
        }


def kan_curves(run: Run, net: BaseMRINet, *, num_points: int = POINTS) -> dict[str, list[Curves]]:
    """{volume task: its two layers}. Raises InputError as `check_kan`."""
    check_kan(net)
    heads = net.volume_heads
    assert heads is not None
    found: dict[str, list[Curves]] = {}
    for task in heads.tasks:
        config = run.config.tasks[task]
        ends = (config.classes or [f"{task} ({config.unit})" if config.unit else task]) + ["log variance"]
        names = _input_names(run, net)
        found[task] = []
        for layer in heads.heads.head_of(task):
            assert isinstance(layer, OptimizedKANLayer)
            x, y = (part.cpu() for part in layer.curves(num_points))
            outputs = ends[: len(y)] if found[task] else [f"hidden {i}" for i in range(len(y))]
            found[task].append(Curves(names, outputs, x, y))
            names = outputs
    return found


def check_kan(net: BaseMRINet) -> None:
    """Raises InputError for a network without such heads."""
    heads = net.volume_heads
    layers = [part for part in heads.modules() if isinstance(part, OptimizedKANLayer)] if heads is not None else []
    if not layers:
        what = "the run has no KAN heads: no classification or regression, or model.use_kan is off"
        raise InputError(what, where="--what kan", fix="leave it out of --what")


def _input_names(run: Run, net: BaseMRINet) -> list[str]:
    """Of the features that heads/volume.py puts together: of the task's token, structures' sizes, learned mixes of these."""
    heads = net.volume_heads
    assert heads is not None
    sizes = [f"size of {name}" for task in heads.region_statistics for name in run.config.tasks[task].classes]
    mixes = [f"mix {i} of sizes" for i in range(len(sizes))]
    return [f"token {i}" for i in range(heads.heads.in_features - len(sizes) - len(mixes))] + sizes + mixes


def _digits(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
