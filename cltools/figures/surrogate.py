"""How far similarity descent with two losses drifts apart, and the bound of P2's Theorem 1."""

import math
from collections.abc import Mapping, Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cltools.figures import style
from cltools.figures.style import THEORY, Look, look_of
from cltools.figures.tables import ExperimentTables

# Colors of batch sizes, from small to large. They differ from those of the objectives.
SIZES = ("#440154", "#21918C", "#8FD744", "#31688E", "#35B779")
NETWORK = Look("two networks under plain SGD", THEORY, "")
OWN = Look("their surrogates", style.FOOTNOTE, "")
DISTANCE, REALISED, STATED = "distance", "bound, realised", "bound, stated"
MOVED = "distance from the start"
DASHES = {DISTANCE: "-", REALISED: "--", STATED: ":"}
RUN = ["classes", "tau", "batch_size", "total_lr", "images", "seed"]
COLUMNS = ["of", *RUN, "objective", "quantity", "step", "sum_lr", "value"]
# The axis ends at this many orders of magnitude above the largest possible distance.
BEYOND = 3.0


def surrogate_drift(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Distance and bounds against Ση, with a panel per number of classes and τ and a color per B.

    If the table of stage `regularity` exists, a last row shows two networks trained by plain SGD,
    and their surrogates: their distance, and how far each has moved. All values are log10 of
    distances.
    """
    runs = _drifts(experiment.surrogate, "distance", "surrogate")
    parts = [runs]
    if experiment.regularity is not None:
        parts.append(_followed(experiment.regularity))
    plotted = pl.concat(part.select(COLUMNS) for part in parts)
    classes, taus = (runs[column].unique().sort().to_list() for column in ("classes", "tau"))
    networks = len(parts) > 1
    figure, axes = style.panels(
        len(taus) + networks, max(len(classes), 2), height=1.75, sharey="row"
    )
    sizes = runs["batch_size"].unique().sort().to_list()
    looks = {size: Look(f"B = {size}", SIZES[i % len(SIZES)], "") for i, size in enumerate(sizes)}
    for row, tau in zip(axes, taus, strict=False):
        _draw_runs(row, runs.filter(tau=tau), classes, looks)
    if networks:
        _draw_networks(axes[-1], parts[1])
    style.finish(
        figure,
        "Drift between CL and NSCL in similarity descent, and Theorem 1 of P2",
        [
            *(style.handle(look) for look in looks.values()),
            style.handle(Look("distance", THEORY, "")),
            style.handle(Look("bound as stated", THEORY, ""), linestyle=":"),
            style.handle(Look("bound with the real class fractions", THEORY, ""), linestyle="--"),
            *[style.handle(look) for look in (NETWORK, OWN) if networks],
            *[
                style.handle(look_of(name), f"network trained with {look_of(name).label}")
                for name in ("dcl", "nscl")
                if networks
            ],
        ],
        f"Distance: ‖Σ_CL − Σ_NSCL‖ of the similarities of {_listed(runs['images'])} images, one "
        f"line per run: Ση = {_listed(runs['total_lr'])} in {runs['step'].max()} steps, "
        f"{runs['seed'].n_unique()} seed{'s' * (runs['seed'].n_unique() > 1)}. Gray: more than "
        "the largest possible distance of two matrices of cosines. Where the stated bound is not "
        "drawn, it says nothing (class fraction + ε ≥ 1) or is above the panel."
        + " Networks: DCL and NSCL from the same start, on the same batches and views of "
        f"{parts[-1]['images'][0]} images, distance of the entries of Σ that batches have used; "
        "the theorem is about their surrogates." * networks,
    )
    return figure, plotted


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


def _lines(ax: Axes, run: pl.DataFrame, color: str) -> None:
    for quantity, dash in DASHES.items():
        one = run.filter(quantity=quantity).sort("step")
        ax.plot(one["sum_lr"], one["value"], dash, color=color, linewidth=1.1)


def _distance_axes(row: Sequence[Axes], shown: pl.DataFrame) -> None:
    """A logarithmic x axis, and a y axis in powers of ten with impossible distances in gray."""
    possible = math.log10(2 * math.sqrt(2) * shown["images"].max())  # entries are in [-1, 1]
    highest = min(shown["value"].max(), possible + BEYOND)
    for ax in row:
        ax.set_xscale("log")
        ax.axhspan(possible, possible + 1e3, color="#F0F0F0", zorder=0, linewidth=0)
        ax.set_ylim(shown["value"].min() - 0.3, highest + 0.3)
        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda power, _: f"$10^{{{power:.0f}}}$"))
        ax.set_xlabel("Ση")
    row[0].set_ylabel("Distance (log scale)")


def _draw_runs(
    row: Sequence[Axes], shown: pl.DataFrame, classes: list[int], looks: Mapping[int, Look]
) -> None:
    """The panels of one temperature, one per number of classes; `looks` are by batch size."""
    for ax, count in zip(row, classes, strict=False):
        panel = shown.filter(classes=count)
        for run in panel.partition_by("batch_size", "total_lr", "seed", maintain_order=True):
            _lines(ax, run, looks[run["batch_size"][0]].color)
        ax.set_title(f"C = {count}, τ = {shown['tau'][0]:g}")
    _distance_axes(row[: len(classes)], shown)
    for ax in row[len(classes) :]:
        ax.axis("off")


def _draw_networks(row: Sequence[Axes], found: pl.DataFrame) -> None:
    drift, moved = row[:2]
    for ax in row[2:]:
        ax.axis("off")
    network, surrogate = found.filter(of="network"), found.filter(of="its surrogate")
    _lines(drift, network, NETWORK.color)
    _lines(drift, surrogate, OWN.color)
    for name in style.ordered(found.filter(quantity=MOVED)["objective"]):
        for part, color in ((network, look_of(name).color), (surrogate, OWN.color)):
            one = part.filter(quantity=MOVED, objective=name).sort("step")
            moved.plot(one["sum_lr"], one["value"], color=color, linewidth=1.1)
            if color != OWN.color:
                end = one["sum_lr"][-1], one["value"][-1]
                moved.plot(*end, look_of(name).marker, color=color)
    drift.set_title(f"Networks: distance, τ = {found['tau'][0]:g}, B = {found['batch_size'][0]}")
    moved.set_title("Networks: distance from their start")
    _distance_axes([drift, moved], found)


def _listed(values: pl.Series) -> str:
    return ", ".join(f"{value:g}" for value in values.unique().sort())
