"""What watches a run: it is given the rows of the log whenever they come to the CPU.

Nothing here changes what is trained. What fails here is told once, and training goes on.
"""

import logging
import queue
import threading
import time

from torch import Tensor

from cltools.config.tracking import Tracker
from cltools.layout import RunFolder
from cltools.maths.objectives import loss_of
from cltools.training.live import HEADER, Follower, LiveRow, going_on_without
from cltools.training.trackers import Tracked, begin, values_of
from cltools.training.trainer import SPREAD, CoupledTrainer

# How long training waits at its end until a tracker has sent everything, and after a signal or an
# error: Slurm gives a job 30 seconds after SIGTERM.
SECONDS_AT_THE_END, SECONDS_IN_A_HURRY = 120.0, 15.0
log = logging.getLogger("cltools")


class LiveLog:
    """Appends rows of this rank's models to its live file; see `live`."""

    def __init__(self, trainer: CoupledTrainer, run: RunFolder) -> None:
        self.trainer, self.path = trainer, run.live(trainer.ranks.rank)
        self._own = {o: trainer.columns.index(loss_of(o)) for o in trainer.networks}
        self._columns = [trainer.columns.index(name) for name in ("dcl", "nscl", "grad_norm")]
        self._spread = [trainer.columns.index(name) for name in SPREAD if name in trainer.columns]
        self._warned: set[str] = set()
        self._last = time.monotonic()
        self._works = True

    def __call__(self, rows: Tensor) -> None:
        """Take rows (steps, models of this rank, columns of the trainer) of the steps just done."""
        if not self._works:
            return
        self._works = False
        with going_on_without(self.path):
            found = self._rows(rows)
            self._append("".join(row.line() for row in found))
            self._works = True
            self._warn(found)

    def _warn(self, rows: list[LiveRow]) -> None:
        """Say once of each model that its z has collapsed."""
        for row in rows:
            if row.collapse and row.model not in self._warned:
                self._warned.add(row.model)
                log.warning(
                    "%s has collapsed at step %d: %s; its loss says nothing then: lower lr, "
                    "lengthen warmup or raise batch_size",
                    row.model, row.step, row.collapse,
                )  # fmt: skip

    def _rows(self, rows: Tensor) -> list[LiveRow]:
        now, trainer = time.monotonic(), self.trainer
        speed, self._last = len(rows) / max(now - self._last, 1e-9), now
        values = rows.double()
        dcl, nscl, grad_norm = self._columns
        gaps = (values[..., dcl] - values[..., nscl]).nanmean(dim=0).tolist()
        means = values.nanmean(dim=0).tolist()
        return [
            LiveRow(
                step=trainer.step,
                epoch=trainer.step / trainer.steps_per_epoch,
                model=objective,
                loss=mean[own],
                dcl=mean[dcl],
                nscl=mean[nscl],
                gap=gap,
                grad_norm=mean[grad_norm],
                lr=trainer.lr_at(trainer.step - 1),
                steps_per_second=speed,
                **{name: mean[at] for name, at in zip(SPREAD, self._spread, strict=False)},
            )
            for (objective, own), mean, gap in zip(self._own.items(), means, gaps, strict=True)
        ]

    def _append(self, text: str) -> None:
        with open(self.path, "a") as file:
            file.write(text if file.tell() else HEADER + text)


class Tracking:
    """Hands the live rows of a run to a tracker, in a thread: no step waits for a network."""

    def __init__(self, name: Tracker, tracked: Tracked, follower: Follower) -> None:
        self.name, self._tracked, self._follower = name, tracked, follower
        self._steps: queue.SimpleQueue[list[LiveRow] | None] = queue.SimpleQueue()
        # A daemon: a tracker that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def __call__(self, rows: Tensor) -> None:
        """Hand on the steps for which all ranks have written their rows since the last call.

        To be called after `LiveLog`, whose file is read instead of `rows`.
        """
        self._hand_on()

    def close(self, seconds: float) -> None:
        """Hand on the last rows, and end the tracker's run, which may take so many seconds."""
        self._hand_on()
        self._steps.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("%s has not sent everything: training ends without it", self.name)

    def _hand_on(self) -> None:
        if self._thread.is_alive():
            for step in self._follower.new():
                self._steps.put(step)

    def _work(self) -> None:
        try:
            tracker = begin(self.name, self._tracked)
            while (rows := self._steps.get()) is not None:
                if rows[0].step > tracker.last_step:
                    tracker.log(rows[0].step, values_of(rows))
            tracker.close()
        except Exception as error:  # of any kind: trackers have many, and none is worth the run
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            log.warning("%s fails (%s): training goes on without it", self.name, reason)
