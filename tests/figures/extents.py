"""What is wrong with where the texts and panels of a figure are, by matplotlib's own extents."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

SLACK = 1.5  # pixels by which extents may overlap
SMALLEST = (0.5, 0.3)  # inches, the width and height of a panel


def faults(figure: Figure) -> list[str]:
    """Texts that leave the canvas, overlap or lie on another panel; panels that are too small."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    found = []
    panels = [ax for ax in figure.axes if ax.get_visible()]
    areas = np.array([ax.get_window_extent(renderer).extents for ax in panels])
    for ax, (left, low, right, high) in zip(panels, areas, strict=True):
        size = (right - left) / figure.dpi, (high - low) / figure.dpi
        if not hasattr(ax, "_colorbar") and (size[0] < SMALLEST[0] or size[1] < SMALLEST[1]):
            found.append(f"a panel of {size[0]:.2f} × {size[1]:.2f} in: {ax.get_title('left')}")
    texts = [(text, ax) for text, ax in _texts(figure, panels) if text.get_text().strip()]
    boxes = np.array([text.get_window_extent(renderer).extents for text, _ in texts])
    names = [" ".join(text.get_text().split())[:50] for text, _ in texts]
    width, height = figure.bbox.size
    outside = (boxes[:, :2] < -SLACK).any(1) | (boxes[:, 2:] > [width + SLACK, height + SLACK]).any(
        1
    )
    found += [f"leaves the canvas: {names[i]}" for i in np.flatnonzero(outside)]
    for i, j in zip(*np.nonzero(np.triu(_overlap(boxes, boxes), 1)), strict=True):
        if not all(texts[k][0].get_rotation() % 90 for k in (i, j)):  # slanted labels are parallel
            found.append(f"overlap: {names[i]} / {names[j]}")
    for i, j in zip(*np.nonzero(_overlap(boxes, areas)), strict=True):
        if texts[i][1] is not panels[j]:
            found.append(f"lies on a panel of its neighbors: {names[i]}")
    return found


def _overlap(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the rectangles (left, low, right, high) overlap, as a matrix."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    return (high - low > SLACK).all(2)


def _texts(figure: Figure, panels: list[Axes]) -> Iterator[tuple[Text, Axes | None]]:
    """All texts that are drawn, each with its panel."""
    axes = {text: ax for ax in panels for text in ax.findobj(Text)}
    ticks = set()
    for ax in panels:
        for axis in ax.findobj(Axis):
            ticks |= set(axis.findobj(Text)) - {axis.label, axis.offsetText}
            if ax.name == "3d" or not (ax.axison and axis.get_visible()):
                continue
            for tick in axis._update_ticks():
                yield from ((label, ax) for label in (tick.label1, tick.label2)
                            if label.get_visible())  # fmt: skip
    for text in figure.findobj(Text):
        if text.get_visible() and text not in ticks:
            ax = axes.get(text)
            if ax is None or ax.axison or text not in _of_axes(ax):
                yield text, ax


def _of_axes(ax: Axes) -> set[Text]:
    return {text for axis in ax.findobj(Axis) for text in axis.findobj(Text)}
