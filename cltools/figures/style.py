"""The look of all figures: palette, axes, curves, legend and footnote; and saving a figure."""

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib import rc_context, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
from matplotlib.typing import RcKeyType
from PIL import Image

from cltools.config.cells import in_order, parts_of
from cltools.objectives import Objective, built_in, find, names
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_file, whole_file

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
PAPER = {
    "linestyle": (0, (1, 1.5)), "linewidth": 1.2, "marker": ".", "markersize": 3, "alpha": 0.45,
    "zorder": 1.5,
}  # fmt: skip

DEFAULTS: dict[str, float] = {"dpi": 150, "font_size": 8, "width_scale": 1}
TEXT_WIDTH = 7.0  # inches, the width of two columns of a paper
CHARACTER = 0.56  # mean width of a character of DejaVu Sans, relative to the font size


def parameters(style: Mapping[str, float]) -> dict[RcKeyType, Any]:
    """The matplotlib settings for a figure style. Missing keys have the values of `DEFAULTS`.

    Raises InputError on an unknown key or a value that is not a positive number.
    """
    for key, value in style.items():
        if key not in DEFAULTS:
            raise InputError(f"unknown figure style key {key!r}: choose from {', '.join(DEFAULTS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"figure style {key} must be a positive number, not {value!r}")
    chosen = DEFAULTS | dict(style)
    size = chosen["font_size"]
    return {
        "figure.figsize": (TEXT_WIDTH * chosen["width_scale"], 3.0),
        "savefig.dpi": chosen["dpi"],
        "font.family": "DejaVu Sans",
        "font.size": size,
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


def panels(rows: int, columns: int, height: float = 2.1, **subplots: Any) -> tuple[Figure, Any]:
    """A figure with the width of the style, and its axes as a (rows, columns) array."""
    # Without pyplot there is no global list of figures, and the backend is Agg on every machine.
    figure = Figure((rcParams["figure.figsize"][0], 0.9 + height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **subplots)


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
    **line: Any,
) -> None:
    """Draw one series of `tidy.spread`: the mean as a line, single runs as faint points.

    ± one standard deviation is drawn as a band, or as error bars if `bars`.
    """
    means = table.unique(x, keep="first").sort(x)
    at, mean = means[x].to_numpy(), means["mean"].to_numpy()
    sd = means["sd"].fill_null(0).to_numpy()
    line = {"marker": look.marker, "linestyle": "-", "zorder": 3} | line
    ax.plot(at, mean, color=look.color, **line)
    if sd.any() and bars:
        ax.errorbar(
            at, mean, sd, fmt="none", ecolor=look.color, elinewidth=0.9, capsize=2, zorder=2
        )
    elif sd.any():
        ax.fill_between(at, mean - sd, mean + sd, color=look.color, alpha=0.15, linewidth=0)
    if points and len(table) > len(means):
        ax.plot(table[x], table["value"], "o", color=look.color, **SEED)


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


def _thinned(places: np.ndarray, apart: float) -> list[int]:
    """Indices of some of the ascending `places` in [0, 1], including the first and the last.

    Neighbors are at least `apart` from each other.
    """
    last = len(places) - 1
    kept = [0]
    for index in range(1, last):
        if places[index] - places[kept[-1]] >= apart and places[last] - places[index] >= apart:
            kept.append(index)
    return kept + [last] * (last > 0)


def _ticks(ax: Axes, values: Sequence[float], places: np.ndarray, apart: float) -> None:
    span = places[-1] - places[0] or 1.0
    kept = _thinned((places - places[0]) / span, apart)
    ax.xaxis.set_major_locator(FixedLocator([values[i] for i in kept]))
    ax.xaxis.set_major_formatter(FixedFormatter([f"{values[i]:g}" for i in kept]))
    ax.xaxis.set_minor_locator(NullLocator())


def epoch_axis(ax: Axes, epochs: Iterable[float]) -> None:
    """An x axis that is logarithmic in epoch + 1, so that it includes 0; ticks at `epochs`."""
    values = sorted(set(epochs))
    ax.set_xscale("function", functions=(lambda x: np.log1p(np.maximum(x, -0.9)), np.expm1))
    _ticks(ax, values, np.log1p(values), apart=0.09)
    ax.set_xlabel("Epoch (logarithmic in epoch + 1)")


def factor_axis(ax: Axes, values: Iterable[float], label: str) -> None:
    """A logarithmic x axis with ticks at the values of a sweep."""
    values = sorted(set(values))
    ax.set_xscale("log", base=2)
    _ticks(ax, values, np.log2(values), apart=0.06)
    ax.set_xlim(values[0] / 1.12, values[-1] * 1.12)
    ax.set_xlabel(f"{label} (log scale)")


def log_axis(ax: Axes) -> None:
    """A logarithmic y axis. If it has at most four decades, its numbers have no exponents."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    decades = math.log10(high / low)
    if decades > 4:
        return
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def heat_map(
    ax: Axes, field: np.ndarray, columns: Sequence[str], rows: Sequence[str], numbers: bool = True
) -> AxesImage:
    """Similarities (rows, columns) in [0, 1] as colors, and as numbers if asked for; NaN is white.

    The first row is the lowest.
    """
    image = ax.imshow(field, cmap="viridis", vmin=0, vmax=1, origin="lower", aspect="auto")
    for (y, x), value in np.ndenumerate(field):
        if numbers and np.isfinite(value):
            color = "white" if value < 0.6 else "black"
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", color=color, fontsize="x-small")
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


def _line(widths: Sequence[float], columns: int) -> float:
    """The width of a legend, whose columns are as wide as their widest entry."""
    return sum(max(widths[column::columns]) for column in range(columns))


def finish(figure: Figure, title: str, handles: Sequence[Artist], footnote: str) -> None:
    """Put the title and the legend above the panels and the footnote below them."""
    size = rcParams["font.size"]
    width = figure.get_size_inches()[0]
    # The title is set as the title of the legend, so that the layout avoids overlap of the two.
    widths = [CHARACTER * size * (len(h.get_label()) + 9) / 72 for h in handles]
    columns = next(n for n in range(len(handles) or 1, 0, -1) if n == 1 or _line(widths, n) < width)
    figure.legend(
        # matplotlib fills a legend column by column, but it is read row by row.
        handles=[h for column in range(columns) for h in handles[column::columns]],
        loc="outside upper left",
        ncols=columns,
        title=title,
        title_fontproperties={"weight": "bold", "size": 1.15 * size},
        alignment="left",
        borderaxespad=0.2,
        columnspacing=1.6,
    )
    small = 0.75 * size
    characters = int(width * 72 / (CHARACTER * small))
    text = textwrap.fill(footnote, characters, break_long_words=False)
    figure.supxlabel(text, x=0.008, ha="left", fontsize=small, color=FOOTNOTE)


def save(figure: Figure, table: pl.DataFrame, stem: Path) -> None:
    """Write `<stem>.pdf`, `.png` and `.csv`. The same figure gives the same bytes.

    The three files get their names only when all of them are completely written.
    """
    with ExitStack() as stack:
        pdf, png, csv = (
            stack.enter_context(whole_file(Path(f"{stem}.{suffix}")))
            for suffix in ("pdf", "png", "csv")
        )
        table.write_csv(csv)
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
