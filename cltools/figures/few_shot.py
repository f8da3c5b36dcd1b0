"""Error of classifiers that are trained with few labels, and P1's bound on it."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltools import tidy
from cltools.figures import sheet, style, tables
from cltools.figures.style import THEORY, Look
from cltools.figures.tables import ExperimentTables

WAYS = {"all_way": "all classes", "two_way": "two classes"}
PROBES = {"few_shot_nccc": "Nearest class center", "few_shot_linear_probe": "Linear probe"}
SHOTS = pl.col("variant").str.extract(r"shots_(\d+)$").cast(pl.Int64)
ERROR, BOUND, LIMIT = "error", "bound", "bound, limit"
HIGHEST = 2.0  # the end of the axis: a bound above 1 says nothing, so that none is drawn above it


def _errors(ended: pl.DataFrame, features: str) -> pl.DataFrame:
    found = [
        tidy.rows(ended, metric=f"{probe}_{ways}", features=features, split="test").with_columns(
            quantity=pl.lit(ERROR), probe=pl.lit(probe), ways=pl.lit(ways), shots=SHOTS
        )
        for probe in PROBES
        for ways in WAYS
    ]
    return pl.concat(found).with_columns(value=1 - pl.col("value"))


def _bounds(ended: pl.DataFrame, theory: pl.DataFrame, features: str) -> pl.DataFrame:
    """P1's Proposition 1 with its best constant, and its limit for many shots.

    The bound depends on the variances and the number of shots. So it is the same whatever split
    the labeled images are from. The limit is 4 (C' - 1) times the directional CDNV. Both are for
    the nearest class center.
    """
    columns = ["cell", "class_draw", "seed", "objective", "quantity", "probe", "ways", "shots",
               "value"]  # fmt: skip
    about = {"probe": pl.lit("few_shot_nccc"), "quantity": pl.lit(BOUND)}
    proved = theory.filter(
        pl.col("source") == "P1 Proposition 1",
        pl.col("split") == "test",
        pl.col("features") == features,
        pl.col("variant").str.starts_with("best_"),
        pl.col("bound").is_finite(),
    ).with_columns(
        **about,
        ways=pl.col("quantity").str.extract("(all_way|two_way)$"),
        shots=SHOTS,
        value=pl.col("bound"),
    )
    proved = proved.unique(
        ["cell", "objective", "ways", "shots"], keep="first", maintain_order=True
    )
    limits = []
    cdnv = {"metric": "cdnv", "variant": "directional", "features": features, "split": "test"}
    for ways, others in (("all_way", pl.col("classes") - 1), ("two_way", pl.lit(1))):
        limits.append(
            tidy.rows(ended, **cdnv).with_columns(
                probe=about["probe"],
                quantity=pl.lit(LIMIT),
                ways=pl.lit(ways),
                shots=pl.lit(None, pl.Int64),
                value=4 * others * pl.col("value"),
            )
        )
    return pl.concat([table.select(columns) for table in (proved, *limits)])


def few_shot(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """The errors and bounds of encoder features h."""
    return _draw_errors(experiment, "h", "encoder features h")


def few_shot_z(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Those of the projections z, which are the features in P1's figures."""
    return _draw_errors(experiment, "z", "projections z")


def _draw_errors(
    experiment: ExperimentTables, features: str, words: str
) -> tuple[Figure, pl.DataFrame]:
    """Rows: all classes and two classes; columns: nearest class center and linear probe.

    It shows the base sweep at its last step on test images. The bound is for the nearest class
    center only.
    """
    ended = tidy.last_step(experiment.base(experiment.measures))
    cells = _errors(ended, features)
    theory = tidy.last_step(experiment.base(experiment.theory))
    both = [cells, _bounds(ended, theory, features)]
    plotted = tidy.spread(
        pl.concat(both, how="diagonal"), ["ways", "probe", "quantity", "objective", "shots"]
    )
    objectives = style.ordered(plotted["objective"])

    figure, axes = sheet.panels(
        list(WAYS), ["nccc", "linear_probe"], height=2.2, sharex=True, sharey="row"
    )
    for row, (ways, classes) in zip(axes, WAYS.items(), strict=True):
        for ax, (probe, title) in zip(row, PROBES.items(), strict=True):
            panel = plotted.filter(ways=ways, probe=probe)
            for name in objectives:
                _draw(ax, panel.filter(objective=name), style.look_of(name))
            ax.set_title(f"{title}, {classes}")
            shots = plotted["shots"].drop_nulls()
            style.factor_axis(ax, shots, "Labeled images per class")
            ax.set_ylabel("Test error (log scale)")
        errors = plotted.filter(ways=ways, quantity=ERROR)["mean"]
        above_0 = errors.filter(errors > 0)
        if not above_0.is_empty():  # an error of 0 cannot be drawn on a logarithmic axis
            row[0].set_ylim(above_0.min() / 2, HIGHEST)
        style.log_axis(row[0])
        for ax in row:
            ax.axhspan(1, 1e9, color="#EDEDED", zorder=0, linewidth=0)
    gray = Look("", THEORY, "")
    sheet.finish(
        figure,
        f"Few-shot error of each objective ({words}), and the bound of P1",
        [
            *(style.handle(style.look_of(name)) for name in objectives),
            style.handle(gray, "bound (P1, Proposition 1)", linestyle="--", linewidth=1),
            style.handle(gray, "its limit for many shots", linestyle="", marker="<"),
        ],
        f"{tidy.setting(cells)}. {words.capitalize()}, each run at its last step. "
        f"{tables.seeds_note(plotted.filter(quantity=ERROR), cells)} Errors: means over draws of "
        "the labeled images (and of the two classes). The bound is for the nearest class center, "
        "with its best constant and the variances of the test images. It is proved for labeled "
        "images from the same distribution; these are training images. Above 1 (gray) it says "
        "nothing and is not drawn. Limit: 4 (C′ − 1) × directional CDNV, where C′ is the number of "
        "classes to choose from.",
    )
    return figure, plotted


def _draw(ax: Axes, one: pl.DataFrame, look: Look) -> None:
    style.curve(ax, one.filter(quantity=ERROR), "shots", look, bars=True)
    bound = one.filter(quantity=BOUND)
    if not bound.is_empty():
        means = bound.unique("shots", keep="first").sort("shots")
        ax.plot(means["shots"], means["mean"], "--", color=look.color, linewidth=1)
    for limit in one.filter(quantity=LIMIT)["mean"].unique():
        # At the right end, where the limits of several objectives do not hide each other.
        if limit < HIGHEST:
            at = ax.get_yaxis_transform()
            ax.plot(1.0, limit, "<", color=look.color, transform=at, clip_on=False, zorder=4)
