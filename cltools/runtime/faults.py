"""Errors of the machine, not of the program: full disks, missing rights, little memory, MPS."""

import errno
import os
import re
from pathlib import Path

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
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "run fewer jobs at once on this machine",
}
# Libraries that read and write files themselves put the number into a text, or what it means.
_NUMBER = re.compile(r"(?:os error |errno = |Errno )(\d+)")
_WORDS = {os.strerror(number): number for number in (errno.ENFILE, errno.EMFILE)}  # longer first
# What numpy and polars say when less was written than they asked for. They do not say why.
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written|.*Invalid thrift: transport error")
_OUT_OF_MEMORY = re.compile(
    "out of memory|(?:can't|cannot) allocate memory|_ALLOC_FAILED|bad_alloc|can't start new thread",
    re.IGNORECASE,
)


def disk_fault(error: Exception, path: object = None) -> InputError | None:
    """An InputError for an error of the file system; None for any other error.

    `path` is the file that was being written; by default the error says which it is.
    """
    if isinstance(error, InputError):
        return None
    number = _number(error)
    if number is None and path is not None and _CUT_SHORT.fullmatch(str(error)):
        number = _why_cut_short(Path(str(path)).parent)
    if number not in _REMEDIES:
        return None
    what = path or getattr(error, "filename", None) or "a file"
    done = "written" if path else "read or written"
    return InputError(f"{what} cannot be {done} ({os.strerror(number)}): {_REMEDIES[number]}")


def _number(error: Exception) -> int | None:
    """The error number of the system, if the error or its text names one."""
    number, said = getattr(error, "errno", None), str(error)
    if isinstance(number, int):
        return number
    if match := _NUMBER.search(said):
        return int(match[1])
    return next((number for words, number in _WORDS.items() if words in said), None)


def _why_cut_short(folder: Path) -> int:
    """The likely error number where a file in `folder` was only written in part."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limits
        return errno.ENOSPC
    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return errno.EFBIG if limited and os.statvfs(folder).f_bavail > 0 else errno.ENOSPC


def memory_fault(error: Exception, remedy: str) -> InputError | None:
    """An InputError where the machine or its GPU ran out of memory; None for any other error."""
    in_words = isinstance(error, RuntimeError | ImportError) and _OUT_OF_MEMORY.search(str(error))
    if not in_words and _number(error) != errno.ENOMEM and not isinstance(error, MemoryError):
        return None
    said = next(iter(str(error).splitlines()), "") or "MemoryError"
    return InputError(f"out of memory ({said[:200]}): {remedy}")


def device_fault(error: Exception) -> InputError | None:
    """An InputError for what MPS, the GPU of a Mac, cannot compute; None for any other error.

    It has no float64, in which much is measured here.
    """
    said = first_sentence(error)
    if not isinstance(error, TypeError | RuntimeError) or "MPS" not in said:
        return None
    return InputError(f"{said}: use --device cpu")


def first_sentence(error: Exception) -> str:
    """What an error says, without the explanations that follow; its type where it says nothing."""
    return re.split(r"\n|\. ", str(error).strip())[0].rstrip(".") or type(error).__name__
