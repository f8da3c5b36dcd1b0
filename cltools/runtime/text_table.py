"""Small tables of text on standard output: with rich on a terminal, else as plain lines."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

GAP = 2  # characters between columns of plain lines
RICH_GAP = 3  # between the columns of rich, with the line between them


@dataclass(frozen=True)
class TextTable:
    """A table with a head and rows of text; the first column is aligned left, the others right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def widths(self) -> list[int]:
        """Characters of the longest entry of each column."""
        return [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]

    def lines(self) -> list[str]:
        """The table as plain lines."""
        first, *others = self.widths()
        lines = []
        for head, *cells in (self.head, *self.rows):
            parts = [cell.rjust(GAP + width) for cell, width in zip(cells, others, strict=True)]
            lines.append("".join([head.ljust(first), *parts]).rstrip())
        return lines

    def parts(self, width: int) -> Iterator["TextTable"]:
        """The table in parts that are no wider than this, each with the first column.

        The first column has names. They are shortened to a quarter of the width, or to what the
        other columns leave.
        """
        first, *others = self.widths()
        frame = 2 * RICH_GAP
        left = width - frame - sum(others) - RICH_GAP * len(others)
        first = min(first, max(left, width // 4))
        names = [shortened(row[0], first) for row in (self.head, *self.rows)]
        start = 0
        while start < len(others):
            end, used = start, first + frame
            while end < len(others) and (end == start or used + others[end] + RICH_GAP <= width):
                used += others[end] + RICH_GAP
                end += 1
            cells = (row[1 + start : 1 + end] for row in (self.head, *self.rows))
            head, *rows = ([name, *part] for name, part in zip(names, cells, strict=True))
            yield TextTable(head, rows)
            start = end


def shortened(name: str, length: int) -> str:
    """A name without its middle if it is longer than this: names often begin alike."""
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[len(name) - end :]}"


def write(parts: Iterable[TextTable | str]) -> None:
    """Write tables and sentences to standard output, with a blank line between them."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        for part in parts:
            _write_rich(console, part)
        return
    blocks = ["\n".join(part.lines()) if isinstance(part, TextTable) else part for part in parts]
    print("\n\n".join(blocks))


def _write_rich(console: "Console", part: TextTable | str) -> None:
    from rich.table import Table
    from rich.text import Text

    if isinstance(part, str):
        console.print(Text(part))
        return
    for piece in part.parts(console.width):
        table = Table()
        for number, head in enumerate(piece.head):
            table.add_column(Text(head), justify="right" if number else "left", no_wrap=True)
        for row in piece.rows:
            table.add_row(*map(Text, row))
        console.print(table)
