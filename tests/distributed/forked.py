"""Ranks for tests that need many launches: forked from a server that has imported what takes seconds.

Each rank is a process with the environment that any launcher gives; what it runs is the command line. Launchers have tests of
their own.
"""

import multiprocessing
import os
import sys
from pathlib import Path

import launches

PRELOAD = ["torch", "deepspeed", "deepspeed.module_inject.auto_ep_layer", "scipy.ndimage", "mri_ds.training.loop"]


def start(ranks: int, log: Path, target, *arguments, timeout_s: float = 280) -> list[int]:
    """`target(*arguments)`, a function of a module on the path, on so many ranks; their exit codes."""
    os.environ.update({k: v for k, v in launches.environment().items() if k != "PATH"})  # for the server, when it starts
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    port = launches.free_port()
    processes = [context.Process(target=_rank, args=(r, ranks, port, log, target, arguments)) for r in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
    for buffer in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"):  # 69 MB each
        buffer.unlink(missing_ok=True)
    return [process.exitcode for process in processes]


def command(options: list[str], leave_after: int = 0) -> None:
    """`mri-ds train OPTIONS`; with `leave_after` it ends, without a word, once the checkpoint of that step is complete."""
    from mri_ds.cli.main import main
    from mri_ds.training.checkpoint import Checkpoints

    save = Checkpoints.save

    def save_and_leave(self, step, **told):
        save(self, step, **told)
        if step == leave_after:
            self.wait()
            raise SystemExit(0)

    Checkpoints.save = save_and_leave
    main(["train", *options])


def _rank(rank: int, world_size: int, port: int, log: Path, target, arguments: tuple) -> None:
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    target(*arguments)
