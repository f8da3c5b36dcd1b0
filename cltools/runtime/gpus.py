"""Each process gets GPUs of its own, or a place on one that small cells share. Light.

Slurm gives each job its GPUs. A local Snakemake does not, even inside a Slurm job: all its jobs
would use the first GPU. So a process claims GPUs by locking files that all processes of the machine
see. The kernel drops a lock when its process ends, in whatever way. A process that shares a GPU
locks its file together with others (a shared lock), and a second file for its place there.
"""

import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable, MutableMapping, Sequence
from pathlib import Path

from cltools.runtime.errors import InputError
from cltools.runtime.locks import lock_file, open_lock

SECONDS_BETWEEN_TRIES = 1.0
MODE = 0o444  # of lock files
REMEDY = "delete it, or name the GPUs to use in CUDA_VISIBLE_DEVICES"
CLAIMED = "CLTOOLS_GPUS"  # environment variable: the GPUs that a process and its children hold
log = logging.getLogger("cltools")
_held: list[int] = []  # lock files, open as long as the process lives


def gpu_count() -> int:
    """GPUs of this machine, as far as this process may see them."""
    return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in Path("/dev").glob("*"))


def claim_gpus(count: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Wait for `count` free GPUs, keep them, and show CUDA no others by CUDA_VISIBLE_DEVICES.

    Where Slurm or the user has set that variable, only GPUs that it lists are taken. If it lists no
    more than `count`, they already belong to this process. On a machine without a GPU, and in a
    Slurm job that was given none, nothing happens. Call it before CUDA starts. Children that
    inherit open files inherit the claim.

    Raises InputError when the machine has too few GPUs, and when a lock file is not one.
    """
    _claim(count, 1, environment)


def claim_place(cells: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """As `claim_gpus` for one GPU, which at most `cells` processes that call this share.

    They take the first GPU that has a place left, and none that a process has for itself.
    """
    _claim(1, cells, environment)


def _claim(count: int, cells: int, environment: MutableMapping[str, str]) -> None:
    present, shown = gpu_count(), environment.get("CUDA_VISIBLE_DEVICES")
    of_slurm = shown is None and "SLURM_JOB_ID" in environment
    if not present or of_slurm or CLAIMED in environment:  # by this process or its parent
        return
    if shown is None:
        if count > present:
            raise InputError(f"gpus_per_cell is {count}, but this machine has {present}: lower it")
        names, job = [str(number) for number in range(present)], ""
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the same numbers for every process
    else:
        names = [name.strip() for name in shown.split(",") if name.strip()]
        if len(names) <= count:
            return
        # Slurm may number the GPUs of every job from 0.
        job = environment.get("SLURM_JOB_ID", "")
    claimed = _try(count, names, job, cells)
    if not claimed:
        log.info("all GPUs are in use by other processes of cltools: waiting for %d", count)
    while not claimed:
        time.sleep(SECONDS_BETWEEN_TRIES)
        claimed = _try(count, names, job, cells)
    _held.extend(file for files in claimed.values() for file in files)
    environment["CUDA_VISIBLE_DEVICES"] = environment[CLAIMED] = ",".join(claimed)


def release_gpus() -> None:
    """Give up the GPUs that this process has claimed, because it cannot use them."""
    while _held:
        os.close(_held.pop())


def _opened(path: Path) -> int:
    """The lock file, which all users of the machine share.

    The first process creates it, readable by everyone whatever its umask. Nobody may write to it:
    a file that is open for reading can be locked, and nothing is ever written to it. It is first
    opened without creating it, because in /tmp the kernel refuses to "create" an existing file of
    another user.

    Any user can hold such a lock. It protects against accidents, not against ill will.

    Raises InputError for a symbolic link, a pipe, and a file that may not be read.
    """
    while True:
        try:
            return open_lock(path, os.O_RDONLY, remedy=REMEDY)
        except FileNotFoundError:
            pass
        except PermissionError:
            raise InputError(f"{path} cannot be read (Permission denied): {REMEDY}") from None
        try:
            file = open_lock(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, MODE, REMEDY)
        except FileExistsError:  # another process was faster
            continue
        os.fchmod(file, MODE)  # whatever the umask
        return file


def _try(count: int, names: Sequence[str], job: str = "", cells: int = 1) -> dict[str, list[int]]:
    """GPU -> open lock files for `count` free GPUs; empty where fewer are free.

    With `cells` above 1, a GPU is free as long as it has a place left.

    A process that kept some and waited for more could wait forever for another that does the same.
    """
    claimed: dict[str, list[int]] = {}
    for gpu in names:
        if len(claimed) == count:
            break
        parts = ["cltools-gpu", *([job] if job else []), re.sub(r"[^\w-]", "_", gpu)]
        path = Path(tempfile.gettempdir()) / "-".join(parts)
        if files := _locked(path) if cells == 1 else _place(path, cells):
            claimed[gpu] = files
    if len(claimed) < count:
        _close(file for files in claimed.values() for file in files)
        return {}
    return claimed


def _place(path: Path, cells: int) -> list[int]:
    """Locks of a place on the GPU whose file is `path`; empty where none is left."""
    if not (shared := _locked(path, shared=True)):
        return []
    for number in range(cells):
        if own := _locked(path.with_name(f"{path.name}-place{number}")):
            return shared + own
    _close(shared)
    return []


def _locked(path: Path, shared: bool = False) -> list[int]:
    """The open lock file, which children inherit; empty where another process has locked it."""
    file = _opened(path)
    os.set_inheritable(file, True)
    try:
        lock_file(file, shared=shared)
    except BlockingIOError:
        os.close(file)
        return []
    return [file]


def _close(files: Iterable[int]) -> None:
    for file in files:
        os.close(file)
