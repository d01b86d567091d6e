"""Ranks: who am I, how do we start, how do we agree.

Every launcher (deepspeed, torchrun, srun, none) ends up here; without one, a single process is a world of one.
"""

import os
import shutil
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from mri_ds.sample import Batch

TIMEOUT_S = 600


def prepare_environment() -> None:
    """Sets what DeepSpeed reads at import; call before importing it.

    One folder of compiled operators per Python environment, because two environments that share one rebuild each other's.
    Locks that a killed build left there make every later start hang without a word, so on one node rank 0 removes them.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")))
    bin_dir = str(Path(sys.executable).parent)
    if shutil.which("ninja") is None:  # started by full path, without the environment's bin folder on PATH
        os.environ["PATH"] = f"{bin_dir}{os.pathsep}{os.environ.get('PATH', '')}"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        _remove_stale(list(folder.glob("*/lock")))
        os.environ.setdefault("RANK", "0")
        os.environ.setdefault("LOCAL_RANK", "0")
        os.environ.setdefault("WORLD_SIZE", "1")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))


def _remove_stale(locks: list[Path]) -> None:
    """Removes locks whose builder is gone; one that is building just now would fail without its lock."""
    seen = {lock: _inode(lock) for lock in locks if not _is_open(lock)}
    if seen:
        time.sleep(1)  # a builder that has just finished closes its lock before it removes it
    for lock, inode in seen.items():
        if inode is not None and _inode(lock) == inode and not _is_open(lock):
            lock.unlink(missing_ok=True)


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _is_open(path: Path) -> bool:
    """Whether a process that we may look into has the file open, as the holder of a build lock has."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) == str(path.resolve()):
                return True
    return False


def start() -> None:
    """Joins the process group (gloo on CPU, NCCL on GPU); a no-op when already joined."""
    prepare_environment()
    import deepspeed

    if not torch.distributed.is_initialized():
        deepspeed.init_distributed(timeout=timedelta(seconds=TIMEOUT_S), verbose=False)


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


def gather(values: torch.Tensor) -> torch.Tensor:
    """The same-shaped tensors of all ranks, (ranks, *shape), on the CPU."""
    if world_size() == 1:
        return values.detach().cpu()[None]
    own = values.detach().to(device())
    everyone = [torch.empty_like(own) for _ in range(world_size())]
    torch.distributed.all_gather(everyone, own)
    return torch.stack(everyone).cpu()


def from_first_rank(text: str) -> str:
    """Rank 0's text, on every rank."""
    if world_size() == 1:
        return text
    size = torch.tensor([len(text.encode())], device=device())
    torch.distributed.broadcast(size, src=0)
    buffer = torch.zeros(int(size), dtype=torch.uint8, device=device())
    if rank() == 0:
        buffer.copy_(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
    torch.distributed.broadcast(buffer, src=0)
    return bytes(buffer.cpu().tolist()).decode()


def barrier() -> None:
    if torch.distributed.is_initialized() and world_size() > 1:
        torch.distributed.barrier()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
