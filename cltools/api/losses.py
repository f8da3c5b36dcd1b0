"""Contrastive losses of two views, as functions and as modules, for a training loop of one's own.

`z1` and `z2` are projections of two views of the same images: row i of both is image i. Every view
of every image is an anchor, its positive is the other view of its image, and the loss is the mean
over anchors. The formulas are in `cltools.maths.objectives`.

The functions divide projections by their norms, so that every product is a cosine. They compute in
float32 or, where an input is float64, in float64, within autocast too.
"""

from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cltools.api.inputs import Labels, Numbers, class_labels, precise
from cltools.maths.alignment.features import class_index
from cltools.maths.objectives import checked_contrastive_loss

SMALLEST_NORM = 1e-12  # of a row that is not zero: what torch divides by at least


def dcl_loss(z1: Numbers, z2: Numbers, tau: float) -> Tensor:
    """The decoupled contrastive loss, which the papers call CL: the mean over anchors of

        -log( e^(s⁺/τ) / Σ e^(s/τ) )

    s⁺ is the cosine of the anchor with the other view of its image. The sum is over both views of
    all other images, so that the positive is not in it (arXiv 2506.04411; 2510.08852, where CL is
    written with τ).

    Args:
        z1, z2: (B, d) projections of two views of B ≥ 2 images: tensors, arrays or lists of any
            real type. They need not have norm 1. A row of zeros has cosine 0 with all rows.
        tau: temperature τ, above 0. The papers train with 0.5 on CIFAR-10 and, mostly, 0.1
            elsewhere; the first paper's theorem has τ = 1.

    Returns:
        The loss in nats, a tensor with one number. It has a gradient when z1 or z2 has one.

    Raises:
        ValueError: shapes or devices that do not fit, NaN or infinity, rows whose norm is too large
            or (below 1e-12) too small, fewer than two images, τ not above 0.

    >>> import torch, cltools
    >>> z = torch.eye(3).requires_grad_()  # three images, both views alike
    >>> loss = cltools.dcl_loss(z, z, tau=0.5)
    >>> round(loss.item(), 4)  # log 4 - 1/τ: four cosines of 0, and a positive of 1
    -0.6137
    >>> loss.backward()
    >>> z.grad.shape
    torch.Size([3, 3])
    """
    return _loss("dcl", z1, z2, tau)


def nscl_loss(z1: Numbers, z2: Numbers, labels: Labels, tau: float) -> Tensor:
    """Negatives-only supervised contrastive loss: `dcl_loss` with negatives of other classes only.

    The sum in the denominator is over both views of all images of other classes (arXiv 2506.04411,
    2510.08852). So it is never above `dcl_loss`, and `gap_bound` says how far below it may be.

    Args:
        z1, z2, tau: as for `dcl_loss`.
        labels: (B,) classes of the images, numbers or text; at least two classes.

    Returns:
        As `dcl_loss`.

    Raises:
        ValueError: as `dcl_loss`; also labels that are missing, not (B,), or all of one class.

    >>> import cltools
    >>> z = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    >>> loss = cltools.nscl_loss(z, z, labels=["cat", "cat", "dog"], tau=0.5)
    >>> round(loss.item(), 4)  # two negatives for a cat, four for the dog
    -1.0758
    """
    return _loss("nscl", z1, z2, tau, class_labels(labels))


def scl_loss(z1: Numbers, z2: Numbers, labels: Labels, tau: float) -> Tensor:
    """Supervised contrastive loss (SupCon): L_out of Khosla et al. 2020, arXiv 2004.11362.

    All other projections of the anchor's class are its positives, and the mean over them is taken
    outside the logarithm. The denominator is over all projections but the anchor, positives
    included. There is no factor τ/0.07 in front, as in that paper's code.

    Args:
        z1, z2, tau: as for `dcl_loss`.
        labels: (B,) classes of the images, numbers or text.

    Returns:
        As `dcl_loss`.

    Raises:
        ValueError: as `dcl_loss`; also labels that are missing or not (B,).

    >>> import cltools
    >>> z = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    >>> loss = cltools.scl_loss(z, z, labels=["cat", "cat", "dog"], tau=0.5)
    >>> round(loss.item(), 4)
    1.3215
    """
    return _loss("scl", z1, z2, tau, class_labels(labels))


def nt_xent_loss(z1: Numbers, z2: Numbers, tau: float) -> Tensor:
    """The loss of SimCLR, NT-Xent: `dcl_loss` with the positive in the denominator, too.

    Chen et al. 2020, arXiv 2002.05709, eq. 1. This is also what the papers' code runs under the
    name `DecoupledNTXentLoss`.

    Args:
        z1, z2, tau: as for `dcl_loss`.

    Returns:
        As `dcl_loss`.

    Raises:
        ValueError: as `dcl_loss`.

    >>> import cltools
    >>> z = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    >>> round(cltools.nt_xent_loss(z, z, tau=0.5).item(), 4)  # log(4 + e^(1/τ)) - 1/τ
    0.4327
    """
    return _loss("nt_xent", z1, z2, tau)


class _Loss(nn.Module):
    """A loss that keeps its temperature."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = _temperature(tau)

    def extra_repr(self) -> str:
        return f"tau={self.tau}"


class DCLLoss(_Loss):
    """`dcl_loss` as a module: `DCLLoss(tau)(z1, z2)`.

    >>> import torch, cltools
    >>> criterion = cltools.DCLLoss(tau=0.5)
    >>> round(criterion(torch.eye(3), torch.eye(3)).item(), 4)
    -0.6137
    """

    def forward(self, z1: Numbers, z2: Numbers) -> Tensor:
        return dcl_loss(z1, z2, self.tau)


class NSCLLoss(_Loss):
    """`nscl_loss` as a module: `NSCLLoss(tau)(z1, z2, labels)`.

    >>> import torch, cltools
    >>> criterion = cltools.NSCLLoss(tau=0.5)
    >>> round(criterion(torch.eye(3), torch.eye(3), torch.tensor([0, 0, 1])).item(), 4)
    -1.0758
    """

    def forward(self, z1: Numbers, z2: Numbers, labels: Labels) -> Tensor:
        return nscl_loss(z1, z2, labels, self.tau)


class SCLLoss(_Loss):
    """`scl_loss` as a module: `SCLLoss(tau)(z1, z2, labels)`.

    >>> import torch, cltools
    >>> criterion = cltools.SCLLoss(tau=0.5)
    >>> round(criterion(torch.eye(3), torch.eye(3), torch.tensor([0, 0, 1])).item(), 4)
    1.3215
    """

    def forward(self, z1: Numbers, z2: Numbers, labels: Labels) -> Tensor:
        return scl_loss(z1, z2, labels, self.tau)


class NTXentLoss(_Loss):
    """`nt_xent_loss` as a module: `NTXentLoss(tau)(z1, z2)`.

    >>> import torch, cltools
    >>> cltools.NTXentLoss(tau=0.5)
    NTXentLoss(tau=0.5)
    """

    def forward(self, z1: Numbers, z2: Numbers) -> Tensor:
        return nt_xent_loss(z1, z2, self.tau)


def _loss(name: str, z1: Numbers, z2: Numbers, tau: float, labels: Labels | None = None) -> Tensor:
    """The loss `name`; without labels every image is a class of its own."""
    z = _unit_views(z1, z2)
    images = z.shape[1]
    index = torch.arange(images)
    if labels is not None:
        index = torch.from_numpy(class_index(labels, images)[0])
    return checked_contrastive_loss(name, z, index.to(z.device), _temperature(tau))


def _unit_views(z1: Numbers, z2: Numbers) -> Tensor:
    """(2, B, d) of norm 1, or of norm 0 where a row is zero."""
    a, b = precise("z1", z1), precise("z2", z2)
    if a.ndim != 2 or a.shape != b.shape or 0 in a.shape:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"z1 and z2 must both be (images, dimensions), not {shapes}")
    if a.device != b.device:
        raise ValueError(f"z1 is on {a.device} and z2 on {b.device}: put both on one device")
    dtype = torch.promote_types(a.dtype, b.dtype)
    z = torch.stack([a.to(dtype), b.to(dtype)])
    norms = torch.linalg.vector_norm(z.detach(), dim=2)
    usable = norms.isfinite() & ((norms >= SMALLEST_NORM) | ~z.detach().any(dim=2))
    if not usable.all():
        which = "z2" if usable[0].all() else "z1"
        raise ValueError(f"{which} holds NaN, infinity, or rows that are too large or too small")
    return F.normalize(z, dim=2, eps=SMALLEST_NORM)


def _temperature(tau: float) -> float:
    if not isinstance(tau, Real) or not 0 < tau < float("inf"):
        raise ValueError(f"tau must be a number above 0, not {tau}")
    return float(tau)
