"""Reliability, tables, plots' ticks and the viewer's volumes, beside scikit-learn, statsmodels, nibabel and numbers by hand."""

import base64
import gzip

import nibabel as nib
import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from statsmodels.stats.proportion import proportion_confint

from mri_ds.inference.subject import LabelMap
from mri_ds.report.charts import reliability_bins
from mri_ds.report.markup import tag
from mri_ds.report.plot import ticks
from mri_ds.report.table import Column, Table, text
from mri_ds.report.volumes import viewer_case
from mri_ds.sample import Sample


def test_reliability_equals_scikit_learn_and_statsmodels() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.3, 1, 500)
    right = rng.uniform(size=500) < sure**2
    bins = reliability_bins(sure, right, num_bins=10)
    accuracy, confidence = calibration_curve(right, sure, n_bins=10)
    np.testing.assert_allclose([b["accuracy"] for b in bins], accuracy)
    np.testing.assert_allclose([b["confidence"] for b in bins], confidence)
    assert sum(b["num"] for b in bins) == 500
    for b in bins:
        low, high = proportion_confint(round(b["accuracy"] * b["num"]), b["num"], method="wilson")
        assert (b["low"], b["high"]) == pytest.approx((low, high), abs=1e-6)


def test_markup_escapes_all_that_is_not_markup() -> None:
    assert tag("p", "<b>&", tag("i", "'"), title='"<') == '<p title="&quot;&lt;">&lt;b&gt;&amp;<i>&#x27;</i></p>'
    assert tag("img", src="x", alt=None, hidden=True) == '<img src="x" hidden>'


def test_a_table_keeps_every_digit_beside_what_it_shows() -> None:
    made = Table("t", "T", (text("who"), Column("x", 2), Column("i", 1)), [("<a>", 1 / 3, (0.25, None)), ("b", None, (1, 2.25))])
    page = made.html()
    assert '<data value="0.3333333333333333">0.33</data>' in page and "&lt;a&gt;" in page
    assert '<data value="1">1.0</data> to <data value="2.25">2.2</data>' in page
    assert page.count("not defined") == 2


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(-41.3, 24.2) == [-40, -20, 0, 20]
    assert ticks(3, 3) == [3]


def sample_of(shape: tuple[int, int, int]) -> tuple[Sample, LabelMap]:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    centre = np.array(shape) * [0.4, 0.5, 0.6]
    ball = np.linalg.norm(grid - centre, axis=-1) < min(shape) / 5
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = (-10, 20, 5)
    image = (50 + 100 * ball + grid[..., 0] / 10).astype(np.float32)[None]
    sample = Sample(
        subject_id="s", image=image, affine=affine, spacing_mm=np.array([1, 1.5, 2.0]), targets={"t": ball.astype(np.int16)}
    )
    return sample, LabelMap(np.roll(ball, 1, axis=0).astype(np.int16), ["background", "ball"])


def opened(packed: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(packed)))


def test_a_small_case_is_shown_as_it_is() -> None:
    sample, found = sample_of((20, 18, 16))
    case = viewer_case(sample, {"t": found})
    (task,) = case["tasks"]
    for key, wanted in (("truth", sample["targets"]["t"]), ("prediction", found.labels)):
        image = opened(task[key])
        assert (np.asarray(image.dataobj) == wanted).all() and (image.affine == sample["affine"]).all()
    kinds = np.asarray(opened(task["difference"]).dataobj)
    assert (kinds == 1).sum() == ((sample["targets"]["t"] == 1) & (found.labels == 0)).sum() > 0
    assert (kinds > 0).sum() == (sample["targets"]["t"] != found.labels).sum()
    step = np.ptp(sample["image"]) / 255
    assert np.abs(opened(case["image"]).get_fdata() - sample["image"][0]).max() < 2 * step
    assert case["told"] == ""


def test_a_large_case_is_cropped_then_resampled_and_stays_in_its_place() -> None:
    sample, found = sample_of((60, 50, 40))
    centre = sample["affine"] @ [*np.argwhere(sample["targets"]["t"]).mean(axis=0), 1]
    for limit, told in ((60_000, "cropped"), (4_000, "cropped and resampled")):
        case = viewer_case(sample, {"t": found}, max_voxels=limit)
        image = opened(case["tasks"][0]["truth"])
        assert np.prod(image.shape) <= limit and case["told"].startswith(told)
        assert opened(case["image"]).shape == image.shape
        now = image.affine @ [*np.argwhere(np.asarray(image.dataobj) == 1).mean(axis=0), 1]
        np.testing.assert_allclose(now[:3], centre[:3], atol=0.6)
