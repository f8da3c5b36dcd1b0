"""The sheet of a figure: its panels, title, legend and footnote; and saving it."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
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
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator
from PIL import Image

from cltools.figures.style import FOOTNOTE, current
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_file, whole_file

# What matplotlib is told to leave out of a file, as it says when and by what it was made.
NO_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Creator": None, "Date": None},
}
ABOUT, NUMBERS = "cltools", "sha256 of the numbers"  # what a PNG says of its CSV file

COLUMN = 5.0  # inches, below which a figure is for one column of a paper
NARROWEST = 1.66  # inches: panels that would be narrower are put below each other
FLATTER = 0.82  # the height of panels that are so, relative to panels side by side
LINE = 1.25  # distance of two lines of text, relative to the font size
BAR = 0.7  # inches that a scale of colors needs beside or below the panels
MARGIN = 0.12  # inches, around texts


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


def _names(given: int | Sequence[str]) -> Sequence[str]:
    if not isinstance(given, int):
        return given
    return [""] if given == 1 else [str(number) for number in range(1, given + 1)]


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
    style = current()
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
