"""Is alignment a matter of the data set or of the architecture?"""

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from cltools import tidy
from cltools.figures import style, tables
from cltools.figures.alignment import CONTROL_NOTE, alignments
from cltools.figures.style import OBJECTIVES
from cltools.figures.tables import ExperimentTables

PANELS = {"cka": "CKA with DCL", "rsa": "RSA with DCL"}
CELLS = ("dataset", "architecture")


def alignment_architectures(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Rows CKA and RSA; a group of bars per data set and architecture, at the end of training."""
    ended = tidy.last_step(experiment.measures)
    cells = alignments(experiment.over(ended, "architecture", "dataset"), split="test")
    cells = cells.unique(["cell", "metric", "objective"], maintain_order=True)
    plotted = tidy.spread(cells, ["metric", "variant", *CELLS, "split", "objective"])
    papers = tables.papers_rows(experiment, cells, metric=list(PANELS), reference="dcl")
    groups = plotted.select(CELLS).unique().sort(CELLS).rows()
    objectives = style.ordered(plotted.filter(pl.col("metric") != "cka_to_init")["objective"])
    width = 0.8 / len(objectives)

    figure, axes = style.panels(len(PANELS), 1, height=1.9, sharex=True)
    for (ax,), (metric, title) in zip(axes, PANELS.items(), strict=True):
        for number, name in enumerate(objectives):
            shift = width * (number - (len(objectives) - 1) / 2)
            for x, group in enumerate(groups):
                about = dict(zip(CELLS, group, strict=True), objective=name)
                one = plotted.filter(metric=metric, **about)
                if not one.is_empty():
                    sd = one["sd"][0] or 0.0
                    ax.bar(
                        x + shift, one["mean"][0], 0.92 * width, yerr=sd,
                        color=OBJECTIVES[name].colour, ecolor=style.THEORY, capsize=2,
                        error_kw={"elinewidth": 0.9},
                    )  # fmt: skip
                    if len(one) > 1:
                        places = x + shift + width * np.linspace(-0.2, 0.2, len(one))
                        ax.plot(places, one["value"], "o", color=style.THEORY, **style.SEED)
                theirs = papers.filter(metric=metric, **about)["value"]
                ends = x + shift - width / 2, x + shift + width / 2
                ax.hlines(theirs, *ends, color=style.THEORY, linewidth=1.2, linestyle=":")
        for x, group in enumerate(groups):
            start = plotted.filter(
                metric="cka_to_init", objective="dcl", **dict(zip(CELLS, group, strict=True))
            )
            if metric == "cka" and not start.is_empty():
                ax.hlines(start["mean"][0], x - 0.44, x + 0.44, color=style.FOOTNOTE, linewidth=1)
        ax.set(title=title, ylabel=title.split()[0])
        style.alignment_axis(ax, plotted["value"])
        ax.grid(axis="x", visible=False)
        ax.tick_params(axis="x", length=0)
    labels = [f"{dataset}\n{architecture}" for dataset, architecture in groups]
    axes[-1, 0].set_xticks(range(len(groups)), labels)
    style.finish(
        figure,
        "Alignment of each objective with DCL by data set and architecture",
        [
            *(style.handle(OBJECTIVES[o], linestyle="", marker="s") for o in objectives),
            style.handle(style.NEUTRAL, "CKA of DCL with own initial weights", marker=""),
            *style.paper_handles(papers),
        ],
        f"{tidy.setting(cells, CELLS)}. Test images, encoder features h, each run at its last "
        f"step. {tables.seeds_note(plotted, cells)} {CONTROL_NOTE}"
        + " Papers: two versions of one table, CKA of raw features."
        * (not papers.is_empty()),
    )
    return figure, tables.with_papers(plotted, papers)
