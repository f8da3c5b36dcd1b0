"""The look of all figures: settings, palette, axes, curves, entries of a legend."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    LogLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from cltools.config.cells import in_order, parts_of
from cltools.objectives import Objective, built_in, find, names
from cltools.runtime.errors import InputError

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType  # not in the oldest matplotlib


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
EPOCHS = "Epoch (log of epoch + 1)"
# The look of numbers from a paper.
PAPER = {
    "linestyle": (0, (1, 1.5)), "linewidth": 1.2, "marker": ".", "markersize": 3, "alpha": 0.45,
    "zorder": 1.5,
}  # fmt: skip

DEFAULTS: dict[str, Any] = {
    "dpi": 150, "font_size": 8, "width": 7, "title": True, "footnote": True, "panels": {},
}  # fmt: skip
WIDTHS = (2.5, 20.0)  # inches: the narrowest figure whose text finds room, and the widest
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


def current() -> Mapping[str, Any]:
    """The style that is applied, with all keys of `DEFAULTS`; `panels` are those of its figure."""
    return _CHOSEN.get()


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


def beside(ax: Axes, y: float, text: str, inches: float, **about: Any) -> None:
    """A number to the right of a panel at height y, which ends so many inches beside it."""
    ax.annotate(
        text, (1, y), (72 * inches, 0), ax.get_yaxis_transform(), "offset points", ha="right",
        va="center_baseline", fontsize=rcParams["ytick.labelsize"], annotation_clip=False, **about,
    )  # fmt: skip


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
