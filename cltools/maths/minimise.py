"""Free embeddings: what the objectives look like at their minimum, without a network.

P1, Theorem 2 (arXiv 2506.04411): with balanced classes and d ≥ C - 1, all global minimisers of
NSCL have equal views, equal images within a class, and class means that form a simplex
equiangular tight frame (ETF). Here the embeddings themselves are the unknowns ("unconstrained
features"), on the unit sphere, and the whole set is one batch of `cltools.maths.objectives`.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cltools.maths.collapse import (
    class_statistics,
    etf_deviation,
    view_distance,
    within_class_spread,
)
from cltools.maths.objectives import (
    OBJECTIVES,
    checked_contrastive_loss,
    contrastive_loss,
    cross_entropy,
    pair_masks,
    similarity_logits,
)

GRADIENT_TOLERANCE = 1e-10


class Minimum(NamedTuple):
    """The final embeddings z (K, N, d), and the trajectory, arrays of one length.

    The loss is in nats (CE without its penalty). The others are P1's three conditions, 0 at the
    optimum, by the functions of `cltools.maths.collapse`: `etf_deviation` (which centres the means
    first, so that two classes always are an ETF; the loss tells), `within_class_spread` and
    `view_distance`, the first of its numbers. The first entry is the start, then one per descent
    step and per L-BFGS call.
    """

    z: Tensor
    loss: NDArray[np.float64]
    etf_deviation: NDArray[np.float64]
    within_class_spread: NDArray[np.float64]
    view_distance: NDArray[np.float64]


def nscl_minimum(per_class: int, classes: int, tau: float, views: int = 2) -> float:
    """NSCL at the minimisers of P1's Theorem 2: log(K n (C - 1)) - C/((C - 1) τ), in nats.

    All positives at 1 and all negatives at -1/(C - 1), for C balanced classes of n images.

    Raises:
        ValueError: per_class < 1, classes < 2, tau ≤ 0 or views < 1.
    """
    if per_class < 1 or classes < 2 or not tau > 0 or views < 1:
        raise ValueError("need per_class ≥ 1, classes ≥ 2, tau > 0 and views ≥ 1")
    return float(np.log(views * per_class * (classes - 1)) - classes / ((classes - 1) * tau))


def minimise(
    objective: str,
    labels: Tensor,
    dimension: int,
    tau: float,
    seed: int,
    views: int = 2,
    descent_steps: int = 50,
    descent_lr: float = 1.0,
    newton_calls: int = 40,
    head_penalty: float = 1e-3,
) -> Minimum:
    """Minimise one objective over embeddings on the sphere, from a random start, in float64.

    Gradient descent first, which spreads the points from wherever they started, then L-BFGS with
    strong Wolfe line search until the gradient is below 1e-10. z = u/‖u‖ with u free. The losses
    are not convex on the sphere. NSCL got stuck in local minima from up to half of the seeds at
    d = C - 1, never at d ≥ C: compare the loss with `nscl_minimum`, and try other seeds.

    Args:
        objective: one of `objectives.OBJECTIVES`. CE also minimises over a linear head with bias;
            without `head_penalty` it would have no minimum.
        labels: (N,) integers 0..C-1, C ≥ 2, each occurring.
        dimension: d, 1 or more. At d = 1 the sphere is two points, and nothing moves.
        tau: temperature, above 0; CE does not use it.
        seed: of the start.
        views: K, 2 or more.
        descent_steps, descent_lr: of gradient descent; the learning rate is per point, that is
            times K N, since the losses are means.
        newton_calls: L-BFGS calls, of 25 iterations each.
        head_penalty: factor of the head's squared norm (weights and bias), CE only, above 0.

    Returns:
        Final embeddings and the trajectory.

    Raises:
        ValueError: an unknown objective, arguments out of range, labels that are not 0..C-1.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {objective!r}: use one of {OBJECTIVES}")
    if dimension < 1 or views < 2 or not head_penalty > 0:
        raise ValueError("need dimension ≥ 1, views ≥ 2 and head_penalty > 0")
    generator = torch.Generator().manual_seed(seed)
    start = {"generator": generator, "dtype": torch.float64}
    free = F.normalize(torch.randn(views, len(labels), dimension, **start), dim=2)
    classes = int(labels.max()) + 1
    if classes < 2 or not torch.equal(labels.unique(), torch.arange(classes)):
        raise ValueError("labels must be 0..C-1, with images in each of at least two classes")
    parameters = [free.requires_grad_()]
    if objective == "ce":
        head = torch.randn(classes, dimension + 1, **start).mul_(0.1).requires_grad_()
        parameters.append(head)
    else:
        checked_contrastive_loss(objective, free.detach(), labels, tau)
        masks = pair_masks(labels, views)

    def losses() -> tuple[Tensor, Tensor]:
        """The loss, and what is minimised."""
        z = F.normalize(free, dim=2)
        if objective != "ce":
            loss = contrastive_loss(objective, similarity_logits(z, tau), masks)
            return loss, loss
        loss = cross_entropy(z @ head[:, :-1].T + head[:, -1], labels)
        return loss, loss + head_penalty * head.square().sum()

    trajectory: list[tuple[float, ...]] = []

    def record() -> None:
        with torch.no_grad():
            loss = losses()[0].item()
        z = F.normalize(free.detach(), dim=2).numpy()
        statistics = class_statistics(z.reshape(-1, dimension), labels.repeat(views).numpy())
        trajectory.append(
            (
                loss,
                etf_deviation(statistics),
                within_class_spread(statistics),
                view_distance(z)[0],
            )
        )

    record()
    for _ in range(descent_steps):
        gradients = torch.autograd.grad(losses()[1], parameters)
        with torch.no_grad():
            free -= descent_lr * views * len(labels) * gradients[0]
            free.div_(free.norm(dim=2, keepdim=True))
            if objective == "ce":
                head -= descent_lr * gradients[1]
        record()

    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=25,
        history_size=20,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = losses()[1]
        value.backward()
        return value

    for _ in range(newton_calls):
        optimiser.step(closure)
        record()
        if max(p.grad.abs().max().item() for p in parameters) < GRADIENT_TOLERANCE:
            break
    columns = np.array(trajectory).T
    return Minimum(F.normalize(free.detach(), dim=2), *columns)
