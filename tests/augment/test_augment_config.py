"""How YAML switches and weakens variations, and that it speaks of the rows that there are."""

import numpy as np
import pytest

from mri_ds.augment.deformation import NO_FOLD
from mri_ds.augment.transform import AUGMENTS, KNOBS, SPATIAL, sample_params
from mri_ds.config import AugmentConfig, AugmentProb, DataConfig, dump_config, load_config
from mri_ds.errors import InputError


def drawn(config: AugmentConfig, count: int = 2000) -> list[dict]:
    frame = {"shape": (32, 32, 32), "spacing_mm": (1, 1, 1), "num_channels": 2, "flip_axes": ()}
    settings = {"strength": config.strength, "prob": config.prob.model_dump()}
    return [sample_params(np.random.default_rng(seed), **frame, **settings).dice for seed in range(count)]


def test_strengths_and_chances_are_those_of_the_table():
    assert list(AugmentConfig().strength) == list(KNOBS) and list(AugmentProb.model_fields) == list(AUGMENTS)


def test_true_draws_the_variations_of_the_demos_and_no_others():
    dice = drawn(AugmentConfig())
    shares = {name: np.mean([name in d for d in dice]) for name in AUGMENTS}
    expected = {"affine": 0.7, "elastic": 0.3, "bias_field": 0.3, "gamma": 0.3, "contrast": 0.3, "noise": 0.2}
    for name, share in shares.items():
        assert share == pytest.approx(expected.get(name, 0), abs=0.04), name
    still = np.mean([SPATIAL.isdisjoint(d) for d in dice])
    assert still == pytest.approx(0.3 * 0.7, abs=0.04)


@pytest.mark.parametrize("switch", [True, False])
def test_a_switch_in_yaml_survives_the_run_folder(switch, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"data: {{augment: {str(switch).lower()}}}\n")
    config = load_config(path)
    assert config.data.augment == (AugmentConfig() if switch else None) and DataConfig(augment=switch) == config.data
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_a_few_keys_change_those_and_leave_the_rest(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data: {augment: {rotate_deg: 5, noise: 0, gibbs: 0.5, prob: {gibbs: 1}}}\n")
    augment = load_config(path).data.augment
    assert augment == AugmentConfig(rotate_deg=5, noise=0, gibbs=0.5, prob=AugmentProb(gibbs=1))
    dice = drawn(augment, 200)
    assert all("gibbs" in d and "noise" not in d for d in dice) and any("affine" in d for d in dice)
    path.write_text(dump_config(load_config(path)))
    assert load_config(path).data.augment == augment


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.augment.nois=1", r"unknown key 'data.augment.nois'. Fix: did you mean 'noise'\?"),
        ("data.augment.prob.gibs=1", r"unknown key 'data.augment.prob.gibs'. Fix: did you mean 'gibbs'\?"),
        ("data.augment.prob.gibbs=1.5", "data.augment.prob.gibbs = 1.5"),
        ("data.augment.noise=-0.1", "data.augment.noise = -0.1"),
        ("data.augment.grid_distortion=1", "data.augment.grid_distortion = 1"),
        ("data.augment.elastic_mm=9.7", "fold space"),
        ("data.augment=strong", "data.augment = 'strong'"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(setting, message):
    with pytest.raises(InputError, match=message):
        load_config(overrides=[setting])


def test_the_largest_elastic_field_that_is_allowed_can_be_drawn():
    assert "elastic" in drawn(AugmentConfig(elastic_mm=NO_FOLD * 24, prob=AugmentProb(elastic=1)), 1)[0]
