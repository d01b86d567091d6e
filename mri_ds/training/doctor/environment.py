"""This machine's software: a known bad release, a lock that a killed build left, MPI, launchers, ports, .deepspeed_env."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from mri_ds.training.doctor.finding import Finding, Request

PACKAGES = ["torch", "deepspeed", "numpy", "mri_ds", "ninja", "safetensors", "webdataset"]  # that must be alike on all nodes
STALE_S = 120.0  # compiling an operator takes 25 to 60 s
LAUNCHERS = {"pdsh": "pdsh", "openmpi": "mpirun", "mpich": "mpirun", "impi": "mpirun", "slurm": "srun", "torchrun": "torchrun"}
MPI_LAUNCHERS = ("openmpi", "mpich", "impi")


def check_environment(request: Request) -> list[Finding]:
    findings = [*check_versions(versions()), *_locks(), *_deepspeed_env()]
    if request.nodes > 1 or request.launcher != "pdsh":
        findings += _launcher(request.launcher)
    if request.nodes == 1 and request.hostfile is None:
        findings += _port(request.master_port)
    return findings


def versions() -> dict[str, str]:
    """Of what is installed here, among PACKAGES."""
    out = {}
    for name in PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def check_versions(found: Mapping[str, str], where: str = "") -> list[Finding]:
    if found.get("torch", "").startswith("2.9."):
        reason = f"torch {found['torch']} runs 3-D convolutions under AMP four times slower (pytorch #166122)"
        return [Finding("torch-conv3d", reason, "install torch>=2.11,<2.14", where)]
    return []


def extensions_folder() -> Path:
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_extensions")


def _locks() -> list[Finding]:
    """A build that was killed leaves its lock, and every later start waits for it without a word (torch's file_baton)."""
    out = []
    for lock in sorted(extensions_folder().glob("*/lock")):
        age = time.time() - lock.stat().st_mtime
        if age > STALE_S:
            out.append(Finding("stale-jit-lock", f"a build of {age / 60:.0f} minutes ago left it", f"rm {lock}", str(lock)))
    return out


def _deepspeed_env() -> list[Finding]:
    """DeepSpeed's launcher reads .deepspeed_env line by line and crashes on any that is not NAME=value."""
    for folder in (Path.cwd(), Path.home()):
        path = folder / os.environ.get("DS_ENV_FILE", ".deepspeed_env")
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "=" not in line or line.lstrip().startswith("#"):
                reason = f"line {number} {line!r} is not NAME=value, which crashes DeepSpeed's launcher"
                return [Finding("deepspeed-env", reason, "remove comments and blank lines", str(path))]
    return []


def _launcher(name: str) -> list[Finding]:
    if name not in LAUNCHERS:
        return [Finding("launcher-unknown", f"launcher {name!r}", f"use one of {', '.join(LAUNCHERS)}")]
    program, out = LAUNCHERS[name], []
    if shutil.which(program) is None:
        out.append(Finding("launcher-missing", f"{program}, which --launcher {name} needs, is not on PATH", f"install {program}"))
    if name in MPI_LAUNCHERS:
        tried = subprocess.run([sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, text=True)
        if tried.returncode:
            last = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
            out.append(
                Finding("mpi-library", f"mpi4py cannot be used: {last[:120]}", "install an MPI library: pip install mpich")
            )
    return out


def _port(port: int) -> list[Finding]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one in TIME_WAIT is free, as for torch's own store
        try:
            probe.bind(("", port))
        except OSError as err:
            return [Finding("port-taken", f"port {port}: {err.strerror}", "end what holds it, or give another --master_port")]
    return []
