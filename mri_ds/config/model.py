"""The architecture; scales.py has its sizes."""

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
