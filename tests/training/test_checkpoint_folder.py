"""Which checkpoints count, which stay, and what is refused: files alone."""

import json
import os

import pytest

from mri_ds.errors import CorruptError
from mri_ds.training.checkpoint import folder as on_disk
from mri_ds.training.checkpoint.writer import write


@pytest.fixture
def make(tmp_path):
    """make(step, **scalars): a complete checkpoint of one file."""

    def complete(step: int, **scalars: float):
        part = on_disk.folder_of(tmp_path, step).with_suffix(".part")
        part.mkdir(parents=True)
        files = {"weights.bin": write(part / "weights.bin", bytes(range(200)))}
        return on_disk.commit(part, files, {"step": step, "scalars": scalars})

    return complete


def steps(run) -> list[int]:
    return [on_disk.step_of(p) for p in on_disk.complete(run)]


def test_only_complete_ones_count_and_leftovers_go(make, tmp_path):
    make(10)
    half = tmp_path / "checkpoints/step000020.part"
    half.mkdir()
    (half / "weights.bin").write_bytes(b"half")
    bare = tmp_path / "checkpoints/step000030"  # a removal was killed after the manifest went
    bare.mkdir()
    (bare / "weights.bin").write_bytes(b"old")
    (tmp_path / "checkpoints/step000010.universal").mkdir()
    assert steps(tmp_path) == [10]
    on_disk.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["latest", "step000010"]
    assert (tmp_path / "checkpoints/latest").read_text() == "step000010"
    assert on_disk.verify(tmp_path / "checkpoints/step000010") == ""


def test_the_same_step_again_replaces_the_old_one(make, tmp_path):
    make(10, loss=1.0)
    make(10, loss=2.0)
    assert on_disk.read_manifest(tmp_path / "checkpoints/step000010")["scalars"] == {"loss": 2.0}
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["latest", "step000010"]


def test_a_replacement_killed_between_its_renames_is_undone(make, tmp_path):
    folder = make(10, loss=1.0)
    os.rename(folder, folder.with_suffix(".old"))
    on_disk.remove_leftovers(tmp_path)
    assert steps(tmp_path) == [10] and on_disk.verify(folder) == ""


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ({"last": 2}, [50, 60]),
        ({"last": 1, "every": 20}, [20, 40, 60]),
        ({"last": 1, "best_by": "loss"}, [30, 60]),
        ({"last": 1, "best_by": "-dice"}, [20, 60]),
        ({"last": 1, "best_by": "nothing"}, [60]),
    ],
)
def test_what_stays(make, tmp_path, policy, kept):
    """The lowest loss is step 30's; the highest dice is told at 20 and 30 is not a number."""
    for step, loss, dice in zip(range(10, 70, 10), [5, 4, 1, 2, 3, 4], [0.1, 0.9, float("nan"), 0.2, 0.3, 0.4], strict=True):
        make(step, loss=loss, dice=dice)
    gone = on_disk.retain(tmp_path, **policy)
    assert steps(tmp_path) == kept
    assert len(gone) == 6 - len(kept)
    best = tmp_path / "checkpoints/best"
    assert best.is_file() == ("best_by" in policy and policy["best_by"] != "nothing")
    if best.is_file():
        assert best.read_text() == f"step0000{kept[0]}"


def test_of_equally_good_ones_the_later_is_best(make, tmp_path):
    for step in (10, 20, 30):
        make(step, loss=1.0)
    assert on_disk.best_of(on_disk.complete(tmp_path), "loss").name == "step000030"


def test_each_kind_of_damage_is_named(make, tmp_path):
    folder = make(10)
    path = folder / "weights.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert on_disk.verify(folder) == "weights.bin has 199 bytes, and 200 were written"
    path.write_bytes(b"x" + content[1:])
    assert "SHA-256" in on_disk.verify(folder)
    assert on_disk.verify(folder, rank=1, world_size=2) == ""  # rank 0's share
    path.unlink()
    assert on_disk.verify(folder) == "weights.bin is missing"
    (folder / on_disk.MANIFEST).write_text(json.dumps([1]))
    with pytest.raises(CorruptError, match=r"manifest\.json: is damaged"):
        on_disk.verify(folder)


def test_a_refusal_names_the_way_back(make):
    make(10)
    err = on_disk.refuse(make(20), "weights.bin is missing")
    assert "step000020: weights.bin is missing" in str(err) and "step000010 is taken then" in str(err)
