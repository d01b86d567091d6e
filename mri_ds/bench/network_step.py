"""One turn of `bench network`: builds one network, trains it for a few steps on noise, tells what that took, and ends.

`python -m mri_ds.bench.network_step JOB`, JOB a JSON object {"name", "patch", "batch", "steps", "dtype", "threads"}. The line
that begins with ANSWER holds {"step_s", "cpu_s", "peak_bytes", "flops", "product_flops_per_s", "parameters"}, times one per step.
A process to a turn, so that memory is this network's alone: the growth of the resident set since everything was imported.
Peers are trained under autocast with PyTorch's fused AdamW and judged by cross-entropy alone, the cheapest loss there is. Ours
go through the engine of `mri-ds train` on one rank with the whole objective: three tasks, and their loss. A name that ends with
"+compile" has its blocks compiled.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mri_ds.bench.attention import status_bytes
from mri_ds.bench.peers import PEERS, MissingPackage, build_peer
from mri_ds.bench.scaling_rank import ANSWER, TASKS, make_batch
from mri_ds.training.work import FlopMeter, measured_flops

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
COMPILED = "+compile"
NUM_CLASSES = len(TASKS["tissue"].classes)
DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
Verbs = tuple[Callable[[], torch.Tensor], Callable[[torch.Tensor], None], int]  # loss, update, number of weights


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    dtype = DTYPES[job["dtype"]]
    try:
        made = _peer(job, dtype) if job["name"] in PEERS else _ours(job)
    except MissingPackage as err:
        print(f"\n{ANSWER}{json.dumps({'absent': str(err)})}", flush=True)
        return
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew from here
    before = status_bytes("VmRSS")
    forward, update, parameters = made()
    products = [_product_flops(dtype)]
    meter = FlopMeter()
    loss, flops = meter.forward(forward, (job["patch"],))
    update(loss)
    update(forward())  # kernels, buckets, allocator
    wall, cpu = [], []
    for _ in range(job["steps"]):
        began, began_cpu = time.perf_counter(), time.process_time()
        update(forward())
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    products.append(_product_flops(dtype))
    told = {
        "step_s": wall,
        "cpu_s": cpu,
        "peak_bytes": status_bytes("VmHWM") - before,
        "flops": flops,
        "product_flops_per_s": max(products),
        "parameters": parameters,
    }
    print(f"\n{ANSWER}{json.dumps(told)}", flush=True)


def _product_flops(dtype: torch.dtype) -> float:
    return measured_flops(torch.device("cpu"), dtype, least_s=0.2)


def _peer(job: dict[str, Any], dtype: torch.dtype) -> Callable[[], Verbs]:
    build_peer(job["name"], patch=job["patch"], num_classes=NUM_CLASSES)  # imports; the real one is built where memory is counted
    batch = make_batch(job["batch"], job["patch"])

    def make() -> Verbs:
        net = build_peer(job["name"], patch=job["patch"], num_classes=NUM_CLASSES).train()
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)

        def forward() -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                return F.cross_entropy(net(batch["image"]), batch["targets"]["tissue"])

        def update(loss: torch.Tensor) -> None:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return forward, update, sum(p.numel() for p in net.parameters())

    return make


def _ours(job: dict[str, Any]) -> Callable[[], Verbs]:
    from mri_ds.config import load_config
    from mri_ds.training import distributed, ds_config
    from mri_ds.training.engine import build_engine, build_objective

    scale = job["name"].removesuffix(COMPILED)
    sets = [f"training.global_batch={job['batch']}", "model.token_stride=[8,8,8]"]
    config = load_config(scale=scale, overrides=sets)
    config.tasks = TASKS
    half = str(job["dtype"] == "bfloat16").lower()
    sets = ["zero_optimization.stage=0", f"bf16.enabled={half}", "fp16.enabled=false", "activation_checkpointing.level=none"]
    sets.append(f"compile.blocks={str(job['name'].endswith(COMPILED)).lower()}")
    distributed.start(600)
    resolved = ds_config.resolve(ds_config.read(DS_CONFIGS / f"{scale}.json", sets), config, world_size=1)
    batch = make_batch(job["batch"], job["patch"])

    def make() -> Verbs:
        engine = build_engine(build_objective(config), resolved)

        def forward() -> torch.Tensor:
            return engine(batch)["loss"]  # type: ignore[no-any-return]

        def update(loss: torch.Tensor) -> None:
            engine.backward(loss)
            engine.step()

        return forward, update, sum(p.numel() for p in engine.module.parameters())

    return make


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
