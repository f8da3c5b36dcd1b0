"""The papers' inequalities checked on measured values: a bound, a value, and whether it held.

P1 is arXiv 2506.04411, P2 arXiv 2510.08852. Generators of rows with some of the columns of SCHEMA.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any, Literal, TypedDict

import numpy as np
import polars as pl

from cltools.maths import bounds
from cltools.maths.bounds import few_shot_bound, few_shot_bound_displayed
from cltools.maths.bounds.few_shot import SMALLEST_SHOTS_DISPLAYED
from cltools.maths.surrogate import batch_gradient, similarities_of_views

Row = dict[str, Any]
Key = tuple[str, str, str, str, str]  # split, objective, features, metric, variant
# `bound`: proved for what is measured, so it never fails. `network`: proved for P2's surrogate
# dynamics, but checked on a network here. `estimate`: some of its constants are estimated.
# `not_comparable`: the bound is about something else than what is measured, so nothing is claimed.
Kind = Literal["bound", "network", "estimate", "not_comparable"]
NOTHING_CLAIMED: tuple[Kind, ...] = ("estimate", "not_comparable")
SCHEMA = {
    "step": pl.Int64,
    "epoch": pl.Float64,
    "split": pl.String,
    "objective": pl.String,
    "features": pl.String,
    "source": pl.String,
    "quantity": pl.String,
    "variant": pl.String,
    "kind": pl.String,
    "side": pl.String,  # of the bound: "upper" or "lower"
    "bound": pl.Float64,
    "log10_bound": pl.Float64,
    "measured": pl.Float64,
    # Orders of magnitude between a bound and the largest possible value; above 0 it says nothing.
    "vacuous_orders": pl.Float64,
    "holds": pl.Boolean,  # null where nothing is claimed
}
# Few-shot accuracy -> the error that it gives, and what is claimed of this error.
FEW_SHOT: dict[str, tuple[str, Kind]] = {
    "few_shot_nccc_one_split": ("few_shot_error", "bound"),
    "few_shot_nccc": ("few_shot_error_from_train", "not_comparable"),
}
ROUNDING = 1e-6  # features are stored in float32


class Where(TypedDict):
    """The columns that say which features a row is about."""

    split: str
    objective: str
    features: str


def inequality(
    source: str,
    quantity: str,
    variant: str,
    bound: float,
    measured: float,
    side: str = "upper",
    kind: Kind = "bound",
    log10_bound: float | None = None,
    vacuous_orders: float | None = None,
    **about: Any,
) -> Row:
    """A row: the bounded quantity, its bound, and whether the inequality held.

    `holds` is None where the bound or the measured value is NaN, and where nothing was proved
    (kinds `estimate` and `not_comparable`). `log10_bound` is None for a bound of 0, and for one
    below 0 or NaN.
    """
    known = not (math.isnan(bound) or math.isnan(measured)) and kind not in NOTHING_CLAIMED
    slack = ROUNDING * max(1.0, abs(measured))
    low, high = (bound, measured) if side == "lower" else (measured, bound)
    if log10_bound is None:
        log10_bound = math.log10(bound) if bound > 0 else None
    return {
        **about,
        "source": source,
        "quantity": quantity,
        "variant": variant,
        "kind": kind,
        "side": side,
        "bound": bound,
        "log10_bound": log10_bound,
        "measured": measured,
        "vacuous_orders": vacuous_orders,
        "holds": low <= high + slack if known else None,
    }


def gap_rows(values: Mapping[Key, float], views: int, batch_size: int) -> Iterator[Row]:
    """P1, Theorem 1: 0 ≤ DCL - NSCL ≤ bound, whole set and batches, for any labels.

    A bound is vacuous above log(K (N - 1)), the DCL loss of an encoder that maps all images to one
    point. At τ = 0.1 it is. Gap, bound and orders are NaN for a single image or class, which have
    no negatives.
    """
    for (split, objective, features, metric, variant), gap in values.items():
        if metric == "gap" or (metric.startswith("gap_") and metric.endswith("_labels")):
            of = metric.replace("gap", "gap_bound", 1)
        elif metric == "batch_gap":
            of = "batch_gap_bound"
        else:
            continue
        bound = values.get((split, objective, features, of, variant))
        if bound is None:
            continue
        about: Where = {"split": split, "objective": objective, "features": features}
        images = value_of(values, split, objective, features, "images", "count")
        negatives = views * ((batch_size if metric == "batch_gap" else images) - 1)
        orders = math.log10(bound / math.log(negatives)) if negatives > 0 else math.nan
        yield inequality("P1 Theorem 1", metric, variant, bound, gap, vacuous_orders=orders,
                         **about)  # fmt: skip
        yield inequality("P1 Theorem 1", metric, variant, 0.0, gap, "lower", **about)


def corollary_rows(values: Mapping[Key, float]) -> Iterator[Row]:
    """P2, Corollaries 1 and 2 with the measured ρ and r, and that centering shrinks distances."""
    plain = (
        ("P2 Corollary 1", "cka", "cosine_biased"),
        ("P2 Corollary 2", "rsa", "pearson_cosine"),
    )
    for split, objective, features in groups(values, "similarity_gap"):
        value = partial(value_of, values, split, objective, features)
        about: Where = {"split": split, "objective": objective, "features": features}
        for source, metric, variant in plain:
            for which in ("corollary", "tight"):
                bound = value(f"{metric}_lower_bound", which)
                measured = value(metric, variant)
                yield inequality(source, metric, which, bound, measured, "lower", **about)
        yield inequality(
            "P2 Theorem 1, proof", "centring", "difference",
            value("similarity_gap", "frobenius"),
            value("similarity_gap", "rho") * value("similarity_norm", "centred"), **about,
        )  # fmt: skip


def few_shot_rows(values: Mapping[Key, float], classes: int) -> Iterator[Row]:
    """P1, Proposition 1: few-shot error of the nearest class center.

    Measured: mean error on test images, over draws of labeled images. Variances are those of the
    test images. The proposition needs labeled images from the same distribution: in
    `few_shot_error_…` they are other test images. In `few_shot_error_from_train_…` they are
    training images, whose class means may lie elsewhere, so that nothing is claimed. `best`
    minimizes the bound over a (P1, Corollary 1); `displayed` uses the paper's a. A bound above 1
    is vacuous. It is NaN where no class of test images varies, as with one image per class: such
    images do not show how far others lie from the class means. There are no rows where the means
    of two classes coincide, since V~, V and V^s, the variances over the distance, are infinite
    then.
    """
    for split, objective, features in groups(values, "few_shot_nccc_all_way"):
        value = partial(value_of, values, split, objective, features)
        about: Where = {"split": split, "objective": objective, "features": features}
        spread = value("cdnv", "directional"), value("cdnv", "pairs"), value("cdnv", "root")
        if not all(map(math.isfinite, spread)):
            continue
        if not any(spread):
            spread = math.nan, math.nan, math.nan
        number = {"all_way": classes, "two_way": 2}
        for (metric, (quantity, kind)), (name, ways) in product(FEW_SHOT.items(), number.items()):
            for key, accuracy in values.items():
                of = split, objective, features, f"{metric}_{name}"
                if key[:4] != of or math.isnan(accuracy):
                    continue
                shots = int(key[4].removeprefix("shots_"))
                limits = {"best": few_shot_bound(*spread, shots, ways)}
                if shots >= SMALLEST_SHOTS_DISPLAYED:
                    limits["displayed"] = few_shot_bound_displayed(*spread, shots, ways)
                for which, bound in limits.items():
                    yield inequality(
                        "P1 Proposition 1", f"{quantity}_{name}", f"{which}_{key[4]}",
                        bound, 1 - accuracy, kind=kind, vacuous_orders=math.log10(bound), **about,
                    )  # fmt: skip


def lemma_rows(z: Mapping[str, np.ndarray], labels: np.ndarray, tau: float) -> Iterator[Row]:
    """The three lemmas of P2's Theorem 1 on one batch: z (K, B, d) of "dcl" and "nscl".

    Only the first two of the K views are used, as in P2. For the reweighting lemma, the row is of
    the anchor that comes closest to its bound. There are no rows if an embedding has norm 0, since
    it has no cosine, and none of a lemma that needs negatives which the batch does not have.
    """
    if not all(views[:2].any(axis=2).all() for views in z.values()):
        return
    sigma = {name: similarities_of_views(views[:2]) for name, views in z.items()}
    other_image = np.tile(~np.eye(len(labels), dtype=bool), 2)
    same_class = np.tile(labels[:, None] == labels, 2)
    other_class = ~same_class
    for name, matrix in sigma.items():
        sides = [
            bounds.reweighting_sides(row[use], same[use], tau)
            for row, use, same in zip(matrix, other_image, same_class, strict=True)
            if not same[use].all()
        ]
        tightest = max(sides, key=lambda s: s.left / s.right if s.right else 0.0, default=None)
        if tightest is not None:
            yield inequality(
                "P2 Theorem 1, proof", "reweighting", "batch", tightest.right, tightest.left,
                vacuous_orders=math.log10(tightest.right / 2) if tightest.right else None,
                objective=name, features="z",
            )  # fmt: skip
    for name, negatives in (("dcl", other_image), ("nscl", other_class)):
        if not negatives.any(axis=1).all():
            continue
        first, second = sigma.values()
        gradient, other_gradient = (batch_gradient(s, negatives, tau) for s in (first, second))
        found = bounds.lipschitz_sides(gradient, other_gradient, first, second, tau, len(labels))
        yield inequality(
            "P2 Theorem 1, proof", "smoothness_of_gradient", f"{name}_gradient",
            found.right, found.left, features="z",
        )  # fmt: skip


def value_of(
    values: Mapping[Key, float],
    split: str,
    objective: str,
    features: str,
    metric: str,
    variant: str,
) -> float:
    """The value, NaN where it was not measured."""
    return values.get((split, objective, features, metric, variant), math.nan)


def groups(values: Mapping[Key, float], metric: str) -> list[tuple[str, str, str]]:
    """(split, objective, features) where a metric was measured, in the table's order."""
    return list(dict.fromkeys(key[:3] for key in values if key[3] == metric))
