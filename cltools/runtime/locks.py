"""Lock files: how they are opened in folders where other users may write too. Light."""

import errno
import os
import stat
from pathlib import Path

from cltools.runtime.errors import InputError

# A link could lead to a file that is not ours, and a pipe would wait for someone who writes.
_NEITHER_LINKS_NOR_PIPES = os.O_NOFOLLOW | os.O_NONBLOCK
_REFUSED = (errno.ELOOP, errno.ENXIO)  # for a symbolic link, and for a socket


def open_lock(path: Path, flags: int, mode: int = 0o666, remedy: str = "delete it") -> int:
    """A file descriptor of a lock file, opened with `flags` of `os.open`; never waits.

    A file that is created gets `mode` less the umask. The descriptor is not inherited by children.

    Raises InputError for anything but a regular file (a symbolic link, a pipe), with `remedy`, and
    OSError as `os.open` does.
    """
    try:
        file = os.open(path, flags | _NEITHER_LINKS_NOR_PIPES, mode)
    except OSError as error:
        if error.errno in _REFUSED:
            raise _no_lock(path, remedy) from None
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise _no_lock(path, remedy)
    return file


def _no_lock(path: Path, remedy: str) -> InputError:
    return InputError(f"{path} is not a lock file but a link, a pipe or the like: {remedy}")
