"""Accuracy of two classifiers on features: nearest class center and linear probe."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltools import tidy
from cltools.figures import sheet, style, tables
from cltools.figures.tables import ExperimentTables

PROBES = {"nccc": "Nearest class center", "linear_probe": "Linear probe"}
SPLITS = {"test": True, "train": False}  # and whether their markers are filled
# The mark of a paper's number, in the row of its objective.
THEIRS = {"linestyle": "", "marker": "|", "markersize": 10, "color": style.THEORY, "alpha": 0.6}


def downstream(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """A panel per classifier and a row per objective: accuracy on test and on training images.

    Each panel has limits of its own, as the objectives are closer to each other than the two
    classifiers. The number at the right is of test images.
    """
    ended = tidy.last_step(experiment.base(experiment.measures))
    about = {"variant": "accuracy", "features": "h", "split": list(SPLITS)}
    cells = pl.concat([tidy.rows(ended, metric=probe, **about) for probe in PROBES])
    plotted = tidy.spread(cells, ["metric", "split", "objective"])
    papers = tables.papers_rows(experiment, cells, metric=list(PROBES), split="test")
    papers = papers.filter(pl.col("epoch") == cells["epoch"].max())
    objectives = style.ordered(plotted["objective"])

    figure, (row,) = sheet.panels(
        1, list(PROBES), height=0.27 * len(objectives) + 0.75, narrowest=2.0, flatter=1
    )
    for ax, (probe, title) in zip(row, PROBES.items(), strict=True):
        for y, name in enumerate(objectives):
            one = plotted.filter(metric=probe, objective=name)
            _draw(ax, one, y, style.look_of(name))
            theirs = 100 * papers.filter(metric=probe, objective=name)["value"]
            ax.plot(theirs, [y] * len(theirs), **THEIRS)
            style.beside(ax, y, _number(one.filter(split="test")), 0.65)
        ax.set_yticks(range(len(objectives)), [style.look_of(name).label for name in objectives])
        ax.set_ylim(len(objectives) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        ax.set(xlabel="Accuracy (%)", title=title)
    chances = ", ".join(f"{100 / c:.3g} %" for c in cells["classes"].unique().sort())
    gray = style.Look("", style.FOOTNOTE, "o")
    sheet.finish(
        figure,
        "Accuracy of two classifiers on the features of each objective",
        [
            style.handle(gray, "test images", linestyle=""),
            style.handle(gray, "training images", linestyle="", markerfacecolor="white"),
            *style.paper_handles(papers, **THEIRS),
        ],
        f"{tidy.setting(cells)}. Encoder features h, each run at its last step. "
        f"{tables.seeds_note(plotted, cells)} Numbers: test images. The axes differ and do not "
        f"begin at 0; chance is {chances}.",
    )
    return figure, tables.with_papers(plotted, papers)


def _draw(ax: Axes, table: pl.DataFrame, y: float, look: style.Look) -> None:
    """Test and training images of one objective in percent, joined by a line."""
    means = 100 * table["mean"]
    ax.plot([means.min(), means.max()], [y, y], color=look.color, linewidth=1, alpha=0.4)
    for split, filled in SPLITS.items():
        one = table.filter(split=split)
        if one.is_empty():
            continue
        mean, sd = 100 * one["mean"][0], 100 * (one["sd"][0] or 0.0)
        ax.errorbar(mean, y, xerr=sd, fmt="none", ecolor=look.color, elinewidth=0.9, zorder=2)
        face = look.color if filled else "white"
        ax.plot(
            mean, y, look.marker, color=look.color, markerfacecolor=face, markersize=5, zorder=3
        )
        if len(one) > 1:
            heights = [y + (0.24 if filled else -0.24)] * len(one)
            ax.plot(100 * one["value"], heights, "o", color=look.color, **style.SEED)


def _number(one: pl.DataFrame) -> str:
    if one.is_empty():
        return "–"
    sd = one["sd"][0]
    return f"{100 * one['mean'][0]:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")
