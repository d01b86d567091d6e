"""Synthetic subjects: shapes, contrast, lesions and age are what their labels say, and the same seed gives the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, distance_transform_edt, label, map_coordinates
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import cross_val_predict

from mri_ds.data.layouts import find_dataset, load_subject
from mri_ds.data.synthesis import Subject, dataset, synthesize_dataset, synthesize_subject
from mri_ds.data.synthesis.anatomy import CSF, DEEP_GREY, GREY, LESION, TISSUES, VENTRICLES, WHITE, build_anatomy, draw_person
from mri_ds.data.synthesis.contrast import NUM_SCANNERS, scan, scanner
from mri_ds.data.synthesis.dataset import _thick_slices, _turned
from mri_ds.data.synthesis.fields import FOV_MM, smooth_field
from mri_ds.data.synthesis.lesions import COUNTS, GRADES, NEAR_VENTRICLES_MM, RADIUS_MM, STRETCH, add_lesions
from mri_ds.errors import InputError


@pytest.fixture(scope="module")
def cohort() -> list[Subject]:
    """Twelve subjects of 64 voxels: four of each lesion grade."""
    return [synthesize_subject(i, seed=0, size=64) for i in range(12)]


def voxel_mm(subject: Subject) -> np.ndarray:
    return np.linalg.norm(subject.affine[:3, :3], axis=0)


def volumes_ml(subject: Subject) -> np.ndarray:
    return np.bincount(subject.labels.ravel(), minlength=len(TISSUES)) * np.prod(voxel_mm(subject)) / 1000


class TestFields:
    def test_mean_0_and_variance_1(self):
        fields = np.stack([smooth_field(np.random.default_rng(i), 40, 13.0) for i in range(40)])
        np.testing.assert_allclose(fields.mean(), 0, atol=0.05)
        np.testing.assert_allclose(fields.var(), 1, atol=0.05)

    def test_against_scipys_splines(self):
        """scipy evaluates the same B-spline coefficients at the same places."""
        num_spans, size, knot_mm = 10, 24, 19.0
        coefficients = np.random.default_rng(3).standard_normal((num_spans + 3,) * 3, dtype=np.float32)
        at = np.stack(np.meshgrid(*[(np.arange(size) + 0.5) / size * num_spans + 1] * 3, indexing="ij"))
        wanted = map_coordinates(coefficients, at, order=3, prefilter=False) / (151 / 315) ** 1.5
        np.testing.assert_allclose(smooth_field(np.random.default_rng(3), size, knot_mm), wanted, atol=1e-4)

    def test_one_field_at_every_resolution(self):
        """The centre of coarse voxel i is the centre of fine voxel 3 i + 1."""
        coarse, fine = (smooth_field(np.random.default_rng(0), size, 20.0) for size in (16, 48))
        np.testing.assert_allclose(coarse, fine[1::3, 1::3, 1::3], atol=1e-4)


class TestAnatomy:
    def test_volumes_of_a_head(self, cohort):
        """Brain with its fluid 0.9 to 1.9 litres, of which ventricles and deep grey are small parts."""
        for subject in cohort:
            volumes = volumes_ml(subject)
            assert 900 < volumes[1:].sum() < 1900
            assert (volumes[:-1] > 3).all()
            assert min(volumes[GREY], volumes[WHITE]) > 4 * max(volumes[VENTRICLES], volumes[DEEP_GREY])

    def test_tissues_are_nested(self, cohort):
        """From outside inwards: fluid, grey, white, ventricles; and ventricles never open to the outside."""
        for subject in cohort:
            depth = distance_transform_edt(np.pad(subject.labels > 0, 1), sampling=voxel_mm(subject))[1:-1, 1:-1, 1:-1]
            depths = [depth[subject.labels == tissue].mean() for tissue in (CSF, GREY, WHITE, VENTRICLES)]
            assert depths == sorted(depths)
            around = binary_dilation(subject.labels == VENTRICLES)
            assert not (around & (subject.labels == 0)).any()

    def test_no_two_are_alike(self, cohort):
        volumes = np.array([volumes_ml(subject) for subject in cohort])
        assert (volumes[:, 1:-1].std(axis=0) / volumes[:, 1:-1].mean(axis=0) > 0.03).all()

    def test_age_follows_from_region_volumes_but_not_exactly(self):
        """Linear regression on volumes relative to the head, cross-validated, explains most of the variance, not all."""
        subjects = [synthesize_subject(i, seed=7, size=40) for i in range(75)]
        volumes = np.array([volumes_ml(subject) for subject in subjects])
        shares, ages = volumes[:, 1:-1] / volumes[:, 1:].sum(axis=1, keepdims=True), np.array([s.age for s in subjects])
        assert 20 <= ages.min() < 25 and 85 < ages.max() <= 90
        correlation = dict(zip(TISSUES[1:-1], np.corrcoef(shares.T, ages)[-1]))
        assert correlation["ventricles"] > 0.75 and correlation["grey"] < -0.75
        predicted = cross_val_predict(LinearRegression(), shares, ages, cv=5)
        explained = 1 - np.mean((predicted - ages) ** 2) / ages.var()
        assert 0.85 < explained < 0.985


class TestLesions:
    def test_grades_take_turns(self):
        assert [synthesize_subject(i, seed=0, size=16).lesion for i in range(6)] == GRADES * 2

    def test_grades_do_not_overlap(self):
        bounds = [bound for grade in GRADES for bound in COUNTS[grade]]
        assert bounds == sorted(bounds) and bounds[:2] == [0, 0] and bounds[1] < bounds[2] <= bounds[3] < bounds[4]

    def test_they_take_the_place_of_white_matter_alone(self):
        for number in range(6):
            rng = np.random.default_rng(number)
            anatomy = build_anatomy(draw_person(rng, 60), rng, 48)
            before, after = anatomy.tissue, add_lesions(anatomy, "many", rng)
            assert LESION not in before and (after == LESION).any()
            np.testing.assert_array_equal(after != before, after == LESION)
            assert set(np.unique(before[after == LESION])) == {WHITE}

    def test_as_many_as_the_grade_says(self, cohort):
        for subject in cohort:
            low, high = COUNTS[subject.lesion]
            count = label(subject.labels == LESION, structure=np.ones((3, 3, 3)))[1]
            assert low <= count <= high, (subject.lesion, count)

    def test_near_the_ventricles_and_large_enough_to_see(self, cohort):
        for subject in cohort:
            lesions = subject.labels == LESION
            if subject.lesion == "none":
                assert not lesions.any()
                continue
            to_ventricles = distance_transform_edt(subject.labels != VENTRICLES, sampling=voxel_mm(subject))
            most = NEAR_VENTRICLES_MM[1] + STRETCH * RADIUS_MM[1] + 2 * voxel_mm(subject).max()
            assert to_ventricles[lesions].max() < 1.1 * most  # shapes are measured in bent coordinates
            count = label(lesions, structure=np.ones((3, 3, 3)))[1]
            assert lesions.sum() * np.prod(voxel_mm(subject)) / count > 0.7 * 4 / 3 * np.pi * RADIUS_MM[0] ** 3


class TestContrast:
    def test_order_of_tissues(self, cohort):
        """T1: white > grey > fluid, lesions darker than white. T2: the reverse, lesions brighter than white and grey."""
        for subject in cohort:
            t1, t2 = ([np.median(image[subject.labels == k]) for k in range(1, LESION)] for image in subject.images)
            (csf1, grey1, white1, ventricles1, _), (csf2, grey2, white2, ventricles2, _) = t1, t2
            assert white1 > 1.1 * grey1 > 1.1 * csf1 and grey1 > 1.1 * ventricles1
            assert csf2 > 1.1 * grey2 > 1.1 * white2 and ventricles2 > 1.1 * grey2
            if subject.lesion != "none":
                lesion1, lesion2 = (np.median(image[subject.labels == LESION]) for image in subject.images)
                assert lesion1 < 0.95 * white1 and lesion2 > grey2 > white2

    def test_signal_outside_the_labels(self, cohort):
        """Scalp and face are as bright as tissue: intensity alone does not find the brain."""
        for subject in cohort:
            outside = subject.images[0][subject.labels == 0]
            grey = np.median(subject.images[0][subject.labels == GREY])
            assert 0.05 < (outside > grey).mean() < 0.5

    def test_rician_noise_of_air(self):
        """Without signal the magnitude of complex noise s is Rayleigh: mean s sqrt(pi / 2), Gudbjartsson and Patz 1995, eq. 3."""
        machine = scanner(0)
        images = scan(np.zeros((32, 32, 32), np.int8), machine, np.random.default_rng(0))
        np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), machine.gain * machine.noise * np.sqrt(np.pi / 2), rtol=0.01)

    def test_scanners_differ_and_stay_the_same(self):
        gains = [tuple(scanner(number).gain) for number in range(NUM_SCANNERS)]
        assert len(set(gains)) == NUM_SCANNERS and gains == [tuple(scanner(number).gain) for number in range(NUM_SCANNERS)]

    def test_shading_is_smooth_and_present(self, cohort):
        """White matter is brighter on one side of the head than on another, by some per cent."""
        spread = []
        for subject in cohort:
            white = np.argwhere(subject.labels == WHITE)
            side = white[:, 1] < np.median(white[:, 1])
            values = subject.images[0][tuple(white.T)]
            spread.append(abs(np.log(np.median(values[side]) / np.median(values[~side]))))
        assert 0.01 < np.median(spread) < 0.3


class TestGeometry:
    def test_variety(self):
        """Thick slices, oblique and turned grids in some subjects, plain ones in others; the field of view is one."""
        subjects = [synthesize_subject(i, seed=1, size=16) for i in range(40)]
        thick = [min(subject.labels.shape) == 8 for subject in subjects]
        turned = [nib.aff2axcodes(subject.affine) != ("R", "A", "S") for subject in subjects]
        oblique = [(np.sort(np.abs(subject.affine[:3, :3]), axis=1)[:, 1] > 1e-6).any() for subject in subjects]
        for kind in (thick, turned, oblique):
            assert 3 < sum(kind) < 25
        for subject in subjects:
            np.testing.assert_allclose(voxel_mm(subject) * subject.labels.shape, FOV_MM)
            assert subject.images.shape == (2, *subject.labels.shape)
        assert len({subject.scanner for subject in subjects}) == NUM_SCANNERS

    @pytest.mark.parametrize("number", range(3))
    @pytest.mark.parametrize("probs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
    def test_every_voxel_keeps_its_place_in_the_head(self, monkeypatch, probs, number):
        """However a head is sliced, tilted and stored, each of its points has the label that it has without all that."""

        def subject(probs: tuple[float, ...]) -> Subject:
            for name, prob in zip(("THICK_SLICES_PROB", "OBLIQUE_PROB", "TURNED_PROB"), probs, strict=True):
                monkeypatch.setattr(dataset, name, prob)
            return synthesize_subject(number, seed=3, size=48)

        plain, stored = subject((0, 0, 0)), subject(probs)
        np.testing.assert_allclose(plain.affine @ [23.5, 23.5, 23.5, 1], [0, 0, 0, 1], atol=1e-9)  # the middle is the origin
        assert stored.labels.size == plain.labels.size / (2 if probs[0] else 1)
        assert stored.images.shape[1:] == stored.labels.shape
        directions = stored.affine[:3, :3] / voxel_mm(stored)
        tilt = directions @ np.rint(directions).T  # a tilt is under 0.44 rad: rounding leaves order and direction of the axes
        np.testing.assert_allclose(tilt @ tilt.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(tilt) > 0 and (np.trace(tilt) < 3 - 1e-6) == bool(probs[1])
        world = stored.affine @ np.vstack([np.indices(stored.labels.shape).reshape(3, -1), np.ones((1, stored.labels.size))])
        at = (tilt.T @ world[:3]) / (FOV_MM / 48) + 23.5  # in voxels of the plain head
        np.testing.assert_allclose(at, np.rint(at), atol=1e-6)
        np.testing.assert_array_equal(stored.labels.ravel(), plain.labels[tuple(np.rint(at).astype(int))])
        if not probs[0]:
            np.testing.assert_array_equal(stored.images[1].ravel(), plain.images[1][tuple(np.rint(at).astype(int))])

    @pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 1), (1, 1, 1)])
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
    def test_nibabel_turns_a_turned_subject_back(self, order, flips):
        rng = np.random.default_rng(0)
        images, labels = rng.normal(size=(2, 3, 4, 5)), rng.integers(0, 7, size=(3, 4, 5)).astype(np.int8)
        affine = np.array([[2.0, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
        turned = _turned(images, labels, affine, order=np.array(order), flips=np.array(flips))
        for voxels, wanted in ((turned[0][1], images[1]), (turned[1], labels)):
            back = nib.as_closest_canonical(nib.Nifti1Image(voxels, turned[2]))
            np.testing.assert_array_equal(np.asarray(back.dataobj), wanted)
            np.testing.assert_allclose(back.affine, affine)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_thick_slices_stay_in_place(self, axis):
        """A ramp along the axis, averaged 1:2:1, is itself inside; voxel k of the thick grid lies where voxel 2 k was."""
        shape, affine = (8, 8, 8), np.diag([2.0, 2.0, 2.0, 1.0])
        ramp = np.broadcast_to(np.arange(8.0).reshape([-1 if a == axis else 1 for a in range(3)]), shape)
        images, labels, thick = _thick_slices(ramp[None], ramp.astype(np.int8), affine, axis=axis)
        inside = np.moveaxis(images[0], axis, 0)[1:]
        np.testing.assert_allclose(inside, np.broadcast_to(np.array([2.0, 4, 6])[:, None, None], inside.shape))
        np.testing.assert_array_equal(np.moveaxis(labels, axis, 0)[:, 0, 0], [0, 2, 4, 6])
        index = np.eye(4)[axis] * 3 + np.eye(4)[3]
        np.testing.assert_allclose(thick @ index, affine @ (np.eye(4)[axis] * 6 + np.eye(4)[3]))


class TestDataset:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory) -> Path:
        out = tmp_path_factory.mktemp("synthetic")
        steps: list[tuple[int, int]] = []
        synthesize_dataset(out, num_subjects=3, seed=5, size=24, num_workers=1, progress=lambda *step: steps.append(step))
        assert steps == [(1, 3), (2, 3), (3, 3)]
        return out

    def test_is_read_as_a_dataset(self, folder):
        dataset = find_dataset(folder)
        assert dataset.channels == ["T1w", "T2w"] and dataset.problems == []
        assert {name: task.kind for name, task in dataset.tasks.items()} == {
            "tissue": "segmentation",
            "lesion": "classification",
            "age": "regression",
        }
        assert dataset.tasks["tissue"].classes == TISSUES and dataset.tasks["lesion"].classes == GRADES
        assert [subject.subject_id for subject in dataset.subjects] == ["sub-001", "sub-002", "sub-003"]

    def test_files_hold_the_subjects(self, folder):
        dataset = find_dataset(folder)
        for number, files in enumerate(dataset.subjects):
            sample, subject = load_subject(files, dataset.tasks), synthesize_subject(number, seed=5, size=24)
            np.testing.assert_array_equal(sample["image"], np.rint(subject.images))
            np.testing.assert_array_equal(sample["targets"]["tissue"], subject.labels)
            np.testing.assert_allclose(sample["affine"], subject.affine, atol=1e-4)
            assert sample["targets"]["lesion"] == GRADES.index(subject.lesion) and sample["targets"]["age"] == subject.age
            for path in files.images:
                assert nib.load(path).get_data_dtype() == np.int16

    def test_scanner_is_told_but_is_no_task(self, folder):
        header, *rows = (folder / "participants.tsv").read_text().splitlines()
        assert header.split("\t") == ["participant_id", "age", "lesion", "scanner"]
        assert {row.split("\t")[3] for row in rows} <= {f"scanner{number}" for number in range(NUM_SCANNERS)}

    def test_same_bytes_whatever_the_processes_and_the_cohort(self, folder, tmp_path):
        synthesize_dataset(tmp_path, num_subjects=2, seed=5, size=24, num_workers=2)
        for path in [*tmp_path.glob("*/*.nii.gz"), tmp_path / "dataset.yaml"]:
            assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()
        assert len(list(tmp_path.glob("*/*.nii.gz"))) == 6
        assert (folder / "participants.tsv").read_text().startswith((tmp_path / "participants.tsv").read_text())

    def test_another_seed_gives_other_subjects(self):
        one, other = (synthesize_subject(0, seed=seed, size=16) for seed in (0, 1))
        assert one.age != other.age and not np.array_equal(one.labels, other.labels)

    def test_what_cannot_be(self, tmp_path):
        for wrong in ({"num_subjects": 0}, {"seed": -1}, {"size": 8}):
            with pytest.raises(InputError, match="choose at least"):
                synthesize_dataset(tmp_path, **{"num_subjects": 1, "seed": 0, "size": 16, **wrong})
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="cannot be written"):
            synthesize_dataset(tmp_path / "file", num_subjects=1, seed=0, size=16)

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
    def test_interrupted_it_leaves_no_process_and_no_table(self, tmp_path, how):
        """Ctrl-C reaches the whole process group, as from a terminal; SIGKILL the parent alone."""
        (tmp_path / "participants.tsv").write_text("of an earlier cohort")
        code = (
            "from mri_ds.data.synthesis import synthesize_dataset\n"
            "if __name__ == '__main__':\n"
            f"    synthesize_dataset({str(tmp_path)!r}, num_subjects=500, seed=0, size=48, num_workers=2)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE)
        wait_until(lambda: any(tmp_path.glob("labels/*.nii.gz")))
        os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
        assert process.wait(20) != 0
        wait_until(lambda: not group_is_alive(process.pid))
        assert not (tmp_path / "participants.tsv").exists()
        for path in tmp_path.glob("*/*.nii.gz"):
            assert np.asarray(nib.load(path).dataobj).any()


def wait_until(is_true, *, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.05)


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
