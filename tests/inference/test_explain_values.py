"""Integrated gradients and occlusion: against captum, against autograd through all windows at once, and by completeness."""

import math

import captum.attr
import numpy as np
import pytest
import torch
from scenes import make_scene

from mri_ds.inference.explain import occlusion as occlusion_module
from mri_ds.inference.explain.gradients import (
    gradients_to_the_image,
    integrated_gradients,
    routed,
    value_along,
    value_and_gradient,
)
from mri_ds.inference.explain.occlusion import boxes_over, occlusion
from mri_ds.inference.explain.target import choose_targets, value_of
from mri_ds.nn.sliding_window import sliding_window

DENSE = {"use_moe": False}
FEW = {"patch": (8, 8, 8)}  # voxels in a window


def targets_of(scene, class_name="white"):
    """One of each kind."""
    with torch.no_grad():
        vectors = {name: out for name, out in scene.look(scene.window(scene.padded, 0)).items() if out.ndim != 5}
    tissue = choose_targets(scene, {}, "tissue", class_name)
    return tissue + [choose_targets(scene, vectors, task, None)[0] for task in ("grade", "age")]


def plain_value(scene, target, image):
    """By the sliding window that evaluation uses, all windows in one graph."""
    whole = sliding_window(scene.look, image, patch=scene.patch, overlap=scene.overlap, pad_value=scene.fill)
    return value_of(scene, target, whole[target.task])


@pytest.mark.parametrize("shape", [(7, 8, 6), (12, 8, 7)], ids=["one window", "two"])
def test_the_gradient_is_that_of_all_windows_joined(shape):
    scene = make_scene(shape, **DENSE, **FEW)
    with gradients_to_the_image(scene):
        for target in targets_of(scene):
            image = scene.image.clone().requires_grad_()
            value = plain_value(scene, target, image)
            (expected,) = torch.autograd.grad(value, image)
            _, choices = routed(scene, target, scene.image)
            got_value, got = value_and_gradient(scene, target, scene.image, choices)
            assert float(got_value) == pytest.approx(float(value.detach()), rel=1e-5)
            assert torch.allclose(got, expected, atol=2e-5 * expected.abs().max()), target.task
            assert expected.abs().max() > 0
    assert all(parameter.requires_grad for parameter in scene.net.parameters())
    assert not scene.net.volume_heads.regions_have_gradient


def test_the_gradient_reaches_a_value_through_the_structures_sizes():
    """Against differences in float64: training cuts this path, and a gradient without it would not add up."""
    scene = make_scene((7, 8, 6), **DENSE, **FEW)
    scene.net.double()
    age = choose_targets(scene, {}, "age", None)[0]
    image, way = scene.image.double(), torch.randn(scene.image.shape, generator=torch.Generator().manual_seed(1)).double()

    def value(image):
        with torch.no_grad():
            return float(value_of(scene, age, scene.look(_padded(scene, image))["age"]))

    with gradients_to_the_image(scene):
        x = image.clone().requires_grad_()
        found = float((torch.autograd.grad(value_of(scene, age, scene.look(_padded(scene, x))["age"]), x)[0] * way).sum())
    x = image.clone().requires_grad_()
    cut = float((torch.autograd.grad(value_of(scene, age, scene.look(_padded(scene, x))["age"]), x)[0] * way).sum())
    slope = (value(image + 2e-3 * way) - value(image - 2e-3 * way)) / 4e-3  # the heads end in float32
    assert found == pytest.approx(slope, rel=1e-3) and abs(cut - slope) > 1e-2 * abs(slope)


def _padded(scene, image):
    widths = [p for b, n, e in reversed(list(zip(scene.before, image.shape[2:], scene.patch))) for p in (b, e - n - b)]
    return torch.nn.functional.pad(image, widths, value=scene.fill)


def test_attributions_equal_captums_own_and_sum_up_to_the_difference():
    """Two channels, two windows; captum is given the plain network, which has no experts to pin."""
    scene = make_scene((12, 8, 7), channels=("T1w", "T2w"), **DENSE, **FEW)
    target = choose_targets(scene, {}, "age", None)[0]
    found = integrated_gradients(scene, target, steps=4)
    with gradients_to_the_image(scene):
        method = captum.attr.IntegratedGradients(lambda image: plain_value(scene, target, image).reshape(1))
        baseline = torch.full_like(scene.image, scene.fill)
        expected = method.attribute(scene.image, baselines=baseline, n_steps=4, internal_batch_size=1)[0].detach()
    assert found.of_voxels.shape == (2, 12, 8, 7)
    assert torch.allclose(found.of_voxels, expected.float(), atol=1e-4 * float(expected.abs().max()))
    assert found.gap == pytest.approx(float(found.of_voxels.double().sum()) - (found.value - found.baseline_value), abs=1e-4)


def test_attributions_are_complete_with_experts_that_the_image_visits():
    scene = make_scene((7, 8, 6), num_layers=2, **FEW)
    for target in targets_of(scene):
        heard: list[int] = []
        found = integrated_gradients(scene, target, steps=32, progress=lambda done, total, heard=heard: heard.append(done))
        assert heard == list(range(1, 33))
        difference = found.value - found.baseline_value
        assert abs(found.gap) < 0.02 * abs(difference), (target.task, found.gap, difference)
        image = scene.image.clone()
        assert found.value == pytest.approx(float(plain_value(scene, target, image).detach()), rel=1e-5)
        image[:] = scene.fill
        assert found.rerouted_value == pytest.approx(float(plain_value(scene, target, image).detach()), rel=1e-5)


def test_experts_stay_those_of_the_image_along_the_path():
    """Between the image and nothing tokens change their experts; the path's values have no jump where they would."""
    scene = make_scene((12, 16, 14), num_layers=2)
    target = choose_targets(scene, {}, "age", None)[0]
    value, choices = routed(scene, target, scene.image)
    assert value_along(scene, target, scene.image, choices) == pytest.approx(value, rel=1e-6)
    nothing = torch.full_like(scene.image, scene.fill)
    _, others = routed(scene, target, nothing)
    assert any(not torch.equal(a, b) for a, b in zip(choices[0], others[0]))
    assert value_along(scene, target, nothing, choices) != value_along(scene, target, nothing, others)
    assert len(choices) == 1 and [c.shape for c in choices[0]] == [(64, 2)] * 2


def test_what_is_shared_out_keeps_its_sum_on_any_grid():
    from dataclasses import replace

    from mri_ds.data.preprocess import Placement

    scene, amounts = make_scene((12, 16, 14)), torch.randn(12, 16, 14)
    for shape in ((12, 16, 14), (9, 31, 14), (5, 16, 40)):
        box = tuple(slice(2, 2 + n) for n in shape)
        moved = replace(scene, placement=Placement(tuple(n + 4 for n in shape), box))
        dealt = moved.share_out(amounts)
        assert dealt.shape == moved.placement.shape and dealt.sum(dtype=np.float64) == pytest.approx(
            float(amounts.sum()), abs=1e-3
        )
        assert dealt[box].any() and dealt[0].sum() == 0
        assert moved.to_native(torch.ones(12, 16, 14))[box] == pytest.approx(1)
    assert np.array_equal(scene.share_out(amounts), amounts.numpy())


@pytest.mark.parametrize(("shape", "kept"), [((7, 8, 6), 2**30), ((8, 8, 13), 0)], ids=["one window", "three, none kept"])
def test_occlusion_equals_captums(shape, kept, monkeypatch):
    """All windows seen again for every box, by captum; ours sees only those that the box reaches."""
    monkeypatch.setattr(occlusion_module, "KEPT_BYTES", kept)
    scene = make_scene(shape, **FEW)
    targets = targets_of(scene)
    size, step = (4, 5, 4), (3, 3, 4)
    maps = occlusion(scene, targets, size=size, step=step)

    def values(image):
        with torch.no_grad():
            return torch.stack([plain_value(scene, target, image) for target in targets])[None]

    seen = {}
    for number, target in enumerate(targets):

        def value(image, number=number):
            key = image.numpy().tobytes()
            seen[key] = seen[key] if key in seen else values(image)
            return seen[key][:, number]

        expected = captum.attr.Occlusion(value).attribute(
            scene.image, sliding_window_shapes=(1, *size), strides=(1, *step), baselines=scene.fill
        )[0, 0]
        assert torch.allclose(maps[target.label], expected.float(), atol=1e-5 * float(abs(values(scene.image)[0, number])) + 1e-6)
        assert expected.abs().max() > 1e-5
    assert (
        len(seen)
        == 1 + len(boxes_over(shape, size, step))
        == 1 + math.prod(math.ceil(max(n - s, 0) / t) + 1 for n, s, t in zip(shape, size, step))
    )


def test_occlusion_goes_on_where_it_was():
    scene = make_scene((16, 16, 16), **DENSE)
    targets = choose_targets(scene, {}, "age", None)
    whole = occlusion(scene, targets, size=(8, 8, 8), step=(8, 8, 8))["age"]
    effects = torch.full((8, 1), torch.nan, dtype=torch.float64)

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        occlusion(scene, targets, size=(8, 8, 8), step=(8, 8, 8), effects=effects, progress=stop)
    assert effects.isnan().ravel().tolist() == [False] * 5 + [True] * 3
    looks: list[int] = []
    handle = scene.net.register_forward_hook(lambda *_: looks.append(1))
    again = occlusion(scene, targets, size=(8, 8, 8), step=(8, 8, 8), effects=effects)["age"]
    handle.remove()
    assert torch.equal(again, whole) and len(looks) == 1 + 3, "the image as it is, and three boxes"
