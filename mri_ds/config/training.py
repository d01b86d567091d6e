"""How the weights are optimised: optimiser, schedule, intervals."""

from pydantic import Field

from mri_ds.config.strict import Strict


class TrainingConfig(Strict):
    """Optimisation. One step is one weight update on `global_batch` subjects, whatever the number of ranks."""

    steps: int = Field(default=1000, ge=1)
    global_batch: int = Field(default=4, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    min_lr_ratio: float = Field(default=0.01, ge=0, le=1)
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.02, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    balance_rate: float = Field(default=0.1, ge=0)  # step of the experts' selection bias, of the mean score; 0 is off
    seed: int = 0
    log_every: int = Field(default=10, ge=1)
    image_every: int = Field(default=100, ge=1)
    checkpoint_every: int = Field(default=100, ge=1)
    timeout_s: float = Field(
        default=600.0, gt=0
    )  # a rank in which nothing moves for so long ends the run, as does a lost message
    checkpoint_async: bool = True  # train on while a checkpoint is written, at the price of a copy of it in CPU memory
    keep_last: int = Field(default=2, ge=1)  # checkpoints that stay: the newest ones,
    keep_every: int = Field(default=0, ge=0)  # those of steps that this divides (0: none),
    keep_best: str = ""  # and that of the lowest scalar of this name in the log, as loss/tumour; "-" before it: of the highest
    validate_every: int = Field(default=100, ge=0)  # 0: never
    validate_subjects: int = Field(default=4, ge=1)  # held out, of split val, or else test
    max_nonfinite: int = Field(default=5, ge=1)  # steps in a row whose loss or gradient is not finite, after which the run stops
    rollback_deviations: float = Field(default=0.0, ge=0)  # 0 is off; a loss so many robust standard deviations above the last 50
    #                                                        sends weights and moments back to the last checkpoint
    wandb: str = ""  # project; empty tells Weights & Biases nothing
