"""What the meaning of the labels contributes to the alignment of NSCL with DCL."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cltools import tidy
from cltools.config.cells import parts_of
from cltools.config.sweeps import sweeps_over
from cltools.figures import sheet, style, tables
from cltools.figures.alignment import PAPER, RSA, SHUFFLED
from cltools.figures.tables import ExperimentTables

TRUE, TWIN = "nscl", "dcl_twin"
PANELS = {"cka": (PAPER, "CKA with DCL"), "rsa": (RSA, "RSA with DCL")}
# Kinds of labels -> name and color of their curve. The first two drop whole classes, or images
# without regard to classes, and as many of them.
CURVES = {
    "whole classes": (("", "coarse"), style.OBJECTIVES[TRUE].color, "s"),
    "random classes of the same sizes": (("shuffled", "random"), "#000000", "o"),
    "pixel clusters": (("clusters",), style.OWN_LABELS["clusters"][1], "^"),
    "label noise": (("noise",), style.OWN_LABELS["noise"][1], "X"),
}
CEILING = style.OBJECTIVES[TWIN]
WHERE = {"features": "h", "split": "test"}
EFFECT = "true − shuffled labels"
# Factor -> title of the column. Epochs are those of the base sweep.
COLUMNS = {"epoch": "during training", "tau": "against τ", "classes": "against C"}


def labels_negatives(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Columns: CKA and RSA; rows: the arms of the sweep that trains with most kinds of labels.

    Each curve begins at DCL, which drops no negatives.
    """
    cells, by = _trained_with_labels(experiment)
    plotted = tidy.spread(cells, ["metric", *by, "objective", "share"])
    arms = plotted.select(by).unique().sort(by).rows(named=True) if by else [{}]

    figure, axes = sheet.panels(len(arms), list(PANELS), height=2.3, sharex=True, sharey=True)
    for row, arm in zip(axes, arms, strict=True):
        for ax, (metric, (_, title)) in zip(row, PANELS.items(), strict=True):
            _draw_curves(ax, plotted.filter(metric=metric, **arm))
            words = [tidy.in_words(column, [value]) for column, value in arm.items()]
            ax.set_title(", ".join([title, *words]))
            ax.set(xlabel="Share of DCL’s negatives that are dropped", ylabel="Similarity")
            style.alignment_axis(ax, plotted["value"])
    sheet.finish(
        figure,
        "NSCL with true and with meaningless labels: which negatives matter?",
        [*_curve_handles(plotted), style.handle(CEILING, marker="", linestyle="--")],
        f"{tidy.setting(cells, by)}. Test images, encoder features h, each run at its last step. "
        f"{tables.seeds_note(plotted, cells, 'bars')} NSCL drops the negatives of "
        "the anchor’s class. Whole classes: the true classes, and groups of them. Random classes "
        "of the same sizes: the same share of negatives is dropped, whatever it shows. Second "
        "DCL: another DCL model with batches and views of its own.",
    )
    return figure, plotted


def _trained_with_labels(experiment: ExperimentTables) -> tuple[pl.DataFrame, list[str]]:
    """CKA and RSA with DCL, the shares dropped, and the columns that tell the sweep's arms apart.

    A share is the mean over seeds: clusters have other sizes with every seed.
    """
    measures = experiment.measures

    def kinds(sweep: str) -> int:
        of_sweep = measures.filter(pl.col("sweeps").list.contains(sweep))
        return sum(":" in objective for objective in of_sweep["objective"].unique())

    sweep = max(experiment.sweeps, key=kinds)
    by = [c for c in tidy.COLUMNS if c in experiment.sweeps[sweep]["factors"]]
    ended = tidy.last_step(tidy.in_sweep(measures, sweep))
    dropped = tidy.rows(ended, metric="dropped_negatives", variant="share")
    dropped = dropped.group_by(*by, "objective").agg(share=pl.col("value").mean())
    others = tidy.against(ended, "dcl")
    known = [name for name in others["objective"].unique() if _curve_of(name) or name == TWIN]
    found = [
        tidy.rows(others, metric=metric, variant=variant, objective=known, **WHERE)
        for metric, (variant, _) in PANELS.items()
    ]
    return pl.concat(found).join(dropped, on=[*by, "objective"]), by


def _curve_of(objective: str) -> str | None:
    """The curve that an objective is a point of; None if it is not NSCL."""
    loss, kind, _ = parts_of(objective)
    if loss != TRUE:
        return None
    return next(name for name, (kinds, *_) in CURVES.items() if kind in kinds)


def _draw_curves(ax: Axes, one: pl.DataFrame) -> None:
    """The curves of one panel, and the second DCL as a horizontal line."""
    for name, (_, color, marker) in CURVES.items():
        objectives = [o for o in one["objective"].unique() if _curve_of(o) == name]
        points = one.filter(pl.col("objective").is_in(objectives))
        if points.is_empty():
            continue
        means = points.unique(["objective", "mean"], keep="first").sort("share", "mean")
        at, mean = means["share"].to_numpy(), means["mean"].to_numpy()
        if name in list(CURVES)[:2]:
            ax.plot([0, *at], [1, *mean], color=color, linewidth=1.2, zorder=2)
        ax.errorbar(
            at, mean, means["sd"].fill_null(0.0), fmt=marker, color=color, elinewidth=0.9,
            capsize=2, zorder=3,
        )  # fmt: skip
        ax.plot(points["share"], points["value"], "o", color=color, **style.SEED)
    twin = one.filter(objective=TWIN)["mean"]
    if len(twin):
        ax.axhline(twin[0], color=CEILING.color, linestyle="--", linewidth=1.0, zorder=1)


def _curve_handles(plotted: pl.DataFrame) -> list[Line2D]:
    present = {_curve_of(objective) for objective in plotted["objective"].unique()}
    return [
        style.handle(style.Look(name, color, marker))
        for name, (_, color, marker) in CURVES.items()
        if name in present
    ]


def label_effect(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Rows: CKA with DCL, and true minus shuffled labels of the same seed; columns: factors."""
    found = dict(_by_factor(experiment))
    both = pl.concat(found.values(), how="diagonal")
    plotted = tidy.spread(both, ["factor", "quantity", "objective", "x"])

    names = {"epoch": "training", "tau": "temperature", "classes": "classes"}
    figure, axes = sheet.panels(
        ["cka", "effect"], [names[factor] for factor in found], sharex="col", sharey="row"
    )
    for column, factor in zip(axes.T, found, strict=True):
        one = plotted.filter(factor=factor)
        for name in style.ordered(one["objective"]):
            line = one.filter(quantity="CKA", objective=name)
            style.curve(column[0], line, "x", style.look_of(name), bars=factor != "epoch")
        effect = one.filter(quantity=EFFECT)
        style.curve(column[1], effect, "x", style.look_of(TRUE), bars=factor != "epoch")
        column[1].axhline(0, color=style.THEORY, linewidth=0.9, linestyle=":")
        column[0].set_title(f"CKA with DCL, {COLUMNS[factor]}")
        column[1].set_title(f"Label effect, {COLUMNS[factor]}")
        for ax, label in zip(column, ("CKA", "CKA, true − shuffled labels"), strict=True):
            _factor_axis(ax, factor, one["x"])
            ax.set_ylabel(label)
    sheet.finish(
        figure,
        "What the meaning of the labels contributes to the alignment of NSCL with DCL",
        [style.handle(style.look_of(name)) for name in style.ordered(plotted["objective"])],
        f"{tidy.setting(both, ['tau', 'classes', 'train_images'])}. Test images, encoder features "
        f"h. {tables.seeds_note(plotted, both, 'bars or band')} The label effect is the CKA of "
        "NSCL with DCL minus that of NSCL with shuffled labels, of the same seed: the same "
        "initial weights, batches and views, and as many negatives dropped. Second DCL: another "
        "DCL model with batches and views of its own.",
    )
    return figure, plotted


def _by_factor(experiment: ExperimentTables) -> Iterator[tuple[str, pl.DataFrame]]:
    """Factor -> CKA with DCL, and the label effect, with the factor's values as column `x`."""
    measures = experiment.measures
    base = experiment.base(measures)
    if SHUFFLED in set(base["objective"]):
        yield "epoch", _levels_and_effect(base, "epoch")
    for factor in ("tau", "classes"):
        names = sweeps_over(experiment.sweeps, factor)
        for name in names:
            cells = tidy.last_step(tidy.in_sweep(measures, name))
            if cells.filter(objective=SHUFFLED)[factor].n_unique() > 1:
                yield factor, _levels_and_effect(cells, factor)
                break


def _levels_and_effect(cells: pl.DataFrame, factor: str) -> pl.DataFrame:
    shown = [TRUE, SHUFFLED, TWIN]
    rows = tidy.rows(
        tidy.against(cells, "dcl"), metric="cka", variant=PAPER, objective=shown, **WHERE
    ).with_columns(factor=pl.lit(factor), x=pl.col(factor).cast(pl.Float64), quantity=pl.lit("CKA"))
    shuffled = rows.filter(objective=SHUFFLED).select("cell", "step", shuffled="value")
    effect = rows.filter(objective=TRUE).join(shuffled, on=["cell", "step"])
    effect = effect.with_columns(
        value=pl.col("value") - pl.col("shuffled"), quantity=pl.lit(EFFECT)
    ).drop("shuffled")
    return pl.concat([rows, effect])


def _factor_axis(ax: Axes, factor: str, values: Iterable[Any]) -> None:
    if factor == "epoch":
        style.epoch_axis(ax, values)
    else:
        style.factor_axis(ax, np.asarray(values), {"tau": "τ", "classes": "C"}[factor])
