"""Heat maps of the similarity of any representations, pair by pair: a figure of no experiment."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cltools.figures import sheet, style
from cltools.runtime.text_table import shortened

SIDE_BY_SIDE = 8  # with more names, the maps are put below each other
LONGEST = 32  # characters of a name
CELL = 0.24  # inches, the height of a number


def draw_pairs(
    path: Path, names: Sequence[str], matrices: Mapping[str, np.ndarray], about: str
) -> None:
    """Draw matrices (names, names) of similarities, by their titles, to a PNG, PDF or SVG file."""
    with style.applied({}):
        sheet.save_as(heat_maps(names, matrices, about), path)


def heat_maps(names: Sequence[str], matrices: Mapping[str, np.ndarray], about: str) -> Figure:
    """One heat map for each matrix; names are numbered, and the columns have the numbers alone."""
    count = len(names)
    columns = len(matrices) if count <= SIDE_BY_SIDE else 1
    height = max(1.2, CELL * count + 0.5)
    figure, axes = sheet.panels(len(matrices) // columns, columns, height, flatter=1, sharey=True)
    lowest = min(0.0, *(float(np.nanmin(matrix)) for matrix in matrices.values()))
    labels = [f"{shortened(name, LONGEST)}  {number}" for number, name in enumerate(names, 1)]
    for ax, (title, matrix) in zip(axes.flat, matrices.items(), strict=True):
        image = style.heat_map(ax, matrix, [str(n) for n in range(1, count + 1)], labels)
        image.set_clim(lowest, 1)
        ax.set_ylim(count - 0.5, -0.5)  # the first name at the top
        ax.set_title(title)
    title = "Similarity of representations, pair by pair"
    sheet.finish(figure, title, [], about, bar=(image, "Similarity"))
    return figure
