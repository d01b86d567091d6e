"""Prediction on several ranks, without DeepSpeed: subjects are dealt out, or the windows of each are shared.

Every rank takes every n-th call of the network and hears the others', in the order of the calls. So each rank blends the same
numbers in the same order as one rank alone would: results are equal bit for bit where the ranks compute alike.
"""

import atexit
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from mri_ds.training import distributed, launchers

TIMEOUT = timedelta(hours=2)  # a rank may wait for another's whole subject
Outputs = Mapping[str, Tensor]


class Ranks:
    """This rank among `world_size`; use as a context: the process group is joined, and ranks wait for one another at the end."""

    def __init__(self) -> None:
        launchers.adopt()
        self.rank, self.world_size = distributed.rank(), distributed.world_size()

    def __enter__(self) -> "Ranks":
        if self.world_size > 1 and not torch.distributed.is_initialized():
            launchers.check()
            launchers.choose_interface()
            if torch.cuda.is_available():
                torch.cuda.set_device(distributed.device())
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            torch.distributed.init_process_group(backend, timeout=TIMEOUT)
            atexit.register(distributed.stop)  # not before: a group that was left cannot be joined again
        return self

    def __exit__(self, kind: Any, err: Any, trace: Any) -> None:
        if kind is None:
            distributed.barrier()

    @property
    def device(self) -> torch.device:
        return distributed.device()

    def hear(self, value: Any) -> list[Any]:
        """A plain value of every rank, in their order. Every rank must call it."""
        return distributed.gather_json(value) if self.world_size > 1 else [value]

    def share(self, fn: Callable[[Tensor], Outputs]) -> Callable[[Iterable[Tensor]], Iterator[Outputs]]:
        """`fn` over a sequence of calls, each rank computing its part: what every rank gets is the outputs of all, in order."""

        def compute(calls: Iterable[Tensor]) -> Iterator[Outputs]:
            for group in _batched(calls, self.world_size):
                own = min(self.rank, len(group) - 1)  # one that has no call of its own learns the outputs' shapes from the last
                outputs = {name: value.float().contiguous() for name, value in fn(group[own]).items()}
                for source, call in enumerate(group):
                    yield {name: self._from(source, len(call), outputs[name]) for name in sorted(outputs)}

        return compute

    def _from(self, source: int, num_windows: int, own: Tensor) -> Tensor:
        value = own if source == self.rank else own.new_empty((num_windows, *own.shape[1:]))
        torch.distributed.broadcast(value, src=source)
        return value


def _batched(calls: Iterable[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    """As itertools.batched, which Python 3.11 has not."""
    source = iter(calls)
    while group := tuple(itertools.islice(source, size)):
        yield group
