"""The whole way there and back: its order, what it leaves alone, and what it costs."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mri_ds.config import DataConfig, Intensity
from mri_ds.data.preprocess import (
    Placement,
    foreground_box,
    normalize,
    prepare,
    prepare_placed,
    scores_to_labels,
    scores_to_shape,
    settings,
    to_grid,
)

CLIP = (1.0, 99.0)


def with_air(subject, shape=(20, 22, 18), **given):
    """A subject in a frame of zeros, four voxels wide."""
    sample = subject(shape=shape, **given)
    frame = np.zeros(shape, dtype=bool)
    frame[4:-4, 4:-4, 4:-4] = True
    return sample | {"image": sample["image"] * frame, "targets": {"tissue": sample["targets"]["tissue"] * frame}}


def test_prepare_is_intensities_then_grid(subject):
    """Measured on what was scanned: the network's grid does not change what a voxel's value means."""
    sample = subject(shape=(8, 8, 8), affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    result = prepare(sample, spacing_mm=(1, 1, 1), clip_percentiles=CLIP)
    normalized = sample | {"image": normalize(sample["image"], CLIP)}
    assert np.array_equal(result["image"], to_grid(normalized, (1, 1, 1))["image"])
    assert result["targets"]["tissue"].shape == (16, 16, 16) and result["targets"]["age"] == 40.5


def test_cropping_changes_no_intensity(subject, oblique):
    sample = with_air(subject, affine=oblique((1.0, 1.2, 1.1)), channels=2)
    whole = prepare(sample, spacing_mm=(1.0, 1.2, 1.1), clip_percentiles=CLIP)
    part, placement = prepare_placed(sample, spacing_mm=(1.0, 1.2, 1.1), clip_percentiles=CLIP, crop_margin_mm=2)
    assert placement == Placement((20, 22, 18), (slice(2, 18), slice(2, 20), slice(2, 16)))
    assert np.array_equal(part["image"], whole["image"][:, *placement.box])
    assert np.array_equal(part["targets"]["tissue"], whole["targets"]["tissue"][placement.box])
    assert np.allclose(part["affine"] @ [0, 0, 0, 1], whole["affine"] @ [2, 2, 2, 1])


def test_by_default_nothing_is_cropped(subject):
    sample = with_air(subject)
    assert prepare_placed(sample, spacing_mm=(1, 1, 1), clip_percentiles=CLIP)[1].box == tuple(slice(0, n) for n in (20, 22, 18))


@pytest.mark.parametrize("chosen", [{}, {"crop_margin_mm": 0.0}, {"intensities": [Intensity(low=-9, high=9, mean=0, std=1)]}])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 1, 1.3)])
def test_the_sample_given_stays_as_it_was(subject, spacing, chosen):
    sample = with_air(subject)
    before = sample["image"].copy(), sample["targets"]["tissue"].copy(), sample["affine"].copy()
    result = prepare(sample, spacing_mm=spacing, clip_percentiles=CLIP, **chosen)
    result["image"][:], result["targets"]["tissue"][:], result["affine"][:] = 7, 7, 7
    after = sample["image"], sample["targets"]["tissue"], sample["affine"]
    assert all(np.array_equal(x, y) for x, y in zip(before, after))


def test_settings_are_the_configs():
    data = DataConfig(spacing_mm=(1, 1, 2), clip_percentiles=(1, 98), crop_margin_mm=5, bias_correction=True)
    assert settings(data) == {
        "spacing_mm": (1, 1, 2),
        "clip_percentiles": (1, 98),
        "intensities": [],
        "crop_margin_mm": 5,
        "bias_correction": True,
    }
    scale = Intensity(low=0, high=9, mean=4, std=2)
    data = DataConfig(spacing_mm=(1, 1, 2), intensities=[scale])
    assert settings(data)["intensities"] == [], "they stand there, and are not used"
    assert settings(data.model_copy(update={"normalization": "dataset"}))["intensities"] == [scale]


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 0.6, 0.5)])
@pytest.mark.parametrize("margin", [None, 0.0, 1.5])
def test_a_label_map_comes_back(subject, margin, spacing):
    """As scores: one where the class is. Unchanged where no voxel was resampled; from a finer grid all but a few at borders."""
    sample = with_air(subject)
    label = sample["targets"]["tissue"]
    label[6:12, 6:12, 6:12] = 2
    prepared, placement = prepare_placed(sample, spacing_mm=spacing, clip_percentiles=CLIP, crop_margin_mm=margin)
    scores = torch.nn.functional.one_hot(torch.from_numpy(prepared["targets"]["tissue"]).long(), 4).movedim(-1, 0).float()
    back = scores_to_labels(scores, placement)
    assert back.shape == label.shape and back.dtype == np.int16
    if spacing == (1, 1, 1):
        assert np.array_equal(back, label)
    else:
        assert (back == label).mean() > 0.97 and (back[7:11, 7:11, 7:11] == 2).all()


def test_labels_from_scores_are_the_best_class_of_interpolated_scores(subject):
    sample = with_air(subject)
    prepared, placement = prepare_placed(sample, spacing_mm=(1.4, 0.8, 1), clip_percentiles=CLIP, crop_margin_mm=1)
    scores = torch.randn(5, *prepared["image"].shape[1:], generator=torch.Generator().manual_seed(0))
    inside = tuple(side.stop - side.start for side in placement.box)
    expected = np.zeros((20, 22, 18), dtype=np.int16)
    expected[placement.box] = scores_to_shape(scores, inside).argmax(dim=0).numpy()
    assert np.array_equal(scores_to_labels(scores, placement), expected)
    assert (foreground_box(sample["image"], (1, 1, 1), 1)) == placement.box


def test_scores_come_back_to_the_native_grid(subject):
    """A smooth field survives the trip to the network's grid and back."""
    axes = np.meshgrid(*(np.linspace(0, np.pi, n) for n in (20, 24, 22)), indexing="ij")
    field = np.prod(np.sin(axes), axis=0).astype(np.float32)
    there = to_grid(subject(shape=(20, 24, 22), image=field[None], targets={}), (0.8, 0.9, 1.2))
    back = scores_to_shape(torch.from_numpy(there["image"]), (20, 24, 22))
    assert back.shape == (1, 20, 24, 22) and np.abs(back[0].numpy() - field).max() < 0.02
    assert scores_to_shape(back, (20, 24, 22)) is back


MEASURE = """
import resource, sys
import numpy as np, torch
from mri_ds.data.preprocess import prepare
from mri_ds.sample import Sample

def sample(n):
    image = np.random.default_rng(0).random((1, n, n, n), dtype=np.float32)
    image[:, :{air}] = 0
    label = (image[0] > 0.5).astype(np.int16)
    return Sample(subject_id="s", image=image, affine=np.eye(4), spacing_mm=np.ones(3), targets={{"t": label}})

chosen = dict(clip_percentiles=(0.5, 99.5), spacing_mm={spacing}, **{more})
prepare(sample(32), **chosen)
large = sample({n})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(large, **chosen)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / large["image"].nbytes)
"""


@pytest.mark.parametrize(
    ("spacing", "more", "air"),
    [
        ((1, 1, 1), {}, 60),
        ((1.02, 1.02, 1.02), {}, 0),
        ((2.0, 1.3, 1.6), {"crop_margin_mm": 5}, 0),
    ],
)
def test_memory_stays_at_a_few_volumes(spacing, more, air):
    """Peak of a process of its own, beyond what it held before, in float32 volumes; with the input's own, six at most."""
    code = MEASURE.format(spacing=spacing, more=more, air=air, n=160)
    # what is freed goes back to the system at once: else glibc may keep a volume or two, and more on one day than on another
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, "-c", code], env=given_back, capture_output=True, text=True, timeout=250, check=True)
    assert float(done.stdout) < 5, f"{float(done.stdout):.1f} volumes"
