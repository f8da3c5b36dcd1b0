"""Files that are written completely or not at all, locks on folders, and hashes."""

import glob
import hashlib
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cltools.runtime.errors import InputError
from cltools.runtime.faults import disk_fault
from cltools.runtime.locks import lock_file, open_lock

log = logging.getLogger("cltools")

ABANDONED = 24 * 3600  # seconds since its last change after which a scratch file is removed
_asking = threading.Lock()
LOCK = "lock"  # file in a folder that only one process may use
OF_SAFETENSORS = ".tmp" + 6 * "[0-9A-Za-z]"


@contextmanager
def whole_file(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a scratch path in the folder of `path`, and rename it to `path` after the block.

    Nothing is renamed if the block raises. The rename is atomic and the bytes are on disk before
    it, so that a crash at any moment leaves either the old file or the new one. With `previous`,
    the old file is kept under that name.

    Raises InputError where the disk is full or cannot be written to.
    """
    path = Path(path)
    # The suffix stays at the end, since writers such as matplotlib choose the format by it.
    name = f".{path.stem}.{socket.gethostname()}-{os.getpid()}.part{path.suffix}"
    scratch = path.with_name(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_what_the_dead_left(path)
        yield scratch
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(scratch, 0o666 & ~_umask())  # some writers make private files
        if previous is not None and path.exists():
            _give_name(path, previous)
        os.replace(scratch, path)
    except Exception as error:
        if (fault := disk_fault(error, path)) is not None:
            raise fault from error
        raise
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _give_name(path: Path, another: Path) -> None:
    """Give a file a second name, which it keeps when the first one is given to a new file."""
    another.unlink(missing_ok=True)
    try:
        os.link(path, another)
    except OSError:  # a file system without hard links
        os.replace(path, another)


def _remove_what_the_dead_left(path: Path) -> None:
    """Remove scratch files of `path` whose writers were killed.

    Whether a process on another machine is alive is not known, so the age of its file decides.
    """
    own = re.compile(rf"{re.escape(socket.gethostname())}-(\d+)\.part")
    for scratch in path.parent.glob(f".{glob.escape(path.stem)}.*.part{path.suffix}"):
        with suppress(FileNotFoundError):  # its writer has renamed it meanwhile
            if (process := own.search(scratch.name)) is not None:
                left = not _alive(int(process[1]))
            else:
                left = time.time() - scratch.stat().st_mtime > ABANDONED
            if left:
                scratch.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is alive and belongs to another user
        pass
    return True


def remove_scratch(folder: Path, stem: str = "*") -> None:
    """Remove the scratch files of `whole_file` in `folder`. Call it only where nothing is written.

    With `stem`, only those of the file with this name (without its ending). Without, also what
    safetensors leaves when it is killed: it writes to files of its own, whose names do not say of
    what they are.
    """
    patterns = [f".{stem}.*.part*", *([OF_SAFETENSORS] if stem == "*" else [])]
    for scratch in (path for pattern in patterns for path in folder.glob(pattern)):
        scratch.unlink()


@contextmanager
def only_process(folder: Path, wait: bool = False) -> Iterator[None]:
    """Let only one process at a time run such a block for a folder, on this machine or another.

    The kernel locks the file `LOCK`, and unlocks it when this process ends in any way. The text in
    the file only says which process has locked it. Where the file system has no locks, there is a
    warning and nothing is checked. With `wait`, this process waits for the end of the other one.

    Raises InputError when another process is in such a block, unless told to `wait`, and where the
    lock file is a symbolic link or a pipe.
    """
    path = folder / LOCK
    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_lock(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+") as file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            in_use = f"{folder} is in use by {file.read() or 'another process'}"
            if not wait:
                raise InputError(f"{in_use}: wait for its end, or end it") from None
            log.info("%s: waiting for its end", in_use)
            lock_file(file.fileno(), wait=True)
        except OSError as error:
            log.warning("%s cannot be locked (%s): start no second run of it", folder, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _lock(file: IO[str]) -> None:
    """Lock a file, or raise BlockingIOError when another process still has it after a second.

    The wait is for `cltools status`, which locks the file for a moment to see whether it is free.
    """
    for _ in range(10):
        with suppress(BlockingIOError):
            return lock_file(file.fileno())
        time.sleep(0.1)
    lock_file(file.fileno())


def _umask() -> int:
    with _asking:  # of two threads at once, one would put back the other's 0
        mask = os.umask(0)
        os.umask(mask)
    return mask


def canonical_json(value: Any) -> str:
    """JSON text that is the same for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
