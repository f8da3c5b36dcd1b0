"""The errors that users are meant to see."""

import signal


class InputError(Exception):
    """Something that the user can correct: a config value, a file, or a combination of both.

    Also something that the machine lacks and the user can provide: space on a disk, a permission,
    memory. The message is one sentence that names the file or key at fault and the remedy. The
    command line prints it without a traceback and exits with code 2.
    """


class Stopped(Exception):
    """A signal asked the process to stop, and its state is saved.

    The message is one sentence that names the signal. The command line prints it and exits with
    `code`, which is 128 plus the signal's number, as a shell reports a process that a signal ended.
    """

    def __init__(self, by: int, where: str) -> None:
        super().__init__(by, where)
        self.by, self.where = signal.Signals(by), where
        self.code = 128 + by

    def __str__(self) -> str:
        return f"stopped by {self.by.name} {self.where}"
