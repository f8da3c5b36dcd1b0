"""The errors that users are meant to see."""

import signal


class InputError(Exception):
    """Something the user gave is wrong: a config value, a file, a combination of both.

    Also what the machine lacks where the user can give it: room on a disk, a right, memory. The
    message is one sentence that names the file or key at fault and the remedy. The command line
    prints it without a traceback and exits with code 2.
    """


class Stopped(Exception):
    """A signal asked to stop, and what was done until then is saved.

    The message is one sentence that names the signal. The command line prints it and exits with
    `code`, which is 128 and the signal's number, as if the signal had ended the process.
    """

    def __init__(self, by: int, where: str) -> None:
        super().__init__(by, where)
        self.by, self.where = signal.Signals(by), where
        self.code = 128 + by

    def __str__(self) -> str:
        return f"stopped by {self.by.name} {self.where}"
