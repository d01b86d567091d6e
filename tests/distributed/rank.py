"""One rank of a run, for tests that need many launches: forked from a server that has imported what takes seconds.

Each rank is a process of its own with a process group of its own, as under any launcher; the launchers are tested elsewhere.
"""

import contextlib
import json
import multiprocessing
import os
import sys
import traceback
from pathlib import Path

import launches

PRELOAD = ["torch", "deepspeed", "deepspeed.module_inject.auto_ep_layer", "scipy.ndimage", "mri_ds.training.loop"]


def train(ranks: int, log: Path, *, timeout_s: float = 240, leave_after: int = 0, **arguments) -> list[int]:
    """`mri_ds.training.loop.train(**arguments)` on ranks; their exit codes. `leave_after`: a checkpoint, once it is whole."""
    os.environ.update(launches.environment())  # the server takes its own from here when it starts
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    port = launches.free_port()
    processes = [context.Process(target=_rank, args=(r, ranks, port, log, leave_after, arguments)) for r in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout_s)
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    for file in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*{port}*"):
        file.unlink(missing_ok=True)
    return [process.exitcode for process in processes]


def _rank(rank: int, world_size: int, port: int, log: Path, leave_after: int, arguments: dict) -> None:
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    run(leave_after, arguments)


def run(leave_after: int, arguments: dict) -> None:
    from mri_ds.errors import InputError, RunError
    from mri_ds.training import distributed
    from mri_ds.training.checkpoint import Checkpoints
    from mri_ds.training.loop import train

    if leave_after:
        save = Checkpoints.save

        def save_and_leave(self, step, **told):
            save(self, step, **told)
            if step == leave_after:
                self.wait()
                distributed.barrier()
                raise SystemExit(0)

        Checkpoints.save = save_and_leave
    try:
        with contextlib.suppress(SystemExit):
            train(**arguments)
    except (InputError, RunError) as err:  # as mri_ds.cli.main does
        print(f"error (rank {distributed.rank()}): {err}", flush=True)
        raise SystemExit(2 if isinstance(err, InputError) else 1) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


if __name__ == "__main__":
    raw = json.loads(sys.argv[2])
    run(
        int(sys.argv[1]),
        {k: Path(v) if k in ("config_path", "ds_config_path", "data", "run_dir") and v else v for k, v in raw.items()},
    )
