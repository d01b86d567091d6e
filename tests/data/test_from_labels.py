"""Synthesis from label maps: statistics, places and resolution are what the params say, computed by scipy and numpy."""

import os
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from scipy.stats import kstest
from synthesis_maps import IDS, LIA, nested_ellipsoids, write_map

from mri_ds.config import SynthesisConfig
from mri_ds.data.synthesis import acquisition
from mri_ds.data.synthesis.acquisition import Scan, from_scan, to_scan
from mri_ds.data.synthesis.from_labels import apply, sample_params
from mri_ds.data.synthesis.label_map import LabelMap, LabelMaps, load_label_map
from mri_ds.data.synthesis.label_table import FREESURFER, read_table
from mri_ds.data.synthesis.motion import View, _places, draw_affine, smooth_field
from mri_ds.errors import InputError

REAL = Path(os.environ.get("MRI_DS_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "label_maps"
STILL = {"rotate_deg": 0, "scale": 0, "shear": 0, "elastic_mm": 0}
CLEAN = {"bias": 0, "gamma": 0, "max_slice_mm": 0, "max_voxel_mm": 0, "noise": 0, "artefact_prob": 0}


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> LabelMaps:
    folder = tmp_path_factory.mktemp("maps")
    write_map(folder / "one.nii.gz", nested_ellipsoids())
    return LabelMaps(folder)


@pytest.fixture
def real_label_maps() -> Path:
    if not REAL.is_dir():
        pytest.skip(f"no {REAL}: set MRI_DS_REAL_DATA to the folder that holds label_maps")
    return REAL


@pytest.fixture
def label_map(maps) -> LabelMap:
    return maps[0]


def draw(label_map: LabelMap, seed=0, *, shape=None, spacing_mm=(1.0, 1.0, 1.0), num_channels=1, flip=False, **strengths):
    shape = shape or tuple(n - 2 for n in label_map.rows.shape)
    return sample_params(
        np.random.default_rng(seed),
        label_map,
        shape=shape,
        spacing_mm=spacing_mm,
        num_channels=num_channels,
        centre_mm=label_map.size_mm / 2,
        strengths=SynthesisConfig(**strengths),
        may_flip=flip,
    )


def inner(label_map: LabelMap) -> np.ndarray:
    return label_map.rows.numpy()[1:-1, 1:-1, 1:-1]


class TestLabelMap:
    def test_ids_in_canonical_orientation_cropped_to_what_is_there(self, label_map, maps):
        canonical = np.asarray(nib.as_closest_canonical(nib.load(maps.paths[0])).dataobj)
        where = np.argwhere(canonical)
        box = tuple(slice(a, b + 1) for a, b in zip(where.min(axis=0), where.max(axis=0)))
        np.testing.assert_array_equal(label_map.ids[inner(label_map)], canonical[box])
        assert label_map.ids.tolist() == IDS and label_map.rows.dtype == torch.uint8
        border = label_map.rows.clone()
        border[1:-1, 1:-1, 1:-1] = 0
        assert not border.any()

    def test_spacing_follows_the_axes(self, tmp_path):
        affine = LIA @ np.diag([1.0, 2.0, 3.0, 1.0])  # file axes run left, inferior, anterior
        loaded = load_label_map(write_map(tmp_path / "a.nii", nested_ellipsoids(), affine), read_table(tmp_path))
        assert loaded.spacing_mm.tolist() == [1.0, 3.0, 2.0]
        assert loaded.size_mm.tolist() == pytest.approx((np.array(loaded.rows.shape) - 2) * [1.0, 3.0, 2.0])

    def test_left_and_right_are_one_tissue_and_one_class(self, label_map):
        row = {int(i): n for n, i in enumerate(label_map.ids)}
        for left, right in ((2, 41), (3, 42), (4, 43)):
            assert label_map.tissue_of[row[left]] == label_map.tissue_of[row[right]]
            assert label_map.class_of[row[left]] == label_map.class_of[row[right]] > 0
        assert len(set(label_map.tissue_of.tolist())) == label_map.num_tissues == 6
        assert label_map.tissue_of[0] == 0
        assert [label_map.class_of[row[i]] for i in (0, 24, 507)] == [0, 0, 0]  # no target: background

    def test_seats_are_voxels_of_their_class(self, label_map):
        classes = label_map.class_of[inner(label_map)]
        found = [np.unique(classes[tuple(seats.T)]) for seats in label_map.seats]
        assert [f.tolist() for f in found] == [[k] for k in np.unique(classes)[1:]]

    def test_the_last_used_stay_in_memory(self, tmp_path):
        for name in "abc":
            write_map(tmp_path / f"{name}.nii", nested_ellipsoids())
        maps = LabelMaps(tmp_path)
        size = maps[0].num_bytes
        maps = LabelMaps(tmp_path, cache_bytes=2 * size)
        for number in (0, 1, 0, 2):
            assert maps[number].name == "abc"[number]
        assert list(maps._cache) == [0, 2]

    def test_many_ids(self, tmp_path):
        """More than a byte holds: parcellations have hundreds."""
        voxels = np.arange(8 * 9 * 10).reshape(8, 9, 10)
        loaded = load_label_map(write_map(tmp_path / "a.nii", voxels, dtype=np.int32), read_table(tmp_path))
        assert loaded.rows.dtype == torch.int16
        canonical = np.asarray(nib.as_closest_canonical(nib.load(tmp_path / "a.nii")).dataobj)
        np.testing.assert_array_equal(loaded.ids[inner(loaded)], canonical)

    def test_real_maps(self, real_label_maps):
        maps = LabelMaps(real_label_maps)
        assert len(maps) == 4
        for number in (0, 3):  # float32 and int32
            label_map = maps[number]
            stored = np.asarray(nib.load(maps.paths[number]).dataobj)
            counts = np.bincount(inner(label_map).ravel(), minlength=len(label_map.ids))
            ids, wanted = np.unique(stored.astype(int), return_counts=True)
            assert label_map.ids.tolist() == ids.tolist() and counts[1:].tolist() == wanted[1:].tolist()
            assert set(label_map.class_of.tolist()) == set(range(len(FREESURFER) + 1))


class TestLabelTable:
    def test_a_table_of_ones_own(self, tmp_path):
        (tmp_path / "labels.yaml").write_text("classes: {kidney: [41, 2], fluid: [24]}\nsame_intensity: [[3, 42]]\n")
        write_map(tmp_path / "a.nii", nested_ellipsoids())
        maps = LabelMaps(tmp_path)
        assert maps.table.classes == ["background", "kidney", "fluid"] and not maps.table.may_flip
        row = {int(i): n for n, i in enumerate(maps[0].ids)}
        assert [maps[0].class_of[row[i]] for i in (2, 41, 24, 3)] == [1, 1, 2, 0]
        assert maps[0].num_tissues == len(IDS) - 1

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("classes: {a: [1], b: [1]}", "id 1 twice"),
            ("classes: {a: [1]}\nsame_intensity: [[1, 2], [2, 3]]", "id 2 twice"),
            ("classes: {a: [0]}", "outside 1 to 32767"),
            ("classes: {background: [1]}", "class 0 by itself"),
            ("classes: {}", "classes"),
            ("clases: {a: [1]}", "did you mean 'classes'"),
            ("classes: [", "not YAML"),
            ("- 1", "holds a list"),
            ("classes: {a: [x]}", "classes.a.0"),
        ],
    )
    def test_broken_ones(self, tmp_path, text, said):
        (tmp_path / "labels.yaml").write_text(text)
        with pytest.raises(InputError, match=said) as caught:
            read_table(tmp_path)
        assert "labels.yaml" in str(caught.value) and "Fix: " in str(caught.value)

    def test_a_map_without_any_class(self, tmp_path):
        write_map(tmp_path / "a.nii", np.where(nested_ellipsoids() > 0, 900, 0))
        with pytest.raises(InputError, match=r"a\.nii: no id of it \(900\) has a class.*labels\.yaml"):
            LabelMaps(tmp_path)[0]

    def test_no_maps(self, tmp_path):
        with pytest.raises(InputError, match="holds no label map"):
            LabelMaps(tmp_path)
        with pytest.raises(InputError, match="no such folder"):
            LabelMaps(tmp_path / "absent")


class TestStatistics:
    def test_without_motion_labels_are_the_maps_own(self, label_map):
        image, labels = apply(label_map, draw(label_map, **STILL, **CLEAN))
        np.testing.assert_array_equal(labels.numpy(), label_map.class_of[inner(label_map)])
        assert image.shape == (1, *labels.shape) and image.dtype == torch.float32 and labels.dtype == torch.int16

    def test_each_tissue_is_the_gaussian_that_was_drawn(self, label_map):
        """Kolmogorov-Smirnov: no tissue of four images can be told from scipy's normal distribution."""
        p_values = []
        for seed in range(4):
            params = draw(label_map, seed, num_channels=2, **STILL, **CLEAN)
            image, _ = apply(label_map, params)
            for c in range(2):
                for tissue in range(1, label_map.num_tissues):
                    mean, std = params.means[c, tissue], params.stds[c, tissue]
                    values = image[c].numpy()[label_map.tissue_of[inner(label_map)] == tissue]
                    if mean > 5 * std:  # others are cut at 0, as magnitudes are
                        p_values.append(kstest(values, "norm", args=(mean, std)).pvalue)
        assert len(p_values) > 20
        assert kstest(p_values, "uniform").pvalue > 1e-3

    def test_channels_and_seeds_differ(self, label_map):
        image, _ = apply(label_map, draw(label_map, num_channels=2, **STILL, **CLEAN))
        other, _ = apply(label_map, draw(label_map, 1, num_channels=2, **STILL, **CLEAN))
        assert not torch.equal(image[0], image[1]) and not torch.equal(image, other)

    def test_same_seed_same_bytes_on_one_thread_and_two(self, label_map):
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 1, 2):
                torch.set_num_threads(count)
                params = [draw(label_map, seed, num_channels=2, shape=(48, 40, 44), flip=True) for seed in range(6)]
                results.append(b"".join(t.numpy().tobytes() for p in params for t in apply(label_map, p)))
        finally:
            torch.set_num_threads(threads)
        assert results[0] == results[1] == results[2]

    def test_every_strength_leaves_finite_images_and_known_classes(self, label_map):
        for seed in range(12):
            image, labels = apply(label_map, draw(label_map, seed, shape=(24, 32, 40), spacing_mm=(1.5, 1.0, 1.2), flip=True))
            assert torch.isfinite(image).all() and image.min() >= 0 and image.std() > 0
            assert set(labels.unique().tolist()) <= set(label_map.class_of.tolist())

    def test_shading_and_gamma(self, label_map):
        """Shading is a smooth factor; gamma bends the image over its own range."""
        params = draw(label_map, **STILL, **CLEAN)
        plain = apply(label_map, params)[0]
        log_gain = np.random.default_rng(0).normal(0, 0.3, size=(1, 5, 5, 5))
        shaded = apply(label_map, replace(params, log_gain=log_gain))[0]
        wanted = plain * smooth_field(log_gain, plain.shape[1:]).exp()
        torch.testing.assert_close(shaded, wanted, rtol=1e-4, atol=0.05)
        bent = apply(label_map, replace(params, gamma=np.array([1.7])))[0]
        unit = (plain - plain.min()) / (plain.max() - plain.min())
        torch.testing.assert_close((bent - bent.min()) / (bent.max() - bent.min()), unit**1.7, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.stack([bent.min(), bent.max()]), torch.stack([plain.min(), plain.max()]))

    def test_noise_is_rician(self, label_map):
        """Over a background of exactly 0, the magnitude of complex noise is Rayleigh distributed."""
        params = draw(label_map, **STILL, **CLEAN)
        silent = replace(params, means=0 * params.means, stds=0 * params.stds, noise_std=np.array([7.0]))
        values = apply(label_map, silent)[0].numpy().ravel()
        assert kstest(values[::3], "rayleigh", args=(0, 7.0)).pvalue > 1e-3

    def test_air_is_dark_more_often_than_not(self, label_map):
        dark = [draw(label_map, seed).means[0, 0] <= 10 for seed in range(200)]
        assert 0.7 < np.mean(dark) < 0.9


class TestMotion:
    @staticmethod
    def places(params: View, spacing_mm: np.ndarray) -> np.ndarray:
        """Voxel coordinates (3, P, Q, R) in the map: affine by hand, displacements by scipy's B-splines."""
        grid = np.meshgrid(*(np.arange(n) for n in params.shape), indexing="ij")
        offset = np.stack([(g + 0.5 - n / 2) * s for g, n, s in zip(grid, params.shape, params.spacing_mm)])
        place = np.einsum("ij,jpqr->ipqr", params.matrix, offset) + params.centre_mm[:, None, None, None]
        if params.control_mm is not None:
            cells = np.array(params.control_mm.shape[1:]) - 3
            at = np.stack([(g + 0.5) / n * c + 1 for g, n, c in zip(grid, params.shape, cells)])
            place += [map_coordinates(control, at, order=3, prefilter=False) for control in params.control_mm]
        return place / spacing_mm[:, None, None, None] - 0.5

    @pytest.mark.parametrize("seed", range(4))
    def test_labels_are_those_at_scipys_places(self, tmp_path, seed):
        affine = LIA @ np.diag([1.0, 1.5, 0.8, 1.0])
        label_map = load_label_map(write_map(tmp_path / "a.nii", nested_ellipsoids(), affine), read_table(tmp_path))
        params = draw(label_map, seed, shape=(30, 26, 34), spacing_mm=(1.3, 1.0, 1.1), flip=True, **CLEAN)
        where = self.places(params.view, label_map.spacing_mm)
        nearest = map_coordinates(label_map.rows.numpy(), where + 1, order=0, mode="grid-constant", cval=0)
        labels = apply(label_map, params)[1].numpy()
        between = np.abs(where + 0.5 - np.rint(where + 0.5)).min(axis=0) < 1e-3  # a place between two voxels may go either way
        np.testing.assert_array_equal(labels[~between], label_map.class_of[nearest][~between])
        assert between.mean() < 0.01 and labels.any()

    def test_flips_only_where_left_and_right_may_be_exchanged(self, label_map):
        flips = [np.linalg.det(draw(label_map, seed, flip=True).view.matrix) < 0 for seed in range(60)]
        assert 15 < sum(flips) < 45
        assert all(np.linalg.det(draw(label_map, seed).view.matrix) > 0 for seed in range(60))

    def test_affine_stays_within_its_strengths(self):
        for seed in range(50):
            matrix = draw_affine(np.random.default_rng(seed), rotate_deg=10, scale=0.1, shear=0)
            assert (np.abs(np.linalg.norm(matrix, axis=0) - 1) <= 0.1 + 1e-12).all()
            turn = matrix / np.linalg.norm(matrix, axis=0)
            np.testing.assert_allclose(turn.T @ turn, np.eye(3), atol=1e-12)
            assert np.rad2deg(np.arccos((np.trace(turn) - 1) / 2)) <= 10 * np.sqrt(3) + 1

    def test_the_strongest_deformation_does_not_fold(self, label_map):
        """Along each axis neighbours keep their order, at the largest displacement that the configuration takes."""
        for seed in range(5):
            view = draw(label_map, seed, shape=(40, 40, 40), **STILL | {"elastic_mm": 8, "elastic_grid_mm": 20}, **CLEAN).view
            control = np.sign(np.random.default_rng(seed).normal(size=view.control_mm.shape)) * 8
            view = replace(view, control_mm=control)
            steps = [torch.diff(_places(label_map, view, view.shape, axis), dim=axis) for axis in range(3)]
            assert min(float(step.min()) for step in steps) > 0
        with pytest.raises(ValueError, match="could fold space"):
            SynthesisConfig(elastic_mm=9, elastic_grid_mm=20)


class TestAcquisition:
    @pytest.mark.parametrize(("shape", "std"), [((32, 30, 7), (0.0, 0.0, 2.6)), ((12, 20, 9), (2.0, 1.1, 2.4))])
    def test_against_scipys_gaussian_and_zoom(self, shape, std):
        sharp = np.random.default_rng(0).uniform(0, 100, size=(32, 30, 28)).astype(np.float32)
        scan = to_scan(torch.from_numpy(sharp), Scan(shape, std))
        blurred = gaussian_filter(sharp.astype(np.float64), std, mode="nearest")
        low = zoom(blurred, np.array(shape) / sharp.shape, order=1, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(scan.numpy(), low, atol=1e-3)
        back = zoom(low, np.array(sharp.shape) / shape, order=1, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(from_scan(scan, sharp.shape).numpy(), back, atol=1e-3)

    def test_ringing_is_a_cut_through_k_space(self):
        sharp = np.random.default_rng(0).uniform(0, 100, size=(16, 15, 14)).astype(np.float32)
        for axis, n in enumerate(sharp.shape):
            kept = np.abs(np.fft.fftfreq(n)) * 2 <= 0.6
            shape = [1, 1, 1]
            shape[axis] = n
            wanted = np.fft.ifft(np.fft.fft(sharp, axis=axis) * kept.reshape(shape), axis=axis).real
            scan = to_scan(torch.from_numpy(sharp), Scan(sharp.shape, ringing=(axis, 0.6)))
            np.testing.assert_allclose(scan.numpy(), wanted, atol=1e-3)

    def test_ghosts_are_faint_copies(self):
        """Every second line of k-space weakened by s: s / 2 of the image appears half the field of view away."""
        sharp = torch.zeros(16, 4, 4)
        sharp[3] = 80.0
        scan = to_scan(sharp, Scan((16, 4, 4), ghosts=(0, 0.2, 2)))[:, 0, 0]
        mean = 80 * 0.2 / 16  # of the line at the centre of k-space, which stays
        assert scan[3] == pytest.approx(80 * 0.9 + mean, abs=1e-3) and scan[11] == pytest.approx(-80 * 0.1 + mean, abs=1e-3)
        assert float(scan.sum()) == pytest.approx(80.0, abs=1e-3)

    def test_nothing_to_do_changes_nothing(self):
        sharp = torch.rand(5, 6, 7)
        assert torch.equal(from_scan(to_scan(sharp, Scan((5, 6, 7))), (5, 6, 7)), sharp)

    def test_profiles_of_small_and_long_axes_keep_the_mean(self):
        for n, std in ((3, 4.0), (2, 0.4), (64, 3.0)):
            np.testing.assert_allclose(acquisition.profile(n, std).sum(axis=1), 1)

    def test_thick_slices_lie_along_one_axis_and_within_their_bounds(self, label_map):
        thick, coarse = 0, 0
        for seed in range(80):
            (scan,) = draw(label_map, seed, shape=(64, 64, 64), max_slice_mm=8, max_voxel_mm=4).scans
            fewer = [n < 63 for n in scan.shape]
            thick, coarse = thick + (sum(fewer) == 1), coarse + (sum(fewer) == 3)
            assert min(scan.shape) >= 64 // (8 if sum(fewer) == 1 else 4)
            assert all(std == 0 or 0.6 < std < 6.2 for std in scan.profile_std)
        assert thick > 20 and coarse > 20

    def test_a_grid_coarser_than_the_map_mixes_tissues(self, label_map):
        """Voxels of 2 mm show the mean of the 1 mm voxels in them, not one of these; labels are those at their centres."""
        params = draw(label_map, shape=(18, 20, 16), spacing_mm=(2.0, 2.0, 2.0), **STILL, **CLEAN)
        flat = replace(params, stds=0 * params.stds, means=np.arange(1.0, 1 + label_map.num_tissues)[None] * 20)
        image, labels = apply(label_map, flat)
        assert labels.shape == (18, 20, 16) and image.shape == (1, 18, 20, 16)
        assert len(image.unique()) > 10 * label_map.num_tissues


@pytest.mark.parametrize("which", ["small", "real"])
def test_at_least_two_volumes_of_128_cubed_per_second_of_one_core(label_map, which, request):
    if which == "real":
        label_map = LabelMaps(request.getfixturevalue("real_label_maps"))[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        apply(label_map, draw(label_map, shape=(128, 128, 128)))
        start = time.process_time()
        for seed in range(10):
            apply(label_map, draw(label_map, seed, shape=(128, 128, 128), flip=True))
        assert (time.process_time() - start) / 10 < 0.5
    finally:
        torch.set_num_threads(threads)
