"""Which number format a run computes in, as the machine decides where the JSON says "auto"."""

from collections.abc import Mapping
from typing import Any

import torch


def precision(bf16: Mapping[str, Any], fp16: Mapping[str, Any]) -> dict[str, bool]:
    """{"bf16": ..., "fp16": ...}, at most one of them on when neither is asked for; neither is float32.

    "auto" bf16 is on where its matrix products are fast. "auto" fp16 is on only on a GPU that has no bf16, and only when the JSON
    leaves bf16 to the machine too: who switches bf16 off by hand wants float32.
    """
    asked_bf16, asked_fp16 = bf16.get("enabled", False), fp16.get("enabled", False)
    use_bf16 = supports_bf16() and asked_fp16 is not True if asked_bf16 == "auto" else bool(asked_bf16)
    if asked_fp16 != "auto":
        return {"bf16": use_bf16, "fp16": bool(asked_fp16)}
    return {"bf16": use_bf16, "fp16": asked_bf16 == "auto" and not use_bf16 and torch.cuda.is_available()}


def supports_bf16() -> bool:
    """True where bf16 matrix products are fast: a GPU that has them, or a CPU with AMX or AVX-512 BF16 instructions.

    Measured on two cores, 2048^3 products: 6 x float32 with AMX, 2.5 x with AVX-512 BF16; without either bf16 is emulated.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def supports_fp16() -> bool:
    """What DeepSpeed asks before it accepts fp16: any GPU, or a CPU whose oneDNN has fp16 products (AVX-512 FP16, AMX FP16)."""
    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
