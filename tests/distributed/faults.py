"""A run that faults are done to from outside: started again and again with the same command, watched by its own files.

A fault is done at a step that metrics.jsonl tells of, to processes found by their environment. What must follow is always the
same: the launch ends in time, with its exit code and one line, or starts again where that was asked for, and no process that
knows the run's folder is left.
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
import pytest

STEPS = 48
SETS = [
    f"training.steps={STEPS}",
    "training.log_every=1",
    "training.checkpoint_every=3",
    "training.image_every=1000",
    "training.validate_every=0",
    "training.global_batch=4",
    "data.num_workers=0",
    "data.patch=[16,16,16]",
    "model.num_layers=1",
    "model.embed_dim=16",
    "model.expert_hidden=16",
    "model.use_kan=false",
    "model.drop_path=0",  # its dice are a rank's own
    "training.lr=0.0002",  # at which rounding does not grow: any number of ranks gives the same
]
TO_THE_END = "training.checkpoint_every=1000"  # of a launch that nothing more happens to
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
        script = [] if launcher == "mri-ds" else ["--", "launch/train.py"] if launcher == "torchrun" else ["launch/train.py"]
        return [*start, *script, *self.options(*sets), *(more or [])]

    @contextmanager
    def started(self, command: list[str], **environ: str):
        """The launch, with nothing of it left afterwards."""
        before = self.metrics()
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
                yield Launch(self, process, Path(log.name), before)
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

    def metrics(self) -> int:
        """Which file metrics.jsonl is: a launch that starts to train replaces it. 0: none."""
        path = self.folder / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else 0

    def told(self) -> int:
        """The last step of metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def check_complete(self, undisturbed: dict[int, float]) -> None:
        """Every step once, with the losses of a run that nothing happened to."""
        steps = [json.loads(line)["step"] for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, len(undisturbed) + 1))
        assert list(launches.losses(self.folder).values()) == pytest.approx(list(undisturbed.values()), rel=1e-5)
        assert (self.folder / "model.safetensors").is_file()

    def checkpoints(self) -> set[str]:
        return {path.name for path in (self.folder / "checkpoints").glob("step*")}


class Launch:
    """One launch of a Run."""

    def __init__(self, run: Run, process: subprocess.Popen, log: Path, metrics_before: int) -> None:
        self.run, self.process, self.log, self.metrics_before = run, process, log, metrics_before
        self.ranks: list[psutil.Process] = []  # and what they started

    def advance(self, steps: int = 2) -> None:
        """Waits until it has done that many steps of its own; after `starts_again` until the new ranks have."""

        def wait(condition, what: str):
            def alive() -> bool:
                assert self.process.poll() is None, f"ended while waiting for {what}:\n{self.text()[-3000:]}"
                return condition()

            return launches.wait_for(alive, timeout_s=120 * SLOW, what=f"{what}\n{self.text()[-3000:]}")

        wait(lambda: self.run.metrics() != self.metrics_before, "the first step")
        first = self.run.told()
        wait(lambda: self.run.told() >= first + steps, f"step {first + steps}")
        self.metrics_before = self.run.metrics()
        self.ranks = [process for process in self.run.processes() if process.pid != self.process.pid]

    def starts_again(self, line: str) -> None:
        """The attempt ends in time, telling `line` (a pattern) once, nothing of it is left, and another begins."""
        launches.wait_for(
            lambda: re.search(rf"{line}\nrestart \d of \d, from the last checkpoint$", self.text(), re.MULTILINE),
            timeout_s=END_S * SLOW,
            what=f"{line}, and a restart:\n{self.text()[-3000:]}",
        )
        left = [process for process in self.ranks if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        assert self.ranks and not left, left
        self._said_once(line)

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
        self._said_once(line)
        return text

    def _said_once(self, line: str) -> None:
        text = self.text()
        said = [one for one in text.splitlines() if re.search(line, one)]
        assert len(said) == 1, f"{len(said)} lines like {line!r}:\n{text[-3000:]}"


def send(process: psutil.Process | subprocess.Popen, name: str) -> None:
    process.send_signal(signal.Signals[name])


def undisturbed(shards: Path, folder: Path, *sets: str) -> dict[int, float]:
    """{step: loss} of one rank that nothing happens to."""
    folder.mkdir(exist_ok=True)
    run = Run(folder / "run", shards, 1)
    launches.run(run.command("mri-ds", TO_THE_END, *sets), folder / "log", timeout_s=240 * SLOW)
    return launches.losses(run.folder)
