"""The largest curvature of a training loss at a network's weights, without forming the Hessian."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cltools.maths.randomness import generator


def largest_curvature(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], iterations: int, seed: int = 0
) -> float:
    """Largest |eigenvalue| of a loss's Hessian, by power iteration on Hessian-vector products.

    The result is a lower bound on the smoothness constant β: a loss is β-smooth if this value is at
    most β everywhere. Power iteration gives slightly less than the largest |eigenvalue|. It
    converges slowly if two eigenvalues have almost the same size and opposite signs.

    Args:
        loss: computes the loss (a scalar) at the current parameters; repeated calls must agree.
        parameters: the loss is differentiated in these.
        iterations: number of Hessian-vector products, at least 1.
        seed: draws the initial vector.

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
