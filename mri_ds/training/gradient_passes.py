"""ZeRO-3's gradients on a CPU, from backward to the optimiser, in fewer passes over memory.

Where ranks compute on the cores that also copy and send, each pass comes off the computing. What DeepSpeed 0.19 does, what is
done here, and milliseconds of one core at `small`, of whose weights a rank of two with expert parallelism updates 16 million:
- the norm copies each gradient to float64 (47); in pieces that stay in the cache, to the same sum (8);
- gradients are joined, and turned to float32 in new memory, whose pages the kernel fills with zeros first (29); as they lie
  joined already, into memory that is kept (3);
- gloo's reduce-scatter is an all-reduce of a copy (21); an exchange of what each rank needs, added up there in float32 (10);
- an expert's gradient, which no other rank has a part of, is copied into a bucket and divided there (6); it is divided (2).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SEND = "_DeepSpeedZeroOptimizer_Stage3__reduce_and_partition_ipg_grads"
PIECE = 2**16  # elements
KEPT = 2**26  # elements of a group up to which its float32 gradient keeps its memory: 256 MiB
Own = Callable[..., Any]


def spare_passes(optimizer: Any) -> None:
    """Acts on the optimiser of ZeRO-3 on a CPU, where it was asked for nothing that this has not; leaves others as they are."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.comm import comm

    plain: dict[str, Any] = {"offload_optimizer": False, "zenflow": False, "use_muon": False, "gradient_predivide_factor": 1.0}
    plain |= {"autoep_folding_tp_group": None, "all2all_process_group": None}
    if get_accelerator().device_name() != "cpu" or any(getattr(optimizer, name) != value for name, value in plain.items()):
        return
    reduce = optimizer.reduce_independent_p_g_buckets_and_remove_grads
    optimizer.reduce_independent_p_g_buckets_and_remove_grads = _Alone(optimizer, reduce)
    backend = comm.cdb
    if not isinstance(backend.reduce_scatter_function, _Exchange):  # one backend serves all engines of a process
        backend.reduce_scatter_function = _Exchange(backend.reduce_scatter_function)
    norm = optimizer.get_grad_norm_direct
    optimizer.get_grad_norm_direct = lambda gradients, *args: norm([norms_of_pieces(g) for g in gradients], *args)
    optimizer._prepare_fp32_grad_for_sub_group = _FromWhereTheyLie(optimizer, optimizer._prepare_fp32_grad_for_sub_group)


def norms_of_pieces(gradient: Tensor) -> Tensor:
    """Of any shape -> (P,) float64 norms of pieces, whose norm is the gradient's."""
    return torch.stack([piece.double().norm() for piece in gradient.view(-1).split(PIECE)])


class _Alone:
    """A gradient of which this rank holds every part needs no bucket: it is divided where it is."""

    def __init__(self, optimizer: Any, otherwise: Own) -> None:
        self.optimizer, self.otherwise = optimizer, otherwise

    @torch.no_grad()
    def __call__(self, param: Any) -> None:
        optimizer = self.optimizer
        is_alone = dist.get_world_size(optimizer._get_param_partition_group(param)) == 1
        if not is_alone or not getattr(param, "ds_grad_is_ready", True) or param.grad.numel() != param.ds_numel:
            return self.otherwise(param)  # type: ignore[no-any-return]
        dtype = optimizer.get_param_comm_dtype(param)
        if optimizer.ipg_buckets[dtype].params:
            getattr(optimizer, SEND)(dtype)  # here all ranks are as far, as experts' rows have just been exchanged
        share = 1.0 / optimizer._gradient_averaging_world_size([param], 1)
        optimizer.partition_grads([param], [param.grad.reshape(-1).mul_(share)])


class _Exchange:
    """torch.distributed.reduce_scatter_tensor: every rank is sent its part of all others' tensors, and adds them up."""

    def __init__(self, otherwise: Own) -> None:
        self.otherwise = otherwise

    def __call__(self, output: Tensor, input: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, **more: Any) -> Any:
        ranks = dist.get_world_size(group)
        if op != dist.ReduceOp.SUM or more.get("async_op") or not input.is_floating_point() or not input.is_contiguous():
            return self.otherwise(output, input, op=op, group=group, **more)
        come = torch.empty_like(input)
        dist.all_to_all_single(come, input, group=group)
        first, *others = come.view(ranks, -1)
        total = first.to(torch.promote_types(input.dtype, torch.float32), copy=True)
        for other in others:
            total += other
        output.copy_(total.view_as(output))
        return None


class _FromWhereTheyLie:
    """The float32 gradient of a group of weights, which lies in one piece of memory already."""

    def __init__(self, optimizer: Any, otherwise: Own) -> None:
        self.optimizer, self.otherwise = optimizer, otherwise
        self.kept: dict[int, Tensor] = {}

    def __call__(self, group: int) -> None:
        optimizer = self.optimizer
        numels = [sum(p.partition_numel() for p in each) for each in optimizer.fp16_groups]
        flat = optimizer.fp32_partitioned_groups_flat[group]
        gradients = optimizer.averaged_gradients[group]
        lying = optimizer.grad_partitions_flat_buffer.narrow(0, sum(numels[:group]), numels[group])
        if numels[group] != flat.numel() or numels[group] > KEPT or not _is_made_of(lying, gradients):
            return self.otherwise(group)  # type: ignore[no-any-return]
        if lying.dtype == flat.dtype:
            flat.grad = lying
        else:
            if group not in self.kept:
                self.kept[group] = torch.empty_like(flat)
            flat.grad = self.kept[group].copy_(lying)
        optimizer.averaged_gradients[group] = None


def _is_made_of(whole: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether `parts`, one after another, are `whole`."""
    at, size = whole.data_ptr(), whole.element_size()
    for part in parts:
        if part.data_ptr() != at or part.dtype != whole.dtype or not part.is_contiguous():
            return False
        at += part.numel() * size
    return at == whole.data_ptr() + whole.numel() * size
