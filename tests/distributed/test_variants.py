"""Every variant of ds_configs/README.md, on two ranks: its losses are those of plain float32: no ZeRO, no expert parallelism."""

import os
from pathlib import Path

import engines
import pytest
from safetensors.torch import load_file

ZERO, OFFLOAD = "zero_optimization.stage={}", "zero_optimization.offload_{}.device=cpu"
REFERENCE = ["zero_optimization.stage=0", "expert_parallel.enabled=false", "activation_checkpointing.level=none"]
FP16 = ["fp16={enabled: true, initial_scale_power: 10}"]

# Stages below 3 come first: ZeRO-3 changes how linear layers are computed for the rest of the process.
VARIANTS = {
    "reference": REFERENCE,
    "zero0": [ZERO.format(0)],
    "zero1": [ZERO.format(1)],
    "zero2": [ZERO.format(2)],
    "zero1 offload": [ZERO.format(1), OFFLOAD.format("optimizer")],
    "zero2 offload": [ZERO.format(2), OFFLOAD.format("optimizer")],
    "bf16 zero0": [ZERO.format(0), "bf16.enabled=true"],
    "bf16 zero1": [ZERO.format(1), "bf16.enabled=true"],
    "bf16 zero2": [ZERO.format(2), "bf16.enabled=true"],
    "fp16 zero0": [ZERO.format(0), *FP16],
    "fp16 zero2": [ZERO.format(2), *FP16],
    "fp16 fixed": [ZERO.format(2), "fp16={enabled: true, loss_scale: 128}"],
    "fp16 overflow": [ZERO.format(2), "fp16={enabled: true, initial_scale_power: 24, hysteresis: 1}"],
    "zero3": [],
    "zero3 no recomputation": ["activation_checkpointing.level=none"],
    "zero3 attention": ["activation_checkpointing.level=attention"],
    "zero3 full": ["activation_checkpointing.level=full"],
    "zero3 offload optimizer": [OFFLOAD.format("optimizer")],
    "zero3 offload parameters": [OFFLOAD.format("param")],
    "zero3 offload both": [OFFLOAD.format("optimizer"), OFFLOAD.format("param")],
    "bf16 zero3": ["bf16.enabled=true"],
    "bf16 zero3 full": ["bf16.enabled=true", "activation_checkpointing.level=full"],
    "bf16 zero3 offload both": ["bf16.enabled=true", OFFLOAD.format("optimizer"), OFFLOAD.format("param")],
    "fp16 zero3": FP16,
    "fp16 zero3 offload": [*FP16, OFFLOAD.format("optimizer")],
}
TOLERANCE = {"bf16": 1e-2, "fp16": 4e-3}  # relative; float32 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("variants")


@pytest.fixture(scope="module")
def told(folder):
    """All variants, one after the other on the same two ranks. fp16 is emulated where the CPU has no products for it."""
    cases = {name: {"ds": ds, "export": "overflow" not in name} for name, ds in VARIANTS.items()}
    return engines.run(cases, ranks=2, folder=folder, steps=5, emulate_fp16=True, timeout_s=1000)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("reference", "fp16 overflow")])
def test_losses_are_those_of_float32_without_zero(told, folder, name):
    tolerance = TOLERANCE.get(name.split()[0], 1e-5)
    got, expected = told[name], told["reference"]
    assert got["dtype"] == {"bf16": "torch.bfloat16", "fp16": "torch.float16"}.get(name.split()[0], "torch.float32")
    assert got["losses"] == pytest.approx(expected["losses"], rel=tolerance)
    assert len(set(got["losses"])) == 5  # it did train
    weights, whole = (load_file(folder / case.replace(" ", "-") / "model.safetensors") for case in (name, "reference"))
    assert weights.keys() == whole.keys()
    moved = sum(float((w - whole[k]).norm() ** 2) for k, w in weights.items() if not k.endswith("bias")) ** 0.5
    assert moved <= tolerance * 10 * sum(float(w.norm() ** 2) for w in whole.values()) ** 0.5


@pytest.mark.timeout(1200)
def test_gradient_norms_agree_between_stages(told):
    """Without ZeRO in float32 DeepSpeed tells no norm; half precision without ZeRO must tell stage 1's."""
    for name in ("zero1 offload", "zero2", "zero2 offload", "zero3", "zero3 offload both"):
        assert told[name]["norms"] == pytest.approx(told["zero1"]["norms"], rel=1e-4), name
    assert told["bf16 zero0"]["norms"] == pytest.approx(told["bf16 zero1"]["norms"], rel=5e-3)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("kept", "again"),
    [("zero3 no recomputation", f"zero3{level}") for level in (" attention", "", " full")] + [("bf16 zero3", "bf16 zero3 full")],
)
def test_what_is_recomputed_is_the_same(told, kept, again):
    """With ZeRO-3 and expert parallelism on two ranks; a norm that agrees is a gradient that does, in every update."""
    assert told[again]["losses"] == pytest.approx(told[kept]["losses"], rel=1e-6)
    assert told[again]["norms"] == pytest.approx(told[kept]["norms"], rel=1e-6)


@pytest.mark.timeout(1200)
def test_fp16_scales_the_loss(told):
    assert told["fp16 zero2"]["loss_scale"] == told["fp16 zero3"]["loss_scale"] == 1024
    assert told["fp16 fixed"]["loss_scale"] == 128
    assert told["fp16 zero2"]["skipped"] == told["fp16 fixed"]["skipped"] == 0


@pytest.mark.timeout(1200)
def test_an_overflow_skips_the_step_and_halves_the_scale(told):
    got = told["fp16 overflow"]
    assert got["skipped"] == 5  # 2^24 is far above what these gradients allow, and five halvings do not reach it
    assert got["loss_scale"] == 2.0**24 / 2**5
    assert all(norm == float("inf") for norm in got["norms"])


def has_libaio() -> bool:
    from mri_ds.training.ds_config.limits import _has_libaio

    return _has_libaio()


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not has_libaio(), reason="libaio-dev is not installed")
@pytest.mark.skipif("MRI_DS_TEST_NVME" not in os.environ, reason="set MRI_DS_TEST_NVME=1: DeepSpeed compiles for minutes first")
def test_offload_to_nvme(told, tmp_path):
    """The experts are ZeRO-3's, as AutoEP could not save its own. The first run compiles the disk reader."""
    folder = tmp_path / "nvme"
    folder.mkdir()
    to = f"{{device: nvme, nvme_path: {folder}}}"
    optimizer, param = (f"zero_optimization.offload_{what}={to}" for what in ("optimizer", "param"))
    whole = "expert_parallel.enabled=false"
    cases = {"optimizer": {"ds": [whole, optimizer]}, "param": {"ds": [param]}, "both": {"ds": [whole, optimizer, param]}}
    got = engines.run(cases, ranks=2, folder=tmp_path, steps=5, timeout_s=1000)
    for name, row in got.items():
        assert row["losses"] == pytest.approx(told["reference"]["losses"], rel=1e-5), name
        assert row["swapped_bytes"] > 100_000, name
