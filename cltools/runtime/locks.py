"""Lock files: how they are opened where other users may write too, and locked. Light."""

import errno
import os
import stat
from pathlib import Path

from cltools.runtime.errors import InputError

# A link could lead to a file that is not ours, and a pipe would wait for someone who writes.
# Windows lacks both flags.
_NEITHER_LINKS_NOR_PIPES = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
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


def lock_file(file: int, *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file, until it is closed or its process ends.

    Any number of processes may have a shared lock, and one process any other.

    Raises BlockingIOError when another process has locked it, unless told to `wait`, and OSError on
    file systems and on operating systems without such locks.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOTSUP, "this operating system has no locks for it") from None
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)


def _no_lock(path: Path, remedy: str) -> InputError:
    return InputError(f"{path} is not a lock file but a link, a pipe or the like: {remedy}")
