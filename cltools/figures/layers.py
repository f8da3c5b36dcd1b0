"""Alignment layer by layer: during training, and of every two layers at its end."""

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from cltools import tidy
from cltools.figures import sheet, style, tables
from cltools.figures.style import look_of
from cltools.figures.tables import ExperimentTables

VARIANT = "cosine_debiased"
MOST_NUMBERS = 12  # rows or columns of a heat map whose cells have room for numbers
NOTE = (
    "CKA of cosine similarities, debiased. What a layer puts out is averaged over pixels or "
    "tokens; h are the encoder’s features, then come the projector’s hidden layer and z."
)


def layers_training(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Rows: objectives; columns: CKA with the reference and with the own start; layer × epoch."""
    found = experiment.base(experiment.layers)
    same = pl.col("features") == pl.col("reference_features")
    cells = pl.concat(
        [
            tidy.rows(found.filter(same), metric=metric, variant=VARIANT)
            for metric in ("cka", "cka_to_init")
        ]
    )
    layers = _layers(cells)
    plotted = tidy.spread(cells, ["metric", "objective", "reference", "features", "epoch"])
    epochs = plotted["epoch"].unique().sort().to_list()
    objectives = _reference_first(experiment, plotted)
    with_numbers = max(len(layers), len(epochs)) <= MOST_NUMBERS
    figure, axes = sheet.panels(
        objectives, ["reference", "start"], height=_height(len(layers)), flatter=1, sharex=True,
        sharey=True,
    )  # fmt: skip
    start = experiment.reference_label
    for row, name in zip(axes, objectives, strict=True):
        label = look_of(name).label
        titles = {"cka": f"{label} with {start}", "cka_to_init": f"{label} with its start"}
        for ax, (metric, title) in zip(row, titles.items(), strict=True):
            if metric == "cka" and name == experiment.reference:
                ax.remove()  # it is 1 by definition
                continue
            part = plotted.filter(metric=metric, objective=name).unique(["features", "epoch"])
            field = np.full((len(layers), len(epochs)), np.nan)
            for layer, epoch, mean in part.select("features", "epoch", "mean").iter_rows():
                field[layers.index(layer), epochs.index(epoch)] = mean
            image = style.heat_map(ax, field, [f"{e:g}" for e in epochs], layers, with_numbers)
            ax.set(title=title, xlabel="Epoch")
    sheet.finish(
        figure,
        f"Where in the networks alignment with {start} lives, during training",
        [],
        f"{tidy.setting(cells)}. {_images(cells)}. {NOTE} {tables.means_note(plotted)}",
        bar=(image, "CKA"),
    )
    return figure, plotted


def layers_pairs(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """One heat map for each objective: its layers × the layers of the reference, at the end."""
    found = tidy.last_step(experiment.base(experiment.layers))
    cells = tidy.rows(found, metric="cka", variant=VARIANT, reference=experiment.reference)
    layers = _layers(cells)
    plotted = tidy.spread(cells, ["objective", "reference", "features", "reference_features"])
    names = _reference_first(experiment, plotted)
    columns = 2
    rows = -(-len(names) // columns)
    figure, axes = sheet.panels(
        rows, columns, height=_height(len(layers)) + 0.5, flatter=1, sharey=True
    )
    figure.names = dict(zip(axes.flat, names, strict=False))
    start = experiment.reference_label
    for ax, name in zip(axes.flat, names, strict=False):
        part = plotted.filter(objective=name).unique(["features", "reference_features"])
        field = np.full((len(layers), len(layers)), np.nan)
        for own, other, mean in part.select("features", "reference_features", "mean").iter_rows():
            field[layers.index(other), layers.index(own)] = mean
            if name == experiment.reference:
                field[layers.index(own), layers.index(other)] = mean
        if name == experiment.reference:
            np.fill_diagonal(field, 1)
        image = style.heat_map(ax, field, layers, layers, len(layers) <= MOST_NUMBERS)
        style.slant_labels(ax)
        ax.set(xlabel=f"Layer of {look_of(name).label}", ylabel=f"Layer of {start}")
    for ax in axes.flat[len(names) :]:
        ax.remove()
    sheet.finish(
        figure,
        f"Alignment of every layer with every layer of {start}",
        [],
        f"{tidy.setting(cells)}. Each run at its last step. {_images(cells)}. {NOTE} "
        f"{tables.means_note(plotted)}",
        bar=(image, "CKA"),
    )
    return figure, plotted


def _reference_first(experiment: ExperimentTables, plotted: pl.DataFrame) -> list[str]:
    others = [o for o in style.ordered(plotted["objective"]) if o != experiment.reference]
    return [experiment.reference, *others]


def _layers(cells: pl.DataFrame) -> list[str]:
    """The layers from the images on."""
    found: list[str] = cells.unique("features").sort("depth")["features"].to_list()
    return found


def _images(cells: pl.DataFrame) -> str:
    return "Test images" if cells["split"][0] == "test" else "Training images"


def _height(layers: int) -> float:
    return 0.13 * layers + 0.6
