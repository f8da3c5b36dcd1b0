"""Progress of long loops."""

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
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
    """Seconds of a coarse estimate as text: tens of seconds, or whole minutes, hours or days."""
    if seconds < 90:
        return f"{max(10, 10 * round(seconds / 10))} s"
    for limit, unit, size in ((5400, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds / 86400):,} days"


def no_note() -> str:
    """Default of `track`, which adds nothing."""
    return ""


def track(
    iterable: Iterable[Item],
    total: int,
    description: str,
    unit: str = "",
    *,
    first: int = 0,
    note: Callable[[], str] = no_note,
) -> Iterator[Item]:
    """Yield the items of `iterable` and show progress on stderr.

    On a terminal this is a rich progress bar. Elsewhere, as in the log file of a cluster job, it is
    one plain line every 15 seconds, and no line if the loop takes less than that:
    "training: step 3 of 48, 2 min left, loss of dcl 3.21". `unit` is what is counted, here "step".
    `total` counts the items that were done earlier, too, which are `first` many. What `note`
    returns ends the line.
    """
    if sys.stderr.isatty():
        yield from _with_bar(iterable, total, description, unit, first, note)
        return
    began = last = time.monotonic()
    for done, item in enumerate(iterable, first):
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            said = [_count(unit, done, total)]
            if done > first:
                left = (now - began) / (done - first) * (total - done)
                said.append(f"{time_text(left)} left")
            log.info("%s: %s", description, ", ".join([*said, *filter(None, [note()])]))
            last = now
        yield item


def _count(unit: str, done: int, total: int) -> str:
    return f"{unit} {done} of {total}".lstrip()


def _with_bar(
    iterable: Iterable[Item],
    total: int,
    description: str,
    unit: str,
    first: int,
    note: Callable[[], str],
) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    what, count, noted = (
        TextColumn(f"{{task.{name}}}", markup=False)
        for name in ("description", "fields[count]", "fields[note]")
    )
    columns = (what, BarColumn(), count, TimeRemainingColumn(), TextColumn("left"), noted)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(
            description, total=total, completed=first, note="", count=_count(unit, first, total)
        )
        done, last = first, time.monotonic()
        for item in iterable:
            yield item
            done += 1
            bar.update(task, advance=1, count=_count(unit, done, total))
            if (now := time.monotonic()) - last >= SECONDS_BETWEEN_NOTES:
                bar.update(task, note=note())
                last = now


def numbered(items: Collection[Item], what: str) -> Iterator[Item]:
    """Yield the items; if there are several, tell at the start of each which one of them it is."""
    for number, item in enumerate(items, 1):
        if len(items) > 1:
            log.info("%s %d of %d: %s", what, number, len(items), item)
        yield item
