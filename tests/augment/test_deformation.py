"""The dice of motion: within their bounds, never folding space, exact where they only reorder voxels."""

import numpy as np
import pytest
import torch

from mri_ds.augment.deformation import (
    draw_affine,
    draw_control_points,
    draw_flips,
    draw_grid_distortion,
    draw_matrix,
    draw_quarter_turns,
    rotation,
)
from mri_ds.augment.frame import Frame
from mri_ds.augment.spatial import Deformation, source_positions

CUBE = Frame((8, 8, 8), (1.0, 1.0, 1.0), 1, flip_axes=(0, 2))


def test_elastic_motion_stays_within_its_bound_and_does_not_fold():
    control = draw_control_points(
        np.random.default_rng(0), shape=(32, 32, 32), spacing_mm=(1, 1, 1), elastic_mm=4.0, grid_mm=10.0
    )
    kwargs = {"start": (0, 0, 0), "shape": (32, 32, 32), "spacing_mm": (1, 1, 1)}
    where = source_positions(deformation=Deformation(control_mm=control), **kwargs)
    still = source_positions(deformation=Deformation(), **kwargs)
    assert 0.5 < (where - still).abs().max() <= 4.0
    jacobian = torch.stack([torch.stack(torch.gradient(axis)) for axis in where.double()]).permute(2, 3, 4, 0, 1)
    assert torch.linalg.det(jacobian).min() > 0


def test_displacements_that_could_fold_space_are_refused():
    with pytest.raises(ValueError, match="elastic_mm 5"):
        draw_control_points(np.random.default_rng(0), shape=(8, 8, 8), spacing_mm=(1, 1, 1), elastic_mm=5, grid_mm=10)


def test_drawn_matrices_are_rotations_times_one_zoom():
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix = draw_matrix(rng, rotate_deg=15, scale=0.1)
        zoom = np.cbrt(np.linalg.det(matrix))
        assert 1 / 1.1 <= zoom <= 1.1
        assert np.allclose(matrix @ matrix.T, np.eye(3) * zoom**2)
        angle = np.rad2deg(np.arccos((np.trace(matrix / zoom) - 1) / 2))
        assert angle <= 15 * np.sqrt(3) + 1


def test_rotation_agrees_with_scipy():
    from scipy.spatial.transform import Rotation

    degrees = np.random.default_rng(0).uniform(-180, 180, size=3)
    assert np.allclose(rotation(degrees), Rotation.from_euler("xyz", degrees, degrees=True).as_matrix())


def test_an_affine_draw_shears_and_shifts_within_its_bounds():
    rng = np.random.default_rng(0)
    drawn = [draw_affine(rng, CUBE, 0.0, 0.0, 0.2, 3.0) for _ in range(200)]
    slants, shifts = np.stack([m for m, _ in drawn]), np.stack([t for _, t in drawn])
    assert np.allclose(np.diagonal(slants, axis1=1, axis2=2), 1)
    off = slants[:, ~np.eye(3, dtype=bool)]
    assert 0.19 < np.abs(off).max() <= 0.2 and 2.9 < np.abs(shifts).max() <= 3.0


def test_flips_come_on_each_allowed_axis_by_itself():
    rng = np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(2000):
        for axes in draw_flips(rng, CUBE, 0.25):
            counts[axes] += 1
    assert counts[1] == 0 and np.allclose(counts[[0, 2]] / 2000, 0.25, atol=0.03)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "planes"),
    [
        ((8, 8, 8), (1, 1, 1), {(0, 1), (0, 2), (1, 2)}),
        ((8, 8, 8), (1, 1, 5), {(0, 1)}),
        ((8, 9, 8), (1, 1, 1.004), {(0, 2)}),
        ((8, 9, 10), (1, 1, 1), set()),
        ((8, 8, 9), (1, 1.02, 1), set()),
    ],
)
def test_quarter_turns_only_where_voxels_fall_on_voxels(shape, spacing_mm, planes):
    rng = np.random.default_rng(0)
    drawn = [draw_quarter_turns(rng, Frame(shape, spacing_mm, 1), 1.0) for _ in range(100)]
    seen = {tuple(dice[0][:2].tolist()) for dice in drawn if dice}
    assert seen == planes
    assert {int(dice[0][2]) for dice in drawn if dice} == ({1, 2, 3} if planes else set())


def test_distorted_cells_stay_in_order_and_fill_the_window():
    for seed in range(50):
        (cells,) = draw_grid_distortion(np.random.default_rng(seed), CUBE, 0.5)
        lengths = np.diff(cells, axis=1)
        assert cells.shape == (3, 6) and np.all(cells[:, 0] == 0) and np.allclose(cells[:, -1], 1)
        assert lengths.min() > 0 and (lengths.max(axis=1) / lengths.min(axis=1)).max() <= 3 + 1e-9  # 1.5 / 0.5


def test_a_distortion_that_could_turn_cells_over_is_refused():
    with pytest.raises(ValueError, match="grid_distortion 1"):
        draw_grid_distortion(np.random.default_rng(0), CUBE, 1.0)
