"""Requests to stop: the signals that come before a job is killed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Ctrl-C; what schedulers send some time before SIGKILL; what `sbatch --signal=USR1@60` sends.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """The number of the first signal that asked to stop, 0 while there is none."""

    number = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block these signals interrupt nothing: the first one is noted, the rest ignored.

    So a group of processes may be sent a signal that its members pass on to each other. Handlers
    are put back at the end. A signal that was ignored before stays so (of a job in the background,
    Ctrl-C is not meant for it). Python has no handlers outside of the main thread: there, signals
    do what they always do.
    """
    request = StopRequest()

    def note(number: int, frame: object) -> None:
        request.number = request.number or number

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
