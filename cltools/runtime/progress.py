"""Progress of long loops."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
log = logging.getLogger("cltools")

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_NOTES = 1.0  # on a terminal


def time_text(seconds: float) -> str:
    """Seconds as text, in a unit that keeps the number short."""
    for limit, unit, size in ((1, "ms", 1e-3), (120, "s", 1), (7200, "min", 60)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


def rough_time(seconds: float) -> str:
    """Seconds of a coarse estimate as text, in whole minutes, hours or days."""
    for limit, unit, size in ((5400, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{max(1, round(seconds / size))} {unit}"
    return f"{round(seconds / 86400):,} days"


def no_note() -> str:
    """Default of `track`, which adds nothing."""
    return ""


def track(
    iterable: Iterable[Item],
    total: int,
    description: str,
    note: Callable[[], str] = no_note,
) -> Iterator[Item]:
    """Yield the items of `iterable` and show progress on stderr.

    On a terminal this is a rich progress bar. Elsewhere, as in the log file of a cluster job, it is
    one plain line every 15 seconds, and no line if the loop takes less than that. What `note`
    returns is shown beside the bar, or at the end of the line.
    """
    if sys.stderr.isatty():
        yield from _with_bar(iterable, total, description, note)
        return
    last = time.monotonic()
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            said = note()
            log.info("%s: %d of %d%s", description, done, total, said and f", {said}")
            last = now
        yield item


def _with_bar(
    iterable: Iterable[Item], total: int, description: str, note: Callable[[], str]
) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[note]}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, last = bar.add_task(description, total=total, note=""), time.monotonic()
        for item in iterable:
            yield item
            bar.advance(task)
            if (now := time.monotonic()) - last >= SECONDS_BETWEEN_NOTES:
                bar.update(task, note=note())
                last = now
