"""One rank that reduces and scatters tensors by training/gradient_passes.py; it ends with an error where a number differs."""

import torch
import torch.distributed as dist

from mri_ds.training.gradient_passes import _Exchange


def main() -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    asked = []

    def otherwise(output, input, *, op, group):
        asked.append(op)
        output.copy_(input.view(ranks, -1)[rank])

    reduce_scatter = _Exchange(otherwise)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        of_ranks = [torch.randn(ranks * 5, generator=torch.Generator().manual_seed(r)).to(dtype) for r in range(ranks)]
        own = of_ranks[rank].clone()
        output = own.view(ranks, -1)[rank]  # DeepSpeed's output is a part of its input
        reduce_scatter(output, own)
        rounding = {torch.float32: 1e-6, torch.float64: 1e-6}.get(dtype, 0.0)  # else of one sum, rounded once
        expected = torch.stack(of_ranks).double().sum(0).to(dtype).view(ranks, -1)[rank]
        torch.testing.assert_close(output, expected, rtol=rounding, atol=rounding)
    assert not asked
    reduce_scatter(output, own, op=dist.ReduceOp.MAX)
    reduce_scatter(torch.zeros(5, dtype=torch.int64), torch.arange(5 * ranks))
    assert asked == [dist.ReduceOp.MAX, dist.ReduceOp.SUM], "what it does not do is the backend's"
    dist.destroy_process_group()
