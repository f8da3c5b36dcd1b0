"""How curved a training loss is where a network stands, without its Hessian."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cltools.maths.randomness import generator


def largest_curvature(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], iterations: int, seed: int = 0
) -> float:
    """Largest |eigenvalue| of a loss's Hessian, by power iteration on Hessian-vector products.

    An estimate from below, of the smoothness β at one point: a loss is β-smooth when no point has
    more. Power iteration converges slowly where eigenvalues of both signs are alike.

    Args:
        loss: evaluates the loss (a scalar) at the present parameters, the same at every call.
        parameters: what the loss is differentiated in.
        iterations: Hessian-vector products, 1 or more.
        seed: draws the vector that the iteration starts from.

    Returns:
        ‖H v‖ for the last unit vector v; 0 where H v vanishes.

    Raises:
        ValueError: iterations below 1.
    """
    if iterations < 1:
        raise ValueError(f"power iteration needs 1 step or more, not {iterations}")
    draw = generator("curvature", seed)
    vector: Sequence[Tensor] = [torch.randn(p.shape, generator=draw).to(p) for p in parameters]
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    norm = 0.0
    for _ in range(iterations):
        length = _norm(vector)
        if length == 0:
            return 0.0
        vector = [v / length for v in vector]
        vector = torch.autograd.grad(gradients, parameters, vector, retain_graph=True)
        norm = _norm(vector)
    return norm


def _norm(vector: Sequence[Tensor]) -> float:
    return torch.nn.utils.get_total_norm([v.double() for v in vector]).item()
