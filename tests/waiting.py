"""How long tests wait for other processes: no test passes or fails by a number of seconds.

A limit is against hanging alone, the same one everywhere, and far above what anything needs: the
longest wait of all takes less than two minutes on two idle cores.
"""

import time
from collections.abc import Callable

HANGS = 1800.0  # seconds after which something hangs


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return as soon as the condition holds; `what` is said where it never does."""
    until = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.005)
