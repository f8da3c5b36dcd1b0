"""Alignment by data set and architecture."""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltools import tidy
from cltools.figures import style, tables
from cltools.figures.alignment import CONTROL_NOTE, alignments, panels
from cltools.figures.style import Look, look_of
from cltools.figures.tables import ExperimentTables

METRICS = ("cka", "rsa")
CELLS = ("dataset", "architecture")


def alignment_architectures(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Rows: CKA and RSA at the end; a group of bars for each data set and architecture."""
    cells = _cells(experiment)
    plotted = tidy.spread(cells, ["metric", "variant", *CELLS, "split", "objective"])
    papers = tables.papers_rows(
        experiment, cells, metric=list(METRICS), reference=experiment.reference
    )
    groups = plotted.select(CELLS).unique().sort(CELLS).rows()
    objectives = style.ordered(plotted.filter(pl.col("metric") != "cka_to_init")["objective"])

    figure, axes = style.panels(METRICS, 1, height=1.9, sharex=True)
    labels = [f"{dataset}\n{architecture}" for dataset, architecture in groups]
    for (ax,), metric in zip(axes, METRICS, strict=True):
        width = 0.8 / len(objectives)
        for number, name in enumerate(objectives):
            shift = width * (number - (len(objectives) - 1) / 2)
            for x, group in enumerate(groups):
                about = dict(zip(CELLS, group, strict=True), metric=metric, objective=name)
                theirs = papers.filter(**about)["value"]
                _bar(ax, plotted.filter(**about), theirs, x + shift, width, look_of(name))
        if metric == "cka":
            _controls(ax, plotted, groups, experiment.reference)
        ax.set(title=panels(experiment)[metric], ylabel=metric.upper())
        ax.set_xticks(range(len(groups)), labels)
        style.alignment_axis(ax, plotted["value"])
        ax.grid(axis="x", visible=False)
        ax.tick_params(axis="x", length=0)
    other = experiment.reference_label
    style.finish(
        figure,
        f"Alignment of each objective with {other} by data set and architecture",
        [
            *(style.handle(look_of(o), linestyle="", marker="s") for o in objectives),
            style.handle(style.NEUTRAL, f"CKA of {other} with own initial weights", marker=""),
            *style.paper_handles(papers),
        ],
        f"{tidy.setting(cells, CELLS)}. Test images, encoder features h, each run at its last "
        f"step. {tables.seeds_note(plotted, cells)} {CONTROL_NOTE}"
        + " Papers: two versions of the same table, CKA of raw features."
        * (not papers.is_empty()),
    )
    return figure, tables.with_papers(plotted, papers)


def _cells(experiment: ExperimentTables) -> pl.DataFrame:
    """The rows at the end of training. A cell that belongs to two sweeps counts once."""
    ended = tidy.last_step(experiment.measures)
    cells = alignments(experiment, experiment.over(ended, "architecture", "dataset"), split="test")
    return cells.unique(["cell", "metric", "objective"], maintain_order=True)


def _bar(
    ax: Axes, one: pl.DataFrame, theirs: pl.Series, x: float, width: float, look: Look
) -> None:
    """The bar of one objective in one group, with the papers' numbers as dotted lines."""
    if not one.is_empty():
        ax.bar(
            x, one["mean"][0], 0.92 * width, yerr=one["sd"][0] or 0.0, color=look.color,
            ecolor=style.THEORY, capsize=2, error_kw={"elinewidth": 0.9},
        )  # fmt: skip
        if len(one) > 1:
            places = x + width * np.linspace(-0.2, 0.2, len(one))
            ax.plot(places, one["value"], "o", color=style.THEORY, **style.SEED)
    ends = x - width / 2, x + width / 2
    ax.hlines(theirs, *ends, color=style.THEORY, linewidth=1.2, linestyle=":")


def _controls(
    ax: Axes, plotted: pl.DataFrame, groups: list[tuple[str, str]], reference: str
) -> None:
    """CKA of the reference with its own initial weights, as a line across each group of bars."""
    for x, group in enumerate(groups):
        about = dict(zip(CELLS, group, strict=True))
        start = plotted.filter(metric="cka_to_init", objective=reference, **about)
        if not start.is_empty():
            ax.hlines(start["mean"][0], x - 0.44, x + 0.44, color=style.FOOTNOTE, linewidth=1)
