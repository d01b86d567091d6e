"""Machines to launch on: `with nodes(folder, 4) as cluster`, see cluster.sh; Slurm on top of them: see slurm.py.

Needs root and a few Debian packages; `why_not()` tells what is missing, in words for pytest.skip.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import launches

HERE = Path(__file__).parent
SBIN = os.pathsep.join([*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/sbin"])  # not on every user's PATH


class Cluster:
    """Machines `head` and node1 to nodeN, which see this machine's files at the same paths."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def on(self, node: str, *command: str | Path, **environ: str) -> list[str]:
        """The command line that runs `command` on `node`, with these variables added to its environment."""
        assigned = [f"{name}={value}" for name, value in environ.items()]
        return ["bash", str(HERE / "cluster.sh"), str(self.folder), "exec", node, "env", *assigned, *map(str, command)]

    def ask(self, node: str, *command: str | Path, timeout_s: float = 60, **environ: str) -> str:
        """What `command` prints on `node`; it must succeed."""
        done = subprocess.run(
            self.on(node, *command, **environ),
            capture_output=True,
            text=True,
            env=launches.environment(),
            cwd=launches.ROOT,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout


def why_not(*programs: str) -> str:
    """Why machines cannot be made here, or which of `programs` is missing; empty where all is well."""
    if os.geteuid() != 0:
        return "machines are made of Linux namespaces by root"
    for program in ("ip", "unshare", "nsenter", "setpriv", "ssh", "ssh-keygen", "sshd", *programs):
        if shutil.which(program, path=SBIN) is None:
            return f"{program} is not installed (bash tools/setup.sh --dev)"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


@contextmanager
def nodes(folder: Path, count: int) -> Iterator[Cluster]:
    """Starts the machines, and ends them and everything that runs on them."""
    folder.mkdir(parents=True)
    environ = {**os.environ, "PATH": SBIN}
    with (folder / "up.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", str(HERE / "cluster.sh"), str(folder), "up", str(count)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
        try:

            def is_up() -> bool:
                assert process.poll() is None, (folder / "up.log").read_text()
                return (folder / "ready").exists()

            launches.wait_for(is_up, timeout_s=300, what="the machines to start")
            yield Cluster(folder, count)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
