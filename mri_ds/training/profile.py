"""Chosen steps under the magnifying glass: `mri-ds train --profile 20-22` fills RUN/profile/.

trace-step000020-rank0.json.gz: torch.profiler's trace of the run of steps that begins there, for ui.perfetto.dev or
chrome://tracing.
flops-step000020.txt: DeepSpeed's table of parameters, multiply-adds and time by module, of the first chosen step, on rank 0.
communication-rank0.json and .txt: DeepSpeed's count, size, latency and bandwidth of every kind of collective over the chosen
steps. The first chosen step is slower for being counted; all chosen ones are, for being timed.
"""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from mri_ds.errors import InputError
from mri_ds.training import distributed

MAX_STEPS = 100  # a trace of a step of `small` has some 10 MB


class Profile:
    """`with profile.step(number): ...` around each step of training; steps that were not chosen cost nothing."""

    def __init__(self, steps: set[int], engine: Any, run_dir: Path) -> None:
        self.steps, self.engine, self.folder = steps, engine, run_dir / "profile"
        self.is_flops_done = False
        self.trace: Any = None
        if steps:
            self.folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        if step not in self.steps:
            yield
            return
        _log_communication(True)
        self._start_trace(step)
        counter = self._start_flops()
        with torch.profiler.record_function(f"step {step}"):
            yield
        if counter is not None:
            counter.stop_profile()
            file = self.folder / f"flops-step{step:06d}.txt"
            counter.print_model_profile(profile_step=step, output_file=str(file))
            counter.end_profile()
        if step + 1 not in self.steps:
            self._end_trace()
        _log_communication(False)
        self._write_communication()

    def close(self) -> None:
        """Where training ends within chosen steps."""
        self._end_trace()

    def _start_trace(self, step: int) -> None:
        if self.trace is not None:
            return
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self.trace, self.trace_start = torch.profiler.profile(activities=kinds, record_shapes=True), step
        self.trace.start()

    def _end_trace(self) -> None:
        if self.trace is None:
            return
        self.trace.stop()
        plain = self.folder / f"trace-step{self.trace_start:06d}-rank{distributed.rank()}.json"
        self.trace.export_chrome_trace(str(plain))
        with gzip.open(f"{plain}.gz", "wb", compresslevel=1) as out:
            out.write(plain.read_bytes())
        plain.unlink()
        self.trace = None

    def _start_flops(self) -> Any:
        if self.is_flops_done or distributed.rank() != 0:
            return None
        from deepspeed.profiling.flops_profiler import FlopsProfiler

        self.is_flops_done = True
        counter = FlopsProfiler(self.engine.module, ds_engine=self.engine)
        counter.start_profile()
        return counter

    def _write_communication(self) -> None:
        import deepspeed.comm.comm as comm

        text = StringIO()
        with redirect_stdout(text):
            told = comm.comms_logger.log_all(print_log=True, return_dict=True)
        stem = f"communication-rank{distributed.rank()}"
        (self.folder / f"{stem}.txt").write_text(text.getvalue())
        (self.folder / f"{stem}.json").write_text(json.dumps(told, indent=1) + "\n")


def parse_steps(text: str) -> set[int]:
    """Raises InputError for anything but numbers and ranges of steps, which count from 1.

    >>> sorted(parse_steps("5,20-22")), parse_steps("")
    ([5, 20, 21, 22], set())
    """
    steps: set[int] = set()
    for part in filter(None, text.split(",")):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(first) < 1:
            raise InputError(f"{part!r} is no step", where="--profile", fix="give steps from 1 on, as 20 or 20-22 or 5,20-22")
        end = int(last) if dash else int(first)
        if end < int(first) or end - int(first) >= MAX_STEPS:
            raise InputError(f"{part!r}: that is no run of 1 to {MAX_STEPS} steps", where="--profile", fix="as 20-22")
        steps |= set(range(int(first), end + 1))
    if len(steps) > MAX_STEPS:
        raise InputError(f"{len(steps)} steps are too many to trace", where="--profile", fix=f"choose at most {MAX_STEPS}")
    return steps


def _log_communication(is_on: bool) -> None:
    import deepspeed.comm.comm as comm

    comm.comms_logger.enabled = comm.comms_logger.prof_all = is_on
