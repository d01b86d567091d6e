"""A network that sees patches, applied to a volume whose outputs do not fit into memory at once.

Axes: B windows of one call, C input channels, K output channels, D H W voxels.
In: image (1, C, D, H, W) and a callable over (B, C, *patch).  Out: its blended output, in slabs along D.
Windows advance along D, so planes that no later window reaches are complete: they are divided by their weights, handed out, and
their room is used again. Only as many planes as a patch is long are held, for the rows (H) of one band; windows that reach into
two bands are seen twice. A voxel's sum has the same terms in the same order as in `sliding_window`: every bit is the same.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mri_ds.nn.sliding_window import ALL, Corner, cover, gaussian_weight

Outputs = Mapping[str, Tensor]
Compute = Callable[[Iterable[Tensor]], Iterator[Outputs]]  # windows (B, C, *patch), call by call -> their outputs, in order


class WindowStream:
    """`slabs` for one band of rows after another, then `vectors`. Arguments as of `sliding_window`.

    compute: applies the network to a sequence of calls; by default `fn` to one after another.

    >>> stream = WindowStream(lambda x: {"y": x * 0 + 1}, torch.rand(1, 2, 9, 5, 7), patch=(4, 4, 4))
    >>> [(start, tuple(slab["y"].shape)) for start, slab in stream.slabs((0, 5))]
    [(0, (2, 2, 5, 7)), (2, (2, 2, 5, 7)), (4, (2, 1, 5, 7)), (5, (2, 4, 5, 7))]
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Outputs],
        image: Tensor,
        *,
        patch: Sequence[int],
        overlap: float = 0.5,
        window_batch: int = 1,
        pad_value: float = 0.0,
        compute: Compute | None = None,
    ) -> None:
        self.compute: Compute = compute or (lambda calls: map(fn, calls))
        self.patch, self.shape = tuple(patch), tuple(image.shape[2:])
        self.padded, self.before, self.calls = cover(image, patch, overlap, window_batch, pad_value)
        self.num_windows = sum(len(call) for call in self.calls)
        self.weight = gaussian_weight(patch, device=image.device)
        self._sums: dict[int, dict[str, Tensor]] = {}  # of each call, what is not a volume

    def slabs(self, rows: tuple[int, int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(first plane, {name: (K, planes, rows, W) float32}) of the rows first..last (excluded), as they complete.

        What is handed out is a view that the next slab overwrites. A network without volumes among its outputs hands out nothing.
        """
        low, high = rows[0] + self.before[1], rows[1] + self.before[1]
        numbers = [i for i, call in enumerate(self.calls) if any(self._reaches(corner, low, high) for corner in call)]
        ring = _Ring(self.weight, (high - low, self.padded.shape[4]), first_row=low)
        for number, outputs in zip(numbers, self.compute(self._windows(self.calls[i]) for i in numbers), strict=True):
            volumes = {name: output for name, output in outputs.items() if output.ndim == 5}
            self._sums[number] = {
                name: output.float().sum(dim=0, keepdim=True) for name, output in outputs.items() if name not in volumes
            }
            for i, corner in enumerate(self.calls[number]):
                if self._reaches(corner, low, high):
                    yield from self._inside(ring.complete(until=corner[0]))
                    ring.add(corner, {name: output[i].float() for name, output in volumes.items()})
        yield from self._inside(ring.complete(until=self.padded.shape[2]))

    def vectors(self) -> dict[str, Tensor]:
        """{name: (1, ...)}: what is not a volume, averaged over the windows. Known once the slabs of all rows were taken."""
        assert len(self._sums) == len(self.calls), "take the slabs of all rows first"
        total: dict[str, Tensor] = {}
        for number in range(len(self.calls)):
            for name, part in self._sums[number].items():
                total[name] = total[name] + part if name in total else part
        return {name: sums / self.num_windows for name, sums in total.items()}

    def _windows(self, call: Sequence[Corner]) -> Tensor:
        places = [tuple(slice(c, c + p) for c, p in zip(corner, self.patch)) for corner in call]
        return torch.cat([self.padded[(ALL, ALL, *place)] for place in places])

    def _reaches(self, corner: Corner, low: int, high: int) -> bool:
        return corner[1] < high and low < corner[1] + self.patch[1]

    def _inside(self, slab: tuple[int, dict[str, Tensor]] | None) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The slab less what is padding."""
        if slab is None or not slab[1]:
            return
        start, num = slab[0] - self.before[0], next(iter(slab[1].values())).shape[1]
        planes = slice(max(-start, 0), min(num, self.shape[0] - start))
        columns = slice(self.before[2], self.before[2] + self.shape[2])
        if planes.start < planes.stop:
            yield start + planes.start, {name: scores[:, planes, :, columns] for name, scores in slab[1].items()}


class _Ring:
    """Sums over the planes that windows still reach: as many as the patch is long, from `top` on."""

    def __init__(self, weight: Tensor, shape: tuple[int, int], *, first_row: int) -> None:
        self.weight, self.shape, self.first_row = weight, shape, first_row
        self.top, self._taken = 0, 0  # first plane held; planes that were handed out
        self.sums: dict[str, Tensor] = {}
        self.total = weight.new_zeros(len(weight), *shape)

    def add(self, corner: Corner, windows: Mapping[str, Tensor]) -> None:
        """windows {name: (K, *patch)}; of them the rows that the ring holds."""
        self._drop()
        assert corner[0] == self.top, "what no window reaches any more is taken first"
        first = corner[1] - self.first_row
        kept = slice(max(-first, 0), min(self.weight.shape[1], self.shape[0] - first))
        place = (slice(first + kept.start, first + kept.stop), slice(corner[2], corner[2] + self.weight.shape[2]))
        for name, window in windows.items():
            if window.shape[1:] != self.weight.shape:
                raise ValueError(f"{name}: output {tuple(window.shape)} is off the patch's grid {tuple(self.weight.shape)}")
            if name not in self.sums:
                self.sums[name] = window.new_zeros(len(window), *self.total.shape)
            self.sums[name][:, :, *place] += window[:, :, kept] * self.weight[:, kept]
        self.total[:, *place] += self.weight[:, kept]

    def complete(self, *, until: int) -> tuple[int, dict[str, Tensor]] | None:
        """The planes before `until`, blended: views, good until `add` is called. Their room is free afterwards."""
        self._drop()
        num = until - self.top
        if num <= 0:
            return None
        self._taken = num
        return self.top, {name: sums[:, :num].div_(self.total[:num]) for name, sums in self.sums.items()}

    def _drop(self) -> None:
        """Moves what is left to the front, plane by plane: no second buffer."""
        taken, length = self._taken, len(self.total)
        if not taken:
            return
        for buffer in [self.total, *(sums.transpose(0, 1) for sums in self.sums.values())]:  # planes first: views
            for i in range(length):
                buffer[i] = buffer[i + taken] if i + taken < length else 0
        self.top, self._taken = self.top + taken, 0
