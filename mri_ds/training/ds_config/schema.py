"""What a DeepSpeed JSON may hold, as typed sections: a key that DeepSpeed does not read, or a value of the wrong kind, is named.

Where DeepSpeed 0.19 has a typed model of a section, that model is the section here; the others are written out below, and a test
holds them against what DeepSpeed reads. Keys that would have no effect on a run of ours are left out on purpose: TensorBoard is
written by training/tracker.py, recomputation is PyTorch's, sequence, tensor and pipeline parallelism have nothing to act on.
"""

from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from mri_ds.config import TrainingConfig
from mri_ds.config.strict import Strict
from mri_ds.nn.recomputation import Recompute

Dtype = Literal["fp32", "fp16", "bf16"]

# Written in the YAML, so refused here: where each is decided.
SCIENCE_KEYS = {
    "optimizer": "training.lr, training.betas, training.weight_decay",
    "scheduler": "training.warmup_fraction, training.min_lr_ratio, training.steps",
    "train_batch_size": "training.global_batch",
    "gradient_accumulation_steps": "training.global_batch (accumulation follows from it)",
    "data_efficiency": "curriculum",
    "expert_parallel.top_k": "model.top_k",
    "expert_parallel.num_experts": "model.num_experts",
    "expert_parallel.use_residual": "model.residual_experts",
    **{key: f"training.{key}" for key in TrainingConfig.model_fields},
}
# Keys for which "auto" means something, see resolution.py.
AUTO_KEYS = [
    "train_micro_batch_size_per_gpu",
    "fp16.enabled",
    "bf16.enabled",
    "zero_optimization.overlap_comm",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "expert_parallel.autoep_size",
]


class Section(Strict):
    """Takes no "1" for 1: DeepSpeed would be given the text."""

    model_config = ConfigDict(strict=True)


class ExpertParallel(Section):
    """How experts are spread over ranks. Ours, but for the last three, which AutoEP takes as they are."""

    enabled: bool = False
    backend: Literal["autoep", "native"] = "autoep"
    autoep_size: int = 1  # ranks that share one set of experts, with either back end
    capacity_factor: float | None = Field(default=None, gt=0)  # native: rows an expert takes, of its fair share; None: all
    eval_capacity_factor: float | None = Field(default=None, gt=0)  # outside training
    min_capacity: int = Field(default=4, ge=1)  # native: rows that an expert takes at least
    comm_backend: Literal["comm", "deepep"] = "comm"
    combine_impl: Literal["auto", "weighted_sum", "fused_weighted_sum", "legacy_bmm"] = "auto"
    async_split_plan: bool = False


class Recomputation(Section):
    level: Recompute = "none"


class Aio(Section):
    block_size: int = Field(default=2**20, ge=1)
    queue_depth: int = Field(default=8, ge=1)
    intra_op_parallelism: int = Field(default=1, ge=1)
    single_submit: bool = False
    overlap_events: bool = True
    use_gds: bool = False


class FlopsProfiler(Section):
    enabled: bool = False
    recompute_fwd_factor: float = 0.0
    profile_step: int = 1
    module_depth: int = -1
    top_modules: int = 1
    detailed: bool = True
    output_file: str | None = None


class Writer(Section):
    type: Literal["MOCK", "PYTHON", "FAST", "mock", "python", "fast"] = "FAST"
    io_buffer_size: int = Field(default=64 * 2**20, ge=1)
    io_buffer_double: bool = True
    io_multiplier: int = Field(default=1, ge=1)
    show_statistics: bool = False
    data_parallel: Literal["REPLICA", "SOCKET", "MACHINE", "replica", "socket", "machine"] | None = None
    decoupled: bool = False


class ParallelWrite(Section):
    pipeline_stage: bool = False


class Checkpoint(Section):
    tag_validation: Literal["IGNORE", "WARN", "FAIL", "Ignore", "Warn", "Fail", "ignore", "warn", "fail"] = "WARN"
    load_universal: bool = False
    use_node_local_storage: bool = False
    parallel_write: ParallelWrite = ParallelWrite()
    checkpoint_serialization: bool = True
    writer: Writer | None = None


class DataTypes(Section):
    grad_accum_dtype: Dtype | None = None
    param_dtype: Dtype | None = None
    buffer_dtype: Dtype | None = None
    keep_in_fp32_modules: str | list[str] = "auto"


class TorchAutocast(Section):
    enabled: bool = False
    dtype: Literal["bfloat16", "float16", "bf16", "fp16"] | None = None
    lower_precision_safe_modules: list[str] = []


@cache
def schema() -> type[BaseModel]:
    """The whole JSON. Imports DeepSpeed, which takes two seconds."""
    from mri_ds.training.distributed import prepare_environment

    prepare_environment()
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    class Compile(CompileConfig):
        blocks: bool = False  # ours, see training/compilation.py

    throughput = create_model("Timers", __base__=Section, throughput=(DeepSpeedThroughputTimerConfig | None, None))
    fields: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": (int, Field(default=1, ge=1)),
        "gradient_clipping": (float, Field(default=1.0, ge=0)),
        "prescale_gradients": (bool, False),
        "gradient_predivide_factor": (float, Field(default=1.0, gt=0)),
        "communication_data_type": (Dtype | None, None),
        "fp16": (DeepSpeedFP16Config, {}),
        "bf16": (DeepSpeedBF16Config, {}),
        "torch_autocast": (TorchAutocast, {}),
        "data_types": (DataTypes, {}),
        "zero_optimization": (DeepSpeedZeroConfig, {}),
        "zero_allow_untested_optimizer": (bool, True),
        "zero_force_ds_cpu_optimizer": (bool, False),
        "expert_parallel": (ExpertParallel, {}),
        "use_data_before_expert_parallelism": (bool, False),
        "activation_checkpointing": (Recomputation, {}),
        "aio": (Aio, {}),
        "checkpoint": (Checkpoint, {}),
        "compile": (Compile, {}),
        "comms_logger": (CommsLoggerConfig, {}),
        "flops_profiler": (FlopsProfiler, {}),
        "timers": (throughput, {}),
        "wall_clock_breakdown": (bool, False),
        "memory_breakdown": (bool, False),
        "steps_per_print": (int | None, None),
        "dump_state": (bool, False),
        "disable_python_gc": (bool, False),
        "log_level": (str, "info"),
    }
    return create_model("DeepSpeedJSON", __base__=Section, **fields)
