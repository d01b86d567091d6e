"""One random variation of a training sample: first the dice, then the deed.

Axes: B batch, C channel, D H W voxels.
In: image (C, D, H, W) float32, labels {task: (D, H, W) integer}.  Out: the same, varied; image and labels move together.
`sample_params` draws everything from one generator into plain arrays; `apply` is a pure function of them: same params, same
result, on every device. All motion is one resampling (spatial.py), all blur, ringing and ghosts one product per axis (lines.py).
To add a variation: two functions (draw the dice, apply them), a row in AUGMENTS, its strength and chance in config.AugmentConfig.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mri_ds.augment import artefacts, deformation, intensity, lines, noise
from mri_ds.augment.frame import Arrays, Augment, Frame, Matrices, Triple
from mri_ds.augment.spatial import Deformation, Window, permute, read_window, source_window

# Applied from first to last, as a scan comes about: the body's place, the coil and the tissue, the scan, its noise, what is kept.
AUGMENTS: dict[str, Augment] = {
    "flip": Augment(("flip",), deformation.draw_flips),
    "quarter_turn": Augment(("quarter_turn",), deformation.draw_quarter_turns),
    "affine": Augment(("rotate_deg", "scale", "shear", "translate_mm"), deformation.draw_affine),
    "elastic": Augment(("elastic_mm", "elastic_grid_mm"), deformation.draw_elastic),
    "grid_distortion": Augment(("grid_distortion",), deformation.draw_grid_distortion),
    "bias_field": Augment(("bias_field",), intensity.draw_bias_field, intensity.apply_bias_field),
    "gamma": Augment(("gamma",), intensity.draw_gamma, intensity.apply_gamma),
    "contrast": Augment(("contrast",), intensity.draw_contrast, intensity.apply_contrast),
    "motion": Augment(("motion_mm",), artefacts.draw_motion, artefacts.apply_motion),
    "blur": Augment(("blur_mm",), lines.draw_blur, lines=lines.blur_lines),
    "low_resolution": Augment(("low_resolution",), lines.draw_low_resolution, lines=lines.low_resolution_lines),
    "gibbs": Augment(("gibbs",), lines.draw_gibbs, lines=lines.gibbs_lines),
    "ghosting": Augment(("ghosting",), lines.draw_ghosting, lines=lines.ghosting_lines),
    "spike": Augment(("spike",), artefacts.draw_spike, artefacts.apply_spike),
    "noise": Augment(("noise",), noise.draw_noise, noise.apply_gaussian),
    "rician_noise": Augment(("rician_noise",), noise.draw_noise, noise.apply_rician),
    "channel_dropout": Augment(("channel_dropout",), intensity.draw_channel_dropout, intensity.apply_channel_dropout),
}
SPATIAL = {"flip", "quarter_turn", "affine", "elastic", "grid_distortion"}
KNOBS = tuple(knob for row in AUGMENTS.values() for knob in row.knobs)


@dataclass(frozen=True)
class AugmentParams:
    """The dice of one sample. With nothing but a shape it is the identity."""

    shape: Triple  # of the result, voxels
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    start: Triple = (0, 0, 0)  # source voxel that the result begins with
    dice: dict[str, Arrays] = field(default_factory=dict)  # rows of AUGMENTS that happen -> what they drew

    @property
    def is_spatial(self) -> bool:
        return not SPATIAL.isdisjoint(self.dice)


def sample_params(
    rng: np.random.Generator,
    *,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    num_channels: int,
    strength: Mapping[str, float],
    prob: Mapping[str, float] | None = None,
    flip_axes: Sequence[int] = (),
    source_shape: Sequence[int] | None = None,
) -> AugmentParams:
    """Draws one variation for a result of `shape` voxels of `spacing_mm`.

    strength has any of KNOBS (config.AugmentConfig says what each is, in which unit): what it does not name is left out. prob is
    the chance of each row of AUGMENTS, 1 where it is silent. flip_axes are the axes along which anatomy may be mirrored.
    With a source_shape the result is a random crop of a source of that size; an axis that fits is centred.
    Each row has dice of its own: switching one off leaves the others as they fall. Raises ValueError for an unknown name.

    >>> rng, strength = np.random.default_rng(0), {"rotate_deg": 15, "noise": 0.1}
    >>> params = sample_params(rng, shape=(8, 8, 8), spacing_mm=(1, 1, 1), num_channels=1, strength=strength)
    >>> image, labels = apply(torch.zeros(1, 8, 8, 8), {"tissue": torch.zeros(8, 8, 8, dtype=torch.int16)}, params)
    >>> tuple(image.shape), labels["tissue"].dtype, list(params.dice)
    ((1, 8, 8, 8), torch.int16, ['affine', 'noise'])
    """
    prob = {} if prob is None else prob
    if unknown := (strength.keys() - set(KNOBS)) | (prob.keys() - AUGMENTS.keys()):
        raise ValueError(f"no variation has {sorted(unknown)}: strengths are {', '.join(KNOBS)}; chances {', '.join(AUGMENTS)}")
    d, h, w = (int(n) for n in shape)
    sd, sh, sw = (float(s) for s in spacing_mm)
    frame = Frame((d, h, w), (sd, sh, sw), num_channels, tuple(flip_axes))
    chances, seeds = rng.random(len(AUGMENTS)), rng.integers(2**63, size=len(AUGMENTS))
    start = (0, 0, 0) if source_shape is None else draw_start(rng, source_shape, shape)
    dice = {}
    for (name, row), chance, seed in zip(AUGMENTS.items(), chances, seeds):
        knobs = [strength.get(knob, 0.0) for knob in row.knobs]
        if chance < prob.get(name, 1.0) and any(knobs) and (drawn := row.draw(np.random.default_rng(seed), frame, *knobs)):
            dice[name] = drawn
    return AugmentParams(frame.shape, frame.spacing_mm, start, dice)


def draw_start(rng: np.random.Generator, source_shape: Sequence[int], shape: Sequence[int]) -> Triple:
    """First source voxel of a crop: anywhere inside a longer axis; where the crop is longer, the source is in its middle."""
    d, h, w = (int(rng.integers(n - p + 1)) if n > p else -((p - n) // 2) for n, p in zip(source_shape, shape))
    return d, h, w


def apply(
    image: Tensor,
    labels: Mapping[str, Tensor],
    params: AugmentParams,
    *,
    start: Sequence[int] | None = None,
    fill: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The variation `params` of a sample: image (C, *params.shape) float32, labels {task: (*params.shape)}; inputs stay as is.

    A source larger or smaller than params.shape is cropped or padded in the same resampling: the result's first voxel is source
    voxel `start` (default: params.start). What lies beyond the source is `fill` in the image and 0 in the labels.
    On an accelerator the result is that of the CPU to about 1e-5 (with TF32 products allowed, 1e-3).
    """
    window = window_of(params, image.shape[1:], start=start, device=image.device)
    boxes = {task: label[window.box] for task, label in labels.items()}
    return apply_to_box(image[(slice(None), *window.box)], boxes, params, window, fill=fill)


def window_of(
    params: AugmentParams,
    source_shape: Sequence[int],
    *,
    start: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Window:
    """Where in a source of that size the variation looks: known before any voxel is read.

    >>> still = AugmentParams((8, 8, 8))
    >>> window_of(still, (100, 100, 100), start=(90, 0, 96)).box
    (slice(90, 98, None), slice(0, 8, None), slice(96, 100, None))
    """
    matrix, shift_mm = params.dice.get("affine", (None, None))
    (control_mm,), (cells,) = params.dice.get("elastic", (None,)), params.dice.get("grid_distortion", (None,))
    with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
        return source_window(
            source_shape,
            start=params.start if start is None else start,
            shape=params.shape,
            spacing_mm=params.spacing_mm,
            deformation=Deformation(matrix=matrix, shift_mm=shift_mm, control_mm=control_mm, cells=cells),
            device=device,
        )


def apply_to_box(
    image: Tensor, labels: Mapping[str, Tensor], params: AugmentParams, window: Window, *, fill: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """`apply`, of the voxels in window.box alone: image (C, *box), labels {task: (*box)}. The result is the same to the bit."""
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):  # half precision would show in positions and products
        stacked = torch.stack(list(labels.values())) if labels else image.new_zeros((0, *image.shape[1:]))
        image, maps = read_window(image.float(), stacked, window, fill=fill)
        turns, flips = params.dice.get("quarter_turn", ()), params.dice.get("flip", ())
        image, maps = (permute(voxels, quarter_turns=turns, flips=flips) for voxels in (image, maps))
        return _vary_values(image, params.dice), dict(zip(labels, maps))


def apply_batch(
    images: Tensor,
    labels: Mapping[str, Tensor],
    params: Sequence[AugmentParams],
    *,
    fill: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The variations `params`, one per sample, of images (B, C, D, H, W) and labels {task: (B, D, H, W)}, on their device.

    Equals `apply` sample by sample. Each sample has transforms of its own, and one volume fills an accelerator: nothing is gained
    by pressing them into common operations. Nothing is read back from the device. All params have the same shape.

    >>> images, still = torch.rand(2, 1, 4, 4, 4), AugmentParams((4, 4, 4))
    >>> bool((apply_batch(images, {}, [still, still])[0] == images).all())
    True
    """
    if len(params) != len(images):
        raise ValueError(f"{len(params)} params for a batch of {len(images)}: give one per sample")
    varied = [apply(image, {t: maps[b] for t, maps in labels.items()}, params[b], fill=fill) for b, image in enumerate(images)]
    return torch.stack([image for image, _ in varied]), {t: torch.stack([maps[t] for _, maps in varied]) for t in labels}


def _vary_values(image: Tensor, dice: Mapping[str, Arrays]) -> Tensor:
    """All rows but the spatial ones, in the order of AUGMENTS; those that work along lines wait, to be carried out together."""
    waiting: Matrices | None = None
    for name, row in AUGMENTS.items():
        if name not in dice:
            continue
        if row.lines is not None:
            matrices = row.lines(image.shape[1:], *dice[name])
            waiting = matrices if waiting is None else lines.one_after_another(waiting, matrices)
        elif row.apply is not None:
            image = row.apply(image if waiting is None else lines.along_lines(image, waiting), *dice[name])
            waiting = None
    return image if waiting is None else lines.along_lines(image, waiting)
