"""`mri-ds replay`: dumps of real nets whose step is not finite, forward, backward or not at all; and no dumps."""

import json
from pathlib import Path

import pytest
import torch
from commands import call, refusal
from safetensors.torch import save_file

from mri_ds.config import dump_config, load_config

OVERRIDES = [
    "model.embed_dim=16",
    "model.num_layers=1",
    "model.expert_hidden=16",
    "data.patch=[16,16,16]",
    "tasks={ball: {kind: segmentation, classes: [background, ball]}, age: {kind: regression, mean: 50, std: 10}}",
]


@pytest.fixture
def dump(tmp_path: Path):
    """dump(...) as a stopped run leaves it: two subjects of one rank."""
    from mri_ds.training.engine import build_objective

    def make(
        *, dtype: str = "float32", loss: float | str = "nan", loss_scale: float = 1.0, spoil=lambda net, batch: None
    ) -> Path:
        config = load_config(scale="tiny", overrides=OVERRIDES)
        torch.manual_seed(0)
        objective = build_objective(config)
        batch = {
            "image": torch.randn(2, 1, 16, 16, 16),
            "spacing_mm": torch.ones(2, 3),
            "targets/ball": torch.randint(0, 2, (2, 16, 16, 16)),
            "targets/age": torch.tensor([40.0, 60.0]),
            "mask/ball": torch.ones(2),
            "mask/age": torch.ones(2),
        }
        with torch.no_grad():
            spoil(objective.net, batch)
        save_file({k: v.contiguous() for k, v in objective.net.state_dict().items()}, tmp_path / "model.safetensors")
        save_file({"loss.log_variance": objective.loss.log_variance.detach()}, tmp_path / "objective.safetensors")
        save_file(batch, tmp_path / "rank0000-0.safetensors")
        (tmp_path / "config.yaml").write_text(dump_config(config))
        micro = {"file": "rank0000-0.safetensors", "subject_ids": ["sub-1", "sub-2"], "loss": loss}
        told = {"step": 12, "reason": "why", "dtype": dtype, "accumulation": 1, "loss_scale": loss_scale}
        told["ranks"] = [{"torch_seed": 5, "micro_batches": [micro]}]
        (tmp_path / "dump.json").write_text(json.dumps(told))
        return tmp_path

    return make


def replay(folder: Path, exit_code: int = 0) -> dict:
    result = call("replay", folder, "--json")
    assert result.exit_code == exit_code, result.output
    found = json.loads(result.stdout)
    (found["micro"],) = found.pop("micro_batches")
    return found


def test_a_voxel_that_is_not_finite(dump) -> None:
    def spoil(net, batch):
        batch["image"][1, 0, 3, 3, 3] = float("nan")

    found = replay(dump(spoil=spoil))
    micro = found["micro"]
    assert found["reproduced"] and found["weights_not_finite"] == [] and found["step"] == 12
    assert micro["input_not_finite"] == ["image"] and micro["loss"] == "nan"
    assert micro["subject_losses"]["sub-1"] != "nan" and micro["subject_losses"]["sub-2"] == "nan"
    assert micro["first_forward"].startswith("net.features")  # what sees the image first


def test_the_layer_that_overflows_is_named(dump) -> None:
    """Experts whose weights are finite, but whose sums of products leave float32."""

    def spoil(net, batch):
        net.encoder.blocks[0].moe.experts.down_proj.fill_(3e38)

    found = replay(dump(spoil=spoil))
    assert found["weights_not_finite"] == [] and found["micro"]["input_not_finite"] == []
    assert found["micro"]["first_forward"] == "net.encoder.blocks.0.moe.experts"


def test_weights_that_are_not_finite_are_named(dump) -> None:
    def spoil(net, batch):
        net.embedding.norm.bias[3] = float("inf")

    found = replay(dump(spoil=spoil))
    assert found["weights_not_finite"] == ["net.embedding.norm.bias"]
    assert found["micro"]["first_forward"] == "net.embedding.norm"


def test_a_gradient_that_overflows_fp16_though_the_loss_is_finite(dump) -> None:
    found = replay(dump(dtype="float16", loss=1.5, loss_scale=2.0**30))
    micro = found["micro"]
    assert found["reproduced"] and float(micro["loss"]) < 100
    assert micro["first_forward"] is None and micro["first_backward"] and micro["gradients_not_finite"]


def test_what_is_finite_here_is_not_reproduced(dump) -> None:
    found = replay(dump(loss=1.5), exit_code=1)
    assert not found["reproduced"] and found["micro"]["first_backward"] is None
    text = call("replay", dump(loss=1.5)).stdout
    assert "not reproduced" in text and "rank 0, micro-batch 0: loss 1.5 then" in text


def test_folders_that_are_no_dumps(dump, tmp_path: Path) -> None:
    assert "has no dump.json" in refusal("replay", tmp_path / "absent")
    folder = dump()
    (folder / "model.safetensors").unlink()
    assert "weights cannot be read" in refusal("replay", folder)
    folder = dump()
    (folder / "rank0000-0.safetensors").write_bytes(b"torn")
    assert "is no batch" in refusal("replay", folder)
    (folder / "dump.json").write_text("{}")
    assert "is not whole" in refusal("replay", folder)
    (folder / "dump.json").write_text("{")
    assert "is not the JSON" in refusal("replay", folder)
