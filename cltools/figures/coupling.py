"""What shared initial weights, batches and views each contribute to alignment."""

import math
from collections.abc import Iterable

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltools import tidy
from cltools.figures import sheet, style, tables
from cltools.figures.alignment import CONTROL_NOTE, PAPER, RSA
from cltools.figures.tables import ExperimentTables

# From the papers' protocol to independent runs, with the names that `stages.collect` gives them.
LEVELS = (
    "init + batches + views",
    "init + batches",
    "init + views",
    "batches + views",
    "init",
    "batches",
    "views",
    "nothing",
)
PANELS = {
    ("cka", PAPER): "CKA with DCL",
    ("cka", "residual_biased"): "CKA with DCL, class means removed",
    ("rsa", RSA): "RSA with DCL",
    ("cka_to_init", PAPER): "CKA with own initial weights",
}


def alignment_coupling(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """One line per level of sharing and one dot per objective, at the end of training."""
    cells = _cells(experiment)
    by = ["panel", "arm", "coupling", "metric", "variant", "split", "objective"]
    plotted = tidy.spread(cells, by)
    levels = [level for level in LEVELS if level in set(plotted["coupling"])]
    objectives = style.ordered(plotted["objective"])
    arms = plotted["arm"].unique(maintain_order=True)

    figure, axes = sheet.panels(
        len(arms), ["cka", "cka_residual", "rsa", "start"], height=0.3 * len(levels) + 0.5,
        flatter=1, narrowest=1.7, sharey=True,
    )  # fmt: skip
    for row, arm in zip(axes, arms, strict=True):
        for ax, ((metric, variant), title) in zip(row, PANELS.items(), strict=True):
            panel = plotted.filter(arm=arm, metric=metric, variant=variant)
            _dots(ax, panel, objectives, levels)
            ax.set_title(title if len(arms) == 1 else f"{title}, {arm}")
            ax.set_yticks(range(len(levels)), levels)
            ax.set_ylim(len(levels) - 0.4, -0.6)
            ax.grid(axis="y", visible=False)
            ax.set(xlabel="Similarity", ylabel="Shared by all objectives")
    for column, (metric, _) in enumerate(PANELS):
        _limit(axes[:, column], plotted, control=metric == "cka_to_init")
    sheet.finish(
        figure,
        "What sharing initial weights, batches and views contributes to alignment",
        [style.handle(style.look_of(name), linestyle="") for name in objectives],
        f"{tidy.setting(cells, ['coupling'])}. Test images, encoder features h, each run at its "
        f"last step. {tables.seeds_note(plotted, cells)} What is not shared is drawn "
        "separately for each model. Second DCL: another model with DCL’s loss, which differs from "
        "DCL by these draws only; NSCL can hardly be more aligned with DCL than this one. "
        f"{CONTROL_NOTE}",
    )
    return figure, plotted.drop("panel")


def _cells(experiment: ExperimentTables) -> pl.DataFrame:
    """The rows for all panels, at the end of training.

    Where all is shared, the second DCL has batches and views of its own, as it has one row below.
    """
    ended = tidy.last_step(experiment.over(experiment.measures, "coupling"))
    others = tidy.against(ended, "dcl")
    where = {"features": "h", "split": "test"}
    found = []
    for metric, variant in PANELS:
        table = ended if metric == "cka_to_init" else others
        found.append(tidy.rows(table, metric=metric, variant=variant, **where))
    repeated = (pl.col("coupling") == LEVELS[0]) & (pl.col("objective") == "dcl_twin")
    return pl.concat(found).filter(~repeated)


def _dots(ax: Axes, panel: pl.DataFrame, objectives: list[str], levels: list[str]) -> None:
    """Mean ± standard deviation and single runs; a row per level, with objectives below others."""
    for number, name in enumerate(objectives):
        look = style.look_of(name)
        shift = 0.5 * (number / max(1, len(objectives) - 1) - 0.5)
        for y, level in enumerate(levels):
            one = panel.filter(objective=name, coupling=level)
            if one.is_empty():
                continue
            heights = [y + shift] * len(one)
            ax.plot(one["value"], heights, look.marker, color=look.color, **style.SEED)
            ax.errorbar(
                one["mean"][0], y + shift, xerr=one["sd"][0] or 0.0, fmt=look.marker,
                color=look.color, elinewidth=0.9, markersize=4,
            )  # fmt: skip


def _limit(axes: Iterable[Axes], plotted: pl.DataFrame, *, control: bool) -> None:
    """Set the x limits of some panels, from all values of alignment or of the control.

    The levels are close together. So the axis begins at the largest multiple of 0.1 below all.
    """
    shown = plotted.filter((pl.col("metric") == "cka_to_init") == control)
    lowest = float((shown["mean"] - shown["sd"].fill_null(0.0)).min())
    for ax in axes:
        ax.set_xlim(min(0.9, math.floor(10 * lowest) / 10) - 0.01, 1.01)
