"""Batch normalization over the whole batch, when several ranks hold parts of it.

torch's SyncBatchNorm trains on CUDA only. Without GPUs, no test could then check that several ranks
compute the same as one process. The version here works on CPUs too: it needs a gather and a sum.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Norm = nn.modules.batchnorm._BatchNorm


class Together(Protocol):
    """The communication that batch normalization needs (see `distributed.SeveralRanks`)."""

    @property
    def size(self) -> int:
        """The number of ranks."""

    def stack(self, own: Tensor) -> Tensor:
        """(size, ...) of all ranks from each rank's (...), without a gradient."""

    def sum(self, own: Tensor) -> Tensor:
        """Sum over ranks, without a gradient; `own` is kept."""


class GlobalBatchNorm(Norm):
    """A BatchNorm whose training statistics are those of the inputs (n, c, ...) of all ranks.

    It takes over the parameters and buffers of `norm`, which must be affine and have running
    statistics with a fixed momentum. All ranks must have the same number of values.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: Norm, ranks: Together) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.ranks = ranks
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(self, name, buffer)

    def _check_input_dim(self, x: Tensor) -> None:
        """Allow any number of dimensions, since BatchNorm1d and BatchNorm2d are both replaced."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        variance, mean = global_moments(x.detach(), self.ranks)
        values = self.ranks.size * x.numel() // self.num_features
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            keep = 1 - self.momentum
            self.running_mean.mul_(keep).add_(mean, alpha=self.momentum)
            unbiased = variance * (values / (values - 1))
            self.running_var.mul_(keep).add_(unbiased, alpha=self.momentum)
        scale = (variance + self.eps).rsqrt()
        normalized: Tensor = _Normalize.apply(x, self.weight, self.bias, mean, scale, self.ranks)
        return normalized


def global_moments(x: Tensor, ranks: Together) -> tuple[Tensor, Tensor]:
    """Biased variance and mean (c,) of x (n, c, ...) over all ranks, in float32 or float64.

    They are combined from each rank's variance and mean by Chan's formula. E[x²] - E[x]² would be
    inaccurate for channels whose mean is much larger than their standard deviation.
    """
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    moments = torch.stack(torch.var_mean(x, _all_but_channels(x), correction=0))
    variances, means = ranks.stack(moments).unbind(dim=1)
    return variances.mean(dim=0) + means.var(dim=0, correction=0), means.mean(dim=0)


class _Normalize(torch.autograd.Function):
    """(x - mean) * scale * weight + bias; mean and scale = 1 / std are those of x on all ranks.

    x has shape (n, c, ...), everything else (c,). The gradient in x is complete: it includes that
    mean and scale depend on x. The gradients in weight and bias are this rank's part, to be summed
    over ranks as for all parameters.
    """

    @staticmethod
    def forward(
        ctx: Any,  # torch has no type for a context that attributes are added to
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        scale: Tensor,
        ranks: Together,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.ranks = ranks
        centered = x - _along(x, mean)
        return torch.addcmul(_along(x, bias), centered, _along(x, weight * scale)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        # With y = (x - mean) * scale: dx = weight * scale * (g - mean(g) - y * mean(g * y)), where
        # the means are over all values of the channel on all ranks.
        x, weight, mean, scale = ctx.saved_tensors
        y = (x - _along(x, mean)).mul_(_along(x, scale))
        over = _all_but_channels(x)
        own = torch.stack([gradient.sum(over, dtype=y.dtype), (gradient * y).sum(over)])
        values = ctx.ranks.size * x.numel() // len(mean)
        mean_g, mean_gy = (ctx.ranks.sum(own) / values).unbind()
        rest = gradient - _along(x, mean_g) - y.mul_(_along(x, mean_gy))
        return rest.mul_(_along(x, weight * scale)).to(x.dtype), own[1], own[0], None, None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _along(x: Tensor, channels: Tensor) -> Tensor:
    """`channels` (c,) reshaped so that it broadcasts over x (n, c, ...)."""
    return channels.view(-1, *[1] * (x.ndim - 2))


def share_statistics(network: nn.Module, ranks: Together) -> None:
    """Replace every BatchNorm of `network` by a `GlobalBatchNorm`."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, Norm):
                setattr(module, name, GlobalBatchNorm(child, ranks))
