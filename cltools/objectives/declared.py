"""What an objective is: its loss, what that needs of the network, and how it looks in figures.

This module and the files beside it import quickly: torch is imported when a loss is computed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor

    from cltools.maths.objectives import KeyMasks, PairMasks

MOMENTUM = "momentum"  # the setting of the momentum network
ABSENT = cast("Tensor", None)  # losses use what their objective asks for, and that is there


@dataclass(frozen=True)
class Outputs:
    """What the network of an objective gives for a batch of B images in K views.

    What an `Objective` does not ask for is None. All tensors are in float32 (or float64).

    z: (K, B, d), projections of unit norm. For an objective with a `classifier`, and where several
        processes split the batch, only those of this process.
    labels: (B,) integers, with which the objective is trained.
    tau: the temperature, above 0.
    masks: how the batch's projections are related, in the order of `logits`.
    projections: (K, B, d) before they are normalized; also where there is a predictor.
    predictions: (K, B, d), of the predictor from `projections`.
    targets: (K, B, d), projections of the momentum network, not normalized, without a gradient.
    class_logits: (K, B, C), of the linear head.
    keys: (M, d), with a queue: those that `masks` are about. z is then (1, B, d), the queries.
    """

    z: "Tensor"
    labels: "Tensor"
    tau: float
    masks: "PairMasks | KeyMasks"
    projections: "Tensor" = ABSENT
    predictions: "Tensor" = ABSENT
    targets: "Tensor" = ABSENT
    class_logits: "Tensor" = ABSENT
    keys: "Tensor | None" = None

    @cached_property
    def logits(self) -> "Tensor":
        """Cosines / tau: (K*B, K*B) of all pairs, ordered by view; with a queue (B, M)."""
        from cltools.maths.objectives import key_logits, similarity_logits

        if self.keys is not None:
            return key_logits(self.z[0], self.keys, self.tau)
        return similarity_logits(self.z, self.tau)


Loss = Callable[..., "Tensor"]  # of Outputs, and of the settings by name


@dataclass(frozen=True)
class Setting:
    """A number of an objective: its default, and its range, at_least <= number < below."""

    default: float
    at_least: float = 0.0
    below: float = math.inf


@dataclass(frozen=True)
class Objective:
    """One way to train a network. Its file is named after it, and so is the page in docs.

    name: as configs, tables and files have it.
    loss: from `Outputs` to a scalar, to be minimized. It gets the settings as keyword arguments.
    settings: by name; a config changes them with the key `objective_settings`.
    label: its name in figures. color and marker: of its curves, as matplotlib writes them; None
        for the next ones that no built-in objective has.
    labels: whether the loss uses labels. It can then be trained with labels of its own too.
    two_classes: whether the loss is undefined on batches of one class, which are then skipped.
    contrastive: whether the loss is a function of `logits` and `masks` (and labels) alone. It is
        then evaluated on the projections of every contrastive network, for the log.
    queue: the loss with a queue of keys (MoCo), where there is one.
    projections: whether the loss uses projections that are not normalized.
    predictor: from the cell to the hidden width of the predictor, a small network behind the
        projector; None for none. In the cell that it gets, `projector_dim` is the width of z, and
        `projector_hidden` that of the projector's hidden layers or, without any, of z.
    target: whether a momentum network computes targets. Its momentum is the setting `momentum`,
        which the loss does not get. It rises along a cosine to 1 at the horizon.
    classifier: whether there is a linear head on z.
    """

    name: str
    loss: Loss
    label: str
    color: str | None = None
    marker: str | None = None
    labels: bool = False
    two_classes: bool = False
    contrastive: bool = False
    queue: Loss | None = None
    projections: bool = False
    predictor: Callable[[Mapping[str, Any]], int] | None = None
    target: bool = False
    classifier: bool = False
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target and MOMENTUM not in self.settings:
            raise ValueError(f"{self.name} has a momentum network, but no setting {MOMENTUM}")

    @property
    def unnormalized(self) -> bool:
        """Whether projections are needed before they are normalized."""
        return self.projections or self.predictor is not None

    @property
    def watched(self) -> bool:
        """Whether each step measures how far z has collapsed.

        Contrastive losses and cross-entropy are large where all images have one z. Others need not
        be.
        """
        return not (self.contrastive or self.classifier)


def of_the_papers(name: str) -> Loss:
    """The contrastive loss `name` of `cltools.maths.objectives`."""

    def loss(outputs: Outputs) -> "Tensor":
        from cltools.maths.objectives import contrastive_loss

        return contrastive_loss(name, outputs.logits, cast("PairMasks", outputs.masks))

    return loss


def with_queue(name: str) -> Loss:
    """The same of queries against the keys in a queue."""

    def loss(outputs: Outputs) -> "Tensor":
        from cltools.maths.objectives import queue_loss

        return queue_loss(name, outputs.logits, cast("KeyMasks", outputs.masks))

    return loss


def over_pairs(loss: Callable[["Tensor", "Tensor"], "Tensor"], views: "Tensor") -> "Tensor":
    """Mean of a symmetric loss of two views (B, d) over all pairs of the views (K, B, d)."""
    values = [loss(a, b) for a, b in combinations(views, 2)]
    return cast("Tensor", sum(values) / len(values))


def across_views(
    loss: Callable[["Tensor", "Tensor"], "Tensor"], first: "Tensor", second: "Tensor"
) -> "Tensor":
    """Mean of loss(first[k], second[l]) over all k ≠ l; both are (K, B, d)."""
    values = [loss(first[k], second[other]) for k, other in permutations(range(len(first)), 2)]
    return cast("Tensor", sum(values) / len(values))


def cosines(a: "Tensor", b: "Tensor") -> "Tensor":
    """(B,) cosines of the rows of a and b (B, d); 0 where a row is 0."""
    lengths = a.norm(dim=1) * b.norm(dim=1)
    return cast("Tensor", (a * b).sum(dim=1) / lengths.clamp_min(1e-12))
