"""A run that faults are done to from outside: started again and again with the same command, watched by its own files.

A fault is done at a step that metrics.jsonl tells of, to processes found by their environment. What must follow is always the
same: the launch ends in time, with its exit code and one line, and no process that knows the run's folder is left.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import launches
import psutil

STEPS = 48
SETS = [
    f"training.steps={STEPS}",
    "training.log_every=1",
    "training.checkpoint_every=3",
    "training.image_every=1000",
    "training.global_batch=4",
    "model.drop_path=0",  # its dice are a rank's own
    "training.lr=0.0002",  # at which rounding does not grow: any number of ranks gives the same
]
END_S = 60  # from the fault to the end of everything
SLOW = float(os.environ.get("MRI_DS_TEST_SLOWNESS", "1"))  # how much longer a start may take where the machine is shared


class Run:
    """One run folder, and the options of every launch of it."""

    def __init__(self, folder: Path, shards: Path, ranks: int) -> None:
        self.folder, self.shards, self.ranks = folder, shards, ranks

    def options(self, *sets: str) -> list[str]:
        where = ["--ds_config", "ds_configs/tiny.json", "--data", str(self.shards), "--run", str(self.folder)]
        return where + [f"--set={item}" for item in [*SETS, *sets]]

    def command(self, launcher: str = "mri-ds", *sets: str, more: list[str] | None = None) -> list[str]:
        port, bin_dir = str(launches.free_port()), Path(sys.executable).parent
        start = {
            "mri-ds": [str(bin_dir / "mri-ds"), "train", "--ranks", str(self.ranks)],
            "deepspeed": [str(bin_dir / "deepspeed"), "--num_accelerators", str(self.ranks), "--master_port", port],
            "torchrun": [str(bin_dir / "torchrun"), "--nproc_per_node", str(self.ranks), "--master_port", port],
        }[launcher]
        script = [] if launcher == "mri-ds" else ["launch/train.py"]
        return [*start, *script, *self.options(*sets), *(more or [])]

    @contextmanager
    def started(self, command: list[str], **environ: str):
        """The launch, with nothing of it left afterwards."""
        had = (self.folder / "checkpoints/latest").is_file()
        with (self.folder.parent / "log").open("w+") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**launches.environment(), **environ},
                cwd=launches.ROOT,
                start_new_session=True,
            )
            try:
                yield Launch(self, process, Path(log.name), had)
            finally:
                for left in [process, *self.processes()]:
                    left.kill()
                process.wait()

    def processes(self) -> list[psutil.Process]:
        """Every process that has the run's folder among its arguments."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and any(str(self.folder) in word for word in process.cmdline()):
                    found += [process] if process.status() != psutil.STATUS_ZOMBIE else []
            except psutil.Error:
                continue
        return found

    def rank(self, number: int) -> psutil.Process | None:
        """The process of one rank, None before it is there. Its data workers have the same environment, but are below it."""
        for process in self.processes():
            try:
                if process.environ().get("RANK") == str(number) != psutil.Process(process.ppid()).environ().get("RANK"):
                    return process
            except psutil.Error:
                continue
        return None

    def told(self) -> int:
        """The last step of metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def checkpoints(self) -> set[str]:
        return {path.name for path in (self.folder / "checkpoints").glob("step*")}


class Launch:
    """One launch of a Run."""

    def __init__(self, run: Run, process: subprocess.Popen, log: Path, resumes: bool) -> None:
        self.run, self.process, self.log, self.resumes = run, process, log, resumes

    def advance(self, steps: int = 2) -> None:
        """Waits until it has done that many steps of its own."""

        def base() -> str | None:
            found = re.findall(r"resuming from step (\d+)", self.text())
            return found[-1] if found else None if self.resumes else "0"

        def wait(condition, what: str):
            def alive() -> bool:
                assert self.process.poll() is None, f"ended while waiting for {what}:\n{self.text()[-3000:]}"
                return condition()

            return launches.wait_for(alive, timeout_s=120 * SLOW, what=f"{what}\n{self.text()[-3000:]}")

        first = int(wait(base, "the checkpoint to be loaded"))
        wait(lambda: self.run.told() >= first + steps, f"step {first + steps}")

    def rank(self, number: int) -> psutil.Process:
        return launches.wait_for(lambda: self.run.rank(number), timeout_s=60 * SLOW, what=f"rank {number}")

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ends(self, code: int | None, line: str, *, within_s: float = END_S) -> str:
        """It ends with `code` (None: any but 0), telling `line` (a pattern) once, and leaves nothing running; its output."""
        since = time.monotonic()
        try:
            got = self.process.wait(timeout=within_s * SLOW)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within_s} s:\n{self.text()[-3000:]}") from None
        text = self.text()
        assert got != 0 if code is None else got == code, f"exit code {got}\n{text[-3000:]}"
        while self.run.processes():
            assert time.monotonic() - since < within_s * SLOW, [
                (p.pid, p.status(), p.environ().get("RANK")) for p in self.run.processes()
            ]
            time.sleep(0.2)
        said = [one for one in self.text().splitlines() if re.search(line, one)]
        assert len(said) == 1, f"{len(said)} lines like {line!r}:\n{text[-3000:]}"
        return text


def send(process: psutil.Process | subprocess.Popen, name: str) -> None:
    process.send_signal(signal.Signals[name])
