"""A real Slurm on the machines of `nodes`: munge and slurmctld on `head`, a slurmd on every node. They end with the machines.

Slurm looks at the time limits of jobs every 30 s, counted from its start. A test that wants its job to run into one moves the end
of the job to that moment instead of waiting for whole minutes; Slurm's own log tells when it is.
"""

import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import launches

from cluster import HERE, Cluster

LOOK = "Testing job time limits and checkpoints"
LOOK_EVERY_S = 30.0  # a constant of Slurm, which adds up to a second
OVER = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY"}


class Slurm:
    """The Slurm of a cluster, and commands to it from `head`."""

    def __init__(self, cluster: Cluster, **environ: str) -> None:
        cluster.ask("head", "bash", HERE / "slurm.sh", cluster.folder, str(cluster.count), timeout_s=600)
        self.cluster, self.folder = cluster, cluster.folder / "slurm"
        self.environ = {"SLURM_CONF": str(self.folder / "slurm.conf"), **environ}

    def on_head(self, *command: str | Path) -> list[str]:
        return self.cluster.on("head", *command, **self.environ)

    def ask(self, *command: str | Path) -> str:
        return self.cluster.ask("head", *command, timeout_s=600, **self.environ)

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, ExitCode, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", number)))

    def wait_for(self, number: str, is_so: Callable[[dict[str, str]], bool], *, timeout_s: float) -> dict[str, str]:
        """Asks twice a second until what Slurm knows of the job is so; what it knows then."""

        def asked() -> dict[str, str] | None:
            time.sleep(0.5)
            state = self.job(number)
            return state if is_so(state) else None

        return launches.wait_for(asked, timeout_s=timeout_s, what=f"job {number}, which is {self.job(number)}")

    def wait_for_end(self, number: str, *, timeout_s: float) -> dict[str, str]:
        return self.wait_for(number, lambda state: state["JobState"] in OVER, timeout_s=timeout_s)

    def end_in(self, number: str, seconds: int) -> None:
        """Gives a running job a time limit that ends then."""
        end = datetime.fromtimestamp(time.time() + seconds)
        self.ask("scontrol", "update", f"JobId={number}", f"EndTime={end:%Y-%m-%dT%H:%M:%S}")

    def looks(self) -> list[float]:
        """When Slurm looked at the time limits, in seconds since 1970."""
        return self.times(self.folder / "slurmctld.log", LOOK)

    def wait_to_be_before_a_look(self) -> int:
        """Until it looks again in a second or two; how often it has looked."""

        def is_close() -> int:
            looks = self.looks()
            return len(looks) if looks and 0 <= looks[-1] + LOOK_EVERY_S - time.time() <= 1 else 0

        return launches.wait_for(is_close, timeout_s=300, what="Slurm to look at the time limits soon")

    def wait_for_a_look(self, before: int) -> None:
        """Until it has looked more often than that, and a second longer: it tells before it looks."""
        launches.wait_for(lambda: len(self.looks()) > before, timeout_s=120, what="Slurm to look at the time limits")
        time.sleep(1)

    def was_warned(self, number: str) -> bool:
        """Whether Slurm has sent a job the signal that its script asks for ahead of the time limit."""
        warned = rf"warning signal \d+ to JobId={number}\b"
        return re.search(warned, (self.folder / "slurmctld.log").read_text(errors="replace")) is not None

    @staticmethod
    def times(log: Path, message: str) -> list[float]:
        """When a line with `message` was written into a log of Slurm, in seconds since 1970."""
        lines = [line for line in log.read_text(errors="replace").splitlines() if message in line]
        return [datetime.fromisoformat(line[1 : line.index("]")]).timestamp() for line in lines]
