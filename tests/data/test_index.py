"""Random access into tars: every sample by byte range, other people's tars too, lies found out."""

import io
import json
import tarfile

import numpy as np
import pytest
import webdataset

from mri_ds.data import buffers, chunk_plan
from mri_ds.data.index import ShardDataset, index_path, scan_shard
from mri_ds.data.members import encode_sample
from mri_ds.errors import CorruptError, InputError


@pytest.fixture
def folder(write_folder, make_sample):
    return write_folder(
        [make_sample(i, without=("age",) if i == 4 else ("tissue", "lesion") if i == 5 else ()) for i in range(7)]
    )


def test_every_sample_is_read_as_it_was_written(folder, make_sample):
    dataset = ShardDataset(folder, "train")
    assert len(dataset) == 7 and dataset.subject_ids == [f"sub-{i:03d}" for i in range(7)]
    assert list(dataset.tasks) == ["tissue", "lesion", "age"] and dataset.manifest.layout == "folder"
    for i in (6, 0, 3):
        sample, expected = dataset.read(i), make_sample(i)
        assert sample["subject_id"] == expected["subject_id"] and np.array_equal(sample["image"], expected["image"])
        assert np.array_equal(sample["targets"]["tissue"], expected["targets"]["tissue"]) and sample["targets"]["age"] == 20 + i


def test_labels_are_known_without_reading_voxels(folder, monkeypatch):
    dataset = ShardDataset(folder, "train")
    monkeypatch.setattr("mri_ds.data.index.open_tar", None)
    assert [dataset.has_label(i, "age") for i in range(7)] == [i != 4 for i in range(7)]
    assert [dataset.has_label(i, "tissue") for i in range(7)] == [i != 5 for i in range(7)]
    assert dataset.value(3, "lesion") == 0 and dataset.value(5, "lesion") is None and dataset.value(2, "age") == 22.0
    assert not dataset.has_label(0, "unheard_of")


def test_the_other_split_is_empty_and_a_third_is_refused(folder):
    assert len(ShardDataset(folder, "test")) == 0
    with pytest.raises(InputError, match=r"no split 'tests'.*did you mean 'test'"):
        ShardDataset(folder, "tests")


def test_without_index_files_the_tars_are_scanned_to_the_same_result(folder):
    with_index = ShardDataset(folder, "train")
    for path in folder.glob("*.index.json"):
        path.unlink()
    scanned = ShardDataset(folder, "train")
    for (_, one), (_, other) in zip(scanned._entries, with_index._entries, strict=True):
        assert one == other.model_copy(update={"checksums": {}}) and other.checksums.keys() == other.members.keys()
    assert np.array_equal(scanned.read(6)["image"], with_index.read(6)["image"])


def test_shards_written_by_webdataset_are_read(folder, make_sample):
    """The second shard again, written by webdataset.TarWriter under the same member names."""
    name = folder / "train-000001.tar"
    index_path(name).unlink()
    with webdataset.TarWriter(str(name), encoder=False) as writer:
        for i in (3, 4, 5):
            writer.write({"__key__": f"other-{i}", **encode_sample(make_sample(i))})
    dataset = ShardDataset(folder, "train")
    assert dataset.subject_ids == [f"sub-{i:03d}" for i in range(7)]
    assert np.array_equal(dataset.read(4)["image"], make_sample(4)["image"])


def test_names_of_any_length_and_alphabet_are_found_again(write_folder, make_sample):
    samples = [
        make_sample(i) | {"subject_id": name} for i, name in enumerate(["x" * 97, "y" * 240, "Ångström/…", "a.b.c", "__d__"])
    ]
    folder = write_folder(samples)
    dataset = ShardDataset(folder, "train")
    assert dataset.subject_ids == [sample["subject_id"] for sample in samples]
    for i, sample in enumerate(samples):
        assert np.array_equal(dataset.read(i)["image"], sample["image"])


def test_tars_made_by_hand_with_folders_inside_are_read(folder):
    """`tar cf x.tar ./a.image.chunks ...` puts ./ before every name."""
    shard = folder / "train-000000.tar"
    with tarfile.open(shard) as old:
        content = [(info.name, old.extractfile(info).read()) for info in old]
    (folder / "files").mkdir()
    with tarfile.open(shard, "w") as new:
        for name, data in content:
            (folder / "files" / name).write_bytes(data)
            new.add(folder / "files" / name, arcname=f"./some.folder/{name}")
    index_path(shard).unlink()
    assert ShardDataset(folder, "train").read(1)["subject_id"] == "sub-001"


def edit_index(folder, change) -> None:
    path = folder / "train-000000.index.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def swap_places(raw):
    first, second = raw["samples"][0], raw["samples"][1]
    first["members"], second["members"] = second["members"], first["members"]


def shift(raw):
    offset, size = raw["samples"][0]["members"]["image.chunks"]
    raw["samples"][0]["members"]["image.chunks"] = [offset + 512, size]


def shorten(raw):
    offset, size = raw["samples"][0]["members"]["image.chunks"]
    raw["samples"][0]["members"]["image.chunks"] = [offset, size - 1]


def before_the_start(raw):
    raw["samples"][0]["members"]["image.chunks"] = [0, 10]


@pytest.mark.parametrize("change", [swap_places, shift, shorten, before_the_start])
def test_an_index_that_points_elsewhere_is_found_out_at_the_member(folder, change):
    edit_index(folder, change)
    dataset = ShardDataset(folder, "train")
    with pytest.raises(InputError, match=r"train-000000.tar: holds no sub-000.*delete its index file"):
        dataset.read(0)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["samples"][0]["members"].update({"image.chunks": [10**12, 5]}),
        lambda raw: raw["samples"][0]["members"].pop("meta.json"),
        lambda raw: raw.pop("samples"),
        lambda raw: raw["samples"][0].pop("key"),
        lambda raw: raw["samples"].__setitem__(0, 3),
        lambda raw: raw.update(format_version=7),
    ],
)
def test_an_index_that_cannot_be_right_is_refused_at_once(folder, change):
    edit_index(folder, change)
    with pytest.raises(InputError, match=r"train-000000.index.json"):
        ShardDataset(folder, "train")


def test_a_truncated_tar_is_refused_with_and_without_its_index(folder):
    shard = folder / "train-000002.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"train-000002.index.json: does not match its shard"):
        ShardDataset(folder, "train")
    index_path(shard).unlink()
    with pytest.raises(InputError, match=r"train-000002.tar"):
        ShardDataset(folder, "train")


@pytest.mark.parametrize("content", [b"", b"not a tar" * 200])
def test_what_is_no_tar_is_refused(folder, content):
    shard = folder / "train-000000.tar"
    shard.write_bytes(content)
    index_path(shard).unlink()
    with pytest.raises(InputError, match=r"train-000000.tar"):
        ShardDataset(folder, "train")


def test_a_sample_without_image_or_with_a_member_twice_is_refused(tmp_path, make_sample):
    members = encode_sample(make_sample(0))
    for names, message in [(["meta.json"], "has no image.chunks"), (["meta.json", "meta.json"], "holds s.meta.json twice")]:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name in names:
                (tmp_path / name).write_bytes(members[name])
                tar.add(tmp_path / name, arcname=f"s.{name}")
        with pytest.raises(InputError, match=message):
            scan_shard(tmp_path / "a.tar")


def test_a_subject_that_stands_in_a_split_twice_is_refused(write_folder, make_sample):
    with pytest.raises(InputError, match=r"'sub-001' stands in split 'train' twice"):
        ShardDataset(write_folder([make_sample(0), make_sample(1), make_sample(2), make_sample(1)]), "train")


def test_samples_missing_from_the_tars_are_noticed(folder):
    raw = json.loads((folder / "manifest.json").read_text())
    raw["splits"]["train"]["num_samples"] = 8
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"holds 7 samples, its manifest says 8"):
        ShardDataset(folder, "train")


# ---- crops -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(write_folder, make_sample):
    """Two subjects of 80 x 96 x 100 voxels, in 3 x 3 x 4 chunks a channel, 1 x 2 x 3 mm."""
    samples = [make_sample(i, shape=(80, 96, 100), spacing=(1.0, 2.0, 3.0)) for i in range(2)]
    return ShardDataset(write_folder(samples, name="large"), "train"), samples


@pytest.mark.parametrize(("start", "shape"), [((0, 0, 0), (80, 96, 100)), ((31, 1, 60), (2, 90, 40)), ((5, 5, 5), (1, 1, 1))])
def test_a_crop_is_that_of_the_whole_with_its_place_in_the_world(large, start, shape):
    dataset, samples = large
    for i in (0, 1):
        crop = dataset.read_crop(i, start, shape)
        box = tuple(slice(s, s + n) for s, n in zip(start, shape))
        assert np.array_equal(crop["image"], samples[i]["image"][(slice(None), *box)]) and crop["image"].dtype == np.float32
        assert np.array_equal(crop["targets"]["tissue"], samples[i]["targets"]["tissue"][box])
        assert crop["targets"]["tissue"].dtype == np.int16 and crop["targets"]["age"] == 20 + i
        assert crop["affine"] @ [0, 0, 0, 1] == pytest.approx(samples[i]["affine"] @ [*start, 1])
        assert crop["spacing_mm"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_many_are_read_as_each_alone(large, num_threads, monkeypatch):
    """In the order asked for, one of them twice, in many pieces, with memory that is used again at once."""
    dataset, samples = large
    monkeypatch.setattr(chunk_plan, "READ_BYTES", 2**17)
    monkeypatch.setattr(buffers, "MIN_BYTES", 2**14)
    order = [1, 0, 0, 1, 0]
    for i, sample in zip(order, dataset.read_many(order, num_threads=num_threads), strict=True):
        alone = dataset.read(i)
        assert np.array_equal(sample["image"], samples[i]["image"]) and sample["image"].dtype == np.float32
        assert np.array_equal(sample["targets"]["tissue"], samples[i]["targets"]["tissue"])
        assert sample["targets"].keys() == alone["targets"].keys() and sample["subject_id"] == alone["subject_id"]
        assert np.array_equal(sample["affine"], alone["affine"])
    only = next(dataset.read_many([1], tasks=["age"], num_threads=num_threads))
    assert list(only["targets"]) == ["age"]


def test_a_crop_reads_its_chunks_and_no_more(large, tmp_path):
    """As the kernel counts reads: one of 36 chunks of each array (4.3 % of it), once tables and meta.json are known."""
    dataset, _ = large
    dataset.read_crop(0, (0, 0, 0), (1, 1, 1))
    before = _bytes_read()
    dataset.read_crop(0, (0, 0, 0), (30, 30, 30))
    used, whole = _bytes_read() - before, (dataset.folder / "train-000000.tar").stat().st_size / 2
    assert 0 < used < whole / 20


def _bytes_read() -> int:
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def test_a_box_outside_the_volume_is_refused(large):
    with pytest.raises(ValueError, match="is not inside"):
        large[0].read_crop(0, (70, 0, 0), (11, 5, 5))


def test_what_placing_and_normalising_a_crop_need_is_known_without_voxels(large, monkeypatch):
    from mri_ds.data.foreground import foreground_voxels
    from mri_ds.data.preprocess import border_minimum, normalize

    dataset, samples = large
    monkeypatch.setattr("mri_ds.data.index.box_in_pieces", None)
    assert dataset.shape(0) == (2, 80, 96, 100) and dataset.site(0) is None
    found, expected = dataset.foreground(0, "tissue"), foreground_voxels(samples[0]["targets"]["tissue"])
    assert len(found) == 2 and all(np.array_equal(a, b) for a, b in zip(found, expected))
    assert dataset.foreground(0, "lesion") == []
    intensity = dataset.meta(0).intensity
    assert min(channel.border_min for channel in intensity) == border_minimum(samples[0]["image"])
    clip = intensity[1].clip((0.5, 99.5))
    by_hand = (np.clip(samples[0]["image"][1], clip.low, clip.high) - clip.mean) / clip.std
    assert np.allclose(by_hand, normalize(samples[0]["image"])[1], atol=1e-5)


# ---- damage ----------------------------------------------------------------------------------------------------------


def flip(folder, shard: str, number: int, member: str) -> None:
    place, size = json.loads((folder / f"{shard}.index.json").read_text())["samples"][number]["members"][member]
    data = bytearray((folder / f"{shard}.tar").read_bytes())
    data[place + size - 9] ^= 16
    (folder / f"{shard}.tar").write_bytes(bytes(data))


@pytest.mark.parametrize("member", ["image.chunks", "tissue.chunks", "meta.json"])
def test_a_flipped_bit_is_a_checksum_error_that_names_shard_and_key(folder, member):
    flip(folder, "train-000001", 1, member)
    dataset = ShardDataset(folder, "train")
    with pytest.raises(CorruptError, match=rf"train-000001.tar: sub-004.{member}: .*checksum"):
        dataset.read(4)
    assert dataset.read(3)["subject_id"] == "sub-003"


@pytest.mark.parametrize("num_threads", [0, 2])
def test_among_many_a_flipped_bit_is_told_in_its_place(folder, num_threads):
    flip(folder, "train-000001", 1, "image.chunks")
    many = ShardDataset(folder, "train").read_many([3, 4, 5], num_threads=num_threads)
    assert next(many)["subject_id"] == "sub-003"
    with pytest.raises(CorruptError, match=r"train-000001.tar: sub-004.image.chunks: .*checksum"):
        next(many)


def test_reading_goes_on_past_corrupt_samples_and_counts_them_on_request(folder):
    flip(folder, "train-000000", 2, "image.chunks")
    flip(folder, "train-000001", 0, "tissue.chunks")
    dataset = ShardDataset(folder, "train")
    with pytest.raises(CorruptError, match="sub-002"):
        list(dataset.samples())
    seen = [sample["subject_id"] for sample in dataset.samples(skip_corrupt=True)]
    assert seen == ["sub-000", "sub-001", "sub-004", "sub-005", "sub-006"] and dataset.num_corrupt == 2


def test_a_shard_that_vanishes_is_one_line(folder):
    dataset = ShardDataset(folder, "train")
    (folder / "train-000001.tar").unlink()
    with pytest.raises(InputError, match=r"train-000001.tar: cannot be read \(No such file or directory\)"):
        dataset.read(4)


def test_paths_that_lead_outside_are_refused(tmp_path, make_sample):
    members = encode_sample(make_sample(0))
    for name in ("../s", "a/../../s", "/etc/s"):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(f"{name}.{member}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        with pytest.raises(InputError, match="leads outside"):
            scan_shard(tmp_path / "a.tar")


def test_shards_of_version_1_are_refused_with_what_to_do(folder):
    for name in ("manifest.json", "train-000000.index.json"):
        raw = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(raw | {"format_version": 1}))
        with pytest.raises(InputError, match=r"format_version 1 is unknown.*Fix: shard the data again"):
            ShardDataset(folder, "train")
        (folder / name).write_text(json.dumps(raw))
