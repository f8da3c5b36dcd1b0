"""Batch normalization over the whole batch, when several ranks hold parts of it.

torch's SyncBatchNorm trains on CUDA only. Without GPUs, no test could then check that several ranks
compute the same as one process. The version here works on CPUs too: it needs a gather and a sum.

It is written twice. `_Normalize` uses plain operations, and is the reference. On CUDA these would
read and write the activations several times as often as needed, so `_Fused` uses the kernels of
SyncBatchNorm instead. SyncBatchNorm itself waits for the device in every forward pass, to find out
which ranks have no images; here all ranks have the same number.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cltools.runtime.errors import InputError

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
        self.num_batches_tracked.add_(1)
        if fused(x):
            y: Tensor = _Fused.apply(
                x, self.weight, self.bias, self.running_mean, self.running_var,
                self.momentum, self.eps, self.ranks,
            )  # fmt: skip
            return y
        variance, mean = global_moments(x.detach(), self.ranks)
        values = self.ranks.size * x.numel() // self.num_features
        with torch.no_grad():
            keep = 1 - self.momentum
            self.running_mean.mul_(keep).add_(mean, alpha=self.momentum)
            unbiased = variance * (values / (values - 1))
            self.running_var.mul_(keep).add_(unbiased, alpha=self.momentum)
        scale = (variance + self.eps).rsqrt()
        normalized: Tensor = _Normalize.apply(x, self.weight, self.bias, mean, scale, self.ranks)
        return normalized


def fused(x: Tensor) -> bool:
    """Whether `x` is normalized by the kernels of SyncBatchNorm: on CUDA, unless compiled.

    The compiler cannot trace these kernels, and joins the plain operations by itself.
    """
    return x.is_cuda and not torch.compiler.is_compiling()


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


class _Fused(torch.autograd.Function):
    """The same as `GlobalBatchNorm` does by `_Normalize`, by the kernels of SyncBatchNorm.

    The running statistics are updated in the forward pass. Statistics are float32 for inputs of
    lower precision.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        ranks: Together,
    ) -> Tensor:
        x = _dense(x)
        mean_and_scale = torch.stack(torch.batch_norm_stats(x, eps))
        means, scales = ranks.stack(mean_and_scale).unbind(dim=1)
        counts = means.new_full((ranks.size,), x.numel() // x.shape[1])
        mean, scale = torch.batch_norm_gather_stats_with_counts(
            x, means, scales, running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(x, weight, mean, scale, counts.int())
        ctx.ranks = ranks
        return torch.batch_norm_elemt(x, weight, bias, mean, scale, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, counts = ctx.saved_tensors
        gradient = _dense(gradient)
        sum_g, sum_gx, of_weight, of_bias = torch.batch_norm_backward_reduce(
            gradient, x, mean, scale, weight, True, True, True
        )
        sum_g, sum_gx = ctx.ranks.sum(torch.stack([sum_g, sum_gx])).unbind()
        of_x = torch.batch_norm_backward_elemt(
            gradient, x, mean, scale, weight, sum_g, sum_gx, counts
        )
        return of_x, of_weight, of_bias, None, None, None, None, None


def _dense(x: Tensor) -> Tensor:
    """`x` in a memory layout that the kernels take."""
    return x if x.is_contiguous(memory_format=_channels_last(x)) else x.contiguous()


def _channels_last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.contiguous_format


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _along(x: Tensor, channels: Tensor) -> Tensor:
    """`channels` (c,) reshaped so that it broadcasts over x (n, c, ...)."""
    return channels.view(-1, *[1] * (x.ndim - 2))


def share_statistics(network: nn.Module, ranks: Together) -> None:
    """Replace every BatchNorm of `network` by a `GlobalBatchNorm`.

    Raises InputError for layers of other libraries that do more than normalize.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, Norm):
                if type(child) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                    raise InputError(
                        "processes cannot split the batches of a network with "
                        f"{type(child).__name__}: let them share the objectives (share: "
                        "objectives), or choose another architecture"
                    )
                setattr(module, name, GlobalBatchNorm(child, ranks))
