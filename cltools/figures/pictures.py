"""Features of the same images in two dimensions, for every objective and checkpoint."""

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cltools import tidy
from cltools.figures import sheet, style
from cltools.figures.tables import ExperimentTables
from cltools.runtime.errors import InputError

MOST_EPOCHS = 6  # with more columns, panels would be too small
# Ten colors of Trubetskoy, which are as far from each other as ten colors can be.
CLASSES = (
    "#4363D8", "#F58231", "#3CB44B", "#E6194B", "#911EB4", "#9A6324", "#F032E6", "#42D4F4",
    "#BFA100", "#000000",
)  # fmt: skip
METHODS = {"pca": "Two principal components", "umap": "UMAP"}
HOW = {
    "pca": "principal components (percent: their share of the variance)",
    "umap": "UMAP of standardized features",
}


def features_plane(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Rows: objectives; columns: checkpoints; points: images; colors: classes."""
    pictures = experiment.project.sort("objective", "step", "sample")
    cell = experiment.base(experiment.measures).filter(pl.col("cell") == pictures["cell"][0])
    if cell.is_empty():
        raise InputError(
            "the cell of the projected features has no measures: run `cltools project` again"
        )
    epochs = tidy.evenly(pictures["epoch"], MOST_EPOCHS)
    plotted = pictures.filter(pl.col("epoch").is_in(epochs)).select(
        "objective", "epoch", "method", "share", "sample", "class", "x", "y"
    )
    objectives = style.ordered(plotted["objective"])
    method, split, features = pictures.select("method", "split", "features").row(0)
    classes = plotted["class"].unique().sort().to_list()
    colors = {c: CLASSES[i % len(CLASSES)] for i, c in enumerate(classes)}
    reach = 1.05 * plotted.select(pl.max_horizontal(pl.col("x", "y").abs())).max().item()

    figure, axes = sheet.panels(
        objectives, [f"epoch{epoch:g}" for epoch in epochs], height=1.35, narrowest=1.05, flatter=1
    )
    for row, name in zip(axes, objectives, strict=True):
        for ax, epoch in zip(row, epochs, strict=True):
            panel = plotted.filter(objective=name, epoch=epoch)
            at = [colors[c] for c in panel["class"]]
            ax.scatter(panel["x"], panel["y"], c=at, s=3, linewidths=0, alpha=0.8)
            ax.set_title(f"{style.look_of(name).label}, epoch {epoch:g}")
            share = panel["share"].first()
            if share is not None and np.isfinite(share):
                ax.text(
                    0.97, 0.03, f"{share:.0%}", transform=ax.transAxes, ha="right", va="bottom",
                    fontsize="x-small", color=style.FOOTNOTE,
                )  # fmt: skip
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect=1)
            ax.spines[:].set_visible(True)
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4, color=colors[c], label=f"class {c}")
        for c in classes
    ]
    sheet.finish(
        figure,
        f"{METHODS[method]} of the features of the same images",
        handles if len(classes) <= len(CLASSES) else [],
        f"{tidy.setting(cell)}, seed {cell['seed'][0]} only; {plotted['sample'].n_unique()} "
        f"{'training' if split == 'train' else 'test'} images, features {features}. Each panel has "
        f"its own {HOW[method]}, scaled to the same size and rotated or mirrored to match another "
        "panel: in the first row the next panel, in other rows the first row. The axes have no "
        "meaning.",
    )
    return figure, plotted
