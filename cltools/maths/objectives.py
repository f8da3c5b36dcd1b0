"""The losses of DCL, NSCL, SCL, CE, and three of the authors' code.

What can be trained is in `cltools.objectives`, which also has the other losses.

Every contrastive loss here is a masked log-sum-exp over the rows of a matrix of cosines / tau. With
z_i^l the projection of view l of image i, each of the B images and K views of the batch is an
anchor (i, l):

========================  =====================================  ===============================
objective                 numerator: mean over                   denominator: sum over
========================  =====================================  ===============================
dcl                       the K - 1 other views of image i       all views of other images
nscl                      the K - 1 other views of image i       all views of other classes
nt_xent                   the K - 1 other views of image i       as dcl, plus that positive
nscl_with_positive        the K - 1 other views of image i       as nscl, plus that positive
nt_xent_double_positive   the K - 1 other views of image i       as dcl, plus twice that positive
scl                       all other projections of i's class     all other projections
========================  =====================================  ===============================

The value is the mean over anchors. `dcl` and `nscl` are the papers' formulas (arXiv 2506.04411,
2510.08852), in which the positive is not in the denominator. Positive pairs are different views,
and every view is an anchor. The authors' code has other formulas: its `DecoupledNTXentLoss` is
`nt_xent`, its `NegSupConLoss` is `nscl_with_positive`, and its `NTXentLoss` (`ContrastiveLoss` in
the first paper's code), which it calls CL, is `nt_xent_double_positive`. `scl` is L_out of Khosla
et al. 2020.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CONTRASTIVE = (
    "dcl", "nscl", "scl", "nt_xent", "nscl_with_positive", "nt_xent_double_positive",
)  # fmt: skip
OBJECTIVES = (*CONTRASTIVE, "ce")
QUEUE_OBJECTIVES = tuple(name for name in CONTRASTIVE if name != "scl")
REFERENCE = "dcl"  # all others are compared with it
TWIN = "dcl_twin"  # a second DCL model, to see how far apart two runs of one objective are
OWN_LABELS = ":"  # separates an objective from the labels it is trained with: nscl:shuffled
# Undefined when the whole batch is of one class: then no anchor has a negative.
NEED_TWO_CLASSES = ("nscl", "nscl_with_positive")
NEED_LABELS = (*NEED_TWO_CLASSES, "scl", "ce")
# How often the positive is in the denominator, for the objectives where it is.
_POSITIVES = {"nt_xent": 1, "nscl_with_positive": 1, "nt_xent_double_positive": 2}


@dataclass(frozen=True)
class PairMasks:
    """How each two projections are related, as (K*B, K*B) bool tensors. Rows are ordered by view.

    `other_image` and `other_class` are the negatives of DCL and NSCL. `same_class` are the
    positives of SCL, without the projection itself. `not_self` is all but the diagonal.
    """

    views: int
    not_self: Tensor
    other_image: Tensor
    other_class: Tensor
    same_class: Tensor


@dataclass(frozen=True)
class KeyMasks:
    """Which of M queued keys are negatives of B queries, as (B, M) bool tensors.

    The keys of the queries' own images start at column `own`, in the order of the queries.
    """

    own: int
    other_image: Tensor
    other_class: Tensor


def loss_of(objective: str) -> str:
    """The loss that trains an objective: `nscl` for `nscl:shuffled`, `dcl` for `dcl_twin`.

    >>> loss_of("nscl:shuffled")
    'nscl'
    """
    return "dcl" if objective == TWIN else objective.partition(OWN_LABELS)[0]


def labels_of(objective: str) -> str:
    """The labels that an objective is trained with; "" for those of the data set.

    >>> labels_of("nscl:coarse2")
    'coarse2'
    """
    return objective.partition(OWN_LABELS)[2]


def pair_masks(labels: Tensor, views: int) -> PairMasks:
    """Masks for a batch of B images with K = `views` views; labels: (B,) integers.

    Raises ValueError for fewer than two images, where DCL has no negatives, or for fewer than two
    views.
    """
    if len(labels) < 2:
        raise ValueError("a batch of one image has no negatives: use at least two images")
    if views < 2:
        raise ValueError(f"contrastive objectives need at least two views, got {views}")
    image = torch.arange(len(labels), device=labels.device).repeat(views)
    label = labels.repeat(views)
    other_image = image[:, None] != image[None, :]
    other_class = label[:, None] != label[None, :]
    not_self = ~torch.eye(len(image), dtype=torch.bool, device=labels.device)
    return PairMasks(views, not_self, other_image, other_class, not_self & ~other_class)


def similarity_logits(z: Tensor, tau: float) -> Tensor:
    """(K*B, K*B) matrix of cosine / tau from normalized projections z of shape (K, B, d).

    Computed in float32 or float64, even within autocast: at tau = 0.1 a bfloat16 product would
    change the loss by several hundredths of a nat.
    """
    flat = z.flatten(0, 1)
    return _cosines(flat, flat) / tau


def key_logits(queries: Tensor, keys: Tensor, tau: float) -> Tensor:
    """(B, M) matrix of cosine / tau of normalized queries (B, d) with normalized keys (M, d).

    Computed in float32 or float64, as in `similarity_logits`.
    """
    return _cosines(queries, keys) / tau


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype not in (torch.float32, torch.float64):
            a, b = a.float(), b.float()
        return a @ b.T


def masked_logsumexp(logits: Tensor, mask: Tensor) -> Tensor:
    """log of the sum of exp(logits) over the True entries of each row; -inf for an empty row."""
    return logits.masked_fill(~mask, -torch.inf).logsumexp(dim=1)


def _positive_logits(logits: Tensor, views: int) -> Tensor:
    """(K, K-1, B): for each view, its logits with the other views of the same image."""
    batch = logits.shape[0] // views
    by_view = logits.view(views, batch, views, batch).diagonal(dim1=1, dim2=3)  # (K, K, B)
    return torch.stack(
        [torch.cat([by_view[anchor, :anchor], by_view[anchor, anchor + 1 :]])
         for anchor in range(views)]
    )  # fmt: skip


def contrastive_loss(name: str, logits: Tensor, masks: PairMasks) -> Tensor:
    """The contrastive objective `name` computed from logits; a scalar in nats.

    For `nscl` and `nscl_with_positive` the batch must have at least two classes. Otherwise no
    anchor has a negative, and the value is -inf (`nscl`) or 0 (`nscl_with_positive`). This is not
    checked here: see `NEED_TWO_CLASSES` and `checked_contrastive_loss`.

    Raises ValueError for an unknown name.
    """
    if name == "scl":
        denominator = masked_logsumexp(logits, masks.not_self)
        positives = masks.same_class.sum(dim=1)  # at least K - 1: the other views
        numerator = (logits * masks.same_class).sum(dim=1) / positives
        return (denominator - numerator).mean()
    if name not in CONTRASTIVE:
        raise ValueError(f"unknown contrastive objective {name!r}: use one of {CONTRASTIVE}")
    log_negatives = masked_logsumexp(logits, _negatives(name, masks)).view(masks.views, 1, -1)
    return _positive_against(name, _positive_logits(logits, masks.views), log_negatives)


def queue_loss(name: str, logits: Tensor, masks: KeyMasks) -> Tensor:
    """A contrastive objective of queries against queued keys (`training.moco`); a scalar in nats.

    logits: (B, M), cosine / tau. An anchor's one positive is the key of its own image. The queue
    must have two classes where `contrastive_loss` needs them in the batch.

    Raises ValueError for a name that is not in `QUEUE_OBJECTIVES`.
    """
    if name not in QUEUE_OBJECTIVES:
        raise ValueError(f"{name!r} has no form with a queue: use one of {QUEUE_OBJECTIVES}")
    positive = logits[:, masks.own : masks.own + len(logits)].diagonal()
    log_negatives = masked_logsumexp(logits, _negatives(name, masks))
    return _positive_against(name, positive, log_negatives)


def _negatives(name: str, masks: PairMasks | KeyMasks) -> Tensor:
    return masks.other_class if name in NEED_TWO_CLASSES else masks.other_image


def _positive_against(name: str, positive: Tensor, log_negatives: Tensor) -> Tensor:
    """Mean over anchors of log(denominator) - positive."""
    if name in _POSITIVES:
        in_denominator = positive + math.log(_POSITIVES[name])
        log_negatives = torch.logaddexp(in_denominator, log_negatives)
    return (log_negatives - positive).mean()


def checked_contrastive_loss(name: str, z: Tensor, labels: Tensor, tau: float) -> Tensor:
    """`contrastive_loss` of normalized projections z (K, B, d) and labels (B,), with checks.

    Raises ValueError for an unknown name, tau <= 0, shapes that do not match, fewer than two images
    or views, and where no anchor has a negative (NSCL on a batch of one class).
    """
    if tau <= 0:
        raise ValueError(f"the temperature must be positive, got {tau}")
    if z.ndim != 3 or z.shape[1] != len(labels):
        raise ValueError(f"expected z of shape (K, {len(labels)}, d), got {tuple(z.shape)}")
    if name in NEED_TWO_CLASSES and len(torch.unique(labels)) < 2:
        raise ValueError(f"{name} is undefined on a batch of one class: no anchor has a negative")
    return contrastive_loss(name, similarity_logits(z, tau), pair_masks(labels, z.shape[0]))


def cross_entropy(class_logits: Tensor, labels: Tensor) -> Tensor:
    """CE, the mean over all views: class_logits (K, B, C) of the linear head, labels (B,).

    As in the authors' `MultiViewCrossEntropyLoss`, the head is applied to the normalized
    projections, and there is no temperature.
    """
    views = class_logits.shape[0]
    return F.cross_entropy(class_logits.flatten(0, 1).float(), labels.repeat(views))
