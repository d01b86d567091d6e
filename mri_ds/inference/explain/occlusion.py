"""Occlusion: how far a value falls when a box of the image is covered.

Axes: C channels, D H W voxels of the network's grid, K classes.
In: a Scene and its targets.  Out: {label: (D, H, W)} in the targets' units: the value of the image as it is, less that with a box
covered by what lies beyond the image's border; a voxel has the mean over the boxes that cover it.
Only windows that a box reaches are seen again: of a large volume a few, whose old part is taken out of the sums and whose new one
is put in.
Source: Zeiler and Fergus 2014, section 4.2; what is averaged is what captum.attr.Occlusion averages.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mri_ds.inference.explain.scene import Scene
from mri_ds.inference.explain.target import Target, share_of, value_of
from mri_ds.nn.sliding_window import ALL

KEPT_BYTES = 2**30  # of windows' outputs, so that neighbouring boxes need not see them twice
Box = tuple[slice, ...]


@torch.inference_mode()
def occlusion(
    scene: Scene,
    targets: Sequence[Target],
    *,
    size: Sequence[int],
    step: Sequence[int],
    effects: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """{label: (D, H, W) float32}. size, step: edges of the box and how far it moves, in voxels of the network's grid.

    effects (boxes, targets) float64 of an earlier call that was cut short, NaN where it had not come: they are filled in, and
    `progress` hears of each, so that a caller can keep them.
    """
    boxes = boxes_over(scene.image.shape[2:], size, step)
    if effects is None:
        effects = torch.full((len(boxes), len(targets)), math.nan, dtype=torch.float64)
    covered = Covered(scene, targets) if effects.isnan().any() else None
    for number, box in enumerate(boxes):
        if covered is not None and effects[number].isnan().any():
            effects[number] = covered.effects(box)
        if progress is not None:
            progress(number + 1, len(boxes))
    return {target.label: spread(effects[:, i], boxes, scene.image.shape[2:]) for i, target in enumerate(targets)}


def boxes_over(shape: Sequence[int], size: Sequence[int], step: Sequence[int]) -> list[Box]:
    """Boxes that cover a volume, the first at its corner; those at the far faces end there.

    >>> [box[2] for box in boxes_over((4, 4, 9), (4, 4, 4), (4, 4, 3))]
    [slice(0, 4, None), slice(3, 7, None), slice(6, 9, None)]
    """
    axes = []
    for length, edge, move in zip(shape, size, step):
        count = math.ceil(max(length - edge, 0) / move) + 1
        axes.append([slice(i * move, min(i * move + edge, length)) for i in range(count)])
    return list(itertools.product(*axes))


def spread(effects: Tensor, boxes: Sequence[Box], shape: Sequence[int]) -> Tensor:
    """The mean effect of the boxes over each voxel, (D, H, W) float32; 0 where steps larger than the box left a gap."""
    total, count = torch.zeros(*shape, dtype=torch.float64), torch.zeros(*shape)
    for effect, box in zip(effects, boxes):
        total[box] += effect
        count[box] += 1
    return (total / count.clamp_min(1)).float()


class Covered:
    """A scene's outputs for the whole volume as sums over its windows, and what becomes of them under a box."""

    def __init__(self, scene: Scene, targets: Sequence[Target]) -> None:
        self.scene, self.targets = scene, targets
        self.tasks = {target.task: target.kind == "segmentation" for target in targets}
        self.weight, self.total = scene.blend_weights
        self.kept: OrderedDict[int, Mapping[str, Tensor]] = OrderedDict()
        self.sums: dict[str, Tensor] = {}
        for number in range(len(scene.corners)):
            for task, output in self._before(number).items():
                self._add(self.sums, task, output, number)
        self.values = {
            target.label: value_of(scene, target, self.sums[target.task] / len(scene.corners))
            for target in targets
            if not self.tasks[target.task]
        }

    def effects(self, box: Box) -> Tensor:
        """(targets,) float64: how far each value falls when `box` of the image is covered."""
        scene = self.scene
        there = tuple(slice(side.start + b, side.stop + b) for side, b in zip(box, scene.before))
        reached = [i for i in range(len(scene.corners)) if all(_meet(a, b) for a, b in zip(scene.place(i), there))]
        region = tuple(
            slice(max(crop.start, min(side.start for side in sides)), min(crop.stop, max(side.stop for side in sides)))
            for crop, sides in zip(scene.crop, zip(*(scene.place(i) for i in reached)))
        )
        padded = scene.padded.clone()
        padded[(ALL, ALL, *there)] = scene.fill
        change: dict[str, Tensor] = {}
        for number in reached:
            old, new = self._before(number), self._only_asked(scene.look(scene.window(padded, number)))
            for task in self.tasks:
                self._add(change, task, new[task] - old[task], number)
        return torch.stack([self._fall(target, change[target.task], region) for target in self.targets]).cpu()

    def _fall(self, target: Target, change: Tensor, region: Box) -> Tensor:
        scene, sums = self.scene, self.sums[target.task]
        if not self.tasks[target.task]:
            return self.values[target.label] - value_of(scene, target, (sums + change) / len(scene.corners))
        there = (ALL, ALL, *region)
        before, after = (share_of(scene, target, x[there] / self.total[region]) for x in (sums, sums + change))
        return (before - after).sum(dtype=torch.float64) * scene.voxel_ml

    def _add(self, sums: dict[str, Tensor], task: str, output: Tensor, number: int) -> None:
        if not self.tasks[task]:
            sums[task] = sums[task] + output if task in sums else output
            return
        if task not in sums:
            sums[task] = output.new_zeros((1, output.shape[1], *self.total.shape))
        sums[task][(ALL, ALL, *self.scene.place(number))] += output * self.weight

    def _before(self, number: int) -> Mapping[str, Tensor]:
        """The window's outputs for the image as it is."""
        if number not in self.kept:
            self.kept[number] = self._only_asked(self.scene.look(self.scene.window(self.scene.padded, number)))
            size = sum(output.numel() * 4 for output in self.kept[number].values())
            while len(self.kept) > 1 and size * len(self.kept) > KEPT_BYTES:
                self.kept.popitem(last=False)
        self.kept.move_to_end(number)
        return self.kept[number]

    def _only_asked(self, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {task: outputs[task].float() for task in self.tasks}


def _meet(a: slice, b: slice) -> bool:
    return a.start < b.stop and b.start < a.stop
