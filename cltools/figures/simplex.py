"""The directions of the means of four classes, which can be drawn exactly in three dimensions."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy.linalg import orthogonal_procrustes

from cltools import tidy
from cltools.figures import sheet, style
from cltools.figures.tables import ExperimentTables

CLASSES = 4
MOST_EPOCHS = 4
# The vertices of a regular tetrahedron: unit vectors, each two with a cosine of -1/3.
VERTICES = (
    np.array([[0, 0, 3], [8**0.5, 0, -1], [-(2**0.5), 6**0.5, -1], [-(2**0.5), -(6**0.5), -1]]) / 3
)
COLORS = ("#4E79A7", "#F28E2B", "#59A14F", "#E15759")
VIEW = {"elev": 12, "azim": 25}  # in this view no vertex hides another one


def class_means_space(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """The directions of four centered class means. Rows: objectives; columns: checkpoints.

    If classes are balanced, the four means sum to zero. Three dimensions are then enough to show
    their cosines exactly. The figure shows training images, in the cell with C = 4 that has the
    most checkpoints.
    """
    cosines, deviation = _cosines(experiment)
    objectives = style.ordered(cosines["objective"])
    epochs = tidy.evenly(cosines["epoch"], MOST_EPOCHS)
    plotted = pl.concat(
        _directions(cosines.filter(objective=name, epoch=epoch)).select(
            pl.lit(name).alias("objective"),
            pl.lit(epoch).alias("epoch"),
            pl.all(),
            pl.lit(deviation.filter(objective=name, epoch=epoch)["value"][0]).alias("deviation"),
        )
        for name in objectives
        for epoch in epochs
    )

    figure, axes = sheet.panels(
        objectives, [f"epoch{epoch:g}" for epoch in epochs], height=2.0, narrowest=1.2,
        flatter=1, subplot_kw={"projection": "3d"},
    )  # fmt: skip
    for row, name in zip(axes, objectives, strict=True):
        for ax, epoch in zip(row, epochs, strict=True):
            panel = plotted.filter(objective=name, epoch=epoch)
            _draw(ax, panel.select("x", "y", "z").to_numpy())
            ax.set_title(f"{style.look_of(name).label}, epoch {epoch:g}")
            deviation = f"deviation {panel['deviation'][0]:.2f}"
            about = {"ha": "center", "color": style.FOOTNOTE, "fontsize": "small"}
            ax.text2D(0.5, -0.02, deviation, transform=ax.transAxes, **about)
    looks = [style.Look(f"class {i}", color, "o") for i, color in enumerate(COLORS)]
    simplex = style.handle(style.Look("simplex", style.THEORY, ""), linestyle=":", linewidth=0.9)
    sheet.finish(
        figure,
        "Four class means in space, and the simplex",
        [*(style.handle(look) for look in looks), simplex],
        f"{tidy.setting(cosines)}, seed {cosines['seed'][0]}. Directions of the centered class "
        "means of h on training images. Together they are rotated (or mirrored) to match the "
        "tetrahedron, whose corners are the simplex. Deviation: ‖G − G_ETF‖ / ‖G_ETF‖, where G are "
        "the cosines of the four; 0 is the simplex.",
    )
    return figure, plotted


def _cosines(experiment: ExperimentTables) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Cosines of class means, and their deviation from a simplex, in the cell that is shown."""
    cells = experiment.over(experiment.measures, "classes").filter(
        classes=CLASSES, features="h", split="train"
    )
    cosines = tidy.rows(cells, metric="class_mean_cosine")
    checkpoints = cosines.group_by("cell").agg(pl.col("step").n_unique())
    chosen = checkpoints.sort("step", "cell", descending=[True, False])["cell"][0]
    deviation = cells.filter(cell=chosen, metric="etf_deviation", variant="gram")
    # A cell that belongs to two sweeps is here twice.
    return cosines.filter(cell=chosen).unique(["objective", "epoch", "variant"]), deviation


def _directions(cosines: pl.DataFrame) -> pl.DataFrame:
    """A table with columns class, x, y and z, from the cosines of the six pairs of classes."""
    gram = np.eye(CLASSES)
    for variant, value in cosines.select("variant", "value").iter_rows():
        i, j = map(int, variant.split("_")[1:])
        gram[i, j] = gram[j, i] = value
    values, vectors = np.linalg.eigh(gram)
    points = vectors[:, 1:] * np.sqrt(np.maximum(values[1:], 0))
    points = points @ orthogonal_procrustes(points, VERTICES)[0]
    return pl.DataFrame(points, schema=["x", "y", "z"], orient="row").select(
        pl.int_range(CLASSES).alias("class"), pl.all()
    )


def _draw(ax, points: Sequence[np.ndarray]) -> None:
    for face in combinations(range(CLASSES), 3):
        side = Poly3DCollection([VERTICES[list(face)]], facecolor=style.THEORY, alpha=0.05)
        ax.add_collection3d(side)
    for i, j in combinations(range(CLASSES), 2):
        ax.plot(*zip(VERTICES[i], VERTICES[j], strict=True), color=style.THEORY, ls=":", lw=0.7)
    for point, vertex, color in zip(points, VERTICES, COLORS, strict=True):
        ax.plot(*zip(np.zeros(3), point, strict=True), color=color, linewidth=1.6)
        ax.plot(*point[:, None], "o", color=color, markersize=4.5)
        ax.plot(*zip(point, vertex, strict=True), color=color, linewidth=0.6, alpha=0.6)
    ax.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1), proj_type="ortho")
    ax.set_box_aspect((1, 1, 1), zoom=1.55)
    ax.view_init(**VIEW)
    ax.set_axis_off()
