"""A subject as the network sees it: prepared, in windows; and the way back to its own grid.

Axes: C channels, D H W voxels of the network's grid, K classes.
In: a Run of one network and a canonical Sample.  Out: windows, blended or chosen maps, maps on the subject's own grid.
Everything is as in prediction (subject.py): preparation, window places, Gaussian weights, what lies beyond the border.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mri_ds.data.preprocess import Placement, border_minimum, prepare_placed, scores_to_shape, settings
from mri_ds.data.preprocess.resample import LINEAR, apply_weights, volume_weights
from mri_ds.errors import InputError
from mri_ds.inference.run import Run
from mri_ds.mri_network import BaseMRINet
from mri_ds.nn.sliding_window import ALL, Corner, cover, gaussian_weight, sliding_window
from mri_ds.sample import Sample

Look = Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Scene:
    """One subject before one network. `padded` is `image` with `fill` about it where it is shorter than a window."""

    run: Run
    image: Tensor  # (1, C, D, H, W) float32, normalised
    spacing_mm: Tensor  # (1, 3)
    placement: Placement
    overlap: float
    fill: float  # what lies beyond the border: air, where there is some
    padded: Tensor
    before: list[int]
    corners: list[Corner]

    @property
    def net(self) -> BaseMRINet:
        return self.run.net  # type: ignore[return-value]

    @property
    def patch(self) -> tuple[int, int, int]:
        return self.run.config.data.patch  # type: ignore[return-value]

    @property
    def voxel_ml(self) -> float:
        """Of the network's grid."""
        return float(self.spacing_mm.prod()) / 1000

    @property
    def crop(self) -> tuple[slice, ...]:
        """The image inside `padded`."""
        return tuple(slice(b, b + n) for b, n in zip(self.before, self.image.shape[2:]))

    def look(self, windows: Tensor) -> dict[str, Tensor]:
        """The network's outputs for (B, C, *patch)."""
        return self.net(windows, self.spacing_mm.expand(len(windows), 3))  # type: ignore[no-any-return]

    def window(self, padded: Tensor, number: int) -> Tensor:
        return padded[(ALL, ALL, *self.place(number))]

    def place(self, number: int) -> tuple[slice, ...]:
        return tuple(slice(c, c + p) for c, p in zip(self.corners[number], self.patch))

    def with_fill(self, image: Tensor) -> Tensor:
        """An image of the same shape, padded as this one."""
        padded = self.padded.clone()
        padded[(ALL, ALL, *self.crop)] = image
        return padded

    def blended(self, look: Look) -> dict[str, Tensor]:
        """What `look` makes of every window, (1, K, *patch) or (1, ...), joined as predictions are."""
        return sliding_window(look, self.image, patch=self.patch, overlap=self.overlap, pad_value=self.fill)

    def chosen(self, look: Callable[[Tensor], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """As `blended`, for numbers that have no mean: a voxel's are of the window that it lies most centrally in.

        look: (1, C, *patch) -> integers (K, *patch); returned (K, D, H, W). Of two windows alike the first counts.
        """
        central = _central(self.patch).to(self.image.device)
        best = central.new_full(self.padded.shape[2:], -torch.inf)
        found: dict[str, Tensor] = {}
        for number in range(len(self.corners)):
            place = self.place(number)
            wins = central > best[place]
            best[place] = torch.where(wins, central, best[place])
            for name, ids in look(self.window(self.padded, number)).items():
                whole = found.setdefault(name, ids.new_zeros((len(ids), *best.shape)))
                whole[(ALL, *place)] = torch.where(wins, ids, whole[(ALL, *place)])
        return {name: whole[(ALL, *self.crop)] for name, whole in found.items()}

    @cached_property
    def blend_weights(self) -> tuple[Tensor, Tensor]:
        """Of a window's voxels (*patch), and their sums over all windows, as `padded`."""
        weight = gaussian_weight(self.patch, device=self.image.device)
        total = weight.new_zeros(self.padded.shape[2:])
        for number in range(len(self.corners)):
            total[self.place(number)] += weight
        return weight, total

    def to_native(self, volume: Tensor) -> np.ndarray:
        """(D, H, W) of the network's grid -> float32 on the subject's canonical grid, linearly; 0 where nothing was looked at."""
        return self._in_box(scores_to_shape(volume[None].cpu().float(), self._box_shape())[0].numpy(), 0)

    def share_out(self, volume: Tensor) -> np.ndarray:
        """As `to_native`, for what is an amount per voxel: each is dealt out to the voxels it lies on, and the sum stays."""
        amounts = volume.cpu().double()
        weights = volume_weights(amounts.shape, self._box_shape(), LINEAR)
        dealt = [w if w is None else w.double() / w.double().sum(dim=0) for w in weights]
        return self._in_box(apply_weights(amounts, dealt).float().numpy(), 0)

    def ids_to_native(self, ids: Tensor) -> np.ndarray:
        """(D, H, W) integers -> int16 on the subject's canonical grid, of the nearest voxel; -1 where nothing was seen."""
        for axis, (n, m) in enumerate(zip(ids.shape, self._box_shape())):
            nearest = (2 * torch.arange(m, device=ids.device) + 1) * n // (2 * m)
            ids = ids.index_select(axis, nearest)
        return self._in_box(ids.cpu().to(torch.int16).numpy(), -1)

    def _box_shape(self) -> tuple[int, ...]:
        return tuple(side.stop - side.start for side in self.placement.box)

    def _in_box(self, volume: np.ndarray, outside: int) -> np.ndarray:
        whole = np.full(self.placement.shape, outside, dtype=volume.dtype)
        whole[self.placement.box] = volume
        return whole


def set_scene(run: Run, sample: Sample, *, overlap: float | None = None) -> Scene:
    """Prepares a canonical sample for the run's network. Raises InputError for a run that averages several networks."""
    one_network(run)
    data = run.config.data
    assert data.patch != "auto", "a run's config is resolved"
    assert sample["image"].shape[0] == len(run.channels), "the caller checks the channels"
    unlabelled = Sample(**{**sample, "targets": {}})  # type: ignore[typeddict-item]
    prepared, placement = prepare_placed(unlabelled, **settings(data))
    image = torch.from_numpy(prepared["image"])[None].to(run.device)
    overlap = run.config.predict.overlap if overlap is None else overlap
    fill = border_minimum(prepared["image"])
    padded, before, calls = cover(image, data.patch, overlap, 1, fill)
    return Scene(
        run=run,
        image=image,
        spacing_mm=torch.as_tensor(prepared["spacing_mm"], dtype=torch.float32, device=run.device)[None],
        placement=placement,
        overlap=overlap,
        fill=fill,
        padded=padded,
        before=before,
        corners=[corner for call in calls for corner in call],
    )


def one_network(run: Run) -> BaseMRINet:
    """The run's network. Raises InputError where there are several, or one that is shown flips."""
    if run.others or run.num_members > 1 or not isinstance(run.net, BaseMRINet):
        looks = f"{run.num_members + sum(one.num_members for one in run.others)} networks or flips are averaged"
        raise InputError(f"{looks} here, and one look of one network is explained", fix="give one run or one fold")
    return run.net


def _central(patch: Sequence[int]) -> Tensor:
    """How near each voxel of a window is to its centre, the larger the nearer; unlike blending weights never cut off."""
    d, h, w = (((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / n).square() for n in patch)
    return -(d[:, None, None] + h[:, None] + w)


def counted(look: Look, total: int, progress: Callable[[int, int], None] | None) -> Look:
    """`look`, which reports each window that it has seen."""
    done: Iterator[int] = iter(range(1, total + 1))

    def seen(windows: Tensor) -> Mapping[str, Tensor]:
        found = look(windows)
        if progress is not None:
            progress(next(done), total)
        return found

    return seen
