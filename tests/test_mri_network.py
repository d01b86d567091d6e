import pytest
import torch

from mri_ds.config import ModelConfig, TaskConfig, load_config
from mri_ds.mri_network import BaseMRINet, create_basic_net, create_sota_net, describe, pad_to_multiple

TASKS = {
    "tissue": TaskConfig(kind="segmentation", classes=["background", "grey", "white"], class_prior=[0.7, 0.2, 0.1]),
    "lesion": TaskConfig(kind="classification", classes=["none", "few"], class_prior=[0.75, 0.25]),
    "age": TaskConfig(kind="regression", unit="years", mean=50.0, std=20.0),
}


@pytest.mark.parametrize("create", [create_basic_net, create_sota_net])
@pytest.mark.parametrize("shape", [(16, 16, 16), (20, 9, 33)])
def test_every_task_gets_its_prediction_at_any_volume_size(create, shape):
    torch.manual_seed(0)
    out = create(TASKS, scale="tiny", in_channels=2)(torch.randn(2, 2, *shape), torch.ones(2, 3))
    assert {task: tuple(x.shape) for task, x in out.items()} == {"tissue": (2, 3, *shape), "lesion": (2, 2), "age": (2,)}


def test_basic_and_sota_are_rows_of_settings():
    basic, sota = (create(TASKS, scale="tiny") for create in (create_basic_net, create_sota_net))
    names = {name.split(".")[0] for name, _ in sota.named_parameters()} - {
        name.split(".")[0] for name, _ in basic.named_parameters()
    }
    assert names == {"cross_task"}
    assert any(".gate." in name for name, _ in sota.named_parameters())
    assert not any(".gate." in name for name, _ in basic.named_parameters())


@pytest.mark.parametrize("tasks", [["tissue"], ["lesion"], ["age"], ["tissue", "age"]])
def test_any_subset_of_tasks_makes_a_network_whose_every_parameter_learns(tasks):
    torch.manual_seed(0)
    net = create_sota_net({t: TASKS[t] for t in tasks}, scale="tiny")
    for block in net.encoder.blocks:  # all experts at work, so that each has a gradient
        block.moe.top_k = 4
    sum(x.square().mean() for x in net(torch.randn(1, 1, 16, 16, 16)).values()).backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # nothing but the finest of its own parts may be idle: without a voxel task no decoder is built at all
    assert still == []


def test_cubes_can_be_as_long_in_millimetres_along_every_axis():
    """Slices of 2 mm: strides of 4, 8 and 8 voxels, cubes of 16 mm each way, of 8 and 32 mm at the other scales."""
    spacing_mm = torch.tensor([[2.0, 1.0, 1.0]])
    net = BaseMRINet(load_config(scale="tiny", overrides=["model.token_stride=[4,8,8]"]).model, TASKS)
    for scale, length_mm, feature in (("fine", 8, 2), ("cube", 16, 2), ("coarse", 32, 4)):  # a feature: voxels along each axis
        kernel = getattr(net.embedding, scale).conv.kernel_size
        assert [n * feature * mm for n, mm in zip(kernel, spacing_mm[0].tolist())] == [length_mm] * 3
    assert net(torch.randn(1, 1, 18, 20, 33), spacing_mm)["tissue"].shape == (1, 3, 18, 20, 33)


def test_options_of_embedding_and_decoder_add_to_a_network_and_do_not_change_it_where_off():
    torch.manual_seed(0)
    plain = load_config(scale="tiny").model
    assert (plain.decoder_layers, plain.dense_double_cubes) == (0, False)
    names = {}
    for update in ({}, {"decoder_layers": 2}, {"dense_double_cubes": True}):
        net = BaseMRINet(plain.model_copy(update=update), TASKS)
        names[str(update)] = {name: p.shape for name, p in net.named_parameters()}
        assert net(torch.randn(1, 1, 20, 9, 17))["tissue"].shape == (1, 3, 20, 9, 17)
    without, blocks, dense = names.values()
    assert dense == without  # the same weights, used more often
    assert without.items() <= blocks.items() and {n.split(".")[1] for n in blocks.keys() - without.keys()} == {"blocks"}


def test_outputs_start_at_the_priors():
    torch.manual_seed(0)
    out = create_sota_net(TASKS, scale="tiny")(torch.randn(4, 1, 16, 16, 16))
    share = out["tissue"].softmax(1).mean(dim=(0, 2, 3, 4))
    softened = torch.tensor([0.7, 0.2, 0.1]).sqrt()
    torch.testing.assert_close(share, softened / softened.sum(), atol=0.1, rtol=0)
    assert (out["age"] - 50).abs().max() < 30
    assert out["lesion"].softmax(1)[:, 0].mean() > 0.6


def test_cross_task_attention_off_leaves_the_rest_bit_for_bit_and_new_branches_change_nothing():
    torch.manual_seed(0)
    settings = load_config(scale="tiny").model
    on = BaseMRINet(settings.model_copy(update={"task_branches": True}), TASKS).eval()
    image, weights = torch.randn(1, 1, 16, 16, 16), on.state_dict()
    found = on(image)
    for left_out, same in [(".branches.", list(TASKS)), ("cross_task.", ["tissue"])]:
        update = {"use_cross_task": left_out != "cross_task."}
        net = BaseMRINet(settings.model_copy(update=update), TASKS).eval()
        net.load_state_dict({name: w for name, w in weights.items() if left_out not in name}, strict=True)
        out = net(image)
        assert [task for task in TASKS if torch.equal(out[task], found[task])] == same


def test_no_gradient_of_a_volume_task_bends_the_segmentation_head():
    torch.manual_seed(0)
    net = create_sota_net(TASKS, scale="tiny")
    net(torch.randn(1, 1, 16, 16, 16))["age"].sum().backward()
    assert all(p.grad is None for p in net.voxel_heads.parameters())


def test_padding_repeats_edges_and_leaves_fitting_volumes_alone():
    image = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(1, 1, 6, 4, 4)
    assert pad_to_multiple(image, (2, 4, 4)) is image
    assert pad_to_multiple(image, (4, 4, 4))[0, 0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5]


@pytest.mark.parametrize(
    ("scale", "millions", "embed_dim", "num_layers"),
    [("small", 32, 128, 4), ("base", 85, 256, 8), ("large", 200, 512, 12), ("xl", 500, 768, 16)],
)
def test_scales_have_their_published_sizes(scale, millions, embed_dim, num_layers):
    facts = describe(scale)
    assert facts["parameters_total"] == pytest.approx(millions * 1e6, rel=0.03)
    assert (facts["embed_dim"], facts["num_layers"]) == (embed_dim, num_layers)
    assert facts["parameters_active"] < facts["parameters_total"]


def test_meta_device_counts_what_a_real_network_has():
    config = load_config(scale="tiny").model
    tasks = {
        "tissue": TaskConfig(kind="segmentation", classes=["x"] * 7),
        "lesion": TaskConfig(kind="classification", classes=["x"] * 3),
        "age": TaskConfig(kind="regression"),
    }
    assert sum(p.numel() for p in BaseMRINet(config, tasks).parameters()) == describe("tiny")["parameters_total"]


def test_refuses_to_learn_nothing():
    with pytest.raises(ValueError, match="at least one task"):
        BaseMRINet(ModelConfig(scale="tiny"), {})
