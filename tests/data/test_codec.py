"""One array as bytes: nothing is lost, nothing is unpickled, nothing hostile gets memory."""

import io
import pickle

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mri_ds.data import codec
from mri_ds.data.codec import as_stored, decode_array, encode_array
from mri_ds.errors import InputError


def frame(plain: bytes, **kwargs) -> bytes:
    return zstandard.ZstdCompressor(**kwargs).compress(plain)


def npy(array: np.ndarray, **kwargs) -> bytes:
    plain = io.BytesIO()
    np.save(plain, array, **kwargs)
    return plain.getvalue()


@settings(max_examples=40, deadline=None)
@given(arrays(st.sampled_from([np.float32, np.int16, np.uint8]), array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)))
def test_every_array_comes_back_as_it_was(array):
    back = decode_array(encode_array(array))
    assert (
        back.dtype == array.dtype and back.shape == array.shape and np.array_equal(back, array, equal_nan=array.dtype.kind == "f")
    )
    back[...] = 0  # writable: tensors are made of it


def test_the_content_is_a_plain_npy_file():
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    plain = zstandard.ZstdDecompressor().decompress(encode_array(array))
    assert plain == npy(array)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, -32768, 32767], "int16"),
        ([0, 32768], "float32"),
        ([0.5, 1], "float32"),
        ([np.nan, 1], "float32"),
        ([np.inf, 1], "float32"),
    ],
)
def test_images_are_kept_as_int16_only_where_nothing_is_lost(values, dtype):
    array = np.array(values, dtype=np.float32)
    stored = as_stored(array)
    assert stored.dtype.name == dtype and np.array_equal(stored.astype(np.float32), array, equal_nan=True)


def test_column_order_is_read_too():
    array = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    assert np.array_equal(decode_array(frame(npy(array))), array)


class Bomb:
    def __reduce__(self):
        raise AssertionError("unpickled")


HEADER = npy(np.zeros((2, 3), np.int16))[:128]
HOSTILE = {
    "pickle": (frame(npy(np.array([{}], dtype=object), allow_pickle=True)), "holds \\|O"),
    "raw pickle": (frame(pickle.dumps([1])), "not a plain .npy"),
    "float64": (frame(npy(np.zeros(3))), "holds <f8"),
    "big-endian": (frame(npy(np.zeros(3, ">i2"))), "holds >i2"),
    "npy version 2": (frame(b"\x93NUMPY\x02\x00" + b"\xff" * 8), "npy version \\(2, 0\\)"),
    "shape larger than content": (frame(HEADER.replace(b"(2, 3)", b"(2, 9)") + bytes(12)), "states shape"),
    "astronomic shape": (
        frame(HEADER.replace(b"(2, 3), }    ", b"(9999999999,)}")[:128] + bytes(12)),
        "states shape|not a plain",
    ),
    "negative shape": (frame(HEADER.replace(b"(2, 3)", b"(-1,) ") + bytes(12)), "states shape"),
    "shape smaller than content": (frame(HEADER + bytes(14)), "states shape"),
    "no stated size": (frame(HEADER + bytes(12), write_content_size=False), "does not state its size"),
    "not a frame": (b"GIF89a" + bytes(100), "is damaged"),
    "empty": (b"", "is damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_in_one_line(name):
    data, message = HOSTILE[name]
    with pytest.raises(InputError, match=message) as caught:
        decode_array(data, where="train-000000.tar: s1.image.npy.zst")
    assert str(caught.value).startswith("train-000000.tar: s1.image.npy.zst:") and "\n" not in str(caught.value)


def test_truncated_and_flipped_bytes_are_found():
    array = np.random.default_rng(0).integers(0, 99, size=(9, 9, 9)).astype(np.int16)
    data = encode_array(array)
    for length in range(0, len(data), 37):
        with pytest.raises(InputError):
            decode_array(data[:length])
    found = 0
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        try:
            assert np.array_equal(decode_array(bytes(flipped)), array), f"byte {place} changed a voxel"
        except InputError:
            found += 1
    assert found >= len(data) - 3, "but for the few bits that Zstandard leaves unused, every flip is found"


def test_a_frame_over_the_cap_is_refused_before_memory_is_taken(monkeypatch):
    """A frame header that promises 1 TiB: the frame is 30 bytes."""
    promise = b"\x28\xb5\x2f\xfd" + b"\xe0" + (2**40).to_bytes(8, "little") + bytes(8)
    assert zstandard.frame_content_size(promise) == 2**40
    with pytest.raises(InputError, match="over the cap"):
        decode_array(promise)
    monkeypatch.setattr(codec, "MAX_ARRAY_BYTES", 1000)
    with pytest.raises(InputError, match="over the cap of 1000"):
        decode_array(encode_array(np.zeros(2000, np.uint8)))
