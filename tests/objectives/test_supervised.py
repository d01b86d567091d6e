"""The objective joins a net and a loss: what it passes on, what it returns attached, what it trains."""

import pytest
import torch
from torch import nn

from mri_ds.losses import SUBJECT_LOSS, MultiTaskLoss
from mri_ds.objectives import OBJECTIVES
from mri_ds.objectives.supervised import SupervisedObjective

TASKS = {"tissue": {"kind": "segmentation"}, "age": {"kind": "regression", "options": {"std": 10.0}}}


class TwoTaskNet(nn.Module):
    """A real, tiny net with BaseMRINet's joint: (image, spacing_mm) -> {task: prediction}."""

    def __init__(self):
        super().__init__()
        self.voxels, self.age = nn.Conv3d(1, 3, 1), nn.Linear(2, 1)

    def forward(self, image, spacing_mm):
        self.seen = image.dtype, spacing_mm
        size_mm3 = spacing_mm.prod(1, keepdim=True).to(image.dtype)
        summary = torch.cat([image.mean((2, 3, 4)), size_mm3], dim=1)
        return {"tissue": self.voxels(image), "age": self.age(summary)[:, 0]}


def make_batch():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 4, 4, 4), generator=generator)
    return {
        "image": (target[:, None] - 1) + 0.1 * torch.randn(2, 1, 4, 4, 4, generator=generator),
        "spacing_mm": torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 2.0]]),
        "targets": {"tissue": target, "age": torch.tensor([30.0, 60.0])},
        "mask": {"tissue": torch.ones(2), "age": torch.ones(2)},
        "subject_id": ["a", "b"],
    }


def make_objective():
    torch.manual_seed(0)
    return SupervisedObjective(TwoTaskNet(), MultiTaskLoss(TASKS))


def test_equals_net_then_loss_and_attaches_one_tensor():
    objective, batch = make_objective(), make_batch()
    result = objective(batch)
    expected = objective.loss(objective.net(batch["image"], batch["spacing_mm"]), batch["targets"], batch["mask"])
    assert set(result) == {"loss", "tissue", "age", "weight/tissue", "weight/age", SUBJECT_LOSS}
    assert all(torch.equal(result[name], expected[name]) for name in result)
    assert [name for name, value in result.items() if value.requires_grad] == ["loss"]
    assert torch.equal(objective.net.seen[1], batch["spacing_mm"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_image_takes_the_dtype_of_the_weights_and_spacing_stays_exact(dtype):
    objective, batch = make_objective().to(dtype), make_batch()
    batch["image"] = batch["image"].double()
    result = objective(batch)
    assert objective.net.seen[0] == dtype
    assert objective.net.seen[1].dtype == torch.float32
    assert result["loss"].dtype == torch.float32


def test_trains_net_and_task_weights():
    objective, batch = make_objective(), make_batch()
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        result = objective(batch)
        result["loss"].backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in objective.parameters())
        optimizer.step()
        history.append(result)
    assert history[-1]["tissue"] < 0.5 * history[0]["tissue"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["weight/age"] < history[-1]["weight/tissue"] < 1  # age is learned worse, so it is trusted less


def test_registry_names_it():
    assert OBJECTIVES["supervised"] is SupervisedObjective
