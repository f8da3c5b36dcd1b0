"""Collapse onto class means and a simplex, for networks and for free embeddings."""

import math
from collections.abc import Sequence
from itertools import product

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltools import tidy
from cltools.figures import sheet, style, tables
from cltools.figures.tables import ExperimentTables
from cltools.runtime.words import number_of

FEATURES = {"h": "encoder features h", "z": "projections z"}
CDNV = {"pairs": "CDNV", "directional": "Directional CDNV"}


def cdnv_training(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Rows: CDNV and directional CDNV, each of h and z; columns: training and test images."""
    measures = experiment.base(experiment.measures)
    splits = ["train", "test"]
    wanted = {"metric": "cdnv", "variant": list(CDNV), "split": splits}
    cells = tidy.rows(measures, features=list(FEATURES), **wanted)
    plotted = tidy.spread(cells, ["features", "variant", "split", "objective", "epoch"])
    papers = tables.papers_rows(experiment, cells, **wanted)
    objectives = style.ordered(plotted["objective"])

    names = [f"{variant}_{features}" for variant, features in product(CDNV, FEATURES)]
    figure, axes = sheet.panels(names, splits, height=1.7, sharex=True, sharey="row")
    rows = product(CDNV.items(), FEATURES)
    for row, ((variant, title), features) in zip(axes, rows, strict=True):
        for ax, split in zip(row, splits, strict=True):
            for name in objectives:
                one = {"variant": variant, "split": split, "objective": name}
                look = style.look_of(name)
                ours = plotted.filter(features=features, **one)
                style.curve(ax, ours, "epoch", look, points=False)
                # P1 does not say of which features its numbers are.
                theirs = papers.filter(pl.col("features").is_in(["", features]), **one)
                style.paper_curve(ax, theirs, "epoch", look)
            images = "training" if split == "train" else "test"
            ax.set_title(f"{title} of {features}, {images} images")
            ax.set_ylabel("CDNV (log scale)")
            style.epoch_axis(ax, plotted["epoch"])
            style.log_axis(ax)
    sheet.finish(
        figure,
        "CDNV: variance within classes relative to the distance between them",
        [*(style.handle(style.look_of(o)) for o in objectives), *style.paper_handles(papers)],
        f"{tidy.setting(cells)}. h: encoder features; z: normalized projections. "
        f"{tables.seeds_note(plotted, cells, 'band', points=False)} CDNV (class-distance "
        "normalized variance): mean over pairs of classes of (v + v′) "
        "/ (2 d²), where v and v′ are the variances of the two classes and d is the distance of "
        "their means; 0 is collapse. Directional: only the variance along the line between the two "
        "means counts."
        + " P1 does not say whether its CDNV is of h or z: it is drawn beside both."
        * ("P1 CDNV" in papers["figure"]),
    )
    return figure, tables.with_papers(plotted, papers)


# Panels for networks, (metric, variant) -> title, and for free embeddings, column -> title.
OF_NETWORKS = {
    ("etf_deviation", "gram"): "deviation from a simplex",
    ("within_class_spread", "share"): "spread within classes",
    ("class_mean_angle", "smallest"): "angles of class means",
}
OF_FREE = {
    "etf_deviation": "deviation from a simplex",
    "within_class_spread": "spread within classes",
    "view_distance": "distance of views",
}
ANGLES = ["smallest", "largest"]  # both are needed: only in a simplex are they equal
COLLAPSED = 1e-4  # the lower end of the axes of free embeddings
LARGEST = {"linestyle": ":", "markerfacecolor": "white"}
SIMPLEX = {"linestyle": "--", "linewidth": 0.9}


def collapse_geometry(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """How close class means are to a simplex (ETF), and images to their class means.

    The first two rows show h and z of the networks of the base sweep on training images. If the
    table of stage `minimise` exists, a third row shows free embeddings. They are those of its grid
    with the most classes and dimensions, and with the temperature that is nearest to that of the
    networks.
    """
    measures = experiment.base(experiment.measures)
    cells = _geometry(measures)
    networks = tidy.spread(cells, ["features", "metric", "variant", "objective", "epoch"])
    plotted, free = networks, None
    if experiment.minimise is not None:
        free = _free(experiment.minimise, cells["tau"].mode().min())
        columns = ["objective", "classes", "dimension", "tau", "seed", "iteration", *OF_FREE]
        plotted = pl.concat([networks, free.select(columns)], how="diagonal_relaxed")
    objectives = style.ordered(plotted["objective"])

    rows = [*FEATURES, "free"][: len(FEATURES) + (free is not None)]
    figure, axes = sheet.panels(rows, ["simplex", "spread", "angles"])
    for row, features in zip(axes, FEATURES, strict=False):
        _draw_networks(row, networks.filter(features=features), cells["classes"])
        for ax in row:
            ax.set_title(f"{features}: {ax.get_title(loc='left')}")
    if free is not None:
        figure.names = {**figure.names, axes[-1][2]: "free_views"}
    note = _draw_free(axes[-1], free) if free is not None else ""
    sheet.finish(
        figure,
        "Collapse onto a simplex: networks" + " and free embeddings" * (free is not None),
        [
            *(style.handle(style.look_of(name)) for name in objectives),
            style.handle(style.Look("smallest angle", style.THEORY, "o")),
            style.handle(style.Look("largest angle", style.THEORY, "o"), **LARGEST),
            style.handle(style.Look("angle of a simplex", style.THEORY, ""), **SIMPLEX),
        ],
        f"Networks: {tidy.setting(cells)}; training images, h: encoder features, z: projections. "
        f"{tables.seeds_note(networks, cells, 'band')} Deviation: ‖G − G_ETF‖ / ‖G_ETF‖, where G "
        "are the cosines of the centered class means. Angles between these means: the smallest "
        f"and the largest of all pairs of classes; in a simplex they are equal.{note}",
    )
    return figure, plotted


def _geometry(measures: pl.DataFrame) -> pl.DataFrame:
    """The rows for all panels of networks, on training images."""
    return pl.concat(
        [
            tidy.rows(
                measures,
                metric=metric,
                variant=ANGLES if metric == "class_mean_angle" else variant,
                features=list(FEATURES),
                split="train",
            )
            for metric, variant in OF_NETWORKS
        ]
    )


def _draw_networks(row: Sequence[Axes], networks: pl.DataFrame, classes: pl.Series) -> None:
    """The panels of networks, with the angle of a simplex for each number in `classes`."""
    for ax, ((metric, variant), title) in zip(row, OF_NETWORKS.items(), strict=True):
        for name in style.ordered(networks["objective"]):
            look = style.look_of(name)
            one = networks.filter(metric=metric, objective=name)
            style.curve(ax, one.filter(variant=variant), "epoch", look)
            if metric == "class_mean_angle":
                style.curve(ax, one.filter(variant="largest"), "epoch", look, **LARGEST)
        ax.set_title(title)
        style.epoch_axis(ax, networks["epoch"])
        if metric != "class_mean_angle":
            ax.set_ylim(bottom=0)
    for count in classes.unique():
        simplex = math.degrees(math.acos(-1 / (count - 1)))
        row[2].axhline(simplex, color=style.THEORY, **SIMPLEX)
    for ax, label in zip(row, ("Deviation", "Share of variance", "Degrees"), strict=True):
        ax.set_ylabel(label)


def _free(table: pl.DataFrame, tau: float) -> pl.DataFrame:
    """The runs of one setting of the grid, including those of CE, which has no τ."""
    table = table.filter(pl.col("classes") == pl.col("classes").max())
    table = table.filter(pl.col("dimension") == pl.col("dimension").max())
    taus = table["tau"].drop_nulls().unique().sort().to_list()
    nearest = min(taus, key=lambda t: abs(math.log(t / tau)), default=None)
    return table.filter(pl.col("tau").is_null() | (pl.col("tau") == nearest)).sort(
        "objective", "seed", "iteration"
    )


def _draw_free(row: Sequence[Axes], free: pl.DataFrame) -> str:
    """The panels of free embeddings, one line per run; returns their part of the footnote."""
    names = style.ordered(free["objective"])
    newton = free.filter(phase="newton")["iteration"].min()
    labels = ("Deviation", "Share of variance", "Distance")
    for ax, (column, title), label in zip(row, OF_FREE.items(), labels, strict=True):
        for run in free.partition_by("objective", "seed", maintain_order=True):
            look = style.look_of(run["objective"][0])
            # The first objective is wide, so that it shows below others.
            size, wide = (8, 3.4) if run["objective"][0] == names[0] else (4, 1.0)
            ax.plot(run["iteration"], run[column], color=look.color, linewidth=wide)
            below = run.filter(pl.col(column) < COLLAPSED)["iteration"]
            if len(below):
                left = {"color": look.color, "clip_on": False, "markersize": size}
                ax.plot(below[0], COLLAPSED, look.marker, **left)
        ax.set_yscale("log")
        ax.set_ylim(COLLAPSED, 2 * max(1.0, free[column].max()))
        ax.set(title=f"Free embeddings: {title}", xlabel="Iteration", ylabel=f"{label} (log scale)")
        if newton is not None:
            ax.axvline(newton - 0.5, color=style.THEORY, linewidth=0.8, linestyle=":")
    setting = free.filter(pl.col("tau").is_not_null()) if free["tau"].count() else free
    one = setting.row(0, named=True)
    tau = f", τ = {one['tau']:g}" if one["tau"] else ""
    return (
        f" Free embeddings: C = {one['classes']}, {one['per_class']} images each, d = "
        f"{one['dimension']}{tau}, {number_of(free['seed'].n_unique(), 'seed')}, one line per "
        "run; gradient "
        "descent up to the dotted line, then a quasi-Newton method. A marker at the bottom: the "
        f"line has fallen below {COLLAPSED:g}, so the embeddings have collapsed."
    )
