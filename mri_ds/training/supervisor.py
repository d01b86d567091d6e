"""`mri-ds train` on several devices: starts the ranks, watches them, and leaves none of them running, whatever ends them.

In: the options of one rank.  Out: an exit code, and on a failure one line that names the rank and the cause.
- Every rank has a session of its own: a Ctrl-C at the terminal reaches only this process, which passes it on.
- A rank that ends badly, or whose heart (heart.py) is silent, ends the others within seconds: nobody waits for its messages.
- Exit codes: 0; 2 for bad input; 1 for a failure; 128 + the number of the signal that asked the run to leave (signals.py).
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from mri_ds.training import causes, heart, launchers, local_ranks, processes
from mri_ds.training.signals import BY_WEIGHT

TICK_S = 0.1
SETTLE_S = 2.0  # after the first bad end: what the others say tells cause from consequence
SILENT_S = 20.0  # no beat for that long
HELD_S = 5.0  # this process itself was held for that long: silences are nobody's fault
PORT_RETRIES = 3  # a free port may be taken by somebody else before rank 0 opens it
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Rank:
    """One rank as seen from here."""

    number: int
    process: subprocess.Popen[bytes]
    beats: int  # file descriptor
    memory: causes.MemoryWatch
    beaten_s: float
    step: int | None = None
    is_done: bool = False  # it has said good-bye, and only its process has still to end
    fault: dict[str, str] = field(default_factory=dict)  # what it said of its own end: {"kind", "line"}
    unread: bytes = b""

    def is_silent(self, now: float, start_s: float) -> bool:
        """Before its first step and after its last a heart may be held up for long: by imports, by the start of a driver."""
        is_training = self.step is not None and not self.is_done
        allowed = SILENT_S if is_training or causes.is_stopped(self.process.pid) else start_s
        return now - self.beaten_s > allowed


@dataclass
class End:
    """How an attempt ended: exit code, and the line that says why ("": the ranks have said it, or nothing is wrong)."""

    code: int
    line: str = ""
    is_port_taken: bool = False


class Supervisor:
    """Runs `command` (a rank's arguments after the interpreter) on local ranks, and again after a failure, `restarts` times."""

    def __init__(self, command: Sequence[str], *, ranks: int, restarts: int, timeout_s: float) -> None:
        self.command, self.ranks, self.restarts, self.timeout_s = list(command), ranks, restarts, timeout_s
        self.on_gpu = local_ranks.num_gpus() > 0
        self.asked: list[int] = []  # signals to pass on

    def run(self) -> int:
        processes.adopt_orphans()
        processes.remove_stale_build_locks(
            Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path(sys.prefix) / "torch_extensions")), is_shared=False
        )
        for signum in BY_WEIGHT:
            if signal.getsignal(signum) != signal.SIG_IGN or signum in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(signum, self._hear)
        restarted = retried = 0
        while True:
            end = self._attempt()
            if end.is_port_taken and "MASTER_PORT" not in os.environ and retried < PORT_RETRIES:
                retried += 1
                continue
            if end.line:
                say(f"error: {end.line}")
            if end.code != 1 or self.asked or restarted == self.restarts:
                return end.code
            restarted += 1
            say(f"restart {restarted} of {self.restarts}, from the last checkpoint")

    def _attempt(self) -> End:
        port = int(os.environ.get("MASTER_PORT") or launchers.free_port())
        ranks: list[Rank] = []
        try:
            for number in range(self.ranks):
                ranks.append(self._start(number, port))
            return self._watch(ranks)
        finally:
            left = processes.end_descendants(grace_s=0)  # those that could leave in order have done so
            if left:
                say(f"error: processes {left} cannot be ended: the kernel holds them")
            for rank in ranks:
                os.close(rank.beats)
            for buffer in SHARED_MEMORY.glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*_{port}_*"):  # 69 MB each
                buffer.unlink(missing_ok=True)

    def _start(self, number: int, port: int) -> Rank:
        reader, writer = os.pipe()
        env = local_ranks.environment(number, self.ranks, port, on_gpu=self.on_gpu)
        env |= {heart.PIPE: str(writer), heart.SUPERVISOR: str(os.getpid())}
        # signals wait until the rank listens: none can end it while Python starts
        signal.pthread_sigmask(signal.SIG_BLOCK, BY_WEIGHT)
        try:
            process = subprocess.Popen(
                [sys.executable, *self.command], env=env, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[writer]
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, BY_WEIGHT)
            os.close(writer)
        if not self.on_gpu:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, local_ranks.cores_of(number, self.ranks))
        os.set_blocking(reader, False)
        return Rank(number, process, reader, causes.MemoryWatch(process.pid), time.monotonic())

    def _watch(self, ranks: list[Rank]) -> End:
        """Until all ranks have ended well, or one has not and it is known why."""
        passed_on = len(self.asked)
        first_bad: float | None = None
        last = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for rank in ranks:
                selector.register(rank.beats, selectors.EVENT_READ, rank)
            while True:
                for key, _ in selector.select(TICK_S):
                    if not _listen(key.data):
                        selector.unregister(key.fileobj)
                        time.sleep(0.01)  # its end follows
                now = time.monotonic()
                for rank in ranks:
                    rank.beaten_s += now - last if now - last > HELD_S else 0.0
                    if int(now) != int(last):
                        rank.memory.look()
                last = now
                codes = [rank.process.poll() for rank in ranks]
                if self.asked[passed_on:] and not self._pass_on(ranks, passed_on):
                    return End(128 + self.asked[-1], f"stopped by a second {signal.Signals(self.asked[-1]).name}, within a step")
                passed_on = len(self.asked)
                if all(code is not None for code in codes):
                    return self._judge(ranks)
                if any(codes):
                    first_bad = first_bad or now
                    if now - first_bad > SETTLE_S and not self._are_leaving(codes):
                        return self._judge(ranks)
                for rank, code in zip(ranks, codes, strict=True):
                    if code is None and rank.is_silent(now, self.timeout_s):
                        does, for_s = causes.what_it_does(rank.process.pid), f"{now - rank.beaten_s:.0f}"
                        rank.fault = {"kind": "silent", "line": does, "for_s": for_s}
                        return self._judge(ranks)

    def _pass_on(self, ranks: list[Rank], since: int) -> bool:
        """Tells the ranks. False: somebody presses Ctrl-C again, and does not want to wait for the step."""
        for signum in self.asked[since:]:
            if signum == signal.SIGINT and signal.SIGINT in self.asked[:since]:
                return False
            for rank in ranks:
                if rank.process.poll() is None:
                    rank.process.send_signal(signum)
        return True

    def _are_leaving(self, codes: Sequence[int | None]) -> bool:
        """Whether those that have ended did so as a signal asked; the others then follow, or their own deadline ends them."""
        return all(code in (None, 0, *(128 + signum for signum in BY_WEIGHT)) for code in codes)

    def _judge(self, ranks: list[Rank]) -> End:
        for rank in ranks:
            _listen(rank)
        codes = {rank.number: rank.process.poll() for rank in ranks}
        if not any(codes.values()) and None not in codes.values():
            return End(0)
        bad = min((rank for rank in ranks if codes[rank.number] != 0), key=lambda rank: _weight(rank, codes[rank.number]))
        code, kind, line = codes[bad.number], bad.fault.get("kind"), bad.fault.get("line", "")
        if kind == "input":
            return End(2, line)
        if code in [128 + signum for signum in BY_WEIGHT] and not bad.fault:
            return End(code)
        step = f"after step {bad.step}" if bad.step else "before the first step"
        name = f"rank {bad.number} of {len(ranks)}"
        is_port_taken = "EADDRINUSE" in line or "address already in use" in line
        if kind == "silent":
            what = f"{name} {line} {step}: no sign of life for {bad.fault['for_s']} s"
        elif kind == "run":
            what = line
        elif kind is not None:
            what = f"{name} failed {step}: {line}"
        else:
            assert code is not None
            what = f"{name} {causes.how_it_ended(code, bad.memory.verdict())} {step}"
        return End(1, f"{what}. The same command goes on from the last checkpoint", is_port_taken)

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        self.asked.append(signum)


def _listen(rank: Rank) -> bool:
    """Reads what the rank's heart has sent. False at its end."""
    while True:
        try:
            got = os.read(rank.beats, 65536)
        except BlockingIOError:
            return True
        if not got:
            return False
        *lines, rank.unread = (rank.unread + got).split(b"\n")
        rank.beaten_s = time.monotonic()
        for message in map(json.loads, lines):
            rank.step = message.get("step", rank.step)
            rank.is_done = rank.is_done or "is_done" in message
            rank.fault = rank.fault or {key: message[key] for key in ("kind", "line") if key in message}


def _weight(rank: Rank, code: int | None) -> tuple[int, int]:
    """Orders bad ends from cause to consequence."""
    kind = rank.fault.get("kind")
    if code is not None and code < 0 and kind is None:
        return 0, rank.number  # a signal ended it before it could say anything
    order = ["silent", "input", "run", "failed", None, "stuck", "waits", "lost"]
    return (1 + order.index(kind), rank.number) if code is not None or kind == "silent" else (9, rank.number)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
