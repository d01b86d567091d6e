"""Integrated gradients: a value's difference from that of an empty image, shared out among the voxels.

Axes: C channels, D H W voxels of the network's grid.
In: a Scene and a target.  Out: (C, D, H, W) in the target's unit; its sum is the value of the image less that of the baseline,
up to the steps of the integral, and that gap is told.
The baseline is what lies beyond the image's border everywhere. Experts are those that the image itself visits, along the whole
path: where a token changes its expert the value jumps, and a jump has no gradient that could be shared out.
The value is that of the whole volume: windows are joined first, then its gradient is taken back through each of them in turn, so
that memory is that of one window.
Source: Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks"; the integral is captum's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mri_ds.errors import InputError
from mri_ds.inference.explain.scene import Scene
from mri_ds.inference.explain.target import Target, value_of
from mri_ds.nn.recomputation import ChooseAgain, KeepChoices
from mri_ds.nn.sliding_window import ALL

STEPS = 50
MOST_GAP = 0.05  # of the difference: more is told
Choices = list[list[Tensor]]  # of each window, what every router chose


@dataclass(frozen=True)
class Attribution:
    """`of_voxels` sums up to value - baseline_value + gap. rerouted_value: of the baseline with the experts of its own choice."""

    of_voxels: Tensor  # (C, D, H, W) float32
    value: float
    baseline_value: float
    rerouted_value: float
    gap: float

    @property
    def is_rough(self) -> bool:
        """Whether the integral wants more steps."""
        return abs(self.gap) > MOST_GAP * abs(self.value - self.baseline_value)


def check_captum() -> Any:
    """captum.attr. Raises InputError where it is not installed."""
    try:
        import captum.attr
    except ImportError:
        what = "integrated gradients need captum"
        raise InputError(what, where="--what gradients", fix="pip install 'mri_ds[explain]'") from None
    return captum.attr


def integrated_gradients(
    scene: Scene, target: Target, *, steps: int = STEPS, progress: Callable[[int, int], None] | None = None
) -> Attribution:
    """steps: points of the integral (Gauss-Legendre), each of which costs every window three passes, a single one two."""
    captum_attr = check_captum()
    baseline = torch.full_like(scene.image, scene.fill)
    done: Iterator[int] = iter(range(1, steps + 1))
    with gradients_to_the_image(scene):
        value, choices = routed(scene, target, scene.image)
        baseline_value = value_along(scene, target, baseline, choices)

        def along(image: Tensor) -> Tensor:
            found = _Value.apply(image, scene, target, choices)
            if progress is not None:
                progress(next(done), steps)
            return found.reshape(1)

        method = captum_attr.IntegratedGradients(along)
        found = method.attribute(scene.image, baselines=baseline, n_steps=steps, internal_batch_size=1)
        rerouted_value, _ = routed(scene, target, baseline)
    gap = float(found.sum(dtype=torch.float64)) - (value - baseline_value)
    return Attribution(found[0].detach().float(), value, baseline_value, rerouted_value, gap)


@torch.no_grad()
def routed(scene: Scene, target: Target, image: Tensor) -> tuple[float, Choices]:
    """The target's value, and which experts the image visits."""
    padded, choices = scene.with_fill(image), [[] for _ in scene.corners]  # type: Tensor, Choices
    outputs = []
    for number, chosen in enumerate(choices):
        with KeepChoices(chosen):
            outputs.append(scene.look(scene.window(padded, number))[target.task])
    return float(value_of(scene, target, _joined(scene, iter(outputs)))), choices


@torch.no_grad()
def value_along(scene: Scene, target: Target, image: Tensor, choices: Choices) -> float:
    """The target's value with given experts."""
    padded = scene.with_fill(image)
    return float(value_of(scene, target, _joined(scene, _looks(scene, target, padded, choices))))


def value_and_gradient(scene: Scene, target: Target, image: Tensor, choices: Choices) -> tuple[Tensor, Tensor]:
    """The target's value, a scalar, and its gradient (1, C, D, H, W): exactly that of all windows joined."""
    padded = scene.with_fill(image)
    if len(choices) == 1:
        return _of_one_window(scene, target, padded, choices[0])
    with torch.no_grad():
        whole = _joined(scene, _looks(scene, target, padded, choices))
    with torch.enable_grad():
        whole.requires_grad_()
        value = value_of(scene, target, whole)
        (of_whole,) = torch.autograd.grad(value, whole)
    gradient = torch.zeros_like(padded)
    for number, chosen in enumerate(choices):
        with torch.enable_grad(), ChooseAgain(chosen):
            window = scene.window(padded, number).detach().requires_grad_()
            output = scene.look(window)[target.task]
        (found,) = torch.autograd.grad(output, window, _of_window(scene, of_whole, number))
        gradient[(ALL, ALL, *scene.place(number))] += found
    return value.detach(), gradient[(ALL, ALL, *scene.crop)]


def _of_one_window(scene: Scene, target: Target, padded: Tensor, chosen: list[Tensor]) -> tuple[Tensor, Tensor]:
    with torch.enable_grad(), ChooseAgain(chosen):
        window = padded.clone().requires_grad_()
        value = value_of(scene, target, _joined(scene, iter([scene.look(window)[target.task]])))
    (found,) = torch.autograd.grad(value, window)
    return value.detach(), found[(ALL, ALL, *scene.crop)]


def _looks(scene: Scene, target: Target, padded: Tensor, choices: Choices) -> Iterator[Tensor]:
    for number, chosen in enumerate(choices):
        with ChooseAgain(chosen):
            output = scene.look(scene.window(padded, number))[target.task]
        yield output


def _joined(scene: Scene, outputs: Iterator[Tensor]) -> Tensor:
    """Windows' outputs -> that of the whole volume, as `sliding_window`: blended (1, K, D, H, W), or the mean (1, ...)."""
    sums: Tensor | None = None
    weight, total = scene.blend_weights
    is_map = False
    for number, output in enumerate(outputs):
        is_map = output.ndim == 5
        if not is_map:
            sums = output.float() if sums is None else sums + output.float()
            continue
        if sums is None:
            sums = output.new_zeros((1, output.shape[1], *total.shape), dtype=torch.float32)
        sums[(ALL, ALL, *scene.place(number))] += output.float() * weight
    assert sums is not None, "every volume has a window"
    return (sums / total)[(ALL, ALL, *scene.crop)] if is_map else sums / len(scene.corners)


def _of_window(scene: Scene, of_whole: Tensor, number: int) -> Tensor:
    """The gradient of the whole volume's output -> that of one window's."""
    if of_whole.ndim != 5:
        return of_whole / len(scene.corners)
    weight, total = scene.blend_weights
    padded = of_whole.new_zeros((1, of_whole.shape[1], *total.shape))
    padded[(ALL, ALL, *scene.crop)] = of_whole
    place = scene.place(number)
    return padded[(ALL, ALL, *place)] * weight / total[place]


class _Value(torch.autograd.Function):
    """A scene's value as a function of its image; the gradient is made beside it, a window at a time."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, scene: Scene, target: Target, choices: Choices) -> Tensor:
        value, gradient = value_and_gradient(scene, target, image.detach(), choices)
        ctx.save_for_backward(gradient)
        return value.to(image.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * grads[0], None, None, None


@contextmanager
def gradients_to_the_image(scene: Scene) -> Iterator[None]:
    """While it lasts: none for the weights, and one through the structures' sizes, which training does without."""
    asked = [parameter for parameter in scene.net.parameters() if parameter.requires_grad]
    heads = scene.net.volume_heads
    scene.net.requires_grad_(False)
    if heads is not None:
        heads.regions_have_gradient = True
    try:
        yield
    finally:
        if heads is not None:
            heads.regions_have_gradient = False
        for parameter in asked:
            parameter.requires_grad_()
