"""Batches: every subject once per epoch, the same whatever the ranks and workers, resumable, weights that add up."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from mri_ds.config import DataConfig, TaskConfig
from mri_ds.data.index import ShardDataset
from mri_ds.data.loader import make_loader, workers_per_rank
from mri_ds.errors import InputError


@pytest.fixture
def dataset(write_folder, make_sample):
    """Seven subjects, a number that divides by nothing; subjects 1, 2 and 6 lack a label."""
    lacking = {1: ("age",), 2: ("age", "tissue"), 6: ("lesion",)}
    return ShardDataset(write_folder([make_sample(i, without=lacking.get(i, ())) for i in range(7)]), "train")


@pytest.fixture
def batches(dataset, tasks):
    def make(number: int, *, data=None, given=None, **changes) -> list:
        config = DataConfig(**{"spacing_mm": (1, 1, 1), "patch": (8, 8, 8), "augment": False, "num_workers": 0} | (data or {}))
        kwargs = {"seed": 0, "global_batch": 4, "micro_batch": 2, "rank": 0, "world_size": 1} | changes
        return list(itertools.islice(make_loader(dataset, config, given or tasks, **kwargs), number))

    return make


def ids(many) -> list[str]:
    return [subject for batch in many for subject in batch["subject_id"]]


def assert_equal(one, other) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert a["subject_id"] == b["subject_id"] and torch.equal(a["image"], b["image"])
        assert torch.equal(a["spacing_mm"], b["spacing_mm"])
        for key, task in itertools.product(("targets", "mask"), a["mask"]):
            assert torch.equal(a[key][task], b[key][task]), (key, task)


def test_a_batch_is_a_plain_dict_of_the_stated_shapes(batches):
    (batch,) = batches(1)
    assert type(batch) is dict and batch["image"].shape == (2, 2, 8, 8, 8) and batch["image"].dtype == torch.float32
    assert batch["spacing_mm"].shape == (2, 3) and batch["targets"]["tissue"].shape == (2, 8, 8, 8)
    assert {name: t.dtype for name, t in batch["targets"].items()} == {
        "tissue": torch.int64,
        "lesion": torch.int64,
        "age": torch.float32,
    }
    assert all(mask.shape == (2,) and mask.dtype == torch.float32 for mask in batch["mask"].values())


def test_every_epoch_shows_every_subject_once_in_another_order(batches, dataset):
    seen = ids(batches(16))  # two steps of four are an epoch of seven and one padded place
    epochs = [seen[i : i + 8] for i in range(0, 32, 8)]
    assert all(epoch[7] == "" and sorted(epoch[:7]) == sorted(dataset.subject_ids) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_padding_repeats_the_batchs_own_images_and_masks_every_task(batches):
    (batch,) = batches(1, global_batch=16, micro_batch=16)
    assert batch["subject_id"][7:] == [""] * 9
    assert all(not mask[7:].any() for mask in batch["mask"].values())
    whole = batches(1, global_batch=16, micro_batch=16, data={"patch": (8, 9, 10)})[0]["image"]
    assert all(torch.equal(whole[7 + i], whole[i % 7]) for i in range(9)), "uncropped, they are the same"
    assert batch["mask"]["lesion"][:7].sum() == pytest.approx(16), "the labelled subjects weigh as much as the whole batch"


def test_the_loss_of_a_padded_batch_is_the_mean_over_its_subjects(batches, tasks):
    """MultiTaskLoss of 16 places on 4 ranks equals the plain mean of the 7 subjects' losses; padding gets no gradient."""
    from mri_ds.losses import MultiTaskLoss

    loss = MultiTaskLoss({name: {"kind": task.kind} for name, task in tasks.items()}, learn_task_weights=False)
    parts = [b for rank in range(4) for b in batches(1, global_batch=16, micro_batch=4, rank=rank, world_size=4)]
    torch.manual_seed(0)
    predictions, total = [], 0.0
    for batch in parts:
        made = {
            "tissue": torch.randn(4, 3, 8, 8, 8, requires_grad=True),
            "lesion": torch.randn(4, 3, requires_grad=True),
            "age": torch.randn(4, requires_grad=True),
        }
        predictions.append(made)
        result = loss(made, batch["targets"], batch["mask"])
        result["loss"].backward()
        total += result["loss"].item() / 4
    expected = 0.0
    for task in tasks:
        each = []
        for batch, made in zip(parts, predictions):
            for i, subject in enumerate(batch["subject_id"]):
                if subject and batch["mask"][task][i] > 0:
                    one = {name: value[i : i + 1].detach() for name, value in made.items()}
                    alone = {name: (torch.ones(1) if name == task else torch.zeros(1)) for name in tasks}
                    each.append(loss(one, {n: t[i : i + 1] for n, t in batch["targets"].items()}, alone)["loss"].item())
                else:
                    assert not made[task].grad[i].any(), "a masked place moved a weight"
        expected += float(np.mean(each))
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_ranks_together_show_what_one_rank_shows(batches, world_size, micro_batch):
    """Global batch 24, three steps: within a step rank r holds micro-batch m at m (micro world) + r micro."""
    alone = batches(3, global_batch=24, micro_batch=24, data={"augment": True, "flip_axes": [0]})
    per_step = 24 // (micro_batch * world_size)
    many = [
        batches(
            3 * per_step,
            global_batch=24,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
            data={"augment": True, "flip_axes": [0]},
        )
        for rank in range(world_size)
    ]
    interleaved = [many[rank][m] for m in range(3 * per_step) for rank in range(world_size)]
    assert ids(interleaved) == ids(alone)
    for step in range(3):
        part = interleaved[step * 24 // micro_batch : (step + 1) * 24 // micro_batch]
        assert torch.equal(torch.cat([batch["image"] for batch in part]), alone[step]["image"])
        for task in alone[step]["mask"]:
            assert torch.equal(torch.cat([batch["mask"][task] for batch in part]), alone[step]["mask"][task])


def test_starting_at_a_step_is_the_same_as_having_come_there(batches):
    data = {"augment": True, "flip_axes": [0, 1]}
    whole = batches(12, data=data)
    assert_equal(batches(6, data=data, start_step=3), whole[6:])  # two micro-batches per step
    assert_equal(batches(1, data=data, start_step=5), whole[10:11])


def test_workers_change_nothing(batches):
    data = {"augment": True, "flip_axes": [0], "foreground_prob": 0.7}
    alone = batches(8, data=data)
    for num_workers in (1, 2):
        assert_equal(batches(8, data=data | {"num_workers": num_workers}), alone)


def test_another_seed_shows_another_order(batches):
    assert ids(batches(6, seed=0)) != ids(batches(6, seed=1))


def test_the_global_generator_is_left_alone(batches):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    batches(3, data={"augment": True})
    assert torch.equal(torch.rand(3), expected)


def test_weights_are_one_where_all_are_labelled_and_add_up_where_not(batches, dataset):
    """In each global batch the weights of a task sum to the batch size: a plain mean is the mean over the labelled."""
    labelled = {task: {s for i, s in enumerate(dataset.subject_ids) if dataset.has_label(i, task)} for task in dataset.tasks}
    partly = 0
    for batch in batches(7, micro_batch=4):
        for task, mask in batch["mask"].items():
            has = torch.tensor([subject in labelled[task] for subject in batch["subject_id"]])  # padding is "" and has none
            assert torch.equal(mask > 0, has)
            assert torch.equal(mask[has], torch.full((int(has.sum()),), 4 / has.sum().item() if has.any() else 0.0))
            partly += not has.all()
    assert partly > 5, "no batch lacked a label: the test shows nothing"


def test_weights_count_the_labels_of_the_whole_global_batch_and_not_of_a_part(batches):
    whole = batches(5, global_batch=8, micro_batch=8)
    for step, batch in enumerate(whole):
        parts = [b for r in range(2) for b in batches(2, global_batch=8, micro_batch=2, rank=r, world_size=2, start_step=step)]
        for task in batch["mask"]:
            weights = {s: w.item() for b in parts for s, w in zip(b["subject_id"], b["mask"][task])}
            assert weights == {s: w.item() for s, w in zip(batch["subject_id"], batch["mask"][task])}
            mean = np.mean([b["mask"][task].mean().item() for b in parts])  # padding and all
            assert mean == pytest.approx(1.0, abs=1e-6)


def test_a_task_without_a_label_in_the_batch_has_weight_zero(write_folder, make_sample, tasks):
    folder = write_folder([make_sample(i, without=("age",)) for i in range(3)], name="unlabelled")
    config = DataConfig(spacing_mm=(1, 1, 1), patch=(8, 8, 8), augment=False, num_workers=0)
    kwargs = {"seed": 0, "global_batch": 2, "micro_batch": 2, "rank": 0, "world_size": 1}
    batch = next(make_loader(ShardDataset(folder, "train"), config, tasks, **kwargs))
    assert batch["mask"]["age"].tolist() == [0, 0] and batch["mask"]["lesion"].tolist() == [1, 1]


def test_only_the_tasks_asked_for_are_loaded(batches, tasks):
    (batch,) = batches(1, given={"lesion": tasks["lesion"]})
    assert set(batch["targets"]) == {"lesion"} == set(batch["mask"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 6, "micro_batch": 2, "world_size": 2}, "global_batch 6 cannot be shared by 2 ranks.*multiple of 4"),
        ({"given": {"agee": TaskConfig(kind="regression")}}, "task 'agee' is not in the shards.*did you mean 'age'"),
        ({"given": {"age": TaskConfig(kind="classification", classes=["a"])}}, "'age' is regression .* in the shards"),
        ({"given": {"lesion": TaskConfig(kind="classification", classes=["none", "some"])}}, "'lesion' is classification"),
    ],
)
def test_bad_input_is_one_line_before_the_first_batch(batches, changes, message):
    with pytest.raises(InputError, match=message):
        batches(0, **changes)


def test_an_empty_split_is_refused(dataset, tasks):
    config = DataConfig(spacing_mm=(1, 1, 1), patch=(8, 8, 8), num_workers=0)
    kwargs = {"seed": 0, "global_batch": 2, "micro_batch": 2, "rank": 0, "world_size": 1}
    with pytest.raises(InputError, match="split 'test' has no subject"):
        make_loader(ShardDataset(dataset.folder, "test"), config, tasks, **kwargs)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_shard_is_one_line_from_workers_too(batches, dataset, num_workers):
    for shard in dataset.folder.glob("*.tar"):
        data = bytearray(shard.read_bytes())
        for place in range(0, len(data), 64):
            data[place] ^= 0xFF
        shard.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"holds no sub-\d+\.\S+ of \d+ bytes") as caught:
        batches(2, data={"num_workers": num_workers})
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_workers_leave_the_cores_to_those_who_compute(monkeypatch):
    monkeypatch.setattr("mri_ds.data.loader.num_cores", lambda: 96)
    assert [workers_per_rank(n, beside_gpu=True) for n in (1, 8, 16, 48, 96)] == [8, 8, 5, 1, 1]
    assert workers_per_rank(2, beside_gpu=False) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_flipped_bit_stops_or_is_masked_and_counted(batches, dataset, monkeypatch, caplog, workers):
    """The subject is named with its shard; the others' batches are what they were."""
    monkeypatch.setattr("mri_ds.data.loader.MAX_SKIPPED", 0.2)
    whole = batches(8)
    shard, entry = dataset._entries[4]
    offset, size = entry.members["image.chunks"]
    damaged = bytearray(shard.read_bytes())
    damaged[offset + size - 10] ^= 4
    shard.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"{shard.name}: {entry.key}.image.chunks: chunk 1 .* fails its checksum"):
        batches(8, data={"num_workers": workers})
    got = batches(8, data={"num_workers": workers, "skip_unreadable": True})
    assert ids(got) == ["" if subject == entry.subject_id else subject for subject in ids(whole)]
    for a, b in zip(got, whole):
        for i, subject in enumerate(a["subject_id"]):
            if b["subject_id"][i] == entry.subject_id:
                assert not a["image"][i].any() and not any(mask[i] for mask in a["mask"].values())
            elif subject:
                assert torch.equal(a["image"][i], b["image"][i])
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"left out {entry.subject_id}: ") and "1 of 7 so far" in line


LEAVES = """
import sys
from mri_ds.config import DataConfig
from mri_ds.data.index import ShardDataset
from mri_ds.data.loader import make_loader

dataset = ShardDataset(sys.argv[1], "train")
config = DataConfig(spacing_mm=(1, 1, 1), patch=(8, 8, 8), augment=False, num_workers=1)
kept = make_loader(dataset, config, dataset.tasks, seed=0, global_batch=1, micro_batch=1, rank=0, world_size=1)
next(kept)
raise SystemExit(3)
"""


def test_a_process_that_leaves_in_the_middle_does_not_wait_for_its_workers(write_folder, make_sample):
    """Workers do not heed the SIGTERM by which Python ends children at its exit, and then waits for them."""
    folder = write_folder([make_sample(i) for i in range(3)])
    done = subprocess.run([sys.executable, "-c", LEAVES, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
