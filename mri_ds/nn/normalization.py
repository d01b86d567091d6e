"""Group normalisation and SiLU in one step, for feature maps of few channels that lie channels last.

Axes: B batch, C channels in G groups, V = D * H * W voxels.
In and out: (B, C, D, H, W).
Eager kernels work through a channels-last map voxel by voxel, eight numbers at a time. Here many voxels form one long row, and
normalisation becomes a * d + c with one a and c per channel, repeated along the row: 55 -> 18 ms forward and backward for
2 x 8 x 64^3 in bfloat16 on one core (AVX-512), group normalisation and SiLU together.
Source: Wu and He 2018, eq. 1; the gradient is that of Ioffe and Szegedy 2015, section 3, over groups.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mri_ds.nn.slabs import is_large, slabs

ROW = 512  # numbers, so that vector units are busy


class GroupNormSiLU(nn.GroupNorm):
    """silu(group_norm(x)); the weights are those of nn.GroupNorm."""

    def forward(self, x: Tensor, *, may_overwrite: bool = False) -> Tensor:
        """may_overwrite: a large map may come back where it was (nn/slabs.py)."""
        if may_overwrite and is_large(x.shape):
            return self._in_place(x)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:  # elsewhere PyTorch's own kernels are as fast
            return _GroupNormSiLU.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-any-return]
        return F.silu(super().forward(x), inplace=True)

    def _in_place(self, x: Tensor) -> Tensor:
        """Reads the map twice, for mean and variance (sums in float64) and to write."""
        precise, numbers = torch.promote_types(x.dtype, torch.float32), x.numel() // x.shape[2]
        sums = x.new_zeros(2, x.shape[0], x.shape[1], dtype=torch.float64)
        for a, b in slabs(x.shape[2], numbers):
            part = x[:, :, a:b].to(precise)
            sums += torch.stack([part.sum((2, 3, 4), dtype=torch.float64), part.square().sum((2, 3, 4), dtype=torch.float64)])
        of_groups = sums.view(2, x.shape[0], self.num_groups, -1) / x[0, 0].numel()
        mean, square = of_groups.mean(-1, keepdim=True)  # (B, G, 1) each
        weight, bias = (p.to(torch.float64).view(self.num_groups, -1) for p in (self.weight, self.bias))
        slope = weight * (square - mean * mean + self.eps).rsqrt()  # (B, G, C / G)
        offset = bias - mean * slope
        slope, offset = (value.reshape(*x.shape[:2], 1, 1, 1).to(precise) for value in (slope, offset))
        for a, b in slabs(x.shape[2], numbers):
            x[:, :, a:b] = F.silu(torch.addcmul(offset, x[:, :, a:b].to(precise), slope), inplace=True)
        return x


class _GroupNormSiLU(torch.autograd.Function):
    """y = silu(a d + c), d = x - centre: bfloat16 holds d where a map hardly differs from its mean, and not a x + c.

    centre is each channel's mean, as rounded; offset = centre - mean of the group, so that xhat = (d + offset) / std.
    With g the gradient at a d + c, and S(.) the sum over a group's voxels and channels divided by their number:
    dx = a g - (S(w g) + xhat S(w g xhat)) / std.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        rows, channels, voxels = _as_rows(x), x.shape[1], x[0, 0].numel()

        def of_groups(per_channel: Tensor) -> Tensor:
            return per_channel.view(-1, num_groups, channels // num_groups)

        centre = (_channel_sums(rows, channels) / voxels).to(x.dtype).to(torch.promote_types(x.dtype, torch.float32))
        d = rows - _along(centre, rows)
        mean_d = of_groups(_channel_sums(d, channels) / voxels)
        mean_square = of_groups(_channel_sums(d * d, channels) / voxels)
        centre = of_groups(centre)
        offset = centre - (centre + mean_d).mean(-1, keepdim=True)  # (B, G, C / G)
        variance = (mean_square + 2 * offset * mean_d + offset * offset).mean(-1, keepdim=True).clamp_min(0)
        inv_std = (variance + eps).rsqrt()  # (B, G, 1)
        a = inv_std * of_groups(weight.to(centre.dtype))
        y = torch.addcmul(_along(of_groups(bias.to(centre.dtype)) + a * offset, rows), d, _along(a, rows))
        ctx.save_for_backward(d, y, weight, offset, inv_std)
        return _as_map(F.silu(y), x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d, y, weight, offset, inv_std = ctx.saved_tensors
        channels, voxels = grad.shape[1], grad[0, 0].numel()
        w = weight.to(offset.dtype).view(1, *offset.shape[1:])
        g = torch.ops.aten.silu_backward(_as_rows(grad), y)
        sum_g = _channel_sums(g, channels).view_as(offset)
        sum_g_xhat = (_channel_sums(g * d, channels).view_as(offset) + offset * sum_g) * inv_std
        shift = (w * sum_g).mean(-1, keepdim=True) / voxels  # S(w g)
        slope = (w * sum_g_xhat).mean(-1, keepdim=True) / voxels  # S(w g xhat)
        of_d = -slope * inv_std * inv_std
        constant = offset * of_d - shift * inv_std
        dx = torch.addcmul(_along(constant, d), d, _along(of_d.expand_as(offset), d)).addcmul_(g, _along(w * inv_std, d))
        grad_weight, grad_bias = sum_g_xhat.sum(0).view(channels), sum_g.sum(0).view(channels)
        return _as_map(dx, grad.shape), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None


def _as_rows(x: Tensor) -> Tensor:
    """(B, C, D, H, W) -> (B, V / m, m * C), m the power of two that makes rows about ROW long. A view of a channels-last map."""
    batch, channels = x.shape[:2]
    voxels, m = x[0, 0].numel(), 1
    while voxels % (2 * m) == 0 and m * channels < ROW:
        m *= 2
    return x.permute(0, 2, 3, 4, 1).reshape(batch, voxels // m, m * channels)


def _as_map(rows: Tensor, shape: torch.Size) -> Tensor:
    batch, channels, *size = shape
    return rows.view(batch, *size, channels).permute(0, 4, 1, 2, 3)


def _channel_sums(rows: Tensor, channels: int) -> Tensor:
    """(B, V / m, m * C) -> (B, C), at least float32; a row's sums are rounded once, at their end."""
    sums = rows.sum(1)
    return sums.to(torch.promote_types(sums.dtype, torch.float32)).view(len(rows), -1, channels).sum(1)


def _along(per_channel: Tensor, rows: Tensor) -> Tensor:
    """(B, C) or (B, G, C / G) -> (B, 1, m * C), the same for each voxel of a row."""
    flat = per_channel.reshape(len(rows), 1, -1).to(rows.dtype)
    return flat.repeat(1, 1, rows.shape[2] // flat.shape[2])
