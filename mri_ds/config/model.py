"""The architecture, and the scales as rows of one table."""

from typing import Literal

from pydantic import Field

from mri_ds.config.strict import Strict, Triple


class ModelConfig(Strict):
    """Architecture. `scale` names a row of SCALES; a field set here explicitly wins over the row."""

    scale: str = "small"
    in_channels: int = Field(default=1, ge=1)
    embed_dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_experts: int = 64
    expert_hidden: int = 256
    top_k: int = 2
    residual_experts: bool = False  # beside its experts, every token visits one dense network; a learned share of each counts
    token_stride: Triple = (8, 8, 8)  # voxels from one token to the next; cubes are twice as long, so they overlap
    stem_channels: int = 8  # full-resolution feature width; half resolution has 4 times as many
    gradient_scales_mm: list[float] = [1.0, 2.0]
    attention: Literal["full", "windowed"] = "full"
    window: Triple = (4, 4, 4)  # tokens
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    skip_dropped: bool = False  # samples that drop_path drops are not computed; their tokens then count in no router
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    attention_backends: list[Literal["flash", "cudnn", "efficient", "math"]] = Field(
        default=["flash", "cudnn", "efficient", "math"], min_length=1
    )  # the first that takes the case computes attention
    decoder_layers: int = Field(default=0, ge=0)  # transformer blocks between the decoder's convolutions, half a stride apart
    dense_double_cubes: bool = False  # the largest cubes stand at every token, not at every second one: exact under every shift
    use_gradients: bool = True
    use_multi_scale: bool = True
    use_moe: bool = True
    use_kan: bool = True
    use_cross_task: bool = True
    task_branches: bool = False  # after cross-task attention, one network for each task of the whole volume
    deep_supervision: bool = False  # in training, half-resolution logits are judged as well, see loss.deep_supervision
    predict_variance: bool = False  # regression heads also tell how unsure they are, see loss.regression


# params (total)      tiny: tests     32 M     85 M    200 M    500 M
SCALES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 32, "num_layers": 2, "num_heads": 2, "num_experts": 4, "expert_hidden": 32, "stem_channels": 4},
    "small": {"embed_dim": 128, "num_layers": 4, "num_heads": 4, "num_experts": 64, "expert_hidden": 272, "stem_channels": 8},
    "base": {"embed_dim": 256, "num_layers": 8, "num_heads": 8, "num_experts": 16, "expert_hidden": 736, "stem_channels": 8},
    "large": {"embed_dim": 512, "num_layers": 12, "num_heads": 8, "num_experts": 8, "expert_hidden": 1024, "stem_channels": 16},
    "xl": {"embed_dim": 768, "num_layers": 16, "num_heads": 12, "num_experts": 8, "expert_hidden": 1360, "stem_channels": 16},
}
