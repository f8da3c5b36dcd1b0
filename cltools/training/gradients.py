"""The backward pass of one objective, and the norm of its gradient."""

import torch
from torch import Tensor, nn

from cltools.runtime.devices import tf32


def backward(loss: Tensor, ends: Tensor, projected: Tensor, precision: str) -> None:
    """Put the gradients of `loss` into the weights that the projections were computed with.

    ends: `projected.detach().requires_grad_()`, from which the loss was computed. The backward pass
        stops there and goes on through the network in the network's precision; that of the loss is
        never in TF32.
    """
    torch.autograd.backward(loss)
    with tf32(projected.device, precision == "tf32"):
        torch.autograd.backward(projected, ends.grad)


def gradient_norm(network: nn.Module) -> Tensor:
    """The norm of the gradients of all weights together."""
    return torch.nn.utils.get_total_norm(
        [p.grad for p in network.parameters() if p.grad is not None]
    )
