"""Label maps from streams: bit for bit those of the whole buffer, on any grid, and memory that does not grow with the classes."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from mri_ds.data.preprocess import Placement, scores_to_labels, scores_to_shape
from mri_ds.inference.native import Map, Stream, label_maps
from mri_ds.inference.quality import soft_dice, soft_dice_of_sums
from mri_ds.nn.sliding_window import sliding_window
from mri_ds.nn.window_stream import WindowStream

CLASSES = 7
PATCH = (8, 10, 8)


def net(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Seven smooth fields of different texture and heights that windows' borders disturb; then two coarse ones."""
    fields = [
        F.avg_pool3d(x, kernel_size=k, stride=1, padding=k // 2) * g for k, g in [(3, 1), (3, -1), (5, 2), (5, -2), (1, 0.4)]
    ]
    flat = torch.zeros_like(x)
    return {"map": torch.cat([flat, *fields, flat], dim=1), "coarse": torch.cat([x, -x], dim=1), "size": x.mean(dim=(2, 3, 4))}


def stream(seed: int = 0, shape=(20, 23, 17)) -> WindowStream:
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    return WindowStream(net, image, patch=PATCH)


def blank(shape, *, second: bool = True, probabilities: bool = False) -> dict[str, Map]:
    def zeros() -> np.ndarray:
        return np.zeros(shape, dtype=np.int16)

    chances = np.zeros((CLASSES, *shape), dtype=np.float32) if probabilities else None
    return {"map": Map(zeros(), zeros() if second else None, chances), "coarse": Map(zeros())}


NATIVE = [(20, 23, 17), (33, 12, 17), (20, 50, 6), (7, 8, 30), (60, 70, 40)]
COUNTS = {"map": CLASSES, "coarse": 2}


@pytest.mark.parametrize("inside", NATIVE)
@pytest.mark.parametrize("buffer_bytes", [2**30, 100_000])
def test_entropy_and_sums_are_those_of_the_whole_buffer_s_probabilities(inside, buffer_bytes, monkeypatch):
    """scipy's entropy of the softmax of the resampled scores; and the labels are the same bits as without."""
    monkeypatch.setattr("mri_ds.inference.native.BLOCK_SHARES", 5 * CLASSES * inside[1] * inside[2])  # a few blocks
    windows, placement = stream(), Placement(tuple(n + 5 for n in inside), tuple(slice(2, 2 + n) for n in inside))
    scores = sliding_window(net, windows.padded, patch=PATCH)["map"][0]
    shares = scores_to_shape(scores, inside).div(2).softmax(dim=0).double().numpy()
    plain, asked = blank(placement.shape), blank(placement.shape)
    asked["map"] = replace(asked["map"], entropy=np.zeros(placement.shape, dtype=np.float32), sums=np.zeros((3, CLASSES)))
    for maps in (plain, asked):
        label_maps([Stream(stream())], placement, maps, COUNTS, buffer_bytes=buffer_bytes, temperature={"map": 2.0})
    assert np.array_equal(plain["map"].labels, asked["map"].labels) and np.array_equal(plain["map"].second, asked["map"].second)
    found, own = asked["map"].entropy, asked["map"].labels[placement.box]
    assert np.abs(found[placement.box] - stats.entropy(shares, base=CLASSES)).max() < 1e-5 and np.ptp(found) > 0.2
    outside = np.ones(placement.shape, dtype=bool)
    outside[placement.box] = False
    assert not found[outside].any()
    expected = np.array(soft_dice(shares, own))
    np.testing.assert_allclose(soft_dice_of_sums(asked["map"].sums), expected, rtol=1e-5)
    assert np.isfinite(expected).sum() > 2


@pytest.mark.parametrize("inside", NATIVE)
@pytest.mark.parametrize("buffer_bytes", [2**30, 100_000, 1])
def test_labels_are_bit_for_bit_those_of_the_whole_buffer(inside, buffer_bytes):
    windows = stream()
    scores = sliding_window(net, windows.padded, patch=PATCH)
    box = tuple(slice(2, 2 + n) for n in inside)
    placement = Placement(tuple(n + 5 for n in inside), box)
    maps = blank(placement.shape, probabilities=True)
    heard = []
    label_maps([Stream(windows)], placement, maps, COUNTS, buffer_bytes=buffer_bytes, progress=lambda *args: heard.append(args))
    for name, one in maps.items():
        expected = scores_to_labels(scores[name][0], placement)
        assert np.array_equal(one.labels, expected), name
        assert 0 < (expected > 0).mean() < 1
    barred = scores_to_labels(scores["map"][0], placement, excluded=maps["map"].labels)
    assert np.array_equal(maps["map"].second[box], barred[box])
    chances = scores_to_shape(scores["map"][0], inside).softmax(dim=0).numpy()
    assert np.abs(maps["map"].probabilities[:, *box] - chances).max() < 1e-5
    assert torch.equal(windows.vectors()["size"], scores["size"])
    num_bands = {2**30: 1, 100_000: 2, 1: inside[1]}[buffer_bytes]  # 9 classes and the weights, 8 x 23 x 17 voxels: 125 120 bytes
    assert heard[-1] == (num_bands * inside[0], num_bands * inside[0])


def test_streams_of_different_grids_are_averaged_on_the_native_one():
    """Two networks on grids of their own, one counted twice: the mean of what `scores_to_shape` makes of each."""
    one, other = stream(0), stream(1, shape=(31, 14, 9))
    native = (25, 26, 21)
    maps = blank(native, probabilities=True)
    placement = Placement(native, tuple(slice(0, n) for n in native))
    label_maps([Stream(one, weight=2), Stream(other)], placement, maps, COUNTS, buffer_bytes=50_000)
    parts = [scores_to_shape(sliding_window(net, s.padded, patch=PATCH)["map"][0], native) for s in (one, other)]
    mean = (2 * parts[0] + parts[1]) / 3
    assert (maps["map"].labels == mean.argmax(dim=0).numpy()).mean() > 0.999  # ties by rounding
    assert np.abs(maps["map"].probabilities - mean.softmax(dim=0).numpy()).max() < 1e-5


PEAK = """
import resource, sys, torch
from mri_ds.data.preprocess import Placement
from mri_ds.inference.native import Map, Stream, label_maps
from mri_ds.nn.window_stream import WindowStream
import numpy as np
k, n = int(sys.argv[1]), 128
torch.manual_seed(0)
net = torch.nn.Conv3d(1, k, 1)
shape = (n, n, n)
with torch.inference_mode():
    windows = WindowStream(lambda x: {"map": net(x)}, torch.rand(1, 1, *shape), patch=(32, 32, 32), overlap=0.25)
    doubt = {"entropy": np.zeros(shape, dtype=np.float32), "sums": np.zeros((3, k))} if sys.argv[2] == "doubt" else {}
    maps = {"map": Map(np.zeros(shape, dtype=np.int16), np.zeros(shape, dtype=np.int16), **doubt)}
    label_maps([Stream(windows)], Placement(shape, tuple(slice(0, n) for n in shape)), maps, {"map": k}, buffer_bytes=2**25)
assert len(np.unique(maps["map"].labels)) > 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("kind", ["plain", "doubt"])
def test_memory_does_not_grow_with_the_classes(kind):
    """Of 128^3 voxels the scores of 60 classes are 480 MiB more than those of 3; one window's are 8 MiB."""
    peaks = [
        int(subprocess.run([sys.executable, "-c", PEAK, k, kind], capture_output=True, text=True, timeout=300, check=True).stdout)
        for k in ("3", "60")
    ]
    assert peaks[1] - peaks[0] < 80 * 1024, peaks  # KiB
