"""Real ranks that build engine after engine: one start, many configurations.

`run(...)` starts the ranks and returns what each case told; `main(JOB)` is what one of them runs. A case goes through
`ds_config.read` with its overrides, `resolve`, `build_engine` and `train_step`, as a run does; only the batches are made here,
functions of the step, each rank its share of the same global batch.
"""

import functools
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import launches
import torch

TASKS = {
    "seg": {"kind": "segmentation", "classes": ["background", "bright"]},
    "cls": {"kind": "classification", "classes": ["low", "high"]},
    "reg": {"kind": "regression"},
}
SETS = ["model.drop_path=0", "model.token_stride=[4,4,4]", "training.global_batch=4", "training.lr=0.0005"]


def run(cases: dict, *, ranks: int, folder: Path, steps: int, sets=(), timeout_s: float = 240, on_gpu=False, **job) -> dict:
    """{case: what it told}; fails with the ranks' output when one of them fails.

    A case: {"ds": overrides, and optionally "sets": YAML overrides, "export": bool, "resume": bool, "sgd": rate}. SGD takes the
    place of AdamW, whose updates do not tell a gradient from its double.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.json"
    path.write_text(json.dumps({"cases": cases, "steps": steps, "sets": [*SETS, *sets], "folder": str(folder), **job}))
    log = folder / "log"
    if on_gpu:
        codes = [_start_one_on_gpu(path, log, timeout_s)]
    else:
        codes = forked.start(ranks, log, main, str(path), timeout_s=timeout_s)
    assert codes == [0] * ranks, log.read_text()[-5000:]
    return json.loads((folder / "told.json").read_text())


def _start_one_on_gpu(path: Path, log: Path, timeout_s: float) -> int:
    env = {key: value for key, value in launches.environment().items() if key not in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES")}
    env |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "PYTHONPATH": str(launches.ROOT)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launches.free_port())}
    with log.open("w") as out:
        command = [sys.executable, __file__, str(path)]
        return subprocess.run(command, env=env, cwd=launches.ROOT, stdout=out, stderr=out, timeout=timeout_s).returncode


def batch_of(step: int, total: int, part: slice) -> dict:
    generator = torch.Generator().manual_seed(1000 + step)
    image = torch.randn(total, 1, 16, 16, 16, generator=generator)
    targets = {
        "seg": (image[:, 0] > 0.5).long(),
        "cls": torch.randint(0, 2, (total,), generator=generator),
        "reg": torch.randn(total, generator=generator),
    }
    count = len(range(*part.indices(total)))
    return {
        "image": image[part],
        "spacing_mm": torch.ones(count, 3),
        "targets": {name: target[part] for name, target in targets.items()},
        "mask": {name: torch.ones(count) for name in targets},
    }


def main(path: str) -> None:
    from mri_ds.training import distributed

    job = json.loads(Path(path).read_text())
    distributed.start(300)
    try:
        if job.get("emulate_fp16"):
            _emulate_fp16()
        told = {name: _case(name, case, job) for name, case in job["cases"].items()}
        if distributed.rank() == 0:
            (Path(job["folder"]) / "told.json").write_text(json.dumps(told))
        distributed.barrier()
    finally:
        distributed.stop()


def _emulate_fp16() -> None:
    """DeepSpeed refuses fp16 on a CPU without fp16 products; PyTorch computes it all the same, slowly."""
    from deepspeed.accelerator import get_accelerator

    from mri_ds.training.ds_config import limits

    type(get_accelerator()).is_fp16_supported = lambda self: True
    limits.supports_fp16 = lambda: True


def _case(name: str, case: dict, job: dict) -> dict:
    from mri_ds.config import TaskConfig, load_config
    from mri_ds.training import distributed, ds_config
    from mri_ds.training.checkpoint import Checkpoints, export

    config = load_config(scale="tiny", overrides=[*job["sets"], f"training.steps={job['steps']}", *case.get("sets", [])])
    config.tasks = {task: TaskConfig(**facts) for task, facts in TASKS.items()}
    raw = ds_config.read(launches.ROOT / "ds_configs/tiny.json", case["ds"])
    resolved = ds_config.resolve(raw, config, world_size=distributed.world_size())
    if "sgd" in case:
        resolved["optimizer"] = {"type": "SGD", "params": {"lr": case["sgd"], "weight_decay": 0.0}}
    folder = Path(job["folder"]) / name.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    half = job["steps"] // 2 if case.get("resume") else job["steps"]
    engine = _engine(config, resolved)
    told = _steps(engine, config, range(half))
    if case.get("resume"):
        checkpoints = Checkpoints(engine, folder, config.training)
        checkpoints.save(half, batch=batch_of(0, 1, slice(0, 1)), data={}, scalars={})
        checkpoints.wait()
        _drop(engine)
        engine = _engine(config, resolved, seed=1)
        assert Checkpoints(engine, folder, config.training).resume(lambda data: None) == half
        told = {key: told[key] + value for key, value in _steps(engine, config, range(half, job["steps"])).items()}
    if case.get("export"):
        export(engine, folder)
    told |= {
        "dtype": str(next(engine.module.parameters()).dtype),
        "loss_scale": float(getattr(engine.optimizer, "loss_scale", 1.0)),
        "skipped": engine.skipped_steps,
        "resolved": resolved,
        "swapped_bytes": sum(file.stat().st_size for file in Path(job["folder"], "nvme").rglob("*") if file.is_file()),
    }
    _drop(engine)
    return told


def _engine(config, resolved, seed=0):
    from mri_ds.training.engine import build_engine, build_objective

    torch.manual_seed(seed)
    return build_engine(build_objective(config), resolved)


def _steps(engine, config, steps) -> dict:
    from mri_ds.training import distributed
    from mri_ds.training.expert_load import ExpertLoad
    from mri_ds.training.loop import train_step

    total, world, rank = config.training.global_batch, distributed.world_size(), distributed.rank()
    micro = engine.train_micro_batch_size_per_gpu()
    load = ExpertLoad(engine.module, list(config.tasks))
    losses, norms = [], []
    for step in steps:
        batches = (
            batch_of(step, total, slice(start + rank * micro, start + (rank + 1) * micro))
            for start in range(0, total, micro * world)
        )
        mean, _ = train_step(engine, batches, window())
        load.balance(rate=config.training.balance_rate)
        losses.append(distributed.average({"loss": mean["loss"]})["loss"])
        norms.append(float(engine.get_global_grad_norm() or 0.0))
    return {"losses": losses, "norms": norms}


@functools.cache
def window():
    """One for all engines: it counts the arithmetic of each shape of batch once, which costs as much as the step."""
    from mri_ds.training.window import Window

    return Window()


def _drop(engine) -> None:
    engine.destroy()
    del engine
    gc.collect()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main(sys.argv[1])
