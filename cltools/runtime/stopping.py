"""Signals that ask a process to stop before it is killed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# SIGINT is Ctrl-C. Schedulers send SIGTERM some time before SIGKILL, and `sbatch --signal=USR1@60`
# asks for SIGUSR1. SIGHUP comes when the terminal is closed or the ssh connection is lost. Windows
# has only the first two.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class StopRequest:
    """`number` is that of the first signal that asked to stop; 0 while there is none."""

    number = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Yield a request that notes the first of `SIGNALS` to arrive while the block runs.

    No signal interrupts the block, which looks at the request when it suits it. Later signals are
    ignored, since a parent may pass on a signal that this process already has. The earlier handlers
    are put back at the end.

    A signal that was already ignored stays ignored: `nohup` ignores SIGHUP, and a shell ignores
    SIGINT for a job in the background. Python only allows handlers in the main thread. In other
    threads, nothing is changed.
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
