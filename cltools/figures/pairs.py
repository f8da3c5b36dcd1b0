"""Alignment of all pairs of objectives, and how they group."""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from cltools import tidy
from cltools.figures import sheet, style, tables
from cltools.figures.style import look_of
from cltools.figures.tables import ExperimentTables
from cltools.runtime.errors import InputError

# (metric, variant) -> title of its row of panels; all are written to the table.
ROWS = {
    ("cka", "cosine_debiased"): "CKA",
    ("cka", "residual_debiased"): "CKA without class means",
}
NARROWEST = 1.8  # inches of a panel
FURTHER = (("rsa", "pearson_cosine"),)


def alignment_pairs(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Rows: measures; columns: heat map of all pairs, and the tree that average linkage makes."""
    found = tidy.last_step(experiment.base(experiment.measures))
    wanted = {"features": "h", "split": "test"}
    cells = pl.concat(
        [tidy.rows(found, metric=m, variant=v, **wanted) for m, v in (*ROWS, *FURTHER)]
    ).filter(pl.col("reference") != "init")
    plotted = tidy.spread(cells, ["metric", "variant", "objective", "reference"])
    drawn = plotted.filter(metric="cka")
    names = style.ordered([*drawn["objective"], *drawn["reference"]])
    if len(names) < 3:
        raise InputError("the base sweep trains fewer than three objectives: add more to it")
    figure, axes = sheet.panels(
        ["cka", "cka_residual"], ["map", "tree"], height=0.28 * len(names) + 1.1, flatter=1,
        narrowest=NARROWEST, width_ratios=[2, 1],
    )  # fmt: skip
    for row, ((metric, variant), title) in zip(axes, ROWS.items(), strict=True):
        field = _matrix(drawn.filter(metric=metric, variant=variant), names)
        tree = _tree(field)
        order = leaves_list(tree)
        labels = [look_of(names[place]).label for place in order]
        image = style.heat_map(row[0], field[np.ix_(order, order)], labels, labels)
        row[0].set_title(title)
        style.slant_labels(row[0])
        _draw_tree(row[1], tree, labels)
    sheet.finish(
        figure,
        "Alignment of all pairs of objectives at the end of training",
        [],
        f"{tidy.setting(cells)}. Test images, encoder features h, each run at its last step. CKA "
        "of cosine similarities, debiased; below after class means are subtracted. Trees: average "
        f"linkage of 1 − CKA. {tables.means_note(plotted)}",
        bar=(image, "CKA"),
    )
    return figure, plotted


def _matrix(plotted: pl.DataFrame, names: list[str]) -> NDArray[np.float64]:
    """The means as a symmetric matrix with ones on its diagonal.

    Raises InputError where two objectives were never trained in one cell.
    """
    field = np.full((len(names), len(names)), np.nan)
    for a, b, mean in plotted.select("objective", "reference", "mean").unique().iter_rows():
        field[names.index(a), names.index(b)] = field[names.index(b), names.index(a)] = mean
    np.fill_diagonal(field, 1)
    if np.isnan(field).any():
        a, b = np.argwhere(np.isnan(field))[0]
        raise InputError(
            f"the base sweep has no cell with both {names[a]} and {names[b]}: train them together"
        )
    return field


def _tree(field: NDArray[np.float64]) -> NDArray[np.float64]:
    distances = squareform(1 - field, checks=False)
    found: NDArray[np.float64] = optimal_leaf_ordering(linkage(distances, "average"), distances)
    return found


def _draw_tree(ax: Axes, tree: NDArray[np.float64], labels: list[str]) -> None:
    """The tree; its leaves stand beside the rows of the heat map, or have names where below it."""
    dendrogram(
        tree, orientation="right", ax=ax, no_labels=True, link_color_func=lambda node: style.THEORY
    )
    ax.set(xlabel="1 − CKA", ylim=(0, 10 * len(labels)))  # scipy puts a leaf every 10 units
    below = sheet.narrow(2 * NARROWEST)
    ax.set_yticks([5 + 10 * i for i in range(len(labels))] if below else [], labels * below)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)
