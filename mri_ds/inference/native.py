"""From a prepared image to label maps on the subject's own grid, without ever holding the scores of a whole volume.

Axes: K classes, D H W voxels.
Windows are blended in slabs (nn/window_stream.py); what is complete goes to the native grid class by class
(data/preprocess/back.py) and leaves the best class of each voxel behind, the second best where that is asked for, probabilities
in a file's pages, and what they say of doubt: entropy, and the sums that soft Dice is made of.
Memory is the image, the maps and a buffer of a chosen size: it does not grow with the number of classes. Where the buffer would
be larger, the volume is looked at in bands of rows, and the few windows that reach into two bands twice.
Several streams (runs of different preparation) advance together, and their scores are averaged on the native grid.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mri_ds.data.preprocess import Placement
from mri_ds.data.preprocess.back import WayBack, top_two
from mri_ds.nn.window_stream import WindowStream

BLOCK_VOXELS = 2**22  # of the native grid that are worked on at once
BLOCK_SHARES = 2**23  # probabilities that are held at once, or one plane's of a band, where that is more
Rows = tuple[int, int]


@dataclass(frozen=True)
class Map:
    """One segmentation on the native grid, (D, H, W). `second` is the best class but the chosen one.

    The rest is of the softmax of the scores there, divided by the temperature. entropy: sum of -p ln p over the classes, divided
    by ln K: 0 sure .. 1 undecided. sums: by class the probability of all voxels, that of the voxels that are labelled so, and
    their number, added up.
    """

    labels: np.ndarray  # int16
    second: np.ndarray | None = None  # int16
    probabilities: np.ndarray | None = None  # (K, D, H, W) float32
    entropy: np.ndarray | None = None  # float32
    sums: np.ndarray | None = None  # (3, K) float64


@dataclass(frozen=True)
class Stream:
    """A network's way over one prepared image. `weight`: how many networks it stands for."""

    windows: WindowStream
    weight: float = 1.0


def label_maps(
    streams: Sequence[Stream],
    placement: Placement,
    maps: Mapping[str, Map],
    num_classes: Mapping[str, int],
    *,
    buffer_bytes: int,
    temperature: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fills `maps` (of zeros) inside the placement's box; the streams' vectors are known afterwards.

    num_classes: K of each map. buffer_bytes bounds the sums of all streams together, down to one row of the volume.
    """
    inside = [side.stop - side.start for side in placement.box]
    device = streams[0].windows.padded.device
    ways = [WayBack(stream.windows.shape, inside, device=device) for stream in streams]
    bands = list(row_bands(streams, inside[1], sum(num_classes.values()), buffer_bytes)) if maps else [(0, inside[1])]
    box_maps = {name: _inside(one, placement) for name, one in maps.items()}
    for number, rows in enumerate(bands):
        views = [_View(stream, way, rows) for stream, way in zip(streams, ways)]
        done = 0
        while done < inside[0]:
            behind = min(views, key=lambda view: view.ready)
            if behind.ready <= done and behind.advance():
                continue
            ready = min(view.ready for view in views) if maps else inside[0]
            for planes in _blocks(done, ready, (rows[1] - rows[0]) * inside[2]):
                for name, one in box_maps.items():
                    _fill(one, views, name, num_classes[name], planes, rows, (temperature or {}).get(name, 1.0))
            done = ready
            if progress is not None:
                progress(number * inside[0] + done, len(bands) * inside[0])
        for view in views:
            view.finish()


def row_bands(streams: Sequence[Stream], num_rows: int, num_classes: int, buffer_bytes: int) -> Iterator[Rows]:
    """Even bands of native rows, as few as keep the streams' sums within `buffer_bytes`."""
    total = 0
    for stream in streams:
        windows = stream.windows
        total += 4 * (num_classes + 1) * windows.patch[0] * max(windows.shape[1], windows.patch[1]) * windows.padded.shape[4]
    count = min(max(1, -(-total // max(buffer_bytes, 1))), num_rows)
    for i in range(count):
        yield num_rows * i // count, num_rows * (i + 1) // count


class _View:
    """One stream over one band: which native planes can be made, and what of the slabs is still needed for the next."""

    def __init__(self, stream: Stream, way: WayBack, rows: Rows) -> None:
        self.way, self.rows, self.weight = way, rows, stream.weight
        self.old_rows = way.needed(1, *rows)
        self.slabs = stream.windows.slabs(self.old_rows)
        self.start, self.known, self.ready = 0, 0, 0  # planes of the network's grid from start on are held
        self.left: dict[str, Tensor] = {}
        self.slab: dict[str, Tensor] = {}

    def advance(self) -> bool:
        """Takes the next slab; what the next native plane needs of the one before is copied. False: there is none."""
        keep = self.known
        if self.ready < self.way.new[0]:
            keep = min(keep, self.way.needed(0, self.ready, self.ready + 1)[0])
        self.left = {name: self._held(name, keep, self.known).clone() for name in self.slab}
        self.start = keep
        start, self.slab = next(self.slabs, (self.known, {}))
        if not self.slab:
            return False
        assert start == self.known, "slabs follow one another"
        self.known += next(iter(self.slab.values())).shape[1]
        self.ready = self.way.ready(self.known)
        return True

    def block(self, name: str, k: int, planes: Rows) -> Tensor:
        """Class k on the native planes and this band's rows, (planes, rows, W)."""
        first, last = self.way.needed(0, *planes)
        held = self._held(name, first, last, k)
        return self.way.block(held, (first, self.old_rows[0]), planes, self.rows)

    def finish(self) -> None:
        """Lets the windows that are left be seen, and go of what is held: the next band needs the room."""
        for _ in self.slabs:
            pass
        self.left, self.slab = {}, {}

    def _held(self, name: str, first: int, last: int, k: int | slice = slice(None)) -> Tensor:
        slab = self.slab[name][k]
        axis = slab.ndim - 3
        begin = self.known - slab.shape[axis]  # of the slab
        parts = [slab.narrow(axis, max(first - begin, 0), last - max(first, begin))] if last > begin else []
        if first < begin:
            parts.insert(0, self.left[name][k].narrow(axis, first - self.start, min(last, begin) - first))
        return torch.cat(parts, dim=axis) if len(parts) > 1 else (parts[0] if parts else slab.narrow(axis, 0, 0))


def _fill(one: Map, views: Sequence[_View], name: str, num_classes: int, planes: Rows, rows: Rows, temperature: float) -> None:
    """One block of one map: classes come one after another; where probabilities need them all, in fewer planes at once."""
    if one.probabilities is not None or one.entropy is not None or one.sums is not None:
        per_plane = num_classes * (rows[1] - rows[0]) * one.labels.shape[2]
        for part in _blocks(*planes, per_plane, BLOCK_SHARES):
            scores = torch.stack([_mean(views, name, k, part) for k in range(num_classes)])
            _leave(one, scores.__getitem__, num_classes, part, rows)
            _leave_shares(one, scores.div_(temperature).softmax(dim=0), part, rows)
    else:
        _leave(one, lambda k: _mean(views, name, k, planes), num_classes, planes, rows)


def _leave(one: Map, scores: Callable[[int], Tensor], num_classes: int, planes: Rows, rows: Rows) -> None:
    """The best class, and the second best; scores(k) are those of class k in the block, (planes, rows, W)."""
    place = (slice(*planes), slice(*rows))
    first = scores(0)

    def running() -> tuple[Tensor, Tensor]:
        return torch.full_like(first, -torch.inf), torch.zeros_like(first, dtype=torch.int16)

    best, second = running(), running() if one.second is not None else None
    for k in range(num_classes):
        top_two(scores(k) if k else first, best, second, k)
    one.labels[place] = best[1].cpu().numpy()
    if one.second is not None and second is not None:
        one.second[place] = second[1].cpu().numpy()


def _leave_shares(one: Map, shares: Tensor, planes: Rows, rows: Rows) -> None:
    """What is asked for of the probabilities (K, planes, rows, W) of a block whose labels are there already."""
    place = (slice(*planes), slice(*rows))
    if one.probabilities is not None:
        one.probabilities[:, *place] = shares.cpu().numpy()
    if one.entropy is not None:
        total = torch.zeros_like(shares[0])
        for p in shares:
            total += torch.special.entr(p)
        one.entropy[place] = total.div_(math.log(max(len(shares), 2))).clamp_(0, 1).cpu().numpy()
    if one.sums is not None:
        labels = torch.from_numpy(one.labels[place]).to(shares.device)
        for k, p in enumerate(shares):
            own = labels == k
            found = [p.sum(dtype=torch.float64), p[own].sum(dtype=torch.float64), own.sum()]
            one.sums[:, k] += [float(number) for number in found]


def _mean(views: Sequence[_View], name: str, k: int, planes: Rows) -> Tensor:
    """Of the streams' scores, by their weights, in their order; a single one's as they are."""
    if len(views) == 1:
        return views[0].block(name, k, planes)
    total = views[0].block(name, k, planes) * views[0].weight
    for view in views[1:]:
        total += view.block(name, k, planes) * view.weight
    return total / sum(view.weight for view in views)


def _blocks(first: int, last: int, per_plane: int, at_once: int = BLOCK_VOXELS) -> Iterator[Rows]:
    step = max(1, at_once // max(per_plane, 1))
    for start in range(first, last, step):
        yield start, min(start + step, last)


def _inside(one: Map, placement: Placement) -> Map:
    """Views of the part of a map that the prepared grid covers."""
    second = one.second[placement.box] if one.second is not None else None
    probabilities = one.probabilities[:, *placement.box] if one.probabilities is not None else None
    entropy = one.entropy[placement.box] if one.entropy is not None else None
    return Map(one.labels[placement.box], second, probabilities, entropy, one.sums)
