"""A misspelt key or value at any level: the error names the key, what is allowed there, and the nearest match."""

import pytest

from mri_ds.config import SCALES, load_config
from mri_ds.config.allowed import allowed
from mri_ds.config.data import DataConfig
from mri_ds.errors import InputError

# key=value, what the line must name beside it
TYPOS = [
    ("modle.scale=small", "unknown key 'modle'", "did you mean 'model'? There are curriculum, data, loss, model, predict"),
    ("model.scale=smal", "model.scale: unknown scale 'smal'; there are tiny, small, base, large, xl", "did you mean 'small'?"),
    ("model.scale=[small]", "model.scale: unknown scale ['small']", "tiny, small"),
    ("model=small", "model = 'small'", "give a section, {key: value}"),
    ("model.embed_dmi=3", "unknown key 'model.embed_dmi'", "did you mean 'embed_dim'?"),
    ("model.attention=windwed", "model.attention = 'windwed'", "'full' or 'windowed'. Fix: did you mean 'windowed'?"),
    ("model.attention=WINDOWED", "model.attention = 'WINDOWED'", "did you mean 'windowed'?"),
    ("model.attention_backends=[flsh]", "model.attention_backends.0 = 'flsh'", "did you mean 'flash'?"),
    ("model.use_moe=ture", "model.use_moe = 'ture'", "give true or false"),
    ("model.token_stride=8", "model.token_stride = 8", "give 3 whole numbers, as [.., .., ..]"),
    ("data.patch=atuo", "data.patch = 'atuo': Input should be auto or 3 whole numbers", "did you mean 'auto'?"),
    ("data.patch=[64,64]", "data.patch = [64, 64]", "give auto or 3 whole numbers, as [.., .., ..]"),
    ("data.num_workers=-1", "data.num_workers = -1", "give auto or a whole number of at least 0"),
    ("data.normalisation=dataset", "unknown key 'data.normalisation'", "did you mean 'normalization'?"),
    ("data.normalization=datset", "data.normalization = 'datset'", "'subject' or 'dataset'. Fix: did you mean 'dataset'?"),
    ("data.augment=ture", "data.augment = 'ture'", "give true, false or a section"),
    ("data.augment.gama=1", "unknown key 'data.augment.gama'", "did you mean 'gamma'?"),
    ("data.augment.quarter_turn=2", "data.augment.quarter_turn = 2", "use one of 0, 1"),
    ("data.flip_axes=1", "data.flip_axes = 1", "give a list of 0, 1 or 2"),
    ("data.synthesis.lables=x", "unknown key 'data.synthesis.lables'", "did you mean 'labels'? There are artefact_prob"),
    ("loss.dice_kind=generalized", "loss.dice_kind = 'generalized'", "'soft' or 'generalised'. Fix: did you mean 'generalised'?"),
    ("loss.regression=l2", "loss.regression = 'l2'", "use one of gaussian_nll, smooth_l1"),
    ("loss.tasks.a.dise=1", "unknown key 'loss.tasks.a.dise'", "did you mean 'dice'?"),
    ("loss.dice=-1", "loss.dice = -1", "give a number of at least 0"),
    ("loss.deep_supervision=[1]", "loss.deep_supervision = [1]", "give a list of numbers above 0"),
    ("training.setps=3", "unknown key 'training.setps'", "did you mean 'steps'?"),
    ("training.steps=0", "training.steps = 0", "give a whole number of at least 1"),
    ("training.betas=[0.9]", "training.betas = [0.9]", "give 2 numbers, as [.., ..]"),
    ("tasks.a.kind=segmentaton", "tasks.a.kind = 'segmentaton'", "did you mean 'segmentation'?"),
    ("tasks.a={knid: regression}", "unknown key 'tasks.a.knid'", "did you mean 'kind'? There are class_presence"),
    ("curriculum.crop={start: 50, stps: 3}", "unknown key 'curriculum.crop.stps'", "did you mean 'steps'? There are by, end"),
    ("curriculum.stages=[{data: {patc: 1}}]", "data: unknown key 'patc'", "did you mean 'patch'?"),
    ("predict.overlap=1", "predict.overlap = 1", "give a number of at least 0 and below 1"),
    ("bf16.enabled=true", "'bf16' is a knob of speed", "set it in the DeepSpeed JSON"),
]


@pytest.mark.parametrize(("item", "names", "fix"), TYPOS, ids=[typo[0] for typo in TYPOS])
def test_a_typo_is_named_with_what_is_allowed(item: str, names: str, fix: str) -> None:
    with pytest.raises(InputError) as err:
        load_config(overrides=[item])
    line = str(err.value)
    assert names in line and fix in line and line.count("Fix: ") == 1, line


def test_what_is_allowed_is_what_is_taken() -> None:
    """The words come from the field's own type, and a value that they describe passes."""
    assert allowed(DataConfig.model_fields["num_workers"]) == "auto or a whole number of at least 0"
    for value in ("auto", 0, 3):
        assert load_config(overrides=[f"data.num_workers={value}"]).data.num_workers == value
    for name in SCALES:
        assert load_config(overrides=[f"model.scale={name}"]).model.scale == name
