"""Alignment by data set and architecture, which includes the projector."""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltools import tidy
from cltools.config.sweeps import sweeps_over
from cltools.figures import sheet, style, tables
from cltools.figures.alignment import CONTROL_NOTE, PAPER, RSA, alignments, panels
from cltools.figures.style import Look, look_of
from cltools.figures.tables import ExperimentTables

METRICS = ("cka", "rsa")
CELLS = ("dataset", "architecture")
PROJECTOR = ("projector_layers", "projector_norm")  # the column `architecture` names it, too


def alignment_architectures(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Rows: CKA and RSA at the end; a group of bars for each data set and architecture.

    The rows are of h and, where a sweep varies the projector, of z.
    """
    cells = _cells(experiment)
    plotted = tidy.spread(cells, ["features", "metric", "variant", *CELLS, "split", "objective"])
    papers = tables.papers_rows(
        experiment, cells, metric=list(METRICS), reference=experiment.reference
    )
    groups = plotted.select(CELLS).unique().sort(CELLS).rows()
    objectives = style.ordered(plotted.filter(pl.col("metric") != "cka_to_init")["objective"])

    rows = _rows(experiment, plotted)
    figure, axes = sheet.panels(list(rows), 1, height=1.9, sharex=True)
    labels = ["\n".join([dataset, *network.split(", ")]) for dataset, network in groups]
    for (ax,), (name, (about, title)) in zip(axes, rows.items(), strict=True):
        of_row = plotted.filter(**about)
        width = 0.8 / len(objectives)
        for number, objective in enumerate(objectives):
            shift = width * (number - (len(objectives) - 1) / 2)
            for x, group in enumerate(groups):
                one = dict(zip(CELLS, group, strict=True), objective=objective)
                theirs = papers.filter(**about, **one)["value"]
                _bar(ax, of_row.filter(**one), theirs, x + shift, width, look_of(objective))
        if name == "cka":
            _controls(ax, plotted, groups, experiment.reference)
        ax.set(title=title, ylabel=about["metric"].upper())
        ax.set_xticks(range(len(groups)), labels)
        style.alignment_axis(ax, plotted["value"])
        ax.grid(axis="x", visible=False)
        upright = 90 if sheet.narrow() and len(groups) > 2 else 0
        ax.tick_params(axis="x", length=0, rotation=upright)
    other = experiment.reference_label
    sheet.finish(
        figure,
        f"Alignment of each objective with {other} by data set and architecture",
        [
            *(style.handle(look_of(o), linestyle="", marker="s") for o in objectives),
            style.handle(style.NEUTRAL, f"CKA of {other} with own initial weights", marker=""),
            *style.paper_handles(papers),
        ],
        f"{tidy.setting(cells, CELLS)}. Test images, encoder features h"
        f"{' and projections z' * ('cka_z' in rows)}, each run at its last step. "
        f"{tables.seeds_note(plotted, cells)} {CONTROL_NOTE}"
        + " Papers: two versions of the same table, CKA of raw features."
        * (not papers.is_empty()),
    )
    if "cka_z" not in rows:
        plotted = plotted.drop("features")
    return figure, tables.with_papers(plotted, papers)


def _rows(
    experiment: ExperimentTables, plotted: pl.DataFrame
) -> dict[str, tuple[dict[str, str], str]]:
    """Name of a row of panels -> metric and features that it shows, and its title."""
    titles = panels(experiment)
    if "z" not in set(plotted["features"]):
        return {name: ({"metric": name, "features": "h"}, titles[name]) for name in METRICS}
    return {
        name + suffix: ({"metric": name, "features": features}, f"{titles[name]}, {features}")
        for features, suffix in (("h", ""), ("z", "_z"))
        for name in METRICS
    }


def _cells(experiment: ExperimentTables) -> pl.DataFrame:
    """The rows at the end of training. A cell that belongs to two sweeps counts once."""
    ended = tidy.last_step(experiment.measures)
    over = experiment.over(ended, *CELLS, *PROJECTOR)
    found = [alignments(experiment, over, split="test")]
    if sweeps_over(experiment.sweeps, *PROJECTOR):
        others = experiment.against_reference(over)
        found += [
            tidy.rows(others, metric=metric, variant=variant, features="z", split="test")
            for metric, variant in zip(METRICS, (PAPER, RSA), strict=True)
        ]
    cells = pl.concat(found)
    return cells.unique(["cell", "features", "metric", "objective"], maintain_order=True)


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
