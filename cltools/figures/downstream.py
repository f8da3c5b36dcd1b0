"""Accuracy of two classifiers on features: nearest class center and linear probe."""

from collections.abc import Sequence

import polars as pl
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltools import tidy
from cltools.figures import style, tables
from cltools.figures.tables import ExperimentTables

PROBES = {"nccc": "Nearest class center", "linear_probe": "Linear probe"}
COLUMNS = {"test": 0.48, "train": 1.0}  # the two columns of numbers, and their right ends
# The mark of a paper's number, in the row of its objective.
THEIRS = {"linestyle": "", "marker": "|", "markersize": 10, "color": style.THEORY, "alpha": 0.6}


def downstream(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """One row per probe and objective: dots on the left, their numbers on the right."""
    ended = tidy.last_step(experiment.base(experiment.measures))
    cells = pl.concat(
        [
            tidy.rows(ended, metric=p, variant="accuracy", features="h", split=list(COLUMNS))
            for p in PROBES
        ]
    )
    plotted = tidy.spread(cells, ["metric", "split", "objective"])
    papers = tables.papers_rows(experiment, cells, metric=list(PROBES), split="test")
    papers = papers.filter(pl.col("epoch") == cells["epoch"].max())
    objectives = style.ordered(plotted["objective"])

    # From the top: for each probe, a line with its name and a line for each objective.
    lines = [(probe, name) for probe in PROBES for name in (None, *objectives)]
    figure, (row,) = style.panels(
        1, 2, height=0.19 * len(lines) + 0.6, width_ratios=[2.4, 1], sharey=True
    )
    _draw(row, lines, plotted, papers)
    for chance in 100 / cells["classes"].unique():
        row[0].axvline(chance, color=style.THEORY, linewidth=0.9, linestyle=":", zorder=1)
    gray = style.Look("", style.FOOTNOTE, "o")
    style.finish(
        figure,
        "Accuracy of two classifiers on the features of each objective",
        [
            style.handle(gray, "test images", linestyle=""),
            style.handle(gray, "training images", linestyle="", markerfacecolor="white"),
            style.handle(style.Look("chance, 1/C", style.THEORY, ""), linestyle=":", linewidth=0.9),
            *style.paper_handles(papers, **THEIRS),
        ],
        f"{tidy.setting(cells)}. Encoder features h, each run at its last step. "
        f"{tables.seeds_note(plotted, cells)}",
    )
    return figure, tables.with_papers(plotted, papers)


def _draw(
    row: Sequence[Axes],
    lines: list[tuple[str, str | None]],
    plotted: pl.DataFrame,
    papers: pl.DataFrame,
) -> None:
    """Dots on the left and numbers on the right, one line for each of `lines`."""
    dots, numbers = row
    numbers.axis("off")
    right = {"ha": "right", "va": "center_baseline", "fontsize": rcParams["ytick.labelsize"]}
    for split, place in COLUMNS.items():
        numbers.text(place, 0, f"{split} (%)", fontweight="bold", **right)
    labels = []
    for y, (probe, name) in enumerate(lines):
        labels.append(style.look_of(name).label if name else PROBES[probe])
        for split, place in COLUMNS.items() if name else ():
            one = plotted.filter(metric=probe, split=split, objective=name)
            _dot(dots, one, y, style.look_of(name), filled=split == "test")
            numbers.text(place, y, _number(one), **right)
        theirs = 100 * papers.filter(metric=probe, objective=name or "")["value"]
        dots.plot(theirs, [y] * len(theirs), **THEIRS)
    dots.set_ylim(len(lines) - 0.4, -0.6)
    for tick, (_, name) in zip(dots.set_yticks(range(len(lines)), labels), lines, strict=True):
        tick.label1.set_fontweight("normal" if name else "bold")
    dots.tick_params(axis="y", length=0)
    dots.grid(axis="y", visible=False)
    dots.set(xlim=(0, 102), xlabel="Accuracy (%)")


def _dot(dots: Axes, one: pl.DataFrame, y: float, look: style.Look, *, filled: bool) -> None:
    """Mean ± standard deviation in percent at height `y`; training images have an open marker."""
    if one.is_empty():
        return
    mean, sd = 100 * one["mean"][0], 100 * (one["sd"][0] or 0.0)
    dots.errorbar(mean, y, xerr=sd, fmt="none", ecolor=look.color, elinewidth=0.9, zorder=2)
    face = look.color if filled else "white"
    dots.plot(mean, y, look.marker, color=look.color, markerfacecolor=face, markersize=5, zorder=3)
    if len(one) > 1:
        dots.plot(100 * one["value"], [y + 0.32] * len(one), "o", color=look.color, **style.SEED)


def _number(one: pl.DataFrame) -> str:
    if one.is_empty():
        return "–"
    sd = one["sd"][0]
    return f"{100 * one['mean'][0]:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")
