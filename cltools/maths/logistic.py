"""Multinomial logistic regression with an L2 penalty: many at once, on rows read in blocks.

The model is that of scikit-learn's `LogisticRegression`. With n images, C classes and an inverse
penalty c, the weights W (C, d) and intercepts b (C,) minimize

    mean over images of -log softmax(W x + b)_y   +   ‖W‖² / (2 c n)

For two classes, scikit-learn has one weight vector w instead of two. That is the same with
W = (-w/2, w/2) and ‖W‖² / (c n), since ‖W‖² = ‖w‖² / 2. The minimum is unique in W. It is found by
L-BFGS, which several problems share: all their products are one product for each block of rows, so
that rows are read once per iteration.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 10  # earlier steps from which L-BFGS makes its next one
MOST_STEPS = 500
MOST_TRIALS = 20  # of lengths of one step
SUFFICIENT = 1e-4  # share of the decrease that the slope promises (Armijo)


@dataclass(frozen=True)
class Images:
    """B sets of n images with the same classes; only the features differ.

    blocks: reads all rows in order, as (place, features (B, m, d)).
    index: (n,) classes 0..C-1; in a test set, -1 for a class that the training set does not have.
    classes, features, sets: C, d and B.
    """

    blocks: Callable[[], Iterator[tuple[slice, Tensor]]]
    index: Tensor
    classes: int
    features: int
    sets: int


def in_memory(x: Tensor, index: Tensor, classes: int, block_rows: int | None = None) -> Images:
    """Images whose features x (B, n, d) are in memory."""
    n, d = x.shape[1:]

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, n, block_rows or n):
            part = slice(start, min(start + (block_rows or n), n))
            yield part, x[:, part]

    return Images(blocks, index, classes, d, len(x))


@torch.no_grad()
def fit(
    images: Images,
    inverse_penalties: Tensor,
    tolerance: float,
    dtype: torch.dtype = torch.float64,
    left_out: Tensor | None = None,
) -> Tensor:
    """The minima of B × P problems: P penalties for each of B sets of features.

    Args:
        images: B sets of features of n images.
        inverse_penalties: (B, P), each above 0.
        tolerance: a problem is solved when no entry of its gradient is larger; scikit-learn's `tol`
            is the same, by default 1e-4. Also when no step makes the loss smaller: rounding errors
            are larger then.
        dtype: of the features and of all products.
        left_out: mask (n,) of images that are not fitted.

    Returns:
        (B, P, C, d + 1): weights, and the intercept as the last column.
    """
    rest = torch.ones_like(images.index, dtype=dtype)
    if left_out is not None:
        rest[left_out] = 0
    count = rest.sum()
    target = torch.nn.functional.one_hot(images.index, images.classes).to(dtype).T
    share = rest / count
    penalties = (2 if images.classes == 2 else 1) / (inverse_penalties.to(count) * count)
    penalties = penalties[:, :, None, None]
    target = target * share

    def objective(v: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
        loss, gradient = _loss(images, v, target, share)
        pull = penalties[:, columns] * v[..., :-1]  # the intercept has no penalty
        gradient[..., :-1] += pull
        loss += (pull * v[..., :-1]).sum((2, 3), dtype=torch.float64) / 2
        return loss, gradient

    shape = (*inverse_penalties.shape, images.classes, images.features + 1)
    zeros = torch.zeros(shape, dtype=dtype, device=images.index.device)
    return _minimize(objective, zeros, tolerance)


def scores(x: Tensor, v: Tensor) -> Tensor:
    """Scores (B, P, C, m) of the classes for rows x (B, m, d); v is (B, P, C, d + 1)."""
    sets, problems, classes, _ = v.shape
    flat = v.reshape(sets, problems * classes, -1)
    found = torch.baddbmm(flat[..., -1:], flat[..., :-1], x.transpose(1, 2))
    return found.view(sets, problems, classes, -1)


def hits(images: Images, v: Tensor, among: Tensor | None = None) -> Tensor:
    """How many images (B, P) have the highest score for their class.

    Among equal scores that of the first class counts. `among` is a mask (n,) of the images.
    """
    found = torch.zeros(v.shape[:2], dtype=torch.int64, device=v.device)
    for part, x in images.blocks():
        right = scores(x, v).argmax(2) == images.index[part]
        found += (right if among is None else right & among[part]).sum(2)
    return found


def losses(images: Images, v: Tensor, among: Tensor | None = None) -> Tensor:
    """The sum of -log softmax (B, P) of the images' own classes, which must all be known.

    `among` is as for `hits`.
    """
    found = torch.zeros(v.shape[:2], dtype=torch.float64, device=v.device)
    for part, x in images.blocks():
        place = images.index[part].expand(*v.shape[:2], 1, -1)
        each = -scores(x, v).log_softmax(2).gather(2, place)[:, :, 0].double()
        found += (each if among is None else each * among[part]).sum(2)
    return found


def _loss(images: Images, v: Tensor, target: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Mean losses (B, P), and their gradients like v; target (C, n) has the shares, too."""
    loss = torch.zeros(v.shape[:2], dtype=torch.float64, device=v.device)
    gradient = torch.zeros_like(v)
    flat = gradient.view(len(v), -1, v.shape[-1])
    for part, x in images.blocks():
        logs = scores(x, v).log_softmax(2)
        wanted = target[:, part]
        loss -= (logs * wanted).sum((2, 3), dtype=torch.float64)
        residual = logs.exp_().mul_(share[part]).sub_(wanted).view(len(v), flat.shape[1], -1)
        flat[..., :-1] += residual @ x
        flat[..., -1] += residual.sum(2)
    return loss, gradient


Columns = slice | Tensor  # which of the P penalties
Objective = Callable[[Tensor, Columns], tuple[Tensor, Tensor]]
EVERY = slice(None)


def _minimize(objective: Objective, v: Tensor, tolerance: float) -> Tensor:
    """L-BFGS on the problems (B, P) of v side by side.

    Solved problems stay as they are. Nothing more is computed of a penalty all of whose problems
    are solved.
    """
    value, gradient = objective(v, EVERY)
    history = _History(v)
    going = torch.ones_like(value, dtype=torch.bool)
    for _ in range(MOST_STEPS):
        going &= gradient.abs().amax((2, 3)) > tolerance
        if not going.any():
            break
        direction = history.direction(gradient) * going[:, :, None, None]
        new, new_value, new_gradient, failed = _step(
            objective, v, value, gradient, direction, going
        )
        going &= ~failed
        history.add(new - v, new_gradient - gradient)
        v, value, gradient = new, new_value, new_gradient
    return v


class _History:
    """The last `MEMORY` steps of each problem and the changes of its gradient, oldest first.

    The inverse Hessian that they show is written with small matrices (Byrd, Nocedal and Schnabel
    1994, theorem 2.2), which takes a few products instead of a loop over the steps.
    """

    def __init__(self, v: Tensor) -> None:
        self._steps = self._changes = v.new_empty(*v.shape[:2], 0, v[0, 0].numel())

    def add(self, step: Tensor, change: Tensor) -> None:
        step, change = step.flatten(2), change.flatten(2)
        # A pair without curvature, as rounding errors make it, is left out: it becomes 0.
        kept = (torch.linalg.vecdot(step, change) > 0)[:, :, None]
        both = (self._steps, step * kept), (self._changes, change * kept)
        self._steps, self._changes = (
            torch.cat([old[:, :, 1 - MEMORY :], new[:, :, None]], 2) for old, new in both
        )

    def direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian times the gradient; minus the gradient of length 1 at first."""
        g = gradient.flatten(2)
        if not self._steps.shape[2]:
            length: Tensor = g.norm(dim=2).clamp(min=torch.finfo(g.dtype).tiny)
            return -gradient / length[:, :, None, None]
        s, y = self._steps, self._changes
        products = (torch.cat([s, y], 2) @ torch.cat([y, g[:, :, None]], 2).mT).double()
        count = s.shape[2]
        upper, own = products[:, :, :count, :count].triu(), products[:, :, count:, :count]
        diagonal = upper.diagonal(dim1=2, dim2=3)
        size = own.diagonal(dim1=2, dim2=3)[..., -1]
        newest = diagonal[..., -1] / size
        scale = torch.where(size > 0, newest, torch.ones_like(size))[:, :, None, None]
        solvable = upper + torch.diag_embed((diagonal == 0).to(upper))
        along, across = products[:, :, :count, count:], products[:, :, count:, count:]
        inner = torch.linalg.solve_triangular(solvable, along, upper=True)
        right = diagonal[..., None] * inner + scale * (own @ inner - across)
        outer = torch.linalg.solve_triangular(solvable.mT, right, upper=False)
        found: Tensor = scale[..., 0].to(g) * g + (outer.to(g).mT @ s)[:, :, 0]
        found -= ((scale * inner).to(g).mT @ y)[:, :, 0]
        return -found.view_as(gradient)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Products (B, P) of each problem's part of a and b (B, P, C, d + 1), in float64."""
    found: Tensor = torch.linalg.vecdot(a.flatten(2), b.flatten(2))
    return found.double()


def _step(
    objective: Objective,
    v: Tensor,
    value: Tensor,
    gradient: Tensor,
    direction: Tensor,
    going: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next point, its value and gradient, and which problems (B, P) found no better point.

    A step is good if it decreases the value, or if rounding errors hide the change and the slope at
    its end is not steeper than at its start (Hager and Zhang 2005, approximate Wolfe conditions).
    """
    rounding = (100 * torch.finfo(v.dtype).eps) * value.abs()
    slope = _dot(gradient, direction)
    length = torch.ones_like(value)
    new, new_value, new_gradient = v, value, gradient
    trying = going
    for _ in range(MOST_TRIALS):
        used = trying.any(0)
        if not used.any():
            break
        columns: Columns = EVERY if used.all() else used.nonzero()[:, 0]
        size, way = length[:, columns, None, None].to(v.dtype), direction[:, columns]
        point = torch.addcmul(v[:, columns], size, way)
        found, found_gradient = objective(point, columns)
        gain, promised = found - value[:, columns], (length * slope)[:, columns]
        good = gain <= SUFFICIENT * promised
        if not good.all():
            steep = _dot(found_gradient, way) > -(1 - 2 * SUFFICIENT) * slope[:, columns]
            good |= (gain <= rounding[:, columns]) & ~steep
        taken = trying[:, columns] & good
        if used.all() and taken.all():
            return point, found, found_gradient, ~good
        new_value = _with(new_value, columns, taken, found)
        new = _with(new, columns, taken[:, :, None, None], point)
        new_gradient = _with(new_gradient, columns, taken[:, :, None, None], found_gradient)
        trying = _with(trying, columns, good, torch.zeros_like(good))
        # The minimum of the parabola through the values and the slope, within limits.
        shorter = -promised / (2 * (gain - promised)).clamp(min=1e-300)
        length[:, columns] *= torch.where(good, torch.ones_like(shorter), shorter.clamp(0.1, 0.5))
    return new, new_value, new_gradient, trying


def _with(old: Tensor, columns: Columns, where: Tensor, new: Tensor) -> Tensor:
    """old, with `new` in some places of some columns."""
    changed = old.clone()
    changed[:, columns] = torch.where(where, new, old[:, columns])
    return changed
