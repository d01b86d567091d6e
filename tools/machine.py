"""What this machine offers: GPUs, cores, a free port, and the environment that the project's commands run in."""

import functools
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


@functools.cache
def num_gpus() -> int:
    """NVIDIA GPUs that the driver lists; 0 without a driver. Asks the driver, because importing torch takes seconds."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def num_cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """That of an activated .venv, with the operators that tools/setup.sh compiled, and `variables`."""
    venv = Path(sys.prefix)
    path = f"{venv / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    compiled = {"TORCH_EXTENSIONS_DIR": str(venv / "torch_extensions")}
    return {**compiled, **os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **variables}


def remove_shared_buffers(port: int) -> None:
    """DeepSpeed's CPU ranks leave 69 MB each in shared memory, named after user and port."""
    for left in SHARED_MEMORY.glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*_{port}_*"):
        left.unlink(missing_ok=True)
