"""Ranks that hear each other's hearts, through the key-value store in which they met: who is silent, and who failed of what.

In: a beat of every rank every two seconds.  Out: the ranks that are silent, and the fault that one of them told.
Every rank writes its beat; rank 0 reads them all and writes down who is silent; the others read that, and rank 0's own beat. So a
tick costs two requests, of rank 0 one of all ranks' beats, whatever the number of ranks.
A request hangs for as long as the store's host does: requests have a thread of their own, and nobody waits for it for ever.
"""

import json
import os
import threading
import time
from datetime import timedelta
from typing import Any

TICK_S = 2.0
SILENT_S = 15.0
SURELY_S = 3 * TICK_S  # a silence that is enough once a connection is broken
REQUEST_S = 10.0


def meet(rank: int, world_size: int) -> "Peers":
    """Joins the store at MASTER_ADDR and MASTER_PORT: that of rank 0, or of torchrun's agent. Every rank must call it."""
    import torch

    where, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=REQUEST_S)
    store = torch.distributed.TCPStore(where, port, is_master=False, wait_for_workers=False, timeout=timeout)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the agent's store outlives the ranks
    peers = Peers(torch.distributed.PrefixStore(f"mri_ds/{attempt}", store), rank, world_size)
    torch.distributed.barrier()  # from here on rank 0's keys are there
    peers.thread.start()
    return peers


class Peers:
    """The other ranks of the world, seen from `rank`."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.store, self.rank = store, rank
        others = [other for other in range(world_size) if other != rank] if rank == 0 else [0]
        self.heard_s = dict.fromkeys(others, time.monotonic())  # of those whose beats this rank reads
        self.beats: dict[int, bytes] = {}
        self.seen_by_first: dict[int, float] = {}  # rank: seconds of silence, as rank 0 wrote it down
        self.fault = ""
        self.is_leaving = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="peers")
        store.set(f"beat/{rank}", "0")
        if rank == 0:
            store.multi_set(["fault", "silent"], ["", "{}"])

    def silent(self, for_s: float = SILENT_S) -> list[int]:
        """Ranks that have been silent for that long. Where rank 0 is, it stands alone: what it wrote down has become old."""
        now = time.monotonic()
        own = {other: now - heard for other, heard in self.heard_s.items()}
        seen = own if own.get(0, 0.0) > SURELY_S else own | self.seen_by_first
        return sorted(other for other, seconds in seen.items() if seconds > for_s and other != self.rank)

    def forgive(self, seconds: float) -> None:
        """This process was held for that long: the others are not to blame for it."""
        self.heard_s = {other: heard + seconds for other, heard in self.heard_s.items()}
        self.seen_by_first = {}

    def culprits(self) -> str:
        """After a broken connection: who failed of what, else who is silent. Waits until that can be told; "" if it cannot."""
        until = time.monotonic() + SURELY_S + 2 * TICK_S
        while time.monotonic() < until:
            if self.fault:
                return self.fault
            if silent := self.silent(SURELY_S):
                return f"lost rank {silent[0]}" if len(silent) == 1 else f"lost ranks {', '.join(map(str, silent))}"
            time.sleep(0.1)
        return ""

    def tell(self, fault: str) -> None:
        """What this rank ends of; it goes out with `leave`, and the others repeat it."""
        self.fault = self.fault or fault

    def leave(self) -> None:
        """Ends the beats without an alarm. Rank 0, which may host the store, stays until the others have left as well."""
        self.is_leaving.set()
        self.thread.join(SURELY_S + 4 * TICK_S)

    def _run(self) -> None:
        number, is_last = 0, False
        while not is_last:
            is_last, number = self.is_leaving.wait(TICK_S), number + 1
            try:
                self._tick(str(number), is_last)
            except RuntimeError:  # torch.distributed.DistError: the store does not answer, hence its beats grow old
                continue

    def _tick(self, beat: str, is_last: bool) -> None:
        if is_last and self.fault:
            self.store.set("fault", self.fault)
        self.store.set(f"beat/{self.rank}", "left" if is_last and self.rank else beat)
        self._hear()
        until = time.monotonic() + SURELY_S + 3 * TICK_S
        while is_last and self.rank == 0 and time.monotonic() < until and self._who_stays():
            time.sleep(0.2)
            self._hear()

    def _hear(self) -> None:
        others = list(self.heard_s)
        *beats, silent, fault = self.store.multi_get([*(f"beat/{other}" for other in others), "silent", "fault"])
        now = time.monotonic()
        for other, beat in zip(others, beats, strict=True):
            if beat != self.beats.get(other) or beat == b"left":
                self.beats[other], self.heard_s[other] = beat, now
        self.fault = self.fault or fault.decode()
        if self.rank:
            self.seen_by_first = {int(other): seconds for other, seconds in json.loads(silent).items()}
        else:
            seen = {other: now - heard for other, heard in self.heard_s.items() if now - heard > SURELY_S / 2}
            self.store.set("silent", json.dumps(seen))

    def _who_stays(self) -> list[int]:
        silent = self.silent(SURELY_S)
        return [other for other, beat in self.beats.items() if beat != b"left" and other not in silent]
