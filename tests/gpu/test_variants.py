"""The variants of ds_configs/README.md on one GPU: precision by the GPU's own products, offload through pinned memory."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import engines

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

OFFLOAD = "zero_optimization.offload_{}.device=cpu"
BOTH = [OFFLOAD.format("optimizer"), OFFLOAD.format("param")]
FP16 = "fp16={enabled: true, initial_scale_power: 10}"
VARIANTS = {
    "reference": ["zero_optimization.stage=0", "expert_parallel.enabled=false", "activation_checkpointing.level=none"],
    "zero1": ["zero_optimization.stage=1"],
    "zero2 offload": ["zero_optimization.stage=2", OFFLOAD.format("optimizer")],
    "native": ["zero_optimization.stage=2", "expert_parallel.backend=native"],
    "zero3": [],
    "zero3 offload": BOTH,
    "bf16 zero0": ["zero_optimization.stage=0", "bf16.enabled=true"],
    "bf16 zero3": ["bf16.enabled=true"],
    "bf16 zero3 offload": ["bf16.enabled=true", *BOTH],
    "fp16 zero2": ["zero_optimization.stage=2", FP16],
    "fp16 zero3": [FP16],
    "fp16 zero3 offload": [FP16, *BOTH],
}
TOLERANCE = {"bf16": 2e-2, "fp16": 1e-2}  # relative; float32 1e-4, as convolutions may pick other algorithms


@pytest.mark.timeout(600)
def test_losses_are_those_of_float32_without_zero(tmp_path):
    cases = {name: {"ds": ds} for name, ds in VARIANTS.items()}
    told = engines.run(cases, ranks=1, folder=tmp_path, steps=5, timeout_s=500, on_gpu=True)
    for name, row in told.items():
        tolerance = TOLERANCE.get(name.split()[0], 1e-4)
        assert row["losses"] == pytest.approx(told["reference"]["losses"], rel=tolerance), name
        assert row["skipped"] == 0, name
    assert told["fp16 zero3"]["loss_scale"] == 1024
