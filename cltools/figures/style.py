"""The look of all figures: palette, axes, curves, legend and footnote; and saving a figure."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from matplotlib import rc_context, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)
from PIL import Image

from cltools.config.cells import in_order, parts_of
from cltools.objectives import Objective, built_in, find, names
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_file, whole_file

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType  # not in the oldest matplotlib

# What matplotlib is told to leave out of a file, as it says when and by what it was made.
NO_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Creator": None, "Date": None},
}
ABOUT, NUMBERS = "cltools", "sha256 of the numbers"  # what a PNG says of its CSV file


@dataclass(frozen=True)
class Look:
    """Name, color and marker of one series."""

    label: str
    color: str
    marker: str


# Of objectives that say no color and marker of their own, in turn.
SPARE_COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#EE7733")
SPARE_MARKERS = "8H1234"


def _look(objective: Objective) -> Look:
    place = list(names()).index(objective.name)
    color = objective.color or SPARE_COLORS[place % len(SPARE_COLORS)]
    marker = objective.marker or SPARE_MARKERS[place % len(SPARE_MARKERS)]
    return Look(objective.label, color, marker)


# Name -> look of the objectives of cltools. The first of them have the palette of Okabe and Ito,
# which is safe for color-blind readers, and colors of Tol. Yellow is left out because it is too
# faint for lines.
OBJECTIVES = {name: _look(objective) for name, objective in built_in().items()}
# Kind of labels that an objective is trained with -> label and color. Colors of Tol.
OWN_LABELS = {
    "shuffled": ("shuffled labels", "#000000"),
    "noise": ("{} % label noise", "#AA4499"),
    "random": ("{} random classes", "#777777"),
    "coarse": ("{} coarse classes", "#999933"),
    "clusters": ("{} pixel clusters", "#44AA99"),
}
MARKERS = "sP^Dv*X<>"
NEUTRAL = Look("", "#7A7A7A", "x")
THEORY = "#222222"
FOOTNOTE = "#6B6B6B"
SEED = {"markersize": 2, "alpha": 0.4, "markeredgewidth": 0, "zorder": 2}  # the point of one seed
# The look of numbers from a paper.
EPOCHS = "Epoch (log of epoch + 1)"
PAPER = {
    "linestyle": (0, (1, 1.5)), "linewidth": 1.2, "marker": ".", "markersize": 3, "alpha": 0.45,
    "zorder": 1.5,
}  # fmt: skip

DEFAULTS: dict[str, Any] = {
    "dpi": 150, "font_size": 8, "width": 7, "title": True, "footnote": True, "panels": {},
}  # fmt: skip
WIDTHS = (2.5, 20.0)  # inches: the narrowest figure whose text finds room, and the widest
COLUMN = 5.0  # inches, below which a figure is for one column of a paper
NARROWEST = 1.66  # inches: panels that would be narrower are put below each other
FLATTER = 0.82  # the height of panels that are so, relative to panels side by side
LINE = 1.25  # distance of two lines of text, relative to the font size
BAR = 0.7  # inches that a scale of colors needs beside or below the panels
MARGIN = 0.12  # inches, around texts
_CHOSEN: ContextVar[Mapping[str, Any]] = ContextVar("style", default=DEFAULTS)


@contextmanager
def applied(style: Mapping[str, Any], figure: str = "") -> Iterator[None]:
    """Draw and save figures in a style with keys of `DEFAULTS`; `figure` is the name of the figure.

    Matplotlib reads some settings only when it draws, so a figure is saved inside too.

    Raises InputError on an unknown key or a value that it cannot have.
    """
    rc = parameters(style)
    chosen = DEFAULTS | dict(style)
    before = _CHOSEN.set(chosen | {"panels": chosen["panels"].get(figure, ())})
    try:
        with rc_context(rc):
            yield
    finally:
        _CHOSEN.reset(before)


def _check(key: str, value: Any) -> None:
    """Raises InputError if a key of a style cannot have this value."""
    if key not in DEFAULTS:
        raise InputError(f"unknown figure style key {key!r}: choose from {', '.join(DEFAULTS)}")
    if isinstance(DEFAULTS[key], bool):
        if not isinstance(value, bool):
            raise InputError(f"figure style {key} must be true or false, not {value!r}")
    elif key == "panels":
        lists = value.values() if isinstance(value, Mapping) else [None]
        if not all(isinstance(names, list | tuple) and names for names in lists):
            raise InputError(
                "figure style panels must give a list of panels for each figure, e.g. "
                f'{{"alignment_training": ["cka_test"]}}, not {value!r}'
            )
    elif isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"figure style {key} must be a positive number, not {value!r}")
    elif key == "width" and not WIDTHS[0] <= value <= WIDTHS[1]:
        raise InputError(
            f"figure style width must be from {WIDTHS[0]:g} to {WIDTHS[1]:g} inches, not {value:g}"
        )


def parameters(style: Mapping[str, Any]) -> "dict[RcKeyType, Any]":
    """The matplotlib settings for a figure style. Missing keys have the values of `DEFAULTS`.

    Raises InputError as `applied`.
    """
    for key, value in style.items():
        _check(key, value)
    chosen = DEFAULTS | dict(style)
    size = chosen["font_size"]
    return {
        "figure.figsize": (chosen["width"], 3.0),
        "savefig.dpi": chosen["dpi"],
        "font.family": "DejaVu Sans",
        "font.size": size,
        "text.hinting": "none",  # so that text is as wide at a low resolution as in the PDF
        "axes.titlesize": size,
        "axes.labelsize": size,
        "xtick.labelsize": 0.9 * size,
        "ytick.labelsize": 0.9 * size,
        "legend.fontsize": size,
        "pdf.fonttype": 42,  # TrueType fonts, which publishers ask for
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "axes.edgecolor": "#444444",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
        "legend.frameon": False,
        "legend.handlelength": 2.2,
    }


class Sheet(Figure):
    """A figure of panels in rows and columns, which `finish` arranges for the width of the style.

    names: the name of each panel, by which the style chooses panels.
    height: inches of a row, with its titles and labels.
    narrowest: inches; where panels would be narrower, a row is broken.
    flatter: the height of panels of broken rows relative to `height`.
    width_ratios: of the columns of unbroken rows.
    caption: title and footnote in words, once it is finished.
    """

    names: Mapping[Axes, str]
    grid: list[list[Axes]]
    height: float
    narrowest: float
    flatter: float
    width_ratios: Sequence[float] | None
    caption: str = ""


def panels(
    rows: int | Sequence[str],
    columns: int | Sequence[str],
    height: float = 2.1,
    *,
    narrowest: float = NARROWEST,
    flatter: float = FLATTER,
    width_ratios: Sequence[float] | None = None,
    **subplots: Any,
) -> tuple[Sheet, Any]:
    """A figure with the width of the style, and its axes as a (rows, columns) array.

    `rows` and `columns` are names, or numbers of rows that have no name but their number. A panel
    is called by its row and its column, e.g. "cka_test". Labels are given to all axes; `finish`
    hides those that axes side by side share.
    """
    # Without pyplot there is no global list of figures, and the backend is Agg on every machine.
    sheet = Sheet((rcParams["figure.figsize"][0], height), layout="constrained")
    down, across = _names(rows), _names(columns)
    axes = sheet.subplots(len(down), len(across), squeeze=False, **subplots)
    sheet.names = {
        ax: "_".join(filter(None, (row, column))) or "1"
        for row, of_row in zip(down, axes, strict=True)
        for column, ax in zip(across, of_row, strict=True)
    }
    sheet.grid = [list(row) for row in axes]
    sheet.height, sheet.narrowest, sheet.flatter = height, narrowest, flatter
    sheet.width_ratios = width_ratios
    return sheet, axes


def narrow(inches: float = COLUMN) -> bool:
    """Whether the figure is narrower than this [as if for one column of a paper]."""
    return bool(rcParams["figure.figsize"][0] < inches)


def beside(ax: Axes, y: float, text: str, inches: float, **about: Any) -> None:
    """A number to the right of a panel at height y, which ends so many inches beside it."""
    ax.annotate(
        text, (1, y), (72 * inches, 0), ax.get_yaxis_transform(), "offset points", ha="right",
        va="center_baseline", fontsize=rcParams["ytick.labelsize"], annotation_clip=False, **about,
    )  # fmt: skip


def _names(given: int | Sequence[str]) -> Sequence[str]:
    if not isinstance(given, int):
        return given
    return [""] if given == 1 else [str(number) for number in range(1, given + 1)]


def look_of(objective: str) -> Look:
    """The look of an objective, which may have labels of its own.

    Raises InputError for an objective that is not there.
    """
    loss, kind, number = parts_of(objective)
    look = OBJECTIVES.get(loss) or _look(find(loss))
    if not kind:
        return look
    words, color = OWN_LABELS[kind]
    place = number + names().index(loss)
    return Look(f"{look.label}, {words.format(number)}", color, MARKERS[place % len(MARKERS)])


def darker(objective: str) -> tuple[float, ...]:
    """The color of an objective, mixed with black, for a second line over its first."""
    return tuple(0.55 * channel for channel in to_rgb(look_of(objective).color))


def ordered(objectives: Iterable[str]) -> list[str]:
    """The distinct objectives in the order of figures. Raises InputError as `look_of`."""
    present = set(objectives)
    for name in sorted(present):
        look_of(name)
    return in_order(present)


def curve(
    ax: Axes,
    table: pl.DataFrame,
    x: str,
    look: Look,
    *,
    bars: bool = False,
    points: bool = True,
    shift: float = 1.0,
    **line: Any,
) -> None:
    """Draw one series of `tidy.spread`: the mean as a line, single runs as faint points.

    ± one standard deviation is drawn as a band, or as error bars if `bars`. Where only some means
    are of one run, their markers are open. `shift` is a factor of x, which sets series apart.
    """
    means = table.unique(x, keep="first").sort(x)
    at, mean = shift * means[x].to_numpy(), means["mean"].to_numpy()
    sd = means["sd"].fill_null(0).to_numpy()
    line = {"marker": look.marker, "linestyle": "-", "zorder": 3} | line
    ax.plot(at, mean, color=look.color, **line)
    alone = means["seeds"].to_numpy() == 1
    if alone.any() and not alone.all() and line["marker"]:
        about = {"markerfacecolor": "white", "zorder": 3.5}
        ax.plot(at[alone], mean[alone], line["marker"], color=look.color, **about)
    if sd.any() and bars:
        ax.errorbar(
            at, mean, sd, fmt="none", ecolor=look.color, elinewidth=0.9, capsize=2, zorder=2
        )
    elif sd.any():
        ax.fill_between(at, mean - sd, mean + sd, color=look.color, alpha=0.15, linewidth=0)
    if points and len(table) > len(means):
        ax.plot(shift * table[x].to_numpy(), table["value"], "o", color=look.color, **SEED)


def shifts(count: int, apart: float = 1.035) -> list[float]:
    """Factors of x that set `count` series apart on a logarithmic axis."""
    return [apart ** (number - (count - 1) / 2) for number in range(count)]


def paper_curve(ax: Axes, table: pl.DataFrame, x: str, look: Look) -> None:
    """Draw a paper's numbers as a faint curve in the color of the same objective."""
    if not table.is_empty():
        table = table.sort(x)
        ax.plot(table[x], table["value"], color=look.color, **PAPER)


def paper_handles(papers: pl.DataFrame, **line: Any) -> list[Line2D]:
    """A legend entry with the figures and networks of a paper's numbers; empty without numbers."""
    if papers.is_empty():
        return []
    names = papers.select("figure", "architecture").unique(maintain_order=True).iter_rows()
    label = ", ".join(f"{figure} ({architecture})" for figure, architecture in names)
    return [Line2D([], [], label=label, **({"color": THEORY} | PAPER | line))]


def handle(look: Look, label: str | None = None, **line: Any) -> Line2D:
    """A legend entry with the look of a series."""
    line = {"marker": look.marker, "color": look.color} | line
    return Line2D([], [], label=label or look.label, **line)


def _ticks(ax: Axes, values: Sequence[float]) -> None:
    """Ticks at these values; `finish` leaves out those for whose labels there is no room."""
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_major_formatter(FixedFormatter([f"{value:g}" for value in values]))
    ax.xaxis.set_minor_locator(NullLocator())


def epoch_axis(ax: Axes, epochs: Iterable[float]) -> None:
    """An x axis that is logarithmic in epoch + 1, so that it includes 0; ticks at `epochs`."""
    values = sorted(set(epochs))
    ax.set_xscale("function", functions=(lambda x: np.log1p(np.maximum(x, -0.9)), np.expm1))
    _ticks(ax, values)
    first, last = np.log1p(values[0]), np.log1p(values[-1])
    if last > first:
        room = 0.04 * (last - first)
        ax.set_xlim(np.expm1(first - room), np.expm1(last + room))
    ax.set_xlabel(EPOCHS)


def factor_axis(ax: Axes, values: Iterable[float], label: str) -> None:
    """A logarithmic x axis with ticks at the values of a sweep."""
    values = sorted(set(values))
    ax.set_xscale("log", base=2)
    _ticks(ax, values)
    ax.set_xlim(values[0] / 1.12, values[-1] * 1.12)
    ax.set_xlabel(f"{label} (log scale)")


def log_axis(ax: Axes, side: str = "y") -> None:
    """A logarithmic axis [y]. If it has at most four decades, its numbers have no exponents."""
    ax.set(**{f"{side}scale": "log"})
    axis = ax.yaxis if side == "y" else ax.xaxis
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades > 4:
        return
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def heat_map(
    ax: Axes,
    field: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    numbers: bool = True,
    lowest: float = 0.0,
) -> AxesImage:
    """Similarities (rows, columns) in [lowest, 1] as colors; NaN is white.

    They are written as numbers too, if asked for. The first row is the lowest.
    """
    image = ax.imshow(field, cmap="viridis", vmin=lowest, vmax=1, origin="lower", aspect="auto")
    for (y, x), value in np.ndenumerate(field):
        if numbers and np.isfinite(value):
            color = "white" if value < lowest + 0.6 * (1 - lowest) else "black"
            text = ax.text(x, y, f"{value:.2f}", ha="center", va="center", color=color,
                           fontsize="x-small")  # fmt: skip
            text.set_in_layout(False)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    return image


def slant_labels(ax: Axes) -> None:
    """Let long names below the columns of a heat map run upwards, and end at their columns."""
    ax.tick_params(axis="x", rotation=45)
    for text in ax.get_xticklabels():
        text.set(ha="right", rotation_mode="anchor")


def alignment_axis(ax: Axes, values: pl.Series) -> None:
    """The y axis of a similarity: from 0 to 1, or from a lower number if values are negative."""
    lowest = min(0.0, float(values.min()))
    ax.set_ylim(lowest - 0.05 if lowest < 0 else 0.0, 1.03)
    ax.set_yticks(np.arange(np.floor(lowest * 5) / 5, 1.01, 0.2).round(1))


@lru_cache(maxsize=4096)
def _inches(text: str, size: float, weight: str = "normal") -> float:
    """The width of one line of text."""
    font = FontProperties(family=rcParams["font.family"], size=size, weight=weight)
    width: float = text_to_path.get_text_width_height_descent(text, font, ismath="$" in text)[0]
    return width / 72


def wrapped(text: str, inches: float, size: float, weight: str = "normal") -> str:
    """Text in lines of at most this width, but for longer words. Its own line breaks stay."""
    lines = []
    for line in text.split("\n"):
        words = line.split(" ")
        lines.append(words[0])
        for word in words[1:]:
            longer = f"{lines[-1]} {word}"
            if _inches(longer, size, weight) <= inches:
                lines[-1] = longer
            else:
                lines.append(word)
    return "\n".join(lines)


def finish(
    sheet: Sheet,
    title: str,
    handles: Sequence[Artist],
    footnote: str,
    bar: tuple[AxesImage, str] | None = None,
) -> None:
    """Arrange the panels, and put title and legend above them and the footnote below them.

    `bar` is a heat map whose colors get a scale, and the label of the scale. Panels, title and
    footnote are left out where the style says so.

    Raises InputError if the style names a panel that the figure does not have.
    """
    style = _CHOSEN.get()
    sheet.caption = f"{title}{'' if title.endswith('?') else '.'} {footnote}"
    grid = _arranged(sheet, style["panels"])
    sheet.grid = grid
    size = rcParams["font.size"]
    width = rcParams["figure.figsize"][0]
    across = max(len(row) for row in grid)
    spec = sheet.add_gridspec(len(grid), across, width_ratios=_ratios(sheet, across))
    for row, of_row in enumerate(grid):
        for column, ax in enumerate(of_row):
            ax.set_subplotspec(spec[row, column])
    _share_labels(grid)
    beside = not narrow()
    height = _wrap_labels(sheet, across, BAR if bar is not None and beside else 0.0)
    if bar is not None:
        height += _add_bar(sheet, bar, beside=beside)
    head = wrapped(title, width - MARGIN, 1.15 * size, "bold") if style["title"] else ""
    height += _add_head(sheet, head, handles, width)
    if style["footnote"]:
        small = 0.75 * size
        text = wrapped(footnote, width - MARGIN, small)
        sheet.supxlabel(text, x=0.06 / width, ha="left", fontsize=small, color=FOOTNOTE)
        height += (text.count("\n") + 1) * LINE * small / 72
    sheet.set_size_inches(width, height + MARGIN)


def _ratios(sheet: Sheet, across: int) -> Sequence[float] | None:
    """The width ratios of the figure's columns, unless its rows are broken."""
    ratios = sheet.width_ratios
    return ratios if ratios is not None and len(ratios) == across else None


def _arranged(sheet: Sheet, chosen: Collection[str]) -> list[list[Axes]]:
    """The chosen panels [all] in rows that are not too wide; the others are removed."""
    known = {sheet.names[ax] for ax in sheet.axes if ax in sheet.names}
    if unknown := [name for name in chosen if name not in known]:
        raise InputError(
            f"the figure has no panel {unknown[0]!r}: choose from {', '.join(sorted(known))}"
        )
    for ax in list(sheet.axes):
        if chosen and ax in sheet.names and sheet.names[ax] not in chosen:
            ax.remove()
    present = set(sheet.axes)
    fits = max(1, int(rcParams["figure.figsize"][0] / sheet.narrowest))
    if not chosen and len(sheet.grid[0]) <= fits:
        return sheet.grid  # with gaps where a figure has removed panels
    rows = [kept for row in sheet.grid if (kept := [ax for ax in row if ax in present])]
    if all(len(row) == 1 for row in rows) and chosen:
        rows = [[row[0] for row in rows]]
    most = max(len(row) for row in rows)
    # Rows of equal length, so that what belongs together stays in columns.
    across = next(n for n in range(min(fits, most), 0, -1) if most % n == 0)
    if across < most:
        sheet.height *= sheet.flatter
    return [row[i : i + across] for row in rows for i in range(0, len(row), across)]


def _share_labels(grid: list[list[Axes]]) -> None:
    """Hide the labels of an axis that the panel below or to the left has as well."""
    for row, of_row in enumerate(grid):
        for column, ax in enumerate(of_row):
            if ax.name == "3d" or not ax.axison:
                continue
            below = [r[column] for r in grid[row + 1 :] if column < len(r) and r[column].figure]
            under = bool(below) and ax.get_shared_x_axes().joined(ax, below[0])
            ax.tick_params(axis="x", labelbottom=not under)
            left = of_row[column - 1] if column and of_row[column - 1].figure else None
            beside = left is not None and ax.get_shared_y_axes().joined(ax, left)
            ax.tick_params(axis="y", labelleft=not beside)
            if under and below[0].get_xlabel() == ax.get_xlabel():
                ax.set_xlabel("")
            if left is not None and beside:
                ax.set_ylabel("")


def _wrap_labels(sheet: Sheet, across: int, bar: float) -> float:
    """Break titles and labels of panels into lines; returns the height of all rows in inches.

    `bar` are the inches beside the panels that a scale of colors needs.
    """
    size = rcParams["font.size"]
    lefts = [0.0] * across
    for column, ax in _present(sheet.grid):
        ax.set_ylabel(wrapped(ax.get_ylabel(), sheet.height - 0.4, size))
        lefts[column] = max(lefts[column], _left(ax))
    ratios = _ratios(sheet, across) or [1.0] * across
    inside = rcParams["figure.figsize"][0] - sum(lefts) - bar
    height = 0.0
    for row in sheet.grid:
        lines = [0]
        for column, ax in _present([row]):
            room = inside * ratios[column] / sum(ratios)
            title = wrapped(ax.get_title(loc="left"), room, size)
            ax.set_title(title, loc="left")
            below = wrapped(ax.get_xlabel(), room, size)
            ax.set_xlabel(below)
            lines.append(title.count("\n") + below.count("\n"))
            if isinstance(ax.xaxis.get_major_formatter(), FixedFormatter):
                _thin_ticks(ax, room)
        height += sheet.height + max(lines) * LINE * size / 72
    return height


def _present(grid: list[list[Axes]]) -> Iterator[tuple[int, Axes]]:
    """The panels that were not removed, each with its column."""
    for row in grid:
        yield from ((column, ax) for column, ax in enumerate(row) if ax.figure)


def _left(ax: Axes) -> float:
    """Inches that labels need to the left of a panel."""
    size, label = rcParams["font.size"], ax.get_ylabel()
    left = MARGIN + bool(label) * (label.count("\n") + 1) * LINE * size / 72
    if ax.name != "3d" and ax.yaxis.get_tick_params().get("labelleft", True):
        names = [text.get_text() for text in ax.get_yticklabels()]
        left += max((_inches(name, 0.9 * size) for name in names), default=0.0) + 0.05
    return left


def _thin_ticks(ax: Axes, inches: float) -> None:
    """Leave out ticks of an axis of so many inches whose labels would touch."""
    values = np.asarray(ax.xaxis.get_majorticklocs())
    labels = ax.xaxis.get_major_formatter().seq
    if len(values) < 2 or len(labels) != len(values):
        return
    ends = ax.transData.transform([(x, ax.get_ylim()[0]) for x in ax.get_xlim()])[:, 0]
    at = ax.transData.transform([(x, ax.get_ylim()[0]) for x in values])[:, 0]
    places = inches * (at - ends[0]) / (ends[1] - ends[0])
    widths = [_inches(label, rcParams["xtick.labelsize"]) for label in labels]
    kept = [0]
    last = len(values) - 1
    for index in range(1, last):
        apart = [abs(places[index] - places[other]) - (widths[index] + widths[other]) / 2
                 for other in (kept[-1], last)]  # fmt: skip
        if min(apart) > 0.06:
            kept.append(index)
    kept.append(last)
    ax.xaxis.set_major_locator(FixedLocator([values[i] for i in kept]))
    ax.xaxis.set_major_formatter(FixedFormatter([labels[i] for i in kept]))


def _add_bar(sheet: Sheet, bar: tuple[AxesImage, str], *, beside: bool) -> float:
    """A scale of colors, to the right or below; returns the inches that it needs below."""
    image, label = bar
    axes = [ax for row in sheet.grid for ax in row if ax.figure]
    if beside:
        sheet.colorbar(image, ax=axes, label=label, aspect=40, pad=0.01)
        return 0.0
    about = {"ticks": MaxNLocator(5), "location": "bottom"}
    sheet.colorbar(image, ax=axes, label=label, aspect=40, pad=0.02, **about)
    return BAR


def _add_head(sheet: Sheet, title: str, handles: Sequence[Artist], width: float) -> float:
    """Title and legend; returns the inches that they need."""
    size = rcParams["font.size"]
    if not title and not handles:
        return 0.0
    key = (rcParams["legend.handlelength"] + 0.8 + 1.6) * size / 72
    for one in handles:
        one.set_label(wrapped(str(one.get_label()), width - key, size))
    texts = [str(one.get_label()).split("\n") for one in handles]
    widths = [key + max(_inches(line, size) for line in lines) for lines in texts]
    columns = next(
        n
        for n in range(len(handles) or 1, 0, -1)
        if n == 1 or sum(max(widths[c::n]) for c in range(n)) < width
    )
    # The title is set as the title of the legend, so that the layout avoids overlap of the two.
    sheet.legend(
        # matplotlib fills a legend column by column, but it is read row by row.
        handles=[h for column in range(columns) for h in handles[column::columns]],
        loc="outside upper left",
        ncols=columns,
        title=title or None,
        title_fontproperties={"weight": "bold", "size": 1.15 * size},
        alignment="left",
        borderaxespad=0.2,
        columnspacing=1.6,
    )
    rows = [max(len(lines) for lines in texts[i : i + columns])
            for i in range(0, len(texts), columns)]  # fmt: skip
    lines = sum(rows) * LINE + (title.count("\n") + 1) * 1.15 * LINE * bool(title)
    return lines * size / 72 + MARGIN


def save(figure: Figure, table: pl.DataFrame, stem: Path) -> None:
    """Write `<stem>.pdf`, `.png`, `.csv` and `.txt`, the caption: title and footnote.

    The same figure gives the same bytes. The files get their names only when all of them are
    completely written.
    """
    with ExitStack() as stack:
        pdf, png, csv, txt = (
            stack.enter_context(whole_file(Path(f"{stem}.{suffix}")))
            for suffix in ("pdf", "png", "csv", "txt")
        )
        table.write_csv(csv)
        txt.write_text(f"{getattr(figure, 'caption', '')}\n")
        figure.savefig(pdf, metadata=NO_METADATA[".pdf"])
        about = canonical_json({NUMBERS: sha256_file(csv)})
        figure.savefig(png, metadata={**NO_METADATA[".png"], ABOUT: about})


def save_as(figure: Figure, path: Path) -> None:
    """Write one PNG, PDF or SVG file, by its ending. The same figure gives the same bytes."""
    with whole_file(path) as scratch, rc_context({"svg.hashsalt": "cltools"}):
        figure.savefig(scratch, metadata=NO_METADATA[path.suffix])


def saved(stem: Path) -> tuple[bytes, bytes]:
    """The PNG and CSV file that `save` wrote.

    Raises InputError where one is missing, and where they are not as they were written or not of
    one figure.
    """
    png, csv = (Path(f"{stem}.{suffix}") for suffix in ("png", "csv"))
    try:
        picture, numbers = png.read_bytes(), csv.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing: run `cltools plot` again") from None
    try:
        with Image.open(BytesIO(picture)) as image:
            image.verify()  # the checksums that PNG has
            found = json.loads(image.info[ABOUT])
    except Exception:  # Pillow has many errors for files that are none of its own
        found = None
    if found != {NUMBERS: sha256(numbers).hexdigest()}:
        raise InputError(
            f"{png} and {csv.name} are damaged or not of one figure: delete them and run "
            "`cltools plot` again"
        )
    return picture, numbers
