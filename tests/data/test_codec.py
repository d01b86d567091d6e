"""One block as bytes: nothing is lost, a frame of another size is refused before memory is taken for it."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mri_ds.data.codec import DTYPES, as_stored, decode_block, encode_block

COMPRESSOR, DECOMPRESSOR = zstandard.ZstdCompressor(), zstandard.ZstdDecompressor()


@settings(max_examples=60, deadline=None)
@given(arrays(st.sampled_from(DTYPES).map(np.dtype), array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)))
def test_every_voxel_has_its_bytes_again(block):
    frame, is_shuffled = encode_block(block, COMPRESSOR)
    back = decode_block(frame, block.shape, block.dtype, is_shuffled, DECOMPRESSOR)
    assert (back.shape, back.dtype) == (block.shape, block.dtype) and back.tobytes() == block.tobytes()


def test_the_frame_is_that_of_the_low_bytes_then_the_high_ones():
    frame, is_shuffled = encode_block(np.array([[[0x0102, 0x0304]]], dtype="<i2"), COMPRESSOR)
    assert is_shuffled and DECOMPRESSOR.decompress(frame) == bytes([2, 4, 1, 3])


def test_floats_are_shuffled_only_where_it_pays():
    """Sixty levels of a scale factor, as a scanner's whole numbers become: left alone. Continuous ones: shuffled."""
    rng = np.random.default_rng(0)
    scaled = (rng.integers(0, 60, (16, 16, 16)) * np.float32(6.64933)).astype(np.float32)
    continuous = rng.normal(100, 1, (16, 16, 16)).astype(np.float32)
    assert not encode_block(scaled, COMPRESSOR)[1] and encode_block(continuous, COMPRESSOR)[1]


def test_shuffling_pays_on_noisy_whole_numbers():
    """A ramp with noise, as tissue is: the frame is smaller than that of the plain bytes."""
    rng = np.random.default_rng(0)
    block = (np.arange(32)[:, None, None] * 20 + rng.normal(300, 15, (32, 32, 32))).astype(np.int16)
    assert len(encode_block(block, COMPRESSOR)[0]) < 0.9 * len(COMPRESSOR.compress(block.tobytes()))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (COMPRESSOR.compress(bytes(15)), "frame of 15 bytes where 16 belong"),
        (COMPRESSOR.compress(bytes(2**20)), "frame of 1048576 bytes"),
        (b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little") + bytes(8), "frame of 1099511627776 bytes"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(16)), "where 16 belong"),
        (COMPRESSOR.compress(bytes(16)) + b"more", "extra|unused"),
        (b"GIF89a", "content size"),
        (b"", "content size"),
    ],
)
def test_what_is_not_one_frame_of_that_size_is_refused(frame, message):
    with pytest.raises(ValueError, match=message):
        decode_block(frame, (2, 2, 2), np.dtype("int16"), True, DECOMPRESSOR)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255], "uint8"),
        ([-1, 255], "int16"),
        ([0, -32768, 32767], "int16"),
        ([0, 32768], "uint16"),
        ([-1, 32768], "float32"),
        ([0, 65536], "float32"),
        ([0.5, 1], "float32"),
        ([np.nan, 1], "float32"),
        ([np.inf, 1], "float32"),
        ([], "float32"),
    ],
)
def test_images_are_kept_in_fewer_bits_only_where_nothing_is_lost(values, dtype):
    array = np.array(values, dtype=np.float32)
    stored = as_stored(array)
    assert stored.dtype.name == dtype and np.array_equal(stored.astype(np.float32), array, equal_nan=True)
