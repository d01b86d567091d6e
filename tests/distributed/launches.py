"""Starts real launches for tests, bounded in time, and stops what it started by process id."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


def train_command(ranks: int, **settings) -> list[str]:
    """The command line a user types: `deepspeed` for several ranks, `mri-ds train` for one."""
    bin_dir = Path(sys.executable).parent
    start = [str(bin_dir / "mri-ds"), "train"]
    if ranks > 1:
        launcher = [str(bin_dir / "deepspeed"), "--num_accelerators", str(ranks), "--master_port", str(free_port())]
        start = [*launcher, str(ROOT / "launch/train.py")]
    return [*start, *train_options(**settings)]


def train_options(*, data: Path, run: Path, ds_config: Path, sets: list[str], config: Path | None = None, more=()) -> list[str]:
    science = [x for item in sets for x in ("--set", item)] + (["--config", str(config)] if config else [])
    return ["--ds_config", str(ds_config), "--scale", "tiny", "--data", str(data), "--run", str(run), *science, *more]


def environment() -> dict[str, str]:
    venv_bin = str(Path(sys.executable).parent)
    return {
        "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_extensions"),
        **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")},
        "PATH": f"{venv_bin}:{os.environ.get('PATH', '')}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }


@contextmanager
def started(command: list[str], log: Path):
    """Popen of a launch whose whole process tree is gone afterwards."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment(),
            cwd=ROOT,
            start_new_session=True,
        )
        seen: dict[int, psutil.Process] = {}
        try:
            yield process, lambda: seen.update({p.pid: p for p in psutil.Process(process.pid).children(recursive=True)}) or seen
        finally:
            if process.poll() is None:
                seen |= {p.pid: p for p in psutil.Process(process.pid).children(recursive=True)}
                process.kill()
                process.wait()
            for p in seen.values():
                if p.is_running():
                    p.kill()


def run(command: list[str], log: Path, *, timeout_s: float = 180) -> str:
    """Runs a launch to its end, which must be success, and returns its output."""
    with started(command, log) as (process, _):
        code = process.wait(timeout=timeout_s)
    text = log.read_text()
    assert code == 0, text[-4000:]
    return text


def losses(run_dir: Path) -> dict[int, float]:
    """{step: loss} of metrics.jsonl."""
    return logged(run_dir, "loss")


def logged(run_dir: Path, name: str) -> dict[int, float]:
    """{step: value} of metrics.jsonl."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows}


def wait_for(condition, *, timeout_s: float, what: str):
    """Polls until `condition()` is true; its value."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s} s for {what}")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
