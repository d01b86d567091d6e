"""One sample as members: what goes in comes out, names survive webdataset, nothing personal is stored."""

import json
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from mri_ds.data.members import decode_sample, encode_sample, key_of, label_member, task_of
from mri_ds.errors import InputError


def test_a_sample_comes_back_whole(make_sample):
    sample = make_sample(3, spacing=(1.0, 1.5, 1 / 3))
    back = decode_sample(encode_sample(sample))
    assert back["subject_id"] == "sub-003" and back["image"].dtype == np.float32
    assert np.array_equal(back["image"], sample["image"]) and np.array_equal(back["affine"], sample["affine"])
    assert np.array_equal(back["spacing_mm"], sample["spacing_mm"]) and back["affine"].dtype == np.float64
    assert np.array_equal(back["targets"]["tissue"], sample["targets"]["tissue"]) and back["targets"]["tissue"].dtype == np.int16
    assert back["targets"]["lesion"] == 0 and type(back["targets"]["lesion"]) is int and back["targets"]["age"] == 23.0


def test_a_missing_label_stays_missing(make_sample):
    assert set(decode_sample(encode_sample(make_sample(1, without=("tissue", "age"))))["targets"]) == {"lesion"}


def test_whole_numbers_are_stored_as_int16_and_read_as_float32(make_sample):
    sample = make_sample(0)
    sample["image"] = np.rint(sample["image"])
    members = encode_sample(sample)
    assert json.loads(members["meta.json"])["dtype"] in ("int16", "uint8")
    back = decode_sample(members)
    assert back["image"].dtype == np.float32 and np.array_equal(back["image"], sample["image"])


def test_the_meta_holds_what_the_format_says_and_nothing_else(make_sample):
    meta = json.loads(encode_sample(make_sample(1), source_sha256=["ab"])["meta.json"])
    assert set(meta) == {
        *("format_version", "subject_id", "affine", "spacing_mm", "shape", "dtype", "values", "source_sha256"),
        *("intensity", "label_voxels", "site", "acquisition"),
    }
    assert meta["shape"] == [2, 8, 9, 10] and meta["values"] == {"age": 21.0, "lesion": 1} and meta["source_sha256"] == ["ab"]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_keys_are_reversible_and_have_no_dot_or_slash(subject_id):
    key = key_of(subject_id)
    assert unquote(key) == subject_id
    assert base_plus_ext(f"{key}.image.chunks") == (key, "image.chunks")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_task_names_survive_lower_casing(task):
    member = label_member(task)
    assert task_of(member.lower()) == task and member != "image.chunks"


def test_subjects_that_differ_in_case_or_dots_have_different_keys():
    assert len({key_of(s) for s in ("a.b", "a_b", "a/b", "A.b", "a%2Eb")}) == 5


def test_another_format_version_is_refused(make_sample):
    members = encode_sample(make_sample(1))
    members["meta.json"] = members["meta.json"].replace(b'"format_version": 2', b'"format_version": 9')
    with pytest.raises(InputError, match=r"tar: k.meta.json: format_version 9 is unknown.*Fix: upgrade mri_ds"):
        decode_sample(members, where="tar: k")


@pytest.mark.parametrize("meta", [b"{", b"\xff", b'{"format_version": 2}', b"[]", b"3"])
def test_a_broken_meta_is_one_line(make_sample, meta):
    with pytest.raises(InputError, match=r"k.meta.json"):
        decode_sample(encode_sample(make_sample(1)) | {"meta.json": meta}, where="k")


def test_members_that_contradict_each_other_are_refused(make_sample):
    one, other = encode_sample(make_sample(1)), encode_sample(make_sample(2, shape=(4, 4, 4)))
    for name in ("image.chunks", "tissue.chunks"):
        with pytest.raises(InputError, match=f"{name}: has shape"):
            decode_sample(one | {name: other[name]})
