"""Ranks: who am I, how do we start, how do we agree.

Every launcher (deepspeed, torchrun, srun, mpirun, none) ends up here; without one, a single process is a world of one.
"""

import json
import os
import shutil
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from mri_ds.errors import InputError, RunError
from mri_ds.sample import Batch
from mri_ds.training import heart, launchers, peers
from mri_ds.training.processes import remove_stale_build_locks


def prepare_environment() -> None:
    """Sets what DeepSpeed reads at import; call before importing it.

    One folder of compiled operators per Python environment, because two environments that share one rebuild each other's.
    Locks that a killed build left there make every later start hang without a word; the first rank of a node removes them.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")))
    ninja = Path(sys.executable).parent / "ninja"
    # ssh and srun start ranks without the environment's bin folder on PATH, and another version of ninja builds everything anew
    if shutil.which("ninja") is None or (ninja.exists() and shutil.which("ninja") != str(ninja)):
        os.environ["PATH"] = f"{ninja.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        remove_stale_build_locks(folder, is_shared=world_size() > 1)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        os.environ.setdefault("RANK", "0")
        os.environ.setdefault("LOCAL_RANK", "0")
        os.environ.setdefault("WORLD_SIZE", "1")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(launchers.free_port()))


def start(timeout_s: float) -> None:
    """Joins the process group (gloo on CPU, NCCL on GPU), where a message may take `timeout_s`; a no-op when joined."""
    launchers.adopt()
    launchers.check()
    launchers.choose_interface()
    prepare_environment()
    import deepspeed

    if not torch.distributed.is_initialized():
        # An operator that only inference uses. Building it takes a minute at the first start, ranks fail or hang where builds
        # cross (the same folder on several nodes), and it leaves 69 MB of every rank in /dev/shm.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(timeout=timedelta(seconds=timeout_s), verbose=False)
    # without a heart nobody would end their thread, and a request that is under way at exit aborts the process
    if world_size() > 1 and heart.is_beating() and not heart.is_supervised():
        heart.know_peers(peers.meet(rank(), world_size()))


def tell_world() -> None:
    """Rank 0 says how many ranks there are, on which hosts, over what: `4 ranks on a, b x 3 (gloo)`. Every rank must call it."""
    name = socket.gethostname().encode()[:64]
    names = gather(torch.tensor(list(name.ljust(64, b"\0")), dtype=torch.uint8))
    if rank() == 0:
        counts = Counter(bytes(one.tolist()).rstrip(b"\0").decode() for one in names)
        hosts = ", ".join(host if count == 1 else f"{host} x {count}" for host, count in counts.items())
        ranks = "1 rank" if len(names) == 1 else f"{len(names)} ranks"
        print(f"{ranks} on {hosts} ({torch.distributed.get_backend()})", file=sys.stderr, flush=True)


def stop() -> None:
    """Leaves the process group; a rank that skips this makes its peers report a broken connection at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Ranks on this node, as the launcher tells (torchrun: LOCAL_WORLD_SIZE, DeepSpeed: LOCAL_SIZE), or else all there are."""
    told = (os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"))
    return next((int(size) for size in told if size), world_size())


def device() -> torch.device:
    """This rank's device: its own GPU, or the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")


def to_device(batch: Batch) -> Batch:
    """The batch on this rank's device, less its subjects' names, which are text."""
    to = device()

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: move(v) for k, v in value.items()}
        return value.to(to, non_blocking=True) if isinstance(value, torch.Tensor) else value

    return move({k: v for k, v in batch.items() if k != "subject_id"})  # type: ignore[no-any-return]


def average(values: dict[str, float]) -> dict[str, float]:
    """Mean over ranks of each entry; every rank must hold the same keys."""
    if world_size() == 1:
        return values
    keys = sorted(values)
    packed = torch.tensor([values[k] for k in keys], dtype=torch.float64, device=device())
    torch.distributed.all_reduce(packed)
    return dict(zip(keys, (packed / world_size()).tolist(), strict=True))


def maximum(*values: int) -> tuple[int, ...]:
    """The largest of the ranks' values, of each. Every rank must call it."""
    if world_size() == 1:
        return values
    packed = torch.tensor(values, dtype=torch.int32, device=device())
    torch.distributed.all_reduce(packed, op=torch.distributed.ReduceOp.MAX)
    return tuple(packed.tolist())


def gather(values: torch.Tensor) -> torch.Tensor:
    """The same-shaped tensors of all ranks, (ranks, *shape), on the CPU."""
    if world_size() == 1:
        return values.detach().cpu()[None]
    own = values.detach().to(device())
    everyone = [torch.empty_like(own) for _ in range(world_size())]
    torch.distributed.all_gather(everyone, own)
    return torch.stack(everyone).cpu()


def say(text: str) -> list[str]:
    """The texts of all ranks, by rank; of a long one its first kilobyte."""
    told = torch.zeros(1024, dtype=torch.uint8)
    content = text.encode()[: len(told)]
    told[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else told[:0]
    return [bytes(row[row > 0].tolist()).decode(errors="ignore") for row in gather(told)]


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, on the CPU; integers wrap."""
    if world_size() == 1:
        return values
    moved = values.to(device())
    torch.distributed.all_reduce(moved)
    return moved.cpu()


def from_first_rank(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rank 0's named CPU tensors on every rank; nothing is pickled."""
    if world_size() == 1:
        return tensors
    from safetensors.torch import load, save

    packed = torch.frombuffer(bytearray(save(tensors)), dtype=torch.uint8).to(device())
    size = torch.tensor([len(packed)], device=device())
    torch.distributed.broadcast(size, src=0)
    if rank() != 0:
        packed = torch.empty(int(size), dtype=torch.uint8, device=device())
    torch.distributed.broadcast(packed, src=0)
    return load(packed.cpu().numpy().tobytes())


def by_first_rank(work: Callable[[], None]) -> None:
    """Rank 0 works while the others wait, however long: a word every second keeps the process group from timing out.

    All ranks raise what rank 0 raises; the others as an InputError or a RunError of the same text.
    """
    if world_size() == 1:
        work()
        return
    raised: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as err:
            raised.append(err)

    thread = threading.Thread(target=run, daemon=True)
    if rank() == 0:
        thread.start()
    while True:
        word = ""
        if rank() == 0:
            thread.join(timeout=1.0)
            if not thread.is_alive():
                word = f"{'input' if isinstance(raised[0], InputError) else 'failed'}:{raised[0]}" if raised else "done"
        word = say(word)[0]
        if word:
            break
    if raised:
        raise raised[0]
    kind, _, text = word.partition(":")
    if text:
        raise InputError(text) if kind == "input" else RunError(text)


def gather_json(value: Any) -> list[Any]:
    """A plain value (numbers, texts, lists, mappings by text, None) of every rank, in their order."""
    own = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = gather(torch.tensor(len(own)))
    padded = torch.zeros(int(sizes.max()), dtype=torch.uint8)
    padded[: len(own)] = own
    return [json.loads(bytes(row[:size].tolist())) for row, size in zip(gather(padded), sizes.tolist(), strict=True)]


def barrier() -> None:
    if torch.distributed.is_initialized() and world_size() > 1:
        torch.distributed.barrier()
