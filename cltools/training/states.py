"""The states on disk from which a run resumes: the latest and, during training, the one before it.

A state file is either complete or absent, and a checksum is verified when it is read. If the latest
state is damaged, training resumes from the one before, with a warning. If no state is intact,
training stops with an error and deletes nothing: a run may be days of work, and a read error of the
disk may be temporary.

A state is hashed and written by a thread, while training goes on.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from cltools.layout import RunFolder
from cltools.runtime.errors import InputError
from cltools.runtime.tensors import load_checked, save_checked

log = logging.getLogger("cltools")

State = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, and a mapping for JSON


class States:
    """The resume states in a run's folder; one process writes them, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.run = RunFolder(folder)
        self.latest, self.previous = self.run.state, self.run.previous_state
        self._keep_latest = True
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="states")
        self._writing: Future[None] | None = None

    def load(self) -> State | None:
        """The latest intact state; None where there is no state at all.

        Raises InputError where there are states and none is intact.
        """
        found = [path for path in (self.latest, self.previous) if path.exists()]
        for path in found:
            try:
                return load_checked(path, "training resumes from the state before it")
            except InputError as error:
                if path != found[-1]:
                    log.warning("%s", error)
                    self._keep_latest = False
        if not found:
            return None
        names = " and ".join(str(path) for path in found)
        are, them = ("is", "it") if len(found) == 1 else ("are", "them")
        raise InputError(f"{names} {are} damaged: delete {them} to train this cell from the start")

    def save(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Begin to write a state; the latest becomes the previous one, unless found damaged.

        Waits for the end of the write before. The tensors must not change from now on. What goes
        wrong while they are written is raised by the next `save`, `check` or `wait`.
        """
        self.wait()
        previous = self.previous if self._keep_latest else None
        self._writing = self._writer.submit(save_checked, self.latest, tensors, about, previous)
        self._keep_latest = True

    def check(self) -> None:
        """Raise the error of a write that has failed; never waits."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last state is on disk; raises the error of its write."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait for the end of a write, whether it fails or not."""
        self._writer.shutdown()

    def drop_previous(self) -> None:
        """Delete the state before the latest one."""
        self.previous.unlink(missing_ok=True)
