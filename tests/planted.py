"""What somebody may put in the place of a lock file, in a folder that others write to."""

import os
import socket
from collections.abc import Callable
from pathlib import Path


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        before = Path.cwd()
        os.chdir(path.parent)  # a socket's whole path must be short
        listener.bind(path.name)
        os.chdir(before)


PLANTED: dict[str, Callable[[Path], None]] = {
    "a link to nothing": lambda path: path.symlink_to(path.with_name("made by the victim")),
    "a link to a file": lambda path: path.symlink_to(__file__),
    "a pipe": os.mkfifo,
    "a socket": _socket,
}
