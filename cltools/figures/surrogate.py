"""How far similarity descent with two losses drifts apart, and the bound of P2's Theorem 1."""

import math
from collections.abc import Iterable, Mapping, Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cltools.figures import sheet, style
from cltools.figures.style import FOOTNOTE, THEORY, Look, look_of
from cltools.figures.tables import ExperimentTables
from cltools.runtime.words import number_of

# Colors of batch sizes, from small to large. They differ from those of the objectives.
SIZES = ("#882255", "#44AA99", "#332288", "#999933", "#88CCEE")
DISTANCE, REALISED, STATED = "distance", "bound, realised", "bound, stated"
MOVED = "distance from the start"
MOVING = ("dcl", "nscl")
# Quantity -> how its marker looks, and its label.
ENDS = {
    DISTANCE: ({"marker": "o"}, "distance"),
    REALISED: ({"marker": "o", "markerfacecolor": "white"}, "bound, real class fractions"),
    STATED: ({"marker": "|", "markersize": 8}, "bound as stated"),
}
OF_NETWORKS = {"network": "-", "its surrogate": (0, (4, 1.5))}
RUN = ["classes", "tau", "batch_size", "total_lr", "images", "seed"]
COLUMNS = ["of", *RUN, "objective", "quantity", "step", "sum_lr", "value"]
# The axis ends at this many orders of magnitude above the largest possible distance.
BEYOND = 3.0


def surrogate_drift(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """How far CL and NSCL are apart when similarity descent ends, and the bounds on it.

    A panel per Ση, a row per number of classes and τ, a color per B. If the table of stage
    `regularity` exists, a second row of panels shows two networks trained by plain SGD, and their
    surrogates, step by step: how far apart they are, and how far each has moved. The table has
    log10 of all distances, of every step.
    """
    runs = _drifts(experiment.surrogate, "distance", "surrogate").select(COLUMNS)
    found = [] if experiment.regularity is None else [_followed(experiment.regularity)]
    totals, sizes = (runs[c].unique().sort().to_list() for c in ("total_lr", "batch_size"))
    colors = {size: SIZES[i % len(SIZES)] for i, size in enumerate(sizes)}
    settings = runs.select("classes", "tau").unique().sort("classes", "tau").rows()

    across = max(len(totals), 2 * len(found))
    figure, axes = sheet.panels(
        1 + len(found), across, height=max(2.1, 0.27 * len(settings) + 0.7), flatter=1,
        sharey="row",
    )  # fmt: skip
    names = [f"lr{total:g}" for total in totals]
    figure.names = dict(zip(axes[0], names, strict=False))
    for ax, total in zip(axes[0], totals, strict=False):
        _draw_ends(ax, runs.filter(total_lr=total), settings, colors)
    _limits(axes[0][: len(totals)], "x", runs)
    for networks in found:
        figure.names |= dict(zip(axes[1], ("networks", "moved"), strict=False))
        _draw_networks(axes[1][:2], networks)
    for ax in axes.flat:
        if ax not in figure.names:
            ax.remove()
    sheet.finish(
        figure,
        "How far CL and NSCL drift apart in similarity descent, and the bound on it",
        [*_handles(colors), *(_of_networks() if found else [])],
        f"Above: ‖Σ_CL − Σ_NSCL‖ of the similarities of {_listed(runs['images'])} images after "
        f"{runs['step'].max()} steps of similarity descent, for the sums Ση of their learning "
        f"rates; {number_of(runs['seed'].n_unique(), 'seed')}. Bounds: P2, Theorem 1. Gray: "
        "more than the largest possible distance of two matrices of cosines, where a bound says "
        "nothing. A stated bound that is missing says nothing either (class fraction + ε ≥ 1) or "
        "is beyond the panel."
        + "".join(
            " Below: networks trained with DCL and NSCL by plain SGD, from the same start and on "
            f"the same batches and views of {networks['images'][0]} images, τ = "
            f"{networks['tau'][0]:g}, B = {networks['batch_size'][0]}, and similarity descent "
            "(surrogate) on these batches; entries of Σ that batches have used. The theorem is "
            "about surrogates."
            for networks in found
        ),
    )
    return figure, pl.concat([runs, *found])


def _handles(colors: Mapping[int, str]) -> list[Line2D]:
    return [
        *(style.handle(Look(f"B = {size}", color, "s"), linestyle="")
          for size, color in colors.items()),
        *(style.handle(Look(label, FOOTNOTE, ""), linestyle="", **marker)
          for marker, label in ENDS.values()),
    ]  # fmt: skip


def _of_networks() -> list[Line2D]:
    return [
        *(style.handle(look_of(o), f"trained with {look_of(o).label}", marker="") for o in MOVING),
        style.handle(Look("two networks", THEORY, "")),
        style.handle(Look("surrogates", THEORY, ""), linestyle=OF_NETWORKS["its surrogate"]),
        style.handle(Look("bound for the surrogates", THEORY, ""), linestyle=":"),
    ]  # fmt: skip


def _drifts(table: pl.DataFrame, distance: str, of: str) -> pl.DataFrame:
    """Rows with log10 of the distance and of both bounds, without infinite values."""
    values = {
        DISTANCE: pl.col(distance).log10(),
        REALISED: pl.col("log10_bound_realised"),
        STATED: pl.col("log10_bound"),
    }
    about = {"of": pl.lit(of), "objective": pl.lit("")}
    parts = [
        table.with_columns(quantity=pl.lit(name), value=value, **about)
        for name, value in values.items()
    ]
    return pl.concat(parts).filter(pl.col("value").is_finite()).sort(*RUN, "quantity", "step")


def _followed(table: pl.DataFrame) -> pl.DataFrame:
    """The same for networks and for their surrogates, and the distance that each has moved."""
    table = table.with_columns(classes=pl.lit(None, pl.Int64), total_lr=pl.col("sum_lr").max())
    once = table.filter(objective="dcl")
    drifts = [
        _drifts(once, "touched_distance", "network"),
        _drifts(once, "surrogate_distance", "its surrogate").filter(quantity=DISTANCE),
    ]
    moves = [
        table.with_columns(of=pl.lit(of), quantity=pl.lit(MOVED), value=pl.col(column).log10())
        for of, column in (
            ("network", "displacement"),
            ("its surrogate", "surrogate_displacement"),
        )
    ]
    found = pl.concat([part.select(COLUMNS) for part in (*drifts, *moves)])
    order = ["of", "quantity", "objective", "step"]
    return found.filter(pl.col("value").is_finite()).sort(order)


def _draw_ends(
    ax: Axes, runs: pl.DataFrame, settings: Sequence[tuple[int, float]], colors: Mapping[int, str]
) -> None:
    """The last step of every run of one Ση; the runs of one setting are close to each other."""
    ended = runs.filter(pl.col("step") == pl.col("step").max().over(RUN))
    for number, (size, color) in enumerate(colors.items()):
        shift = 0.4 * (number / max(1, len(colors) - 1) - 0.5)
        for y, (classes, tau) in enumerate(settings):
            of = ended.filter(batch_size=size, classes=classes, tau=tau)
            for run in of.partition_by("seed", maintain_order=True):
                values = run["value"]
                height = [y + shift] * 2
                ax.plot([values.min(), values.max()], height, color=color, linewidth=0.8, alpha=0.5)
                for quantity, (marker, _) in ENDS.items():
                    found = run.filter(quantity=quantity)["value"]
                    ax.plot(found, height[: len(found)], color=color, linestyle="", **marker)
    ax.set_yticks(range(len(settings)), [f"C = {c}, τ = {tau:g}" for c, tau in settings])
    ax.set_ylim(len(settings) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.set(title=f"Ση = {runs['total_lr'][0]:g}", xlabel="Distance at the end (log scale)")


def _limits(axes: Iterable[Axes], side: str, shown: pl.DataFrame) -> None:
    """Limits and ticks of an axis in powers of ten, with impossible distances in gray."""
    possible = math.log10(2 * math.sqrt(2) * shown["images"].max())  # entries are in [-1, 1]
    highest = min(shown["value"].max(), possible + BEYOND)
    lowest = shown.filter(pl.col("step") == pl.col("step").max().over(RUN))["value"].min()
    if side == "y":
        lowest = shown["value"].min()
    for ax in axes:
        axis, span = (ax.xaxis, ax.axvspan) if side == "x" else (ax.yaxis, ax.axhspan)
        span(possible, possible + 1e3, color="#F0F0F0", zorder=0, linewidth=0)
        (ax.set_xlim if side == "x" else ax.set_ylim)(lowest - 0.3, highest + 0.3)
        axis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_major_formatter(FuncFormatter(lambda power, _: f"$10^{{{power:.0f}}}$"))


def _draw_networks(row: Sequence[Axes], found: pl.DataFrame) -> None:
    """Step by step: the distance of networks and of their surrogates, and how far each moved."""
    apart, moved = row
    bound = found.filter(quantity=REALISED).sort("step")
    apart.plot(bound["sum_lr"], bound["value"], ":", color=THEORY, linewidth=1.2)
    for of, dash in OF_NETWORKS.items():
        one = found.filter(of=of, quantity=DISTANCE).sort("step")
        apart.plot(one["sum_lr"], one["value"], color=THEORY, linestyle=dash, linewidth=1.2)
        for name in style.ordered(found.filter(quantity=MOVED)["objective"]):
            one = found.filter(of=of, quantity=MOVED, objective=name).sort("step")
            # The first line is wide, so that it shows below the second.
            wide = 2.4 if name == MOVING[0] else 1.0
            color = look_of(name).color
            moved.plot(one["sum_lr"], one["value"], color=color, linestyle=dash, linewidth=wide)
    apart.set(title="Networks: distance between DCL and NSCL", ylabel="Distance (log scale)")
    moved.set(title="Networks: distance from their start", ylabel="Distance (log scale)")
    for ax in row:
        style.log_axis(ax, "x")
        ax.set_xlabel("Ση (log scale)")
    _limits(row, "y", found)


def _listed(values: pl.Series) -> str:
    return ", ".join(f"{value:g}" for value in values.unique().sort())
