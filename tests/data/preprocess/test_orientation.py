"""Canonical orientation and back: nibabel as oracle, every voxel's place in the world kept, over all that a header can say."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mri_ds.data.preprocess import to_canonical, to_input_grid
from mri_ds.errors import InputError

ORIENTATIONS = [
    "".join(letters[sign] for letters, sign in zip(axes, signs))
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for signs in itertools.product((0, 1), repeat=3)
]


def places(affine: np.ndarray, shape) -> np.ndarray:
    """World position of every voxel, (D, H, W, 3) mm."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_canonical_agrees_with_nibabel_and_comes_back(code, subject, oblique):
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code))
    made = nib.Nifti1Image(np.zeros((6, 7, 8), dtype=np.uint8), oblique()).as_reoriented(turn)
    shape, start = made.shape, made.affine
    sample = subject(shape=shape, affine=start, channels=2)
    assert "".join(nib.aff2axcodes(start)) == code
    turned = to_canonical(sample)
    oracle = nib.as_closest_canonical(nib.Nifti1Image(np.moveaxis(sample["image"], 0, -1), start))
    assert np.array_equal(turned["image"], np.moveaxis(oracle.get_fdata(dtype=np.float32), -1, 0))
    assert np.allclose(turned["affine"], oracle.affine) and turned["image"].shape[1:] == (6, 7, 8)
    assert np.allclose(turned["spacing_mm"], (1, 2, 3)) and turned["targets"]["lesion"] == 1
    assert turned["image"].flags.c_contiguous and turned["targets"]["tissue"].flags.c_contiguous
    assert np.array_equal(to_input_grid(turned["targets"]["tissue"], start), sample["targets"]["tissue"])


@given(
    turn=st.integers(0, 2**32 - 1),
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    offset=st.tuples(*[st.floats(-400, 400)] * 3),
    shear=st.tuples(*[st.floats(-0.2, 0.2)] * 3),
    mirror=st.booleans(),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
)
def test_every_voxel_keeps_its_place_whatever_the_affine(turn, spacing, offset, shear, mirror, shape, subject):
    """Any rotation at all, far from the axes too, either handedness, sheared a little."""
    affine = np.eye(4)
    sheared = np.eye(3) + np.array([[0, shear[0], shear[1]], [0, 0, shear[2]], [0, 0, 0]])
    rotation = Rotation.random(rng=np.random.default_rng(turn)).as_matrix()
    affine[:3, :3] = rotation @ sheared @ np.diag(spacing) @ np.diag([-1 if mirror else 1, 1, 1])
    affine[:3, 3] = offset
    number = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)  # each voxel carries its own
    sample = subject(shape=shape, affine=affine, image=number[None], targets={"tissue": number.astype(np.int16)})
    turned = to_canonical(sample)
    came_from = places(affine, shape).reshape(-1, 3)[turned["image"][0].astype(int)]
    assert np.abs(came_from - places(turned["affine"], turned["image"].shape[1:])).max() < 1e-3
    assert np.array_equal(np.sort(turned["image"], axis=None), number.ravel())
    assert np.array_equal(to_input_grid(turned["targets"]["tissue"], affine), number)
    again = to_canonical(turned)
    assert np.array_equal(again["image"], turned["image"]), "canonical is where it stays"


def test_the_result_is_a_copy(subject):
    sample = subject()
    turned = to_canonical(sample)
    assert not np.shares_memory(turned["image"], sample["image"])
    assert not np.shares_memory(turned["targets"]["tissue"], sample["targets"]["tissue"])


def test_an_affine_without_direction_is_refused(subject):
    affine = np.eye(4)
    affine[1, 1] = 0
    with pytest.raises(InputError, match="s1: affine gives a voxel axis no direction"):
        to_canonical(subject(affine=affine))
