"""Stage `status`: how far an experiment is, cell by cell, from the files in its results folder.

It is fast: it imports neither torch nor polars, and reads only the first bytes of large files.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cltools.config.durations import Duration
from cltools.config.experiment import OF_SOME_SWEEPS, Experiment, Plan
from cltools.figures import figures_of
from cltools.layout import VERSIONS, Results, RunFolder, tables_of
from cltools.runtime.errors import InputError
from cltools.runtime.locks import lock_file, open_lock
from cltools.runtime.sealed import read_json
from cltools.training.live import TAIL, LastValues, LiveRow, latest, read_live, run_until

# done: made by the present version of the stage.
# stale: made by another version of the stage, from other images or with other settings.
# running: a process holds the lock of the run.
# failed: the log ends with an error.
# begun: none of these, but there is a log, or a state to continue from. Stages other than training
#     have no lock: those that are begun are running or were killed.
# waiting: there is nothing yet.
STATES = ("done", "running", "begun", "failed", "stale", "waiting")
OF_LOG = 4096  # bytes that are read at the end of a log
_STEPS = re.compile(r"^(?:training:|resumed at) step (\d+) of (\d+)(?:,.*)?$", re.M)
_ERROR = re.compile(r"[\w.]*(?:Error|Exception)\b.*|Killed.*")


@dataclass(frozen=True)
class StageStatus:
    """One stage of one cell. Training is at `step` of `steps`, where that is known."""

    state: str
    log: str | None = None
    error: str | None = None
    step: int | None = None
    steps: int | None = None
    live: LastValues | None = None


def run(*, experiment: Experiment, results: Path) -> dict[str, Any]:
    """The report on an experiment, ready for JSON.

    `cells`: id -> stage -> state (one of `STATES`), log, error, step, steps and, of training that
    is not done or has collapsed, `live` (see `LastValues`). `counts`: stage -> state -> number of
    cells. `tables`: file names of the experiment's tables that exist. `figures`: name -> whether it
    is drawn. `snakemake --dry-run` shows whether they are up to date.
    """
    _cached_json.cache_clear()
    everything = Results(results)
    cells = {
        identity: {
            stage: asdict(found) for stage, found in _stages(experiment, identity, everything)
        }
        for identity in experiment.plans
    }
    counts: dict[str, Counter[str]] = {}
    for stages in cells.values():
        for stage, found in stages.items():
            counts.setdefault(stage, Counter())[found["state"]] += 1
    folder = everything.experiment(experiment.name)
    return {
        "experiment": experiment.name,
        "counts": {stage: dict(found) for stage, found in counts.items()},
        "cells": cells,
        "tables": folder.tables(),
        "figures": {name: folder.figure(name).exists() for name in figures_of(experiment)},
    }


class FailedJob(NamedTuple):
    """A job whose log ends with an error."""

    stage: str
    log: Path
    error: str


def failed_jobs(results: Results, since: float) -> Iterator[FailedJob]:
    """The jobs of all stages that failed since that time (seconds since the epoch), oldest first.

    Only logs that were written since then are read.
    """
    written = []
    for log in results.logs.glob("*/*.log"):
        with suppress(OSError):  # Snakemake deletes the log of a job that it starts again
            written.append((log.stat().st_mtime, log))
    for when, log in sorted(written):
        if when >= since and (error := _last_error(_end_of(log))):
            yield FailedJob(log.parent.name, log, error)


def status_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report as text: counts, then one line per cell and one more for each error or log."""
    yield f"{report['experiment']}: {len(report['cells'])} cells"
    yield " ".join([f"{'stage':8}", *(f"{state:>8}" for state in STATES)])
    for stage, counts in report["counts"].items():
        yield " ".join([f"{stage:8}", *(f"{counts.get(state, 0):8d}" for state in STATES)])
    drawn = sum(report["figures"].values())
    yield f"{drawn} of {len(report['figures'])} figures are drawn"
    for identity, stages in report["cells"].items():
        yield f"{identity}  " + ", ".join(f"{s} {_words(found)}" for s, found in stages.items())
        for stage, found in stages.items():
            if found["error"]:
                yield f"    {stage}: {found['error']}"
            if found["state"] in ("running", "begun", "failed") and found["log"]:
                yield f"    {stage}: see {found['log']}"


def _words(found: Mapping[str, Any]) -> str:
    state: str = found["state"]
    if found["step"] is None or state == "done":
        collapsed = found["live"]["collapsed"] if found["live"] else {}
        return state + "".join(
            f"; {model} has collapsed: {collapsed[model]}" for model in collapsed
        )
    of = f" of {found['steps']}" if found["steps"] else ""
    said = f" ({LastValues(**found['live']).words()})" if found["live"] else ""
    return f"{state} at step {found['step']}{of}{said}"


def _stages(
    experiment: Experiment, identity: str, results: Results
) -> Iterator[tuple[str, StageStatus]]:
    plan = experiment.plans[identity]
    manifest = results.cell(identity).manifest(plan.until.slug)
    train = _training(identity, plan, manifest, results)
    yield "train", train
    tables = tables_of(experiment, manifest) if train.state == "done" else {}
    stages = ["measure", "theory"]
    for stage in OF_SOME_SWEEPS:
        if any(identity in batch for batch in experiment.batches_of(stage).values()):
            stages.append(stage)
    for stage in stages:
        yield stage, _short_stage(stage, experiment, identity, manifest, tables.get(stage), results)


def _training(identity: str, plan: Plan, manifest: Path, results: Results) -> StageStatus:
    folder = results.cell(identity).run
    log = results.log("train", cell=identity, until=plan.until.slug)
    named = str(log) if log.exists() else None
    made = _json(manifest)
    if made is not None:
        store = _store_content(results.store(plan.cell["dataset"]).manifest)
        current = made["made_by"]["version"] == VERSIONS["train"]
        current = current and store in (None, made["store"])
        state = "done" if current else "stale"
        ended = LastValues.of(_last_rows(folder, plan), made["steps"])
        live = ended if ended.collapsed else None
        return StageStatus(state, named, step=made["steps"], steps=made["steps"], live=live)
    text = _end_of(log)
    step, steps = _progress(text, folder)
    rows = _last_rows(folder, plan)
    if rows:
        step = max(step or 0, *(row.step for row in rows.values()))
        steps = steps or _stop(plan.until, next(iter(rows.values())))
    last = LastValues.of(rows, steps) if rows else None
    error = _last_error(text)
    if _locked(folder.lock):
        return StageStatus("running", named, None, step, steps, last)
    if error:
        return StageStatus("failed", named, error, step, steps, last)
    state = "begun" if named or step is not None else "waiting"
    return StageStatus(state, named, None, step, steps, last)


def _last_rows(folder: RunFolder, plan: Plan) -> dict[str, LiveRow]:
    rows = read_live(run_until(folder, plan.until.slug), TAIL)
    return latest(rows, plan.cell["objectives"])


def _stop(until: Duration, row: LiveRow) -> int | None:
    """The step where training stops, as far as a row of it tells."""
    return until.in_steps(round(row.step / row.epoch)) if row.epoch > 0 else None


def _short_stage(
    stage: str,
    experiment: Experiment,
    identity: str,
    manifest: Path,
    table: Path | None,
    results: Results,
) -> StageStatus:
    """The status of a stage that works in batches; `table` is None before training is done."""
    batches = experiment.batches_of(stage)
    batch = next(name for name, cells in batches.items() if identity in cells)
    made = _cached_json(results.experiment(experiment.name).list_of(stage, batch)) or {}
    if table is not None and table.exists():
        return StageStatus("done")
    if str(manifest) in made.get("tables", {}):
        return StageStatus("stale")
    if table is None:
        return StageStatus("waiting")
    # embed runs before measure in the same batch; its files may be deleted, but not its log.
    jobs = ("measure", "embed") if stage == "measure" else (stage,)
    for job in jobs:
        log = results.log(job, experiment=experiment.name, batch=batch)
        if log.exists():
            error = _last_error(_end_of(log))
            return StageStatus("failed" if error else "begun", str(log), error)
    return StageStatus("waiting")


def _locked(path: Path) -> bool:
    """Whether a process holds the lock of a run; False on file systems without locks.

    Raises InputError where the lock file is a symbolic link or a pipe.
    """
    try:
        with os.fdopen(open_lock(path, os.O_RDONLY)) as file:
            lock_file(file.fileno(), shared=True)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _progress(log: str, folder: RunFolder) -> tuple[int | None, int | None]:
    """The step of training, from its log or its resume state, and the step where it stops."""
    told = _STEPS.findall(log)
    done, steps = map(int, told[-1]) if told else (None, None)
    saved = [_saved_step(path) for path in (folder.state, folder.previous_state)]
    known = [step for step in (done, *saved) if step is not None]
    return (max(known) if known else None), steps


def _saved_step(path: Path) -> int | None:
    """The step of a resume state, from the header of the file: 8 bytes of length, then JSON."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        step: int = json.loads(header["__metadata__"]["cltools"])["step"]
    except (OSError, ValueError, KeyError, OverflowError, MemoryError):
        return None
    return step


def _end_of(log: Path) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - OF_LOG))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _last_error(text: str) -> str | None:
    """The last line of a log that reports an error."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if _ERROR.match(line)), None)


def _json(path: Path) -> Any:
    """The content of a JSON file, or None if the file is missing or damaged."""
    try:
        return read_json(path, made_by="")
    except (OSError, InputError):
        return None


@cache
def _cached_json(path: Path) -> Any:
    return _json(path)


def _store_content(path: Path) -> str | None:
    return (_cached_json(path) or {}).get("content")
