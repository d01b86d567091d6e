"""Losses chosen in the YAML: what a task takes over, what is refused and how, and that what is chosen is what is trained."""

import pytest
import torch

from mri_ds.config import dump_config, load_config, validate
from mri_ds.errors import InputError
from mri_ds.losses import SUBJECT_LOSS, segmentation_loss
from mri_ds.sample import coarser, log_variance
from mri_ds.training.engine import build_objective

TINY = {
    "scale": "tiny", "embed_dim": 16, "num_layers": 1, "num_heads": 2, "num_experts": 2, "expert_hidden": 16,
    "stem_channels": 4, "token_stride": [4, 4, 4],
}  # fmt: skip
TASKS = {
    "tumour": {
        "kind": "segmentation",
        "classes": ["background", "oedema", "core", "unsure"],
        "class_prior": [0.7, 0.1, 0.1, 0.1],
    },
    "grade": {"kind": "classification", "classes": ["I", "II", "III"]},
    "age": {"kind": "regression", "unit": "years", "mean": 50.0, "std": 20.0},
}
CHOSEN = {
    "boundary": 0.2,
    "tasks": {
        "tumour": {
            "dice_kind": "generalised", "ignore": "unsure", "regions": {"whole": ["oedema", "core"], "core": ["core"]},
            "boundary_kind": "distance", "focal_gamma": 2.0, "focal_alpha": 0.7, "tversky": 0.5, "deep_supervision": [1.0, 0.3],
        },
        "grade": {"classification": "ordinal", "label_smoothing": 0.05},
        "age": {"regression": "gaussian_nll"},
    },
}  # fmt: skip


def chosen_config():
    model = {**TINY, "predict_variance": True, "deep_supervision": True}
    return validate({"model": model, "tasks": TASKS, "loss": CHOSEN})


def test_tasks_take_over_what_they_do_not_say_and_a_written_config_says_it_all(tmp_path):
    config = chosen_config()
    assert config.loss.of("tumour").boundary == config.loss.of("grade").boundary == 0.2
    assert (config.loss.of("tumour").dice_kind, config.loss.dice_kind) == ("generalised", "soft")
    assert config.loss.of("a task that loss does not name").boundary == 0.2
    (tmp_path / "config.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert load_config(tmp_path / "config.yaml", overrides=["loss.tasks.age.smooth_l1_beta=2"]).loss.of("age").smooth_l1_beta == 2


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ({"tasks": {"tumour": {"dice_kind": "generalized"}}}, "did you mean 'generalised'"),
        ({"tasks": {"age": {"regression": "l2"}}}, "loss.tasks.age.regression = 'l2'.*use one of gaussian_nll, smooth_l1"),
        ({"tasks": {"tumour": {"tversky_betta": 1}}}, "unknown key 'loss.tasks.tumour.tversky_betta'.*'tversky_beta'"),
        ({"tasks": {"tumor": {"dice": 1}}}, "loss.tasks.tumor: no such task.*did you mean 'tumour'"),
        ({"tasks": {"tumour": {"ignore": "unsur"}}}, "no class 'unsur'.*did you mean 'unsure'"),
        ({"tasks": {"tumour": {"regions": {"all": ["oedema", "cores"]}}}}, "no class 'cores'.*did you mean 'core'"),
        ({"tasks": {"tumour": {"regions": {"all": ["background", "oedema", "core", "unsure"]}}}}, "has 4 of 4 classes"),
        ({"tasks": {"age": {"ignore": "old"}}}, "ignore and regions are of segmentations"),
        ({"regression": "gaussian_nll"}, "loss.regression = gaussian_nll.*set model.predict_variance=true"),
        ({"focal_alpha": 1.5}, "loss.focal_alpha = 1.5"),
        ({"deep_supervision": [1.0, 0.0]}, "loss.deep_supervision.1 = 0.0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(loss, said):
    with pytest.raises(InputError, match=f"(?s){said}"):
        validate({"model": TINY, "tasks": TASKS, "loss": loss})


def batch():
    torch.manual_seed(0)
    return {
        "image": torch.randn(2, 1, 9, 12, 8),
        "spacing_mm": torch.ones(2, 3),
        "targets": {
            "tumour": torch.randint(0, 4, (2, 9, 12, 8)),
            "grade": torch.tensor([0, 2]),
            "age": torch.tensor([30.0, 70.0]),
        },
        "mask": {name: torch.ones(2) for name in TASKS},
    }


def test_what_is_chosen_is_what_is_trained():
    torch.manual_seed(1)
    objective = build_objective(chosen_config())
    result = objective(batch())
    result["loss"].backward()
    assert result["loss"].isfinite() and result[SUBJECT_LOSS].isfinite().all()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []
    outputs = objective.net(batch()["image"])
    assert outputs[coarser("tumour")].shape == (2, 4, 5, 6, 4) and outputs[log_variance("age")].shape == (2,)
    assert set(objective.eval().net(batch()["image"])) == {*TASKS, log_variance("age")}
    options = objective.loss.options["tumour"]
    assert options["regions"] == [[1, 2], [2]] and options["ignore_index"] == 3
    assert objective.loss.options["grade"] == {"label_smoothing": 0.05, "ordinal": True}


def test_ignored_voxels_and_their_class_teach_nothing():
    """Whatever the network says where the label is `unsure`, loss and gradient are the same."""
    objective = build_objective(chosen_config())
    unsure = batch()["targets"]["tumour"] == 3
    logits = torch.randn(2, 4, 9, 12, 8)
    other = torch.where(unsure[:, None], torch.randn_like(logits), logits)
    options = objective.loss.options["tumour"]
    first, second = (segmentation_loss(z, batch()["targets"]["tumour"], **options) for z in (logits, other))
    assert torch.equal(first, second)


def test_the_default_is_what_it_was():
    """Dice and cross-entropy of the classes, smooth L1 at one standard deviation, plain classes; no output beside the tasks."""
    config = validate({"model": TINY, "tasks": TASKS})
    objective = build_objective(config)
    loss = objective.loss
    segmentation = loss.options["tumour"]
    assert (segmentation["dice"], segmentation["cross_entropy"], segmentation["tversky"], segmentation["boundary"]) == (
        1,
        1,
        0,
        0,
    )
    assert (segmentation["dice_kind"], segmentation["smooth"], segmentation["regions"]) == ("soft", 1e-5, [])
    assert loss.options["age"] == {"std": 20.0, "beta": 1.0} and not loss.gaussian
    assert loss.options["grade"] == {"label_smoothing": 0.0, "ordinal": False}
    assert set(objective.net(batch()["image"])) == set(TASKS)
