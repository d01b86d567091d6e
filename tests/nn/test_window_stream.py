"""The stream of slabs: every bit as the sums of the whole volume, for any size, overlap, band and number of windows in a call."""

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference

from mri_ds.nn.sliding_window import sliding_window
from mri_ds.nn.window_stream import WindowStream


def net(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Depends on the window's border, so that blending shows; two maps and a vector."""
    smooth = F.avg_pool3d(x, kernel_size=3, stride=1, padding=1)
    y = torch.cat([smooth, x - x.mean(dim=(2, 3, 4), keepdim=True)], dim=1)
    return {"y": y, "z": y[:, :3].bfloat16(), "size": x.mean(dim=(2, 3, 4))}


def whole(stream: WindowStream, bands) -> dict[str, torch.Tensor]:
    """The slabs, copied into a volume; each plane must come once, in order."""
    d, h, w = stream.shape
    out: dict[str, torch.Tensor] = {}
    for low, high in bands:
        known = 0
        for start, slab in stream.slabs((low, high)):
            assert start == known
            for name, scores in slab.items():
                out.setdefault(name, torch.full((len(scores), d, h, w), torch.nan))
                known = start + scores.shape[1]
                out[name][:, start:known, low:high] = scores
        assert known == d
    return out


@pytest.mark.parametrize("shape", [(16, 12, 8), (21, 12, 9), (5, 30, 8), (3, 4, 5), (40, 13, 11)])
@pytest.mark.parametrize("overlap", [0.5, 0.25, 0.0, 0.8])
@pytest.mark.parametrize("window_batch", [1, 3, 100])
def test_equals_the_whole_buffer_bit_for_bit(shape, overlap, window_batch):
    image = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(0))
    given = {"patch": (8, 12, 8), "overlap": overlap, "window_batch": window_batch, "pad_value": -1.0}
    expected = sliding_window(net, image, **given)
    for bands in ([(0, shape[1])], [(0, 2), (2, 3), (3, shape[1])]):
        stream = WindowStream(net, image, **given)
        for name, found in whole(stream, bands).items():
            assert torch.equal(found, expected[name][0]), name
        assert torch.equal(stream.vectors()["size"], expected["size"])


def test_equals_monai():
    image = torch.randn(1, 2, 21, 17, 9, generator=torch.Generator().manual_seed(0))
    found = whole(WindowStream(net, image, patch=(8, 12, 8)), [(0, 17)])["y"]
    oracle = sliding_window_inference(image, (8, 12, 8), 4, lambda x: net(x)["y"], overlap=0.5, mode="gaussian")
    assert (found - oracle[0]).abs().max() < 1e-5


def test_holds_as_many_planes_as_a_patch_is_long():
    image = torch.randn(1, 1, 60, 9, 9, generator=torch.Generator().manual_seed(0))
    stream = WindowStream(net, image, patch=(8, 8, 8))
    sizes = [slab["y"].untyped_storage().nbytes() for _, slab in stream.slabs((0, 9))]
    assert set(sizes) == {2 * 8 * 9 * 9 * 4}


def test_a_network_without_maps_hands_out_nothing_but_its_vectors():
    image = torch.randn(1, 1, 9, 9, 9, generator=torch.Generator().manual_seed(0))
    stream = WindowStream(lambda x: {"size": x.mean(dim=(2, 3, 4))}, image, patch=(8, 8, 8))
    assert list(stream.slabs((0, 9))) == []
    assert torch.equal(stream.vectors()["size"], sliding_window(net, image, patch=(8, 8, 8))["size"])


def test_an_output_off_the_patchs_grid_is_named():
    stream = WindowStream(lambda x: {"y": x[..., 1:]}, torch.rand(1, 1, 9, 9, 9), patch=(8, 8, 8))
    with pytest.raises(ValueError, match=r"y: output .* is off the patch's grid"):
        list(stream.slabs((0, 9)))
