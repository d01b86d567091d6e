"""The pace is DeepSpeed's; batches change where the plan does; losses are filed under the subjects that had them."""

import itertools

import pytest
import torch

from mri_ds.config import CurriculumConfig, PaceConfig, RunConfig, StageConfig, load_config
from mri_ds.data.index import ShardDataset
from mri_ds.data.order import make_order
from mri_ds.errors import InputError
from mri_ds.training.course import Course, Pace
from mri_ds.training.distributed import prepare_environment
from mri_ds.training.loop import complete

GLOBAL_BATCH, MICRO_BATCH = 4, 2


@pytest.fixture(scope="module", autouse=True)
def environment():
    prepare_environment()


@pytest.fixture
def course(shards):
    def make(**curriculum) -> Course:
        raw = load_config(overrides=["data.patch=[16,16,16]", "data.augment=false", f"training.global_batch={GLOBAL_BATCH}"])
        dataset = ShardDataset(shards, "train")
        config: RunConfig = complete(raw, dataset.manifest, where=shards)
        config.curriculum = CurriculumConfig(**curriculum) if curriculum else None
        order = make_order(dataset, config.data, seed=config.training.seed, global_batch=GLOBAL_BATCH)
        return Course(config, dataset, order, micro_batch=MICRO_BATCH)

    return make


def step_of(course: Course, step: int, *, loss=lambda subject_id: 1.0) -> list[str]:
    """One step without a network: its subjects; each hears `loss` of its id."""
    subjects = []
    for batch in itertools.islice(course.batches(step), GLOBAL_BATCH // MICRO_BATCH):
        subjects += batch["subject_id"]
        course.hear(torch.tensor([loss(s) if s else float("nan") for s in batch["subject_id"]]))
    course.end_step(step + 1)
    return subjects


def test_levels_are_those_of_the_formula():
    """start + (end - start) (step / steps)^(1 / root), down to a multiple of `by`."""
    pace = Pace(CurriculumConfig(subjects=PaceConfig(start=20, steps=100, root=2), crop=PaceConfig(start=50, steps=40, by=10)))
    assert [pace.levels(step)["crop"] for step in (0, 7, 8, 20, 39, 40, 1000)] == [50, 50, 60, 70, 90, 100, 100]
    assert [pace.levels(step)["subjects"] for step in (0, 25, 64, 99, 100, 101)] == [20, 60, 80, 95, 100, 100]


def test_without_a_curriculum_there_is_one_loader(course):
    plain = course()
    assert plain.batches(0) is plain.batches(1) and plain.scalars(1) == {} and "curriculum" not in plain.state(1)


def test_the_easiest_come_first(course):
    """By the label `radius`, which two subjects lack: 25 % of 8 subjects are the two smallest balls."""
    small = course(difficulty="radius", every=2, subjects=PaceConfig(start=25, steps=8, by=25))
    dataset = small.dataset
    known = sorted((dataset.value(i, "radius"), dataset.subject_ids[i]) for i in range(8) if dataset.has_label(i, "radius"))
    shown = [set(step_of(small, step)) - {""} for step in range(8)]
    assert shown[0] == shown[1] == {s for _, s in known[:2]}
    assert shown[4] | shown[5] <= {s for _, s in known[:4]} and shown[4] == {s for _, s in known[:4]}
    assert small.scalars(8)["curriculum/subjects"] == 6
    assert [s for s in step_of(small, 8)] and small.scalars(9)["curriculum/subjects"] == 8


def test_by_loss_the_easiest_are_those_of_small_loss(course):
    """Losses of one epoch (two steps) are by subject; then half of the subjects are shown: those with the four smallest."""
    by_loss = course(difficulty="loss", every=2, subjects=PaceConfig(start=50, steps=100, by=50))
    ids = by_loss.dataset.subject_ids
    difficulty = {s: float((5 * i) % 8) for i, s in enumerate(ids)}
    first = [s for step in range(2) for s in step_of(by_loss, step, loss=difficulty.__getitem__)]
    assert sorted(first) == sorted(ids)
    assert by_loss.curriculum.losses.tolist() == [difficulty[s] for s in ids]
    later = [s for step in range(2, 6) for s in step_of(by_loss, step, loss=difficulty.__getitem__)]
    assert set(later) == {s for s in ids if difficulty[s] < 4}


def test_crop_resolution_and_stages_reach_the_batches(course):
    stages = [StageConfig(tasks=["ball"]), StageConfig(from_step=3, data={"patch": [24, 16, 16]})]
    growing = course(
        every=2,
        crop=PaceConfig(start=50, steps=2, by=50),
        resolution=PaceConfig(start=50, steps=2, by=50),
        stages=stages,
    )
    growing.config.data.patch = (32, 32, 32)
    seen = []
    for step in range(4):
        batch = next(growing.batches(step))
        next(growing.batches(step))
        seen.append((tuple(batch["image"].shape[2:]), batch["spacing_mm"][0].tolist(), bool(batch["mask"]["size"].any())))
    assert [shape for shape, _, _ in seen] == [(16, 16, 16), (16, 16, 16), (32, 32, 32), (24, 16, 16)]
    assert seen[0][1] == pytest.approx([2.0, 2.0, 3.0]) and seen[3][1] == pytest.approx([1.0, 1.0, 1.5])
    assert [is_shown for _, _, is_shown in seen] == [False, False, False, True]


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 7])
def test_goes_on_from_any_step_as_if_nothing_had_happened(course, stop):
    settings = {
        "difficulty": "loss",
        "every": 2,
        "subjects": PaceConfig(start=25, steps=8, by=25),
        "stages": [StageConfig(tasks=["ball"]), StageConfig(from_step=5)],
    }

    def loss(subject_id: str) -> float:
        return (int(subject_id[4:]) * 5) % 8

    whole = course(**settings)
    expected = [step_of(whole, step, loss=loss) for step in range(9)]
    broken, resumed = course(**settings), course(**settings)
    for step in range(stop):
        step_of(broken, step, loss=loss)
    resumed.load_state(broken.state(stop))
    assert [step_of(resumed, step, loss=loss) for step in range(stop, 9)] == expected[stop:]
    assert resumed.state(9) == whole.state(9)


def test_a_stages_task_that_is_not_trained(course):
    with pytest.raises(InputError, match=r"stages\.0 learns task 'bal'.*did you mean 'ball'"):
        course(stages=[StageConfig(tasks=["bal"])])
