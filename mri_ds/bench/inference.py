"""Time and peak memory of labels for a whole volume in overlapping windows, beside MONAI's inferer.

Axes: K classes, D H W voxels.
The work: the same random volume, tiny network, windows and Gaussian weights; out come labels. Each contender runs in a process of
its own, whose peak resident memory the kernel tells (interpreter and torch included). Both run at `common` voxels, where the
whole buffer fits; ours at `size` as well. MONAI's way is its documentation's: sliding_window_inference, then argmax.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mri_ds.data.preprocess import Placement
from mri_ds.inference.native import Map, Stream, label_maps
from mri_ds.inference.subject import BUFFER_BYTES
from mri_ds.nn.window_stream import WindowStream

SEED = 0
Job = dict[str, Any]  # size, classes, patch, overlap, contender, out


def bench_inference(
    *, size: int, common: int, classes: int, patch: int, overlap: float, rounds: int, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """{"common": {contender: row}, "large": row, "equal_share", "wall_ratio", "cpu_ratio", "memory_ratio"}, medians over rounds.

    A row: {"size", "wall_s", "cpu_s", "peak_bytes", "buffer_bytes"}, the last being what the float32 scores of all classes take.
    """
    shared = {"classes": classes, "patch": patch, "overlap": overlap}
    rows: dict[str, list[Job]] = {name: [] for name in CONTENDERS}
    total = rounds * len(CONTENDERS) + (size > common)
    with tempfile.TemporaryDirectory() as folder:
        labels = {name: Path(folder) / f"{name}.npy" for name in CONTENDERS}
        for number in range(rounds):
            for place, name in enumerate(CONTENDERS):
                rows[name].append(_in_child({**shared, "size": common, "contender": name, "out": str(labels[name])}))
                progress(number * len(CONTENDERS) + place + 1, total)
        ours, monai = (np.load(labels[name]) for name in ("mri_ds", "MONAI"))
        large = _in_child({**shared, "size": size, "contender": "mri_ds", "out": ""}) if size > common else None
        progress(total, total)
    medians = {
        name: {**found[0], **{key: float(np.median([r[key] for r in found])) for key in MEASURED}} for name, found in rows.items()
    }
    return {
        **shared,
        "common": medians,
        "large": large,
        "equal_share": float((ours == monai).mean()),
        **{
            f"{key.partition('_')[0]}_ratio": medians["MONAI"][key] / medians["mri_ds"][key] for key in MEASURED
        },
    }  # fmt: skip


MEASURED = ("wall_s", "cpu_s", "peak_bytes")


def ours(net: nn.Module, image: torch.Tensor, job: Job) -> np.ndarray:
    shape = (job["size"],) * 3
    windows = WindowStream(lambda x: {"map": net(x)}, image, patch=(job["patch"],) * 3, overlap=job["overlap"])
    maps = {"map": Map(np.zeros(shape, dtype=np.int16))}
    d, h, w = (slice(0, n) for n in shape)
    label_maps([Stream(windows)], Placement(shape, (d, h, w)), maps, {"map": job["classes"]}, buffer_bytes=BUFFER_BYTES)
    return maps["map"].labels


def monai(net: nn.Module, image: torch.Tensor, job: Job) -> np.ndarray:
    from monai.inferers import sliding_window_inference

    scores = sliding_window_inference(image, (job["patch"],) * 3, 1, net, overlap=job["overlap"], mode="gaussian")
    return scores.argmax(dim=1)[0].numpy()  # type: ignore[union-attr, no-any-return]


CONTENDERS = {"mri_ds": ours, "MONAI": monai}


def run_job(job: Job) -> Job:
    """In the child: the row of one contender. The network takes eight features of 3^3 voxels to K scores."""
    torch.manual_seed(SEED)
    net = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, job["classes"], 1))
    image = torch.rand(1, 1, *(job["size"],) * 3, generator=torch.Generator().manual_seed(SEED))
    if job["contender"] == "MONAI":
        import monai.inferers  # noqa: F401  (its import is not what is timed)
    started, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        labels = CONTENDERS[job["contender"]](net, image, job)
    row = {"size": job["size"], "wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    if job["out"]:
        np.save(job["out"], labels.astype(np.int16))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**row, "peak_bytes": peak, "buffer_bytes": 4 * job["classes"] * job["size"] ** 3}


def _in_child(job: Job) -> Job:
    command = [sys.executable, "-m", "mri_ds.bench.inference", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{job['contender']} at {job['size']}^3 ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


if __name__ == "__main__":
    print(json.dumps(run_job(json.loads(sys.argv[1]))))
