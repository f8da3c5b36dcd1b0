"""`live.csv`: how a cell trains, while it does.

The file gets one row per model whenever rows of the log come to the CPU, which is every 50 steps
and at every save. It is for people and trackers alone. Its speeds differ from run to run, so that
no manifest has its hash and no stage reads it; the training log has the same losses of every step.

Ranks that train objectives of their own have a file each, so that they send nothing for it. Who
reads the rows joins them. Where a run begins, goes on or ends, `settle` makes one file of all. The
module imports quickly: it uses no numerical library.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cltools.layout import RunFolder
from cltools.runtime.errors import InputError
from cltools.runtime.files import whole_file
from cltools.runtime.progress import time_text

log = logging.getLogger("cltools")


class LiveRow(NamedTuple):
    """One model: means over the steps since the row before, up to `step`. NaN where undefined.

    step: steps done. epoch: the same in epochs. loss: the model's own, in nats. dcl, nscl: these
    losses of the model's projections, and gap: dcl - nscl. lr: of the last step. steps_per_second:
    of the rank that trains the model, with the time of saves. z_std and z_rank: how far z spreads,
    see `maths.spread`; of objectives that could collapse.
    """

    step: int
    epoch: float
    model: str
    loss: float
    dcl: float
    nscl: float
    gap: float
    grad_norm: float
    lr: float
    steps_per_second: float
    z_std: float = math.nan
    z_rank: float = math.nan

    @property
    def collapse(self) -> str:
        """How z has collapsed, in words; "" where it has not, or where that is unknown."""
        if self.z_std < POINT:
            return f"all images have nearly the same z (spread {self.z_std:.2g} of 1)"
        if self.z_rank < LINE:
            return f"z lies nearly on a line ({self.z_rank:.2g} dimensions)"
        return ""

    def line(self) -> str:
        """The row as it stands in the file."""
        cells = (f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in self)
        return ",".join(cells) + "\n"


# Below these values of z_std and z_rank, z has collapsed: to a point, or to a line. An untrained
# network has about 1 and several dimensions; what loses less is seen in the measures
# (`effective_rank`, `uniformity`).
POINT, LINE = 0.1, 1.5
OLDEST = len(LiveRow._fields) - 2  # columns that versions before z_std and z_rank wrote
TAIL = 4096  # bytes at the end of a file, in which each model has a row
HEADER = ",".join(LiveRow._fields) + "\n"


def rows_of(text: str) -> Iterator[LiveRow]:
    """The rows in a text of whole lines. Headers, and what a killed writer tore, are left out."""
    for line in text.splitlines():
        cells = line.split(",")
        if len(cells) not in (OLDEST, len(LiveRow._fields)):
            continue
        step, epoch, model, *values = cells
        try:
            yield LiveRow(int(step), float(epoch), model, *map(float, values))
        except ValueError:
            continue


def read_live(run: RunFolder, last_bytes: int | None = None) -> list[LiveRow]:
    """The rows of all ranks in the order of steps; with `last_bytes`, of the end of each file.

    A file that cannot be read counts as empty.
    """
    found: dict[tuple[int, str], LiveRow] = {}
    for path in run.all_live:
        start = 0 if last_bytes is None else max(0, _size(path) - last_bytes)
        text, _ = _whole_lines(path, start)
        if start:  # in the middle of a line
            text = text.partition("\n")[2]
        found |= {(row.step, row.model): row for row in rows_of(text)}
    return sorted(found.values(), key=lambda row: row.step)


def run_until(run: RunFolder, until: str) -> RunFolder:
    """The folder with the live rows of a run that stops at `until`.

    It is inside that of the run where a longer run came before (see `RunFolder.apart`).
    """
    apart = run.apart(until)
    return apart if apart.all_live else run


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _whole_lines(path: Path, start: int) -> tuple[str, int]:
    """The text of a file from byte `start` to the end of its last whole line, and that place."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read()
    except OSError:
        return "", start
    length = content.rfind(b"\n") + 1
    return content[:length].decode(errors="replace"), start + length


def settle(run: RunFolder, step: int) -> None:
    """Make one file of those of all ranks, without rows after `step` and without torn lines.

    No rank may write meanwhile.
    """
    files = run.all_live
    with going_on_without(run.live()):
        text = HEADER + "".join(row.line() for row in read_live(run) if row.step <= step)
        if files and (files != [run.live()] or run.live().read_bytes() != text.encode()):
            with whole_file(run.live()) as scratch:
                scratch.write_text(text)
        for path in files:
            if path != run.live():
                path.unlink()


@contextmanager
def going_on_without(path: Path) -> Iterator[None]:
    """Warn where the block cannot write, instead of failing: nothing depends on these files."""
    try:
        yield
    except (OSError, InputError) as error:
        log.warning("%s cannot be kept up to date: %s", path, error)


class Follower:
    """Reads what is appended to the live rows of a run, from now on."""

    def __init__(self, run: RunFolder, models: Iterable[str]) -> None:
        self._run, self._models = run, set(models)
        self._read = {path: _size(path) for path in run.all_live}
        self._waiting: dict[int, dict[str, LiveRow]] = {}

    def new(self) -> list[list[LiveRow]]:
        """The steps that are complete since the last call, as the rows of all models.

        A step waits until all ranks have written its rows.
        """
        for path in self._run.all_live:
            text, self._read[path] = _whole_lines(path, self._read.get(path, 0))
            for row in rows_of(text):
                self._waiting.setdefault(row.step, {})[row.model] = row
        complete = sorted(s for s, rows in self._waiting.items() if rows.keys() >= self._models)
        return [list(self._waiting.pop(step).values()) for step in complete]


def latest(rows: Iterable[LiveRow], models: Iterable[str]) -> dict[str, LiveRow]:
    """Model -> its last row, in the order of `models`; those without a row are left out."""
    last = {row.model: row for row in rows}
    return {model: last[model] for model in models if model in last}


@dataclass(frozen=True)
class LastValues:
    """What the last rows of a run say of it, ready for JSON: None where it is unknown.

    losses: model -> its own loss. gap: that of DCL's network, or of the first that has one.
    seconds_left: until the run stops, at the speed of the slowest rank. collapsed: model -> how its
    z has collapsed, of those where it has.
    """

    losses: dict[str, float | None]
    gap: float | None
    steps_per_second: float | None
    seconds_left: float | None
    collapsed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Mapping[str, LiveRow], stop: int | None) -> "LastValues":
        """From model -> last row, of a run that stops at step `stop`."""
        dcl_first = sorted(rows.values(), key=lambda row: row.model != "dcl")
        speed = min((row.steps_per_second for row in rows.values()), default=0.0)
        steps = 0 if stop is None else max((stop - row.step for row in rows.values()), default=0)
        return cls(
            losses={model: _finite(row.loss) for model, row in rows.items()},
            gap=next((row.gap for row in dcl_first if math.isfinite(row.gap)), None),
            steps_per_second=_finite(speed),
            seconds_left=max(0, steps) / speed if stop is not None and speed > 0 else None,
            collapsed={model: row.collapse for model, row in rows.items() if row.collapse},
        )

    def words(self) -> str:
        """The same in one line."""
        losses = [f"{model} {loss:.4g}" for model, loss in self.losses.items() if loss is not None]
        said = [f"loss of {', '.join(losses)}"] if losses else []
        if self.gap is not None:
            said.append(f"gap {self.gap:.3g}")
        if self.steps_per_second is not None:
            said.append(f"{self.steps_per_second:.3g} steps/s")
        if self.seconds_left is not None:
            said.append(f"{time_text(self.seconds_left)} left")
        said += [f"{model} has collapsed: {how}" for model, how in self.collapsed.items()]
        return "; ".join(said)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
