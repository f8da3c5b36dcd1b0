"""How tight the bounds of the papers are, and whether they hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltools.figures import sheet, style
from cltools.figures.tables import ExperimentTables

KINDS = {
    "bound": style.Look("proved for any network", "#0072B2", "o"),
    "network": style.Look("proved for similarity descent, measured on a network", "#D55E00", "s"),
    "estimate": style.Look("constants estimated", "#7A7A7A", "D"),
    "not_comparable": style.Look("not comparable, nothing is claimed", "#B9B9B9", "v"),
}
NAMES = {
    "gap": "Loss gap, whole set",
    "gap_clustered_labels": "Loss gap, k-means labels",
    "gap_shuffled_labels": "Loss gap, shuffled labels",
    "gap_unbalanced_labels": "Loss gap, unbalanced random labels",
    "batch_gap": "Loss gap, batches",
    "few_shot_error_all_way": "Few-shot error, all-way",
    "few_shot_error_two_way": "Few-shot error, two-way",
    "few_shot_error_from_train_all_way": "Few-shot error, train to test, all-way",
    "few_shot_error_from_train_two_way": "Few-shot error, train to test, two-way",
    "drift": "Drift of similarities",
    "drift_not_comparable": "Drift, not comparable",
    "cka": "CKA",
    "rsa": "RSA",
    "batch_composition": "Class fraction in a batch",
    "reweighting": "Reweighting lemma",
    "smoothness_of_gradient": "Smoothness lemma",
    "centring": "Centering lemma",
    "weight_distance": "Distance of weights",
}
COUNTS = ("claimed", "violated", "vacuous")
BESIDE = 6.4  # inches: a narrower figure has no room for names and counts beside the panel
LINEAR = 3.0  # orders of magnitude up to which the axis is linear
VARIANTS = {
    "corollary": "(1 − ρ)/(1 + ρ), measured ρ",
    "tight": "√(1 − ρ²), measured ρ",
    "theorem_1_stated": "ρ from Theorem 1",
    "theorem_1_realised": "ρ from Theorem 1, real batches",
    "stated": "as stated",
    "realised": "real batches",
    "effective_step": "with momentum",
    "best": "best constant",
    "displayed": "printed constant",
    "training_tau": "training τ",
    "tau_1": "τ = 1",
    "dcl_gradient": "CL",
    "nscl_gradient": "NSCL",
    "form": "constants left out",
}


def tightness(theory: pl.DataFrame) -> pl.DataFrame:
    """One row per bound: the numbers of cases, claims and violations, and its distance in orders.

    Orders of magnitude are log10(bound / measured), or for lower bounds of similarities
    log10((1 - bound) / (1 - measured)). They are 0 for an exact bound and negative for a violated
    one. Cases where a numerator or denominator is 0 have none. Of kind `not_comparable` no case is
    claimed, so that none is violated.
    """
    lower = pl.col("side") == "lower"
    bound = pl.when(lower).then(1 - pl.col("bound")).otherwise(pl.col("bound"))
    measured = pl.when(lower).then(1 - pl.col("measured")).otherwise(pl.col("measured"))
    log_bound = pl.when(lower).then(bound.log10()).otherwise(pl.col("log10_bound"))
    orders = log_bound - measured.log10()
    claims = pl.col("bound").is_not_nan() & pl.col("measured").is_not_nan()
    return (
        theory.with_columns(
            variant=pl.col("variant").str.replace(r"_shots_\d+$", ""),
            orders=pl.when(claims & orders.is_finite()).then(orders),
        )
        .group_by("source", "quantity", "variant", "kind", "side", maintain_order=True)
        .agg(
            cases=pl.len(),
            claimed=(claims & (pl.col("kind") != "not_comparable")).sum(),
            violated=(~pl.col("holds")).sum(),
            vacuous=(claims & (pl.col("vacuous_orders") > 0)).sum(),
            median_bound=pl.col("bound").filter(claims).median(),
            median_measured=pl.col("measured").filter(claims).median(),
            smallest_orders=pl.col("orders").min(),
            median_orders=pl.col("orders").median(),
            largest_orders=pl.col("orders").max(),
            largest_vacuous_orders=pl.col("vacuous_orders").max(),
        )
        .sort("source", "quantity", "variant", "side")
    )


def _label(one: Mapping[str, Any]) -> str:
    """The name of a bound, and which form of it."""
    variant = VARIANTS.get(one["variant"])
    if variant and one["quantity"] == "rsa":
        variant = variant.replace("ρ", "r")
    return NAMES.get(one["quantity"], one["quantity"]) + f": {variant}" * bool(variant)


def _label_above(dots: Axes, labels: Sequence[str], counts: Sequence[Sequence[str]]) -> None:
    """Each name and its counts above the line of its bound, where there is no room beside it."""
    dots.set_yticks([])
    at = dots.get_yaxis_transform()
    for y, (label, numbers) in enumerate(zip(labels, counts, strict=True)):
        about: dict[str, Any] = {"transform": at, "va": "center", "fontsize": "x-small"}
        about["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        dots.text(0.01, y - 0.45, label, **about)
        dots.text(0.99, y - 0.45, " / ".join(numbers), ha="right", **about)


def bound_tightness(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """How far each bound is from the measured value, over all cells of the experiment."""
    table = tightness(experiment.theory)
    # The lower bound 0 of the loss gap cannot be drawn on this axis.
    shown = table.filter(
        pl.col("median_orders").is_not_null(), ~pl.col("quantity").str.starts_with("gap")
        | (pl.col("side") == "upper"), ~((pl.col("quantity") == "batch_gap")
        & (pl.col("side") == "lower")),
    )  # fmt: skip
    narrow = sheet.narrow(BESIDE)
    figure, ((dots,),) = sheet.panels(
        1, 1, height=(0.31 if narrow else 0.2) * (len(shown) + 1) + 0.5, flatter=1
    )
    for y, one in enumerate(shown.iter_rows(named=True)):
        look = KINDS[one["kind"]]
        low, middle, high = (one[f"{which}_orders"] for which in ("smallest", "median", "largest"))
        dots.plot([low, high], [y, y], "-", color=look.color, linewidth=1, alpha=0.6)
        dots.plot(middle, y, look.marker, color=look.color)
    counts = [[f"{one[name]:,}" for name in COUNTS] for one in shown.iter_rows(named=True)]
    if narrow:
        _label_above(dots, [_label(one) for one in shown.iter_rows(named=True)], counts)
    else:
        dots.set_yticks(range(len(shown)), [_label(one) for one in shown.iter_rows(named=True)])
        for y, texts in enumerate([list(COUNTS), *counts], -1):
            for number, text in enumerate(texts):
                weight = "bold" if y < 0 else "normal"
                style.beside(dots, y, text, 0.62 * (number + 1), fontweight=weight)
    dots.set_ylim(len(shown) - 0.4, -1.6 if not narrow else -1.2)
    dots.tick_params(axis="y", length=0)
    dots.grid(axis="y", visible=False)
    dots.axvline(0, color=style.THEORY, linewidth=0.9, linestyle=":", zorder=1)
    # Up to three orders the axis is linear. Beyond, it is logarithmic, for bounds that are hundreds
    # of orders away.
    dots.set_xscale("symlog", linthresh=LINEAR, linscale=2)
    ticks = [-100, -10, -3, -2, -1, 0, 1, 2, 3, 10, 100, 1000]
    dots.set_xticks(ticks, [f"{tick}" for tick in ticks])
    ends = (min(-0.5, 1.3 * shown["smallest_orders"].min()),
            max(LINEAR, 1.3 * shown["largest_orders"].max()))  # fmt: skip
    dots.axvspan(LINEAR, max(ends[1], LINEAR), color="#F3F3F3", zorder=0, linewidth=0)
    dots.axvspan(min(ends[0], -LINEAR), -LINEAR, color="#F3F3F3", zorder=0, linewidth=0)
    dots.set_xlim(*ends)
    dots.set_xlabel("Orders of magnitude from value to bound (gray: log scale)")
    sheet.finish(
        figure,
        "How tight the bounds are, and whether they hold",
        [style.handle(look) for look in KINDS.values()],
        "All cells, checkpoints and splits; marker: median, line: range of all cases. Left of 0 a "
        "bound that is claimed is violated. The axis is linear up to 3 orders of magnitude and "
        "logarithmic beyond (gray). CKA and RSA have lower bounds: here 1 − bound is compared with "
        "1 − value; ρ and r are the relative distances of the two similarity matrices that enter "
        f"them. Numbers{' at the right' * narrow}, in this order: claimed, the cases where the "
        "bound is defined; violated; vacuous, those where it allows every possible value. The "
        "sources are in the table that belongs to this figure.",
    )
    return figure, table
