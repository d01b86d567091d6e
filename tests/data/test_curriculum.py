"""Curriculum: what plans show, in which order, at which size; and that its state is all there is to it."""

import json

import numpy as np
import pytest

from mri_ds.config import AugmentConfig, CurriculumConfig, DataConfig, PaceConfig, RunConfig, StageConfig, load_config, validate
from mri_ds.data.curriculum import Curriculum, Plan, PoolOrder, data_of, metadata_difficulty, order_of
from mri_ds.data.index import ShardDataset
from mri_ds.data.loader import make_loader
from mri_ds.data.order import Order
from mri_ds.errors import InputError

DATA = DataConfig(spacing_mm=(1.0, 1.5, 0.69), patch=(64, 48, 20), augment=False)


@pytest.fixture
def dataset(write_folder, make_sample):
    """Ten subjects; age 20 + i, missing for subject 4."""
    return ShardDataset(write_folder([make_sample(i, without=("age",) if i == 4 else ()) for i in range(10)]), "train")


def curriculum(dataset, **config) -> Curriculum:
    return Curriculum(CurriculumConfig(**config), dataset, len(dataset))


class TestPool:
    def test_easiest_first_by_a_label(self, dataset):
        assert curriculum(dataset, difficulty="age").turn(0, {"subjects": 30}).pool == (0, 1, 2)
        assert curriculum(dataset, difficulty="-age").turn(0, {"subjects": 30}).pool == (9, 8, 7)

    def test_a_subject_without_the_label_comes_last(self, dataset):
        course = curriculum(dataset, difficulty="age")
        assert course.turn(0, {"subjects": 90}).pool == (0, 1, 2, 3, 5, 6, 7, 8, 9)
        assert course.turn(1, {"subjects": 100}).pool == ()

    def test_synthetic_places_are_the_hardest(self, dataset):
        assert metadata_difficulty("age", dataset, 13)[[4, 10, 11, 12]].tolist() == [np.inf] * 4

    def test_one_subject_at_least(self, dataset):
        assert curriculum(dataset, difficulty="age").turn(0, {"subjects": 1}).pool == (0,)

    def test_by_loss_all_are_shown_until_each_has_one(self, dataset):
        course = curriculum(dataset, difficulty="loss")
        course.learn(range(9), np.linspace(2, 1, 9))
        assert course.turn(0, {"subjects": 30}).pool == ()
        course.learn([9], [1.5])
        assert course.turn(1, {"subjects": 40}).pool == (8, 7, 6, 5)
        course.learn([8], [float("nan")])  # a subject without any label in this step's stage
        assert course.turn(2, {"subjects": 40}).pool == (8, 7, 6, 5)

    def test_a_subject_that_never_has_a_label_does_not_hold_the_others_up(self, dataset):
        course = curriculum(dataset)
        course.learn(range(10), [*np.linspace(2, 1, 9), float("nan")])
        assert course.turn(0, {"subjects": 90}).pool == (8, 7, 6, 5, 4, 3, 2, 1, 0)

    def test_running_loss_by_hand(self, dataset):
        """2, then 1: 2 + 0.3 (1 - 2) = 1.7, then 1: 1.7 - 0.21 = 1.49."""
        course = curriculum(dataset)
        for loss in (2.0, 1.0, 1.0):
            course.learn([3], [loss])
        assert course.losses[3] == pytest.approx(1.49) and np.isnan(course.losses[[0, 1, 2, 4]]).all()

    def test_what_the_shards_do_not_tell(self, dataset, write_folder, make_sample):
        with pytest.raises(InputError, match=r"'agee', which is no scalar label.*did you mean 'age'"):
            curriculum(dataset, difficulty="agee")
        with pytest.raises(InputError, match="no scalar label"):
            curriculum(dataset, difficulty="tissue")
        empty = ShardDataset(write_folder([make_sample(0, without=("age",))], name="other"), "train")
        with pytest.raises(InputError, match="no subject has a value of 'age'"):
            curriculum(empty, difficulty="age")


class TestPlan:
    def test_stays_the_same_object_while_nothing_changes(self, dataset):
        course = curriculum(dataset, difficulty="age", every=5)
        first = course.turn(0, {"subjects": 30})
        assert course.turn(5, {"subjects": 30}) is first and first.first_step == 0
        second = course.turn(10, {"subjects": 40})
        assert second.first_step == 10 and course.turn(15, {"subjects": 40}) is second
        assert course.turn(20, {"subjects": 40, "crop": 50}).first_step == 20

    def test_turns_only_where_the_configuration_says(self, dataset):
        course = curriculum(dataset, difficulty="age", every=4, stages=[StageConfig(), StageConfig(from_step=6)])
        assert [step for step in range(13) if course.may_turn(step)] == [0, 4, 6, 8, 12]
        assert [course.turn(step, {}).stage for step in (0, 5, 6, 100)] == [0, 0, 1, 1]

    def test_state_goes_through_json_and_back(self, dataset):
        course = curriculum(dataset)
        course.learn(range(10), np.random.default_rng(0).random(10))
        course.turn(7, {"subjects": 50})
        other = curriculum(dataset)
        other.load_state(json.loads(json.dumps(course.state())))
        assert other.plan == course.plan and other.losses.tolist() == course.losses.tolist()
        assert other.turn(14, {"subjects": 60}) == course.turn(14, {"subjects": 60})

    def test_a_state_of_other_data_is_refused(self, dataset):
        other = Curriculum(CurriculumConfig(), dataset, 12)
        with pytest.raises(InputError, match="has 12 subjects, the data 10"):
            curriculum(dataset).load_state(other.state())


class TestPoolOrder:
    def test_each_of_the_pool_once_in_an_epoch_of_its_own(self):
        order = Order(shard_sizes=[20], global_batch=4, seed=3)
        pooled = order_of(Plan(5, 0, pool=(11, 3, 7, 19, 2, 13)), order)
        assert isinstance(pooled, PoolOrder) and pooled.steps_per_epoch == 2
        for epoch in range(3):
            slots = [pooled.slot(p) for p in range((5 + 2 * epoch) * 4, (7 + 2 * epoch) * 4)]
            real = [slot.subject for slot in slots if not slot.is_padding]
            assert sorted(real) == [2, 3, 7, 11, 13, 19] and len(slots) == 8
            assert real == pooled.real(5 + 2 * epoch) + pooled.real(6 + 2 * epoch)

    def test_stretches_have_dice_of_their_own(self):
        order = Order(shard_sizes=[20], global_batch=4, seed=3)
        a, b = (order_of(Plan(step, 0, pool=tuple(range(8))), order) for step in (5, 9))
        assert a.dice(a.slot(20)).random() != b.dice(b.slot(36)).random()
        assert [a.real(5), a.real(6)] != [b.real(9), b.real(10)]

    def test_all_subjects_are_the_runs_own_order(self):
        order = Order(shard_sizes=[20], global_batch=4, seed=3)
        assert order_of(Plan(8, 0), order) is order


class TestData:
    def test_at_full_size_nothing_changes(self):
        assert data_of(Plan(0, 0), [], DATA) == DATA

    def test_a_smaller_crop_sees_less(self):
        data = data_of(Plan(0, 0, crop=50), [], DATA)
        assert data.patch == (32, 24, 16) and data.spacing_mm == DATA.spacing_mm

    def test_a_lower_resolution_sees_as_much_with_fewer_voxels(self):
        data = data_of(Plan(0, 0, resolution=50), [], DATA)
        assert data.patch == (32, 24, 16) and data.spacing_mm == pytest.approx((2.0, 3.0, 1.38))

    def test_both(self):
        assert data_of(Plan(0, 0, crop=75, resolution=75), [], DATA).patch == (32, 24, 16)  # 36, 27, 11 to eights

    def test_no_edge_grows(self):
        assert data_of(Plan(0, 0, crop=95), [], DATA.model_copy(update={"patch": (12, 20, 40)})).patch == (12, 16, 40)

    def test_a_stage_changes_keys(self):
        stages = [StageConfig(data={"augment": False, "patch": [32, 32, 32]}), StageConfig(from_step=3)]
        data = DATA.model_copy(update={"augment": AugmentConfig()})
        assert data_of(Plan(0, 0), stages, data).patch == (32, 32, 32) and not data_of(Plan(0, 0), stages, data).augment
        assert data_of(Plan(3, 1), stages, data) == data


def test_batches_of_a_plan(dataset, tasks):
    """Through the loader: the pool's subjects, the plan's patch, and other tasks' labels masked."""
    plan = Plan(0, 0, pool=(1, 5, 6), crop=50)
    data = DataConfig(spacing_mm=(1, 1, 1), patch=(32, 32, 32), augment=False, num_workers=0)
    order = order_of(plan, Order(shard_sizes=dataset.shard_sizes, global_batch=4, seed=0))
    batches = make_loader(
        dataset,
        data_of(plan, [], data),
        tasks,
        seed=0,
        global_batch=4,
        micro_batch=4,
        rank=0,
        world_size=1,
        order=order,
        shown_tasks=["lesion"],
    )
    for _, batch in zip(range(3), batches):
        assert sorted(batch["subject_id"]) == ["", "sub-001", "sub-005", "sub-006"]
        assert batch["image"].shape == (4, 2, 16, 16, 16)
        assert not batch["mask"]["tissue"].any() and not batch["mask"]["age"].any()
        shown = [bool(subject) for subject in batch["subject_id"]]
        assert batch["mask"]["lesion"].tolist() == pytest.approx([4 / 3 if is_shown else 0 for is_shown in shown])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"crop": {"start": 60, "end": 50, "steps": 10}}, "from easy to hard"),
        ({"crop": {"start": 33, "steps": 10}}, "multiples of by 5"),
        ({"crop": {"start": 50}}, r"curriculum\.crop\.steps"),
        ({"crop": {"start": 50, "steps": 10, "rot": 2}}, "did you mean 'root'"),
        ({"stages": [{"from_step": 3}]}, "must begin at 0"),
        ({"stages": [{}, {}]}, "must begin at 0"),
        ({"stages": [{"data": {"augmnt": False}}]}, "did you mean 'augment'"),
        ({"stages": [{"data": {"num_workers": 2}}]}, "cannot change within a run"),
        ({"stages": [{"data": {"patch": "auto"}}]}, "cannot be auto"),
        ({"stages": [{"from_stp": 0}]}, "did you mean 'from_step'"),
        ({"subject": {}}, "did you mean 'subjects'"),
    ],
)
def test_what_a_user_can_get_wrong(raw, said):
    with pytest.raises(InputError, match=said) as caught:
        validate({"curriculum": raw})
    assert "curriculum" in str(caught.value)


def test_yaml_and_overrides(tmp_path):
    (tmp_path / "run.yaml").write_text("curriculum:\n  difficulty: age\n  subjects: {start: 20, steps: 100}\n")
    config = load_config(tmp_path / "run.yaml", overrides=["curriculum.every=7"])
    assert config.curriculum == CurriculumConfig(difficulty="age", every=7, subjects=PaceConfig(start=20, steps=100))
    assert RunConfig().curriculum is None
