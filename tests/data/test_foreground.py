"""Foreground places: the plain rule, found faster."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mri_ds.data import foreground
from mri_ds.data.foreground import foreground_places, foreground_voxels, places_to_voxels


def plain(label: np.ndarray, most: int) -> list[np.ndarray]:
    voxels = []
    for value in np.unique(label[label > 0]):
        flat = np.flatnonzero(label == value)
        voxels.append(np.stack(np.unravel_index(flat[:: -(-len(flat) // most)], label.shape), axis=1))
    return voxels


@settings(max_examples=60, deadline=None)
@given(arrays(np.int16, st.tuples(*[st.integers(1, 7)] * 3), elements=st.integers(0, 4)), st.integers(1, 30))
def test_the_same_voxels_as_by_the_plain_rule(label, most):
    try:
        foreground.MAX_FOREGROUND, before = most, foreground.MAX_FOREGROUND
        found = foreground_voxels(label)
    finally:
        foreground.MAX_FOREGROUND = before
    expected = plain(label, most)
    assert len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected))
    assert all(len(a) <= most and a.dtype == np.int32 for a in found)


def test_a_label_without_foreground_has_no_places():
    places = foreground_places(np.zeros((4, 4, 4), np.int16))
    assert places.shape == (2, 0) and places_to_voxels(places, (4, 4, 4)) == []
