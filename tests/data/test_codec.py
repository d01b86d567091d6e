"""One block as bytes: nothing is lost, a frame of another size is refused before memory is taken for it."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mri_ds.data.codec import DTYPES, as_stored, decode_blocks, encode_block

COMPRESSOR, DECOMPRESSOR = zstandard.ZstdCompressor(), zstandard.ZstdDecompressor()


@settings(max_examples=60, deadline=None)
@given(arrays(st.sampled_from(DTYPES).map(np.dtype), array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)))
def test_every_voxel_has_its_bytes_again(block):
    frame, is_shuffled = encode_block(block, COMPRESSOR)
    back = decode_blocks(frame, [len(frame)], block.shape, block.dtype, [is_shuffled], DECOMPRESSOR)[0]
    assert (back.shape, back.dtype) == (block.shape, block.dtype) and back.tobytes() == block.tobytes()


def test_the_frame_is_that_of_the_low_bytes_then_the_high_ones():
    frame, is_shuffled = encode_block(np.array([[[0x0102, 0x0304]]], dtype="<i2"), COMPRESSOR)
    assert is_shuffled and DECOMPRESSOR.decompress(frame) == bytes([2, 4, 1, 3])


@pytest.mark.parametrize("kinds", [[True, True, True], [False, False, False], [True, False, True]])
def test_several_blocks_are_decoded_as_each_alone(kinds):
    """Floats, of which each block is shuffled or not; whole, and a part of each."""
    rng = np.random.default_rng(0)
    noise, levels = rng.normal(100, 1, (3, 4, 5, 6)), rng.integers(0, 3, (3, 4, 5, 6)) * np.float32(6.64933)
    blocks = [(noise if kind else levels)[i].astype(np.float32) for i, kind in enumerate(kinds)]
    frames = [encode_block(block, COMPRESSOR) for block in blocks]
    assert [is_shuffled for _, is_shuffled in frames] == kinds
    data, sizes = b"".join(frame for frame, _ in frames), [len(frame) for frame, _ in frames]
    for part in ((), (slice(1, 3), slice(None), slice(2, 5))):
        back = decode_blocks(data, sizes, (4, 5, 6), np.dtype("float32"), kinds, DECOMPRESSOR, part=part)
        assert np.array_equal(back, np.stack(blocks)[(slice(None), *part)])


def skippable(size: int) -> bytes:
    return b"\x50\x2a\x4d\x18" + size.to_bytes(4, "little") + bytes(size)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    "extra", [b"\0", b"\x28\xb5\x2f", skippable(3), COMPRESSOR.compress(b""), COMPRESSOR.compress(bytes(16))]
)
def test_extra_bytes_after_any_of_several_frames_are_refused(place, extra):
    """Each frame has to fill its own bytes: those after it, harmless ones too, would be taken for the next."""
    rng = np.random.default_rng(0)
    frames = [COMPRESSOR.compress(rng.bytes(16)) for _ in range(3)]
    frames[place] += extra
    with pytest.raises(ValueError, match="extra data"):
        decode_blocks(b"".join(frames), [len(f) for f in frames], (2, 2, 2), np.dtype("int16"), [True] * 3, DECOMPRESSOR)


def test_the_end_of_a_frame_is_known_for_every_kind_of_block():
    """Raw, repeated and compressed blocks, several of them, with and without a checksum of their own."""
    rng = np.random.default_rng(0)
    contents = [
        rng.bytes(2**19),
        bytes(2**19),
        (rng.integers(0, 9, 2**19) + 48).astype(np.uint8).tobytes(),
        bytes(2**18) + rng.bytes(2**18),
    ]
    for has_checksum in (False, True):
        compressor = zstandard.ZstdCompressor(write_checksum=has_checksum)
        frames = [compressor.compress(content) for content in contents]
        sizes = [len(frame) for frame in frames]
        back = decode_blocks(b"".join(frames), sizes, (2**19, 1, 1), np.dtype("uint8"), [True] * 4, DECOMPRESSOR)
        assert [row.tobytes() for row in back] == contents


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize(("dtype", "num_plain"), [("int16", 1), ("float32", 2)])
def test_low_bytes_that_hardly_shrink_are_left_as_they_are(side, dtype, num_plain):
    """Noise in the low bytes, a smooth field above: any reader of Zstandard has the planes again, the noise is there plainly."""
    rng = np.random.default_rng(0)
    bits = 8 * num_plain
    field = np.broadcast_to(np.arange(side, dtype=np.uint32)[:, None, None] // 4, (side, side, side))
    values = (field << bits) + rng.integers(0, 2**bits, field.shape, dtype=np.uint32)
    block = values.astype("<u4").view(dtype) if dtype == "float32" else values.astype(dtype)
    frame, is_shuffled = encode_block(block, COMPRESSOR)
    planes = np.ascontiguousarray(block.reshape(-1).view(np.uint8).reshape(-1, block.itemsize).T)
    assert is_shuffled and DECOMPRESSOR.decompress(frame) == planes.tobytes()
    low, piece = planes[:num_plain].tobytes(), 2**17
    assert all(low[i : i + piece] in frame for i in range(0, len(low), piece))
    assert len(low) < len(frame) < 1.02 * len(low)
    back = decode_blocks(frame * 2, [len(frame)] * 2, block.shape, block.dtype, [True] * 2, DECOMPRESSOR)
    assert back[0].tobytes() == back[1].tobytes() == block.tobytes()


def test_low_bytes_that_shrink_by_a_fifth_are_compressed():
    """Six bits of noise: a quarter is saved by every byte's two bits that are always 0."""
    block = np.random.default_rng(0).integers(0, 64, (32, 32, 32)).astype(np.int16)
    assert len(encode_block(block, COMPRESSOR)[0]) < 0.77 * 32**3


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
        decode_blocks(frame, [len(frame)], (2, 2, 2), np.dtype("int16"), [True], DECOMPRESSOR)


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
