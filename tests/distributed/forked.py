"""Ranks for tests that need many launches: forked from a server that has imported what takes seconds.

Each rank is a process with the environment that any launcher gives; what it runs is the command line. Launchers have tests of
their own.
"""

import gc
import multiprocessing
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import launches

PRELOAD = ["torch._dynamo", "deepspeed", "deepspeed.module_inject.auto_ep_layer", "scipy.ndimage", "mri_ds.training.loop"]
GRACE_S = 30.0  # in which the others must end once a rank has failed: they would wait for it


def start(ranks: int, log: Path, target, *arguments, timeout_s: float = 280) -> list[int]:
    """`target(*arguments)`, a function of a module on the path, on so many ranks; their exit codes."""
    with started(ranks, log, target, *arguments) as processes:
        end = time.monotonic() + timeout_s
        while any(process.is_alive() for process in processes) and time.monotonic() < end:
            if any(process.exitcode for process in processes):
                end = min(end, time.monotonic() + GRACE_S)
            time.sleep(0.05)
    return [process.exitcode for process in processes]


@contextmanager
def started(ranks: int, log: Path, target, *arguments):
    """The ranks' processes, none of which outlives the block. A `log` named with {rank} is one for each."""
    os.environ.update({k: v for k, v in launches.environment().items() if k != "PATH"})  # for the server, when it starts
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    port = launches.free_port()
    processes = [context.Process(target=_rank, args=(r, ranks, port, log, target, arguments)) for r in range(ranks)]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()
        for buffer in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"):  # 69 MB each
            buffer.unlink(missing_ok=True)


def train(ranks: int, log: Path, **settings) -> str:
    """`mri-ds train` with the settings of `launches.train_options`, to its end, which must be success; its output."""
    codes = start(ranks, log, command, launches.train_options(**settings))
    text = log.read_text()
    assert codes == [0] * ranks, text[-4000:]
    return text


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
    multiprocessing.set_start_method("fork", force=True)  # for its data workers, as in any rank
    gc.freeze()  # what the server imported need not be looked through again after every engine
    with Path(str(log).format(rank=rank)).open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    target(*arguments)
