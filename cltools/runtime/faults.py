"""Errors of the machine, not of the program: full disks, missing permissions, too little memory."""

import errno
import os
import re

from cltools.runtime.errors import InputError

# Error number of the system -> what the user can do. Other numbers, above all that of a missing
# file, may be mistakes of the program. These keep their traceback.
_REMEDIES = {
    errno.ENOSPC: "free space on this disk, or choose a folder on another one",
    errno.EDQUOT: "free space, ask for a larger quota, or choose a folder on another disk",
    errno.EFBIG: "allow larger files (ulimit -f), or choose a folder on another disk",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "get the right to read and write there, or choose another folder",
    errno.EPERM: "get the right to read and write there, or choose another folder",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another folder",
    errno.EIO: "the disk fails; choose a folder on another one",
    errno.ESTALE: "the network disk was away; start again",
}
# Libraries that write files themselves put the number into a text. numpy does not name it at all.
_NUMBER = re.compile(r"(?:os error |errno = |Errno )(\d+)")
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|_ALLOC_FAILED|bad_alloc", re.I)


def disk_fault(error: Exception, path: object = None) -> InputError | None:
    """An InputError for an error of the file system; None for any other error.

    `path` is the file that was being written; by default the error says which it is.
    """
    if isinstance(error, InputError):
        return None
    number, said = getattr(error, "errno", None), str(error)
    if number is None and (match := _NUMBER.search(said)):
        number = int(match[1])
    if number is None and isinstance(error, OSError) and _CUT_SHORT.fullmatch(said):
        number = errno.ENOSPC
    if number not in _REMEDIES:
        return None
    what = path or getattr(error, "filename", None) or "a file"
    done = "written" if path else "read or written"
    return InputError(f"{what} cannot be {done} ({os.strerror(number)}): {_REMEDIES[number]}")


def memory_fault(error: Exception, remedy: str) -> InputError | None:
    """An InputError where the machine or its GPU ran out of memory; None for any other error."""
    torchs = isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))
    systems = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not torchs and not systems and not isinstance(error, MemoryError):
        return None
    said = next(iter(str(error).splitlines()), "") or "MemoryError"
    return InputError(f"out of memory ({said[:200]}): {remedy}")
