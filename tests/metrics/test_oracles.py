"""Every voxel metric on masks of a synthetic head (isotropic, and cut off at the border with thick slices) and, where they are,
on real ones: MONAI, medpy and DeepMind's surface-distance compute the same figures to 1e-5."""

import os
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import surface_distance
import torch
from medpy.metric import binary as medpy
from monai import metrics as monai

from mri_ds.bench.metrics import Pair, mask_pairs
from mri_ds.metrics.overlap import overlap_figures
from mri_ds.metrics.surface import hd95_mm, surface_figures

REAL = Path(os.environ.get("MRI_DS_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "Task04_Hippocampus"
TOLERANCE_MM = 1.2
NEAR = {"rel": 1e-5, "abs": 1e-5}


@cache
def pairs(source: str) -> list[Pair]:
    if source == "synthetic":
        return list(islice(mask_pairs(None, size=32), 12))
    if not REAL.is_dir():
        pytest.skip(f"no {REAL}: set MRI_DS_REAL_DATA to the folder that holds Task04_Hippocampus")
    found = list(islice(mask_pairs(REAL), 10))
    return [Pair(name, truth, guess, (1.0, 0.8, 2.5)) if i % 2 else Pair(name, truth, guess, spacing)
            for i, (name, truth, guess, spacing) in enumerate(found)]  # fmt: skip


def one_hot(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and truth, as MONAI takes them."""
    return torch.from_numpy(pair.prediction)[None, None], torch.from_numpy(pair.truth)[None, None]


def test_the_masks_are_hard_enough():
    found = pairs("synthetic")
    assert any(pair.truth[0].any() or pair.truth[-1].any() for pair in found), "no object touches the border"
    assert any(pair.spacing_mm[2] > 2 * pair.spacing_mm[0] for pair in found), "no thick slices"
    assert all((pair.truth != pair.prediction).any() for pair in found)


@pytest.mark.parametrize("source", ["synthetic", "real"])
def test_overlap_equals_monai_and_medpy(source):
    for pair in pairs(source):
        ours = overlap_figures(pair.truth, pair.prediction)
        confusion = monai.get_confusion_matrix(*(mask.float() for mask in one_hot(pair)))
        for name, theirs in (("sensitivity", "sensitivity"), ("specificity", "specificity"), ("precision", "precision")):
            assert ours[name] == pytest.approx(monai.compute_confusion_matrix_metric(theirs, confusion).item(), **NEAR), pair.name
        assert ours["dice"] == pytest.approx(monai.compute_dice(*one_hot(pair)).item(), **NEAR)
        assert ours["iou"] == pytest.approx(monai.compute_iou(*one_hot(pair)).item(), **NEAR)
        assert ours["dice"] == pytest.approx(medpy.dc(pair.prediction, pair.truth), **NEAR)
        assert ours["iou"] == pytest.approx(medpy.jc(pair.prediction, pair.truth), **NEAR)
        assert ours["volume_error"] == pytest.approx(medpy.ravd(pair.prediction, pair.truth), **NEAR)


@pytest.mark.parametrize("source", ["synthetic", "real"])
def test_surfaces_equal_monai_medpy_and_deepmind(source):
    for pair in pairs(source):
        ours = surface_figures(pair.truth, pair.prediction, pair.spacing_mm, tolerance_mm=TOLERANCE_MM)
        options = {"include_background": True, "spacing": list(pair.spacing_mm)}
        monais = {
            "hausdorff_mm": monai.compute_hausdorff_distance(*one_hot(pair), **options),
            "hd95_mm": monai.compute_hausdorff_distance(*one_hot(pair), percentile=95, **options),
            "assd_mm": monai.compute_average_surface_distance(*one_hot(pair), symmetric=True, **options),
            "surface_dice": monai.compute_surface_dice(*one_hot(pair), class_thresholds=[TOLERANCE_MM], **options),
        }
        for name, theirs in monais.items():
            assert ours[name] == pytest.approx(theirs.item(), **NEAR), (pair.name, name)
        assert hd95_mm(pair.truth, pair.prediction, pair.spacing_mm) == ours["hd95_mm"]
        medpys = {"hausdorff_mm": medpy.hd, "hd95_pooled_mm": medpy.hd95, "assd_mm": medpy.assd}
        for name, function in medpys.items():
            theirs = function(pair.prediction, pair.truth, voxelspacing=pair.spacing_mm)
            assert ours[name] == pytest.approx(theirs, **NEAR), (pair.name, name)
        distances = surface_distance.compute_surface_distances(pair.truth, pair.prediction, pair.spacing_mm)
        theirs = surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)
        assert ours["surface_dice_area"] == pytest.approx(theirs, **NEAR), pair.name


def test_the_definitions_are_not_one():
    """Were two names the same figure, the names would be wrong."""
    names = ("hd95_mm", "hd95_pooled_mm"), ("surface_dice", "surface_dice_area")
    found = [surface_figures(p.truth, p.prediction, p.spacing_mm, tolerance_mm=TOLERANCE_MM) for p in pairs("synthetic")]
    for one, other in names:
        assert max(abs(figures[one] - figures[other]) for figures in found) > 1e-3, (one, other)


def test_both_ways_of_search_agree(monkeypatch):
    """Few points are looked up in a tree, many in a distance transform."""
    from mri_ds.metrics import surface

    pair = pairs("synthetic")[1]
    found = []
    for voxels_per_point in (0, np.inf):
        monkeypatch.setattr(surface, "VOXELS_PER_POINT", voxels_per_point)
        found.append(surface_figures(pair.truth, pair.prediction, pair.spacing_mm))
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_empty_masks_follow_one_policy():
    some, none = np.zeros((3, 4, 5), dtype=bool), np.zeros((3, 4, 5), dtype=bool)
    some[1, 2, 3] = True
    spacing, diagonal = (4.0, 1.0, 1.0), np.sqrt(12**2 + 4**2 + 5**2)
    both = overlap_figures(none, none) | surface_figures(none, none, spacing)
    assert both.pop("specificity") == 1.0 and np.isnan(list(both.values())).all()
    for truth, prediction in ((some, none), (none, some)):
        surfaces = surface_figures(truth, prediction, spacing)
        assert {surfaces[name] for name in ("hausdorff_mm", "hd95_mm", "hd95_pooled_mm", "assd_mm")} == {diagonal}
        assert surfaces["surface_dice"] == surfaces["surface_dice_area"] == 0.0
        overlap = overlap_figures(truth, prediction)
        assert overlap["dice"] == overlap["iou"] == 0.0
    missed, alarm = overlap_figures(some, none), overlap_figures(none, some)
    assert missed["sensitivity"] == 0.0 and missed["volume_error"] == -1.0 and np.isnan(missed["precision"])
    assert alarm["precision"] == 0.0 and np.isnan(alarm["sensitivity"]) and np.isnan(alarm["volume_error"])


def test_ignored_voxels_count_for_nothing_as_in_monai():
    from mri_ds.metrics.overlap import without_ignored

    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (2, 8, 9, 7))
    kept_truth, kept_prediction, counts = without_ignored(truth, prediction, ignore=2)
    one = torch.nn.functional.one_hot(torch.from_numpy(np.stack([prediction, truth])), 3).movedim(-1, 1)[:, None].float()
    theirs = monai.compute_dice(one[0], one[1], include_background=False, ignore_index=2)[0, 0].item()
    assert overlap_figures(kept_truth == 1, kept_prediction == 1)["dice"] == pytest.approx(theirs, **NEAR)
    noise = np.where(counts, prediction, rng.integers(0, 3, truth.shape))
    assert (without_ignored(truth, noise, ignore=2)[1] == kept_prediction).all()
    assert without_ignored(truth, prediction, ignore=None)[2].all()
