"""Area by marching cubes: planes and balls worked out, DeepMind's table and its package as the oracles."""

import numpy as np
import pytest
import surface_distance
from surface_distance.lookup_tables import ENCODE_NEIGHBOURHOOD_3D_KERNEL, create_table_neighbour_code_to_surface_area

from mri_ds.metrics.surface import surface_figures
from mri_ds.metrics.surfels import areas_mm2, surfels


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 5.0), (4.0, 0.5, 0.9)])
def test_all_256_cells_have_the_area_of_the_reference(spacing):
    """Its table lists the triangles of each one; ours has fourteen and turns them."""
    weights = ENCODE_NEIGHBOURHOOD_3D_KERNEL.ravel()  # its number of each corner, in the order of our bits
    code_of = [int(weights[[code >> bit & 1 == 1 for bit in range(8)]].sum()) for code in range(256)]
    assert sorted(code_of) == list(range(256))
    expected = create_table_neighbour_code_to_surface_area(spacing)[code_of]
    np.testing.assert_allclose(areas_mm2(spacing), expected, rtol=0, atol=1e-12)


def test_a_slab_has_two_faces_and_no_more_where_it_ends_at_the_border():
    slab = np.zeros((6, 5, 4), dtype=bool)
    slab[2:4] = True
    where, codes = surfels(slab)
    flat = np.stack(np.unravel_index(where, (7, 6, 5)), axis=1)
    inner = (flat[:, 1] % 5 > 0) & (flat[:, 2] % 4 > 0)  # away from the rim, where the slab meets the border
    assert set(flat[inner, 0]) == {2, 4} and inner.sum() == 2 * 4 * 3
    np.testing.assert_allclose(areas_mm2((3.0, 2.0, 0.5))[codes[inner]], 2.0 * 0.5)


def test_a_ball_has_about_the_area_of_a_sphere():
    grid = np.indices((41, 41, 21)).astype(float)
    ball = (grid[0] - 20) ** 2 + (grid[1] - 20) ** 2 + (2 * (grid[2] - 10)) ** 2 <= 15**2
    _, codes = surfels(ball)
    share = areas_mm2((1, 1, 2))[codes].sum() / (4 * np.pi * 15**2)
    assert 1 < share < 1.15, "steps are longer than the slope, but not by much"


def test_identical_masks_and_one_voxel():
    mask = np.zeros((3, 3, 3), dtype=bool)
    mask[1, 1, 1] = True
    where, codes = surfels(mask)
    assert len(where) == 8 and areas_mm2((1, 1, 1))[codes].sum() == pytest.approx(8 * np.sqrt(3) / 8)
    assert surface_figures(mask, mask, (1, 1, 1), tolerance_mm=0.0)["surface_dice_area"] == 1.0
    assert surface_distance.compute_surface_dice_at_tolerance(
        surface_distance.compute_surface_distances(mask, mask, (1, 1, 1)), 0.0
    ) == pytest.approx(1.0)
