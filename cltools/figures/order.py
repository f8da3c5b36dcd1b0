"""The order in which objectives collapse, for free embeddings in gradient descent."""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltools.figures import sheet, style
from cltools.figures.tables import ExperimentTables
from cltools.runtime.words import number_of

REACHED = 1e-3  # a run is collapsed if etf_deviation and within_class_spread end below this
CONDITIONS = ("etf_deviation", "within_class_spread", "view_distance")
SETTINGS = ("objective", "classes", "dimension", "tau")


def collapse_order(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Spread within classes of free embeddings against the time of gradient descent.

    Rows: numbers of classes, each with the most dimensions of the grid; columns: temperatures. A
    marker shows the median time at which the spread has fallen below half of its start.
    """
    plotted = _spreads(experiment.minimise)
    classes = plotted["classes"].unique().sort().to_list()
    taus = plotted["tau"].drop_nulls().unique().sort().to_list() or [None]
    objectives = style.ordered(plotted["objective"])

    figure, axes = sheet.panels(
        [f"C{count}" for count in classes],
        [f"tau{tau:g}" if tau is not None else "" for tau in taus],
        height=1.8, sharex=True, sharey=True,
    )  # fmt: skip
    for row, count in zip(axes, classes, strict=True):
        for ax, tau in zip(row, taus, strict=True):
            panel = plotted.filter(
                pl.col("classes") == count, pl.col("tau").is_null() | (pl.col("tau") == tau)
            )
            first = _draw_order(ax, panel)
            at = f", τ = {tau:g}" if tau is not None else ""
            ax.set_title(f"C = {count}, d = {panel['dimension'][0]}{at}\norder: {first}")
            ax.set_ylabel("Spread / start")
    sheet.finish(
        figure,
        "Order of collapse: how soon the free embeddings of a class come together",
        [style.handle(style.look_of(name)) for name in objectives],
        f"Free embeddings in gradient descent from the same start, "
        f"{experiment.minimise['per_class'][0]} images per class, "
        f"{number_of(plotted['seed'].n_unique(), 'seed')}, one line per run. Time: sum of "
        "learning rates. Spread: the share of the variance that is within classes. Markers: when "
        "it has fallen below half of its start (median). Order: the objectives from the first to "
        "the last that gets there; others never do. CE (dashed) has no τ, so its curve is the "
        "same at all τ, and its loss has another scale: compare its time with care.",
    )
    return figure, plotted


def _spreads(table: pl.DataFrame) -> pl.DataFrame:
    """Spread within classes relative to its start, by run and time, and its halving time."""
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
    """A line for each run, a marker at each halving; returns the objectives in this order."""
    for line in panel.filter(pl.col("time") > 0).partition_by("objective", "seed"):
        look = style.look_of(line["objective"][0])
        dash = "--" if line["objective"][0] == "ce" else "-"
        ax.plot(line["time"], line["value"], dash, color=look.color, linewidth=1.1)
    halved = panel.unique("objective").drop_nulls("halved_time").sort("halved_time", "objective")
    for name, time in halved.select("objective", "halved_time").iter_rows():
        runs = panel.filter(pl.col("time") > 0, objective=name).sort("time")
        at = [np.interp(time, run["time"], run["value"]) for run in runs.partition_by("seed")]
        ax.plot(time, np.mean(at), style.look_of(name).marker, color=style.look_of(name).color)
    ax.axhline(0.5, color=style.THEORY, linewidth=0.8, linestyle=":")
    ax.set(xscale="log", xlabel="Time of gradient descent (log scale)", ylim=(0, 1.08))
    return ", ".join(style.look_of(name).label for name in halved["objective"]) or "–"


def summary(table: pl.DataFrame) -> pl.DataFrame:
    """How the runs ended, for each setting (objective, classes, dimension and tau).

    Args:
        table: the table of stage `minimise`.

    Returns:
        A row for each setting, in the order of the table, with these columns after it:

        runs: number of runs (seeds).
        reached: share of runs that end with etf_deviation and within_class_spread below 1e-3. With
            two classes, only the second is meaningful.
        etf_deviation, within_class_spread, view_distance: medians at the end.
        worst_excess: largest difference of loss and minimum_loss at the end; null where the latter
            is unknown.
        halved_iteration, halved_time: the first descent step after which within_class_spread is
            below half of its start, as a median over all runs; null unless more than half of the
            runs reach it. To compare CE and different tau, use the time, which is the sum of
            learning rates: iterations have different learning rates.
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
    # A run that never reaches half counts as later than all others.
    halvings = pl.col("halved_iteration", "halved_time").fill_null(np.inf).median()
    return runs.group_by(*SETTINGS, maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("runs"),
        reached.fill_null(False).mean().alias("reached"),
        pl.col(*CONDITIONS).median(),
        pl.col("worst_excess").max(),
        pl.when(halvings.is_finite()).then(halvings),
    )
