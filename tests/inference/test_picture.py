"""The picture: what lies where on the page, true proportions, and a PNG that shows the classes in their colours."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from mri_ds.inference.picture import BACKGROUND, COLOURS, PLANES, case_figure, centre_planes, draw_case, page_slice

SHAPE = (20, 30, 12)


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, a truth of two classes, and a prediction that has the first right and misses the second."""
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    truth = np.zeros(SHAPE, dtype=np.int16)
    truth[5:10, 5:20, 3:9] = 1
    truth[10:15, 5:20, 3:9] = 2
    return image, truth, np.where(truth == 1, truth, 0).astype(np.int16)


def test_right_anterior_and_superior_lie_where_radiologists_look_for_them():
    volume = np.zeros(SHAPE)
    volume[-1, -1, -1] = 1  # the patient's right, front and top: a canonical volume runs towards R, A, S
    for plane, corner in zip(PLANES, ["R, A", "R, S", "A, S"]):
        shown = page_slice(volume, plane, SHAPE[plane.axis] - 1)
        assert shown.shape == (SHAPE[plane.up], SHAPE[plane.across])
        assert shown[-1, 0] == 1, f"{plane.name}: {corner} belongs in the page's upper left corner"  # origin="lower"
        assert f"{plane.sides[0]}, {plane.sides[2]}" == corner


def test_cells_have_the_proportions_of_the_body(case):
    image, truth, prediction = case
    spacing_mm = np.array([1.0, 0.5, 4.0])
    figure = case_figure(image, truth, prediction, ["background", "a", "b"], "", spacing_mm=spacing_mm)
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    cells = np.array(figure.axes).reshape(3, 3)
    scales = []
    for plane, row in zip(PLANES, cells):
        for axes in row:
            box = axes.get_position()
            size_mm = np.array([SHAPE[plane.across] * spacing_mm[plane.across], SHAPE[plane.up] * spacing_mm[plane.up]])
            scales += [box.width * width / size_mm[0], box.height * height / size_mm[1]]
    np.testing.assert_allclose(scales, scales[0], rtol=1e-6)  # inches per mm, across and up, in all nine


def test_columns_and_legend(case):
    image, truth, prediction = case
    figure = case_figure(image, truth, prediction, ["background", "a", "b"], "sub-1")
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "truth", "prediction"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a  Dice 1.00", "b  Dice 0.00"]
    alone = case_figure(image, None, prediction, ["background", "a", "b"], "sub-1")
    assert [axes.get_title() for axes in alone.axes[:2]] == ["image", "prediction"] and len(alone.axes) == 6
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["a", "b"]


def test_planes_pass_through_the_centroid_or_the_nearest_structure():
    labels = np.zeros((9, 9, 9), dtype=np.int16)
    labels[2:5, 4:9, 6] = 1
    assert centre_planes(labels) == [3, 6, 6]
    labels[:] = 0
    labels[0, 4, 4] = labels[8, 4, 4] = labels[7, 4, 4] = 1  # centroid at plane 5, which shows nothing; 7 is nearest
    assert centre_planes(labels) == [7, 4, 4]
    assert centre_planes(np.zeros((9, 8, 7), dtype=np.int16)) == [4, 4, 3]


def test_png_shows_the_classes_in_their_columns(case, tmp_path):
    image, truth, prediction = case
    path = draw_case(tmp_path / "new" / "case.png", image, truth, prediction, ["background", "a", "$b$"], "$5 · it's a title")
    assert [file.name for file in path.parent.iterdir()] == ["case.png"]  # no partial file stays
    pixels = imread(path)[..., :3]
    np.testing.assert_allclose(pixels[0, 0], to_rgb(BACKGROUND), atol=1 / 255)
    page = pixels[: int(0.9 * len(pixels))]  # without the legend
    thirds = np.array_split(page, 3, axis=1)
    for label, expected in [(1, [False, True, True]), (2, [False, True, False])]:
        outline = to_rgb(COLOURS[label - 1])
        assert [bool((np.abs(third - outline).max(axis=2) < 0.02).any()) for third in thirds] == expected
