"""Progress of long loops."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
log = logging.getLogger("cltools")

SECONDS_BETWEEN_LINES = 15.0


def track(iterable: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Yield the items of `iterable` and show progress on stderr.

    On a terminal this is a rich progress bar. Elsewhere, as in the log file of a cluster job, it is
    one plain line every 15 seconds, and no line if the loop takes less than that.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(iterable, description, total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            log.info("%s: %d of %d", description, done, total)
            last = now
        yield item
