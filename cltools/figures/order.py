"""Which objective collapses first? Free embeddings under gradient descent."""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltools.figures import style
from cltools.figures.tables import ExperimentTables

REACHED = 1e-3  # a run whose etf_deviation and within_class_spread end below this
CONDITIONS = ("etf_deviation", "within_class_spread", "view_distance")
SETTINGS = ("objective", "classes", "dimension", "tau")


def collapse_order(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Spread within classes of free embeddings against the time of gradient descent.

    Rows: numbers of classes, with the most dimensions of the grid; columns: temperatures. A marker
    where the spread is below half of its start, in the median of the runs.
    """
    plotted = _spreads(experiment.minimise)
    classes = plotted["classes"].unique().sort().to_list()
    taus = plotted["tau"].drop_nulls().unique().sort().to_list() or [None]
    objectives = style.ordered(plotted["objective"])

    figure, axes = style.panels(len(classes), len(taus), height=1.7, sharex=True, sharey=True)
    for row, count in zip(axes, classes, strict=True):
        for ax, tau in zip(row, taus, strict=True):
            panel = plotted.filter(
                pl.col("classes") == count, pl.col("tau").is_null() | (pl.col("tau") == tau)
            )
            first = _draw_order(ax, panel)
            at = f", τ = {tau:g}" if tau is not None else ""
            ax.set_title(f"C = {count}, d = {panel['dimension'][0]}{at}: {first}")
            ax.label_outer()
        row[0].set_ylabel("Spread / start")
    style.finish(
        figure,
        "Order of collapse: how soon free embeddings gather by class",
        [style.handle(style.OBJECTIVES[name]) for name in objectives],
        f"Free embeddings under gradient descent from the same start, "
        f"{experiment.minimise['per_class'][0]} images a class, {plotted['seed'].n_unique()} "
        "seed(s), a line a run. Time: sum of learning rates. Spread within classes: their share of "
        "the variance. Marker and title: where it is below half of its start, objectives in that "
        "order; those that never get there are not named. CE has no τ and is the same in all "
        "columns.",
    )
    return figure, plotted


def _spreads(table: pl.DataFrame) -> pl.DataFrame:
    """Spread within classes over its start, by run and time, and when its median is halved."""
    table = table.filter(
        pl.col("dimension") == pl.col("dimension").max().over("classes"),
        pl.col("phase") != "newton",
    ).sort("classes", "objective", "tau", "seed", "iteration", nulls_last=True)
    run = ["objective", "classes", "tau", "seed"]
    spread = table.filter(pl.col("within_class_spread").is_finite()).select(
        *run,
        "dimension",
        "time",
        value=pl.col("within_class_spread") / pl.col("within_class_spread").first().over(run),
    )
    halved = (
        summary(table).filter(pl.col("halved_time").is_not_null()).select(*SETTINGS, "halved_time")
    )
    return spread.join(halved, on=SETTINGS, how="left", nulls_equal=True, maintain_order="left")


def _draw_order(ax: Axes, panel: pl.DataFrame) -> str:
    """A line for each run, a marker at each halving; returns the objectives in that order."""
    for line in panel.filter(pl.col("time") > 0).partition_by("objective", "seed"):
        look = style.OBJECTIVES[line["objective"][0]]
        ax.plot(line["time"], line["value"], color=look.colour, linewidth=1.1)
    halved = panel.unique("objective").drop_nulls("halved_time").sort("halved_time", "objective")
    for name, time in halved.select("objective", "halved_time").iter_rows():
        ax.plot(time, 0.5, style.OBJECTIVES[name].marker, color=style.OBJECTIVES[name].colour)
    ax.axhline(0.5, color=style.THEORY, linewidth=0.8, linestyle=":")
    ax.set(xscale="log", xlabel="Time of gradient descent (log scale)", ylim=(0, 1.08))
    return ", ".join(style.OBJECTIVES[name].label for name in halved["objective"]) or "none"


def summary(table: pl.DataFrame) -> pl.DataFrame:
    """How the runs of each objective, classes, dimension and tau ended.

    Args:
        table: of stage `minimise`.

    Returns:
        A row for each of these four, in the table's order, with columns after them:

        runs: their number (seeds).
        reached: share of runs that end with etf_deviation and within_class_spread below 1e-3. With
            two classes only the second says anything.
        etf_deviation, within_class_spread, view_distance: medians at the end.
        worst_excess: largest loss above minimum_loss at the end; null where that is unknown.
        halved_iteration, halved_time: of the first descent step after which within_class_spread is
            below half of its start, median over all runs; null unless more than half got there.
            An iteration is as long as its learning rate: only times compare CE and other tau.
    """
    spread = pl.col("within_class_spread")
    halved = (pl.col("phase") == "descent") & (spread < spread.first() / 2)
    runs = (
        table.sort("iteration", maintain_order=True)
        .group_by(*SETTINGS, "per_class", "seed", maintain_order=True)
        .agg(
            pl.col(*CONDITIONS).last(),
            worst_excess=(pl.col("loss") - pl.col("minimum_loss")).last(),
            halved_iteration=pl.col("iteration").filter(halved).min().cast(pl.Float64),
            halved_time=pl.col("time").filter(halved).min(),
        )
    )
    reached = (pl.col("etf_deviation") < REACHED) & (spread < REACHED)
    # A run that never got there counts as later than all others.
    halvings = pl.col("halved_iteration", "halved_time").fill_null(np.inf).median()
    return runs.group_by(*SETTINGS, maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("runs"),
        reached.fill_null(False).mean().alias("reached"),
        pl.col(*CONDITIONS).median(),
        pl.col("worst_excess").max(),
        pl.when(halvings.is_finite()).then(halvings),
    )
