"""Programs that draw curves of many runs: what each of them is told of a cell.

A run of theirs bears the id of the cell, so that a job that was killed and started again goes on
with the same run. Where data goes, to which server and under which account, are settings of each
program, mostly environment variables.
"""

import importlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cltools.config.tracking import Tracker
from cltools.runtime.errors import InputError
from cltools.training.live import LiveRow

PROJECT = "cltools"  # where the environment names none
TAG = "cltools_cell"  # of mlflow's runs, whose ids are its own


class TrackerRun(Protocol):
    """A run of a tracker.

    last_step: it is not told again of steps up to this one, which training may go through again.
    """

    last_step: int

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""

    def close(self) -> None:
        """Send what is left, and end the run."""


class Tracked(NamedTuple):
    """The cell whose training begins or goes on after `step`.

    folder: for the files of a tracker. told: the file with the last step that it was told, for
    those that do not say it themselves.
    """

    id: str
    cell: Mapping[str, Any]
    step: int
    folder: Path
    told: Path

    def last_told(self) -> int:
        """The last step of `note`, in this process or an earlier one."""
        try:
            return int(self.told.read_text())
        except (OSError, ValueError):  # there is no such file, or it was being written
            return 0

    def note(self, step: int) -> None:
        self.told.write_text(str(step))


SHARED = ("epoch", "lr", "steps_per_second")  # columns of live rows that all models share
OF_MODELS = tuple(name for name in LiveRow._fields if name not in ("step", "model", *SHARED))


def values_of(rows: Iterable[LiveRow]) -> dict[str, float]:
    """What trackers show of a step: "loss/dcl", "gap/nscl", …, and what all models share.

    Values that are not finite are left out.
    """
    values: dict[str, float] = {}
    for row in rows:
        shared = {name: getattr(row, name) for name in SHARED}
        own = {f"{name}/{row.model}": getattr(row, name) for name in OF_MODELS}
        values = {**shared, **values, **own}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def check_installed(name: Tracker) -> None:
    """Raises InputError where the tracker's package is not installed. It is not imported yet."""
    if find_spec(name) is None:
        raise InputError(
            f"config key tracker is {name!r}, but the package {name} is not installed: run "
            "`uv sync --extra trackers`, or leave the key out"
        )


def begin(name: Tracker, tracked: Tracked) -> TrackerRun:
    """Begin the run of a cell, or go on with it. This may wait for a network."""
    module, kind = _TRACKERS[name]
    return kind(importlib.import_module(module), tracked)


def _project(variable: str) -> str:
    return os.environ.get(variable) or PROJECT


class _TensorBoard:
    """Files in a folder of the cell: `tensorboard --logdir results/cells` shows all of them."""

    def __init__(self, library: Any, tracked: Tracked) -> None:
        self.last_step = tracked.step
        # Readers drop what an earlier process wrote of the steps from this one on.
        self._writer = library.SummaryWriter(str(tracked.folder), purge_step=tracked.step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, library: Any, tracked: Tracked) -> None:
        self._run = library.init(
            project=_project("WANDB_PROJECT"), id=tracked.id, name=tracked.id, resume="allow",
            config=dict(tracked.cell),
        )  # fmt: skip
        # The step that wandb expects next, as far as it has the earlier run at hand. When runs of
        # nodes without a network are put together, it drops steps that it has.
        self.last_step: int = self._run.step - 1

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step, commit=True)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, library: Any, tracked: Tracked) -> None:
        self._run = library.init(
            project=_project("TRACKIO_PROJECT"), name=tracked.id, resume="allow",
            config=dict(tracked.cell), embed=False,
        )  # fmt: skip
        self._tracked, self.last_step = tracked, tracked.last_told()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)
        self._tracked.note(step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, library: Any, tracked: Tracked) -> None:
        self._metric, self._client = library.entities.Metric, library.MlflowClient()
        self._tracked, self.last_step = tracked, tracked.last_told()
        experiment = library.set_experiment(_project("MLFLOW_EXPERIMENT_NAME")).experiment_id
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{tracked.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            made = self._client.create_run(experiment, tags={TAG: tracked.id}, run_name=tracked.id)
            self._id = made.info.run_id
            for key, value in tracked.cell.items():
                self._client.log_param(self._id, key, json.dumps(value))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)
        self._tracked.note(step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


# Name -> the module that is imported, and what begins a run with it.
_TRACKERS: dict[str, tuple[str, Callable[[Any, Tracked], TrackerRun]]] = {
    "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
    "wandb": ("wandb", _Wandb),
    "trackio": ("trackio", _Trackio),
    "mlflow": ("mlflow", _MLflow),
}
