"""From the network's grid back to the subject's own, block by block, so that no volume of scores is ever whole.

Axes: K classes, D H W voxels; n voxels of the network's grid and m of the subject's own along an axis.
A voxel is a sum over the few old voxels that reach it (its taps: two, or more where voxels are merged), axis after axis, each
term multiplied and then added: whatever the block, its bits are the same. The weights are those of `resample`, linear.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mri_ds.data.preprocess.resample import axis_weights

LINEAR = 1
Taps = tuple[Tensor, Tensor]  # (m, T) int64 old voxels and (m, T) float32 what each counts


class WayBack:
    """Grid `old` (D, H, W) -> grid `new`, which fill the same space."""

    def __init__(self, old: Sequence[int], new: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        self.old, self.new = tuple(old), tuple(new)
        self.taps = [_taps(n, m, device) if n != m else None for n, m in zip(old, new)]
        ratios = [(m / n, axis) for axis, (n, m) in enumerate(zip(old, new)) if n != m]
        self.axes = [axis for _, axis in sorted(ratios)]  # the one that shrinks most comes first: the rest costs less

    def needed(self, axis: int, first: int, last: int) -> tuple[int, int]:
        """The old voxels first..last (excluded) that new voxels first..last (excluded) are made of."""
        taps = self.taps[axis]
        if taps is None:
            return first, last
        return int(taps[0][first:last].min()), int(taps[0][first:last].max()) + 1

    def ready(self, known: int) -> int:
        """How many new planes (along D) can be made of the first `known` old ones."""
        taps = self.taps[0]
        return known if taps is None else int((taps[0].amax(dim=1) < known).sum())

    def block(self, volume: Tensor, start: tuple[int, int], planes: tuple[int, int], rows: tuple[int, int]) -> Tensor:
        """One class: old voxels (d, h, W) from plane and row `start` on -> the new `planes` and `rows` (last excluded)."""
        for axis in self.axes:
            first, last = (planes, rows, (0, self.new[2]))[axis]
            volume = self._along(volume, axis, (*start, 0)[axis], first, last)
        box = [slice(None)] * 3  # of axes that stay as they are
        for axis, (first, last) in enumerate((planes, rows)):
            if self.taps[axis] is None:
                box[axis] = slice(first - start[axis], last - start[axis])
        return volume[tuple(box)]

    def _along(self, volume: Tensor, axis: int, start: int, first: int, last: int) -> Tensor:
        taps = self.taps[axis]
        assert taps is not None
        places, weights = taps[0][first:last] - start, taps[1][first:last]
        shape = [-1 if a == axis else 1 for a in range(3)]
        total = volume.index_select(axis, places[:, 0]).mul_(weights[:, 0].view(shape))
        for t in range(1, places.shape[1]):
            total += volume.index_select(axis, places[:, t]).mul_(weights[:, t].view(shape))
        return total


def top_two(scores: Tensor, best: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor] | None, k: int) -> None:
    """Takes the scores of class k, after those of all lower ones, into the running (score, class) of each voxel, in place.

    The lowest class wins a tie. second: the best class but that one.
    """
    wins = scores > best[0]
    if second is not None:
        # what is beaten comes second; what beats nothing may still beat the second
        runner, number = torch.where(wins, best[0], scores), best[1].where(wins, best[1].new_tensor(k))
        comes_second = wins | (scores > second[0])
        second[0].copy_(runner.where(comes_second, second[0]))
        second[1].copy_(number.where(comes_second, second[1]))
    best[0].copy_(scores.where(wins, best[0]))
    best[1].masked_fill_(wins, k)


def _taps(n: int, m: int, device: torch.device | str) -> Taps:
    weights = axis_weights(n, m, LINEAR)
    counts = weights != 0
    width = int(counts.sum(dim=1).max())
    places = counts.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    values = weights.gather(1, places)
    return places.where(values != 0, places[:, :1]).to(device), values.to(device)
