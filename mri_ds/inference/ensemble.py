"""Several looks at one window, averaged: networks of several folds or checkpoints, and flips of the image.

Axes: B windows, C channels, K classes, D H W voxels (towards Right, Anterior, Superior).
Voxel scores are averaged as logits, as nnU-Net does; of a volume's classes the probabilities, of its numbers the values. Sums run
over the networks and then their flips, in a fixed order.
"""

import itertools
import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mri_ds.config import TaskConfig
from mri_ds.errors import InputError

AXIS_NAMES = ("left-right", "posterior-anterior", "inferior-superior")
SIDES = {"left", "right", "l", "r", "lh", "rh", "lt", "rt", "sin", "dex", "sinister", "dexter", "ipsilateral", "contralateral"}


class Ensemble(nn.Module):
    """Averages `nets` over every combination of flips along `flip_axes`; called as BaseMRINet is.

    >>> net = Ensemble([lambda x, mm: {"size": x.mean(dim=(1, 2, 3, 4))}], {}, flip_axes=[0, 1])
    >>> float(net(torch.ones(1, 1, 2, 2, 2), torch.ones(1, 3))["size"])
    1.0
    """

    def __init__(self, nets: Sequence[nn.Module], tasks: Mapping[str, TaskConfig], *, flip_axes: Sequence[int] = ()) -> None:
        super().__init__()
        self.nets = list(nets)
        for number, net in enumerate(nets):
            if isinstance(net, nn.Module):
                self.add_module(str(number), net)
        self.class_scores = {name for name, task in tasks.items() if task.kind == "classification"}
        self.flips = [axes for n in range(len(flip_axes) + 1) for axes in itertools.combinations(sorted(flip_axes), n)]

    def forward(self, image: Tensor, spacing_mm: Tensor) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for net in self.nets:
            for axes in self.flips:
                for name, seen in self._look(net, image, spacing_mm, axes).items():
                    total[name] = total[name].add_(seen) if name in total else seen.clone()
        num_looks = len(self.nets) * len(self.flips)
        means = {name: sums.div_(num_looks) for name, sums in total.items()}
        return {name: mean.log() if name in self.class_scores else mean for name, mean in means.items()}

    def _look(self, net: nn.Module, image: Tensor, spacing_mm: Tensor, axes: tuple[int, ...]) -> dict[str, Tensor]:
        dims = [2 + axis for axis in axes]
        outputs = net(image.flip(dims) if dims else image, spacing_mm)
        return {
            name: (seen.flip(dims) if dims else seen).float()
            if seen.ndim == 5
            else (seen.double().softmax(dim=1) if name in self.class_scores else seen.float())
            for name, seen in outputs.items()
        }


def check_flips(flip_axes: Sequence[int], tasks: Mapping[str, TaskConfig]) -> list[int]:
    """The axes, sorted. Raises InputError for left-right where tasks or their classes name a side."""
    sided = sided_names(tasks)
    if 0 in flip_axes and sided:
        what = f"flipping left-right would exchange sides that the tasks tell apart ({', '.join(sided[:3])})"
        raise InputError(what, where="predict.flip_axes", fix="flip other axes: 1 is posterior-anterior, 2 inferior-superior")
    if wrong := [axis for axis in flip_axes if axis not in (0, 1, 2)]:
        raise InputError(f"no axis {wrong[0]}", where="predict.flip_axes", fix="use 0 (left-right), 1 and 2")
    return sorted(set(flip_axes))


def sided_names(tasks: Mapping[str, TaskConfig]) -> list[str]:
    """Names of tasks and classes that say left or right, in any of the usual spellings.

    >>> sided_names({"hippocampus_L": TaskConfig(kind="segmentation", classes=["background", "CA1", "rhLobe", "Right-CA2"])})
    ['hippocampus_L', 'rhLobe', 'Right-CA2']
    """
    names = [name for task, config in tasks.items() for name in (task, *config.classes)]
    return [name for name in names if SIDES & set(_words(name))]


def _words(name: str) -> list[str]:
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.split(r"[^A-Za-z]+", parted) if word]
