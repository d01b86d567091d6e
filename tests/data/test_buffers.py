"""Memory used again: never while anything looks at it, soon after, and not without bound."""

import threading

import numpy as np
import pytest
import torch

from mri_ds.data import buffers

F32, SIDE = np.dtype("float32"), 128  # 8 MiB


@pytest.fixture(autouse=True)
def nothing_waits(monkeypatch):
    monkeypatch.setattr(buffers, "_waiting", {})


def address(array) -> int:
    return array.__array_interface__["data"][0]


def test_memory_comes_back_once_the_last_that_looks_at_it_has_gone():
    array = buffers.empty((SIDE, SIDE, SIDE), F32)
    assert array.shape == (SIDE,) * 3 and array.dtype == F32 and array.flags.c_contiguous and array.flags.writeable
    place = address(array)
    corner = torch.from_numpy(array)[:2, :2, :2]  # the tensor's own reference alone keeps all of it
    corner.fill_(7)
    del array
    other = buffers.empty((SIDE, SIDE, SIDE), F32)
    other[...] = 0
    assert address(other) != place and corner.eq(7).all()
    del corner
    assert address(buffers.empty((SIDE, SIDE, SIDE - 1), F32)) == place, "a little smaller will do"


def test_memory_much_larger_than_asked_for_is_left_for_others():
    place = address(buffers.empty((2, SIDE, SIDE, SIDE), F32))
    half = buffers.empty((SIDE, SIDE, SIDE), F32)
    assert [address(memory) for memory in buffers._waiting.values()] == [place] and address(half) != place


def test_small_arrays_are_numpys():
    assert buffers.empty((8, 8), F32).base is None


def test_what_waits_is_bounded_and_the_oldest_goes_first(monkeypatch):
    monkeypatch.setattr(buffers, "MAX_WAITING_BYTES", 20 * 2**20)
    arrays = [buffers.empty((SIDE, SIDE, SIDE), F32) for _ in range(4)]
    places = [address(array) for array in arrays]
    while arrays:
        arrays.pop(0)
    assert [address(memory) for memory in buffers._waiting.values()] == places[2:]


def test_threads_never_share_a_piece():
    """Each fills its own with its number, lets others run, and finds it unchanged."""
    torn, gate = [], threading.Barrier(4)

    def work(number: int) -> None:
        gate.wait(60)
        for _ in range(25):
            array = buffers.empty((SIDE, SIDE, SIDE), F32)
            array.fill(number)
            if array.min() != number or array.max() != number:
                torn.append(number)
            del array

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not torn and 1 <= len(buffers._waiting) <= 4, "they took turns with four pieces at most"


def test_scratch_is_one_piece_per_name_and_thread_and_never_a_large_one():
    scratch = buffers.Scratch()
    words = scratch.empty("words", (4, 5), np.dtype("uint16"))
    assert words.shape == (4, 5) and words.dtype == np.uint16 and words.flags.c_contiguous
    assert address(scratch.empty("words", (20,), np.dtype("uint8"))) == address(words)
    assert not np.shares_memory(scratch.empty("lines", (4, 5), np.dtype("uint16")), words)
    larger = scratch.empty("words", (100,), F32)
    assert not np.shares_memory(larger, words) and address(scratch.empty("words", (1,), F32)) == address(larger)
    large = scratch.empty("words", (buffers.MAX_SCRATCH_BYTES + 4,), np.dtype("uint8"))
    assert large.shape == (buffers.MAX_SCRATCH_BYTES + 4,) and not np.shares_memory(large, larger)
    assert address(scratch.empty("words", (1,), F32)) == address(larger), "the large one was not kept"
