"""Folds as folders of links: the same as sharding each fold anew, patients whole, strata even, deterministic."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest

from mri_ds.data.entries import index_path
from mri_ds.data.folds import deal, summarize_all, write_fold
from mri_ds.data.index import ShardDataset
from mri_ds.data.layouts import find_dataset
from mri_ds.data.manifest import MANIFEST, read_manifest
from mri_ds.data.shards import split_subjects, write_shards
from mri_ds.errors import InputError


@pytest.fixture(scope="module")
def summaries(shards, tmp_path_factory):
    return summarize_all(shards, kept=tmp_path_factory.mktemp("kept") / "summaries.json")


def test_a_fold_equals_shards_written_for_it(shards, subjects_folder, summaries, tmp_path):
    """The oracle: `write_shards` itself, from the files, with another fold held out."""
    dataset = find_dataset(subjects_folder)
    for fold in (1, 3):
        expected = write_shards(dataset, tmp_path / f"anew{fold}", fold=fold)
        parts = split_subjects(dataset, num_folds=5, fold=fold)
        fold_of = {s.subject_id: fold if name == "test" else (fold + 1) % 5 for name, part in parts.items() for s in part}
        got = write_fold(shards, tmp_path / f"fold{fold}", fold_of, fold, summaries)
        assert got == read_manifest(tmp_path / f"fold{fold}")
        assert (got.tasks, got.fingerprint, got.channels) == (expected.tasks, expected.fingerprint, expected.channels)
        for split in ("train", "test"):
            ours, theirs = ShardDataset(tmp_path / f"fold{fold}", split), ShardDataset(tmp_path / f"anew{fold}", split)
            by_subject = {sample["subject_id"]: sample for sample in theirs.samples()}
            assert sorted(ours.subject_ids) == sorted(by_subject) and len(ours) == got.splits[split].num_samples
            for sample in ours.samples():
                other = by_subject[sample["subject_id"]]
                np.testing.assert_array_equal(sample["image"], other["image"])
                np.testing.assert_array_equal(sample["affine"], other["affine"])
                assert sample["targets"].keys() == other["targets"].keys()


def test_no_voxel_is_written_again_and_the_shards_stay(shards, summaries, tmp_path):
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in shards.iterdir()}
    fold_of = deal(shards, num_folds=3, seed=0, summaries=summaries)
    for fold in range(3):
        write_fold(shards, tmp_path / str(fold), fold_of, fold, summaries)
        write_fold(shards, tmp_path / str(fold), fold_of, fold, summaries)  # again, over itself
        tars = list((tmp_path / str(fold)).glob("*.tar"))
        assert tars and all(tar.is_symlink() and tar.resolve().parent == shards.resolve() for tar in tars)
        assert {path.name for path in (tmp_path / str(fold)).iterdir()} == {
            MANIFEST, *(tar.name for tar in tars), *(index_path(tar).name for tar in tars)
        }  # fmt: skip
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in shards.iterdir()} == before


def test_every_subject_is_held_out_once_with_even_classes(shards, summaries, tmp_path):
    fold_of = deal(shards, num_folds=5, seed=3, summaries=summaries)
    held_out = []
    for fold in range(5):
        write_fold(shards, tmp_path / str(fold), fold_of, fold, summaries)
        test, train = (ShardDataset(tmp_path / str(fold), split) for split in ("test", "train"))
        assert not set(test.subject_ids) & set(train.subject_ids) and len(test) + len(train) == 10
        held_out += test.subject_ids
    assert sorted(held_out) == sorted(summaries)
    classes = {c: Counter(fold_of[s] for s, one in summaries.items() if one.values["size"] == c) for c in (0, 1)}
    for counts in classes.values():
        sizes = [counts[fold] for fold in range(5)]
        assert max(sizes) - min(sizes) <= 1


def test_the_deal_is_the_seed_s(shards, summaries):
    deals = [deal(shards, num_folds=5, seed=seed, summaries=summaries) for seed in (0, 0, 1)]
    assert deals[0] == deals[1] and deals[0] != deals[2]


def test_sessions_of_a_patient_stay_together(subjects_folder, tmp_path):
    """Patient p of subjects 2p and 2p + 1, as a BIDS tree or a CSV's column `patient` tells."""
    dataset = find_dataset(subjects_folder)
    paired = [dataclasses.replace(s, patient=f"patient-{'abcde'[i // 2]}") for i, s in enumerate(dataset.subjects)]
    write_shards(dataclasses.replace(dataset, subjects=paired), tmp_path / "shards")
    patient = {s.subject_id: s.patient for s in paired}
    folder = tmp_path / "shards"
    summaries = summarize_all(folder)
    fold_of = deal(folder, num_folds=4, seed=0, summaries=summaries)
    assert len(set(fold_of.values())) == 4
    assert len({(patient[s], fold) for s, fold in fold_of.items()}) == 5  # five patients, each in one fold
    with pytest.raises(InputError, match="6 folds of 5 patients"):
        deal(folder, num_folds=6, seed=0, summaries=summaries)
    for path in folder.iterdir():
        assert not re.search(rb"patient-[a-e]", path.read_bytes()), "a patient's name may be whoever's"
    for path in folder.glob("*.index.json"):
        path.unlink()  # scanned from the tars, the patients are the same
    assert deal(folder, num_folds=4, seed=0, summaries=summaries) == fold_of


def test_sessions_of_older_shards_are_known_by_their_bids_names(subjects_folder, tmp_path):
    dataset = find_dataset(subjects_folder)
    visits = [dataclasses.replace(s, subject_id=f"sub-{i // 2}_ses-{i % 2}") for i, s in enumerate(dataset.subjects)]
    write_shards(dataclasses.replace(dataset, subjects=visits), tmp_path)
    fold_of = deal(tmp_path, num_folds=5, seed=0, summaries=summarize_all(tmp_path))
    assert all(fold_of[f"sub-{p}_ses-0"] == fold_of[f"sub-{p}_ses-1"] for p in range(5))


def test_summaries_are_kept_for_the_same_shards_only(shards, tmp_path):
    kept, heard = tmp_path / "summaries.json", []
    first = summarize_all(shards, kept=kept, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (10, 10)
    assert summarize_all(shards, kept=kept, progress=lambda *_: pytest.fail("read again")) == first
    kept.write_text(kept.read_text().replace('"manifest": "', '"manifest": "0'))
    assert summarize_all(shards, kept=kept) == first
