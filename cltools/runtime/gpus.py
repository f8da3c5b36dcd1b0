"""A GPU of its own for every process on a machine with several, or with one. Light.

Slurm gives each job its GPUs; local Snakemake, also within such a job, gives its own none, and all
would take the first. So a process claims GPUs by locks on files that all processes of the machine
see. The kernel drops a lock when its process ends, in whatever way.
"""

import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from cltools.runtime.errors import InputError

SECONDS_BETWEEN_TRIES = 1.0
CLAIMED = "CLTOOLS_GPUS"  # environment variable: the GPUs that a process and its children hold
log = logging.getLogger("cltools")
_held: list[int] = []  # open for as long as the process lives


def gpu_count() -> int:
    """GPUs of this machine, as far as this process may see them."""
    return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in Path("/dev").iterdir())


def claim_gpus(count: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Wait for `count` free GPUs, keep them, and show CUDA no others by CUDA_VISIBLE_DEVICES.

    Where that variable is set, by Slurm or by the user, they are of those that it lists; if it
    lists no more than `count`, they are the process's own already. Nothing is done without a GPU.
    Call it before CUDA starts; children that inherit open files inherit the claim. Raises
    InputError when the machine has too few.
    """
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
    claimed = _try(count, names, job)
    if not claimed:
        log.info("all GPUs are in use by other processes of cltools: waiting for %d", count)
    while not claimed:
        time.sleep(SECONDS_BETWEEN_TRIES)
        claimed = _try(count, names, job)
    _held.extend(claimed.values())
    environment["CUDA_VISIBLE_DEVICES"] = environment[CLAIMED] = ",".join(claimed)


def release_gpus() -> None:
    """Let other processes have what this one claimed: it cannot use them."""
    while _held:
        os.close(_held.pop())


def _opened(path: Path) -> int:
    """The lock file, which all users of the machine share.

    In /tmp the kernel refuses to create a file that is there and another user's, even for reading.
    """
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
        os.fchmod(file, 0o666)  # whatever the umask
        return file


def _try(count: int, names: Sequence[str], job: str = "") -> dict[str, int]:
    """GPU -> open lock file for `count` free GPUs; none at all where fewer are free.

    Whoever kept some and waited for more could wait for another who does the same.
    """
    claimed: dict[str, int] = {}
    for gpu in names:
        if len(claimed) == count:
            break
        parts = ["cltools-gpu", *([job] if job else []), re.sub(r"[^\w-]", "_", gpu)]
        path = Path(tempfile.gettempdir()) / "-".join(parts)
        file = _opened(path)
        os.set_inheritable(file, True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            claimed[gpu] = file
        except BlockingIOError:
            os.close(file)
    if len(claimed) < count:
        for file in claimed.values():
            os.close(file)
        return {}
    return claimed
