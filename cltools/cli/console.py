"""What a run of Snakemake says at its start and at its end; the rules call it, and print it."""

import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cltools.cluster.estimates import Bench
from cltools.cluster.forecast import (
    OF_CELLS,
    Todo,
    by_stage,
    jobs_of,
    machine_here,
    side_by_side,
    tasks_of,
)
from cltools.config.experiment import Experiment
from cltools.layout import Results
from cltools.runtime.gpus import gpu_count
from cltools.runtime.progress import rough_time
from cltools.runtime.words import number_of
from cltools.stages import status

MOST_FAILURES = 5  # that are told apart at the end
MOST_STAGES = 3  # that are named as those which take longest
Report = Mapping[str, Any]  # of `cltools status`


class Started(NamedTuple):
    """How Snakemake was started.

    cores: jobs at a time on this machine; None on a cluster.
    configs: its config files, with whole paths. changed: whether --config changes them.
    folder: where the command was typed, which --directory may have left.
    """

    cores: int | None
    configs: Sequence[Path]
    changed: bool
    folder: Path


def start_lines(experiment: Experiment, results: Path, started: Started) -> Iterator[str]:
    """Cells, how long what is left will take, and how to watch it."""
    report = status.run(experiment=experiment, results=results)
    cells, finished = report["cells"], _finished(report)
    yield (
        f"{experiment.name}: {number_of(len(cells), 'cell')}, {finished or 'none'} finished; "
        f"{number_of(len(report['figures']), 'figure')}"
    )
    yield from _time_lines(experiment, results, report, started.cores)
    yield from _watch_lines(results, started)


def end_lines(experiment: Experiment, results: Path) -> Iterator[str]:
    """Where the report is, or that there is none yet."""
    report = status.run(experiment=experiment, results=results)
    made, finished = Results(results).experiment(experiment.name), _finished(report)
    if not made.report.exists():
        yield f"{experiment.name}: {finished} of {number_of(len(report['cells']), 'cell')} finished"
        yield "What you asked for is made. The report needs the other stages, too."
        return
    drawn = sum(report["figures"].values())
    yield f"{experiment.name} is done: {number_of(finished, 'cell')}, {number_of(drawn, 'figure')}"
    yield f"Report:  {made.report.absolute()}"
    yield f"Figures: {made.figures.absolute()}"


def failure_lines(results: Path, since: float, log: Sequence[str] = ()) -> Iterator[str]:
    """Which jobs failed, why, and the logs to read.

    `since` is when the run began, in seconds since the epoch: older logs are of earlier runs. `log`
    are Snakemake's own, for errors that no job has.
    """
    failures = list(status.failed_jobs(Results(results), since))
    yield f"{number_of(len(failures), 'job')} failed" if failures else "The run failed"
    for failure in failures[:MOST_FAILURES]:
        yield f"  {failure.stage}: {failure.error}"
        yield f"    read {failure.log.absolute()}"
    if (left := len(failures) - MOST_FAILURES) > 0:
        yield f"  and {left} more, with logs in {Results(results).logs.absolute()}"
    if not failures:
        yield from (f"  read {path}" for path in log)
    yield "All that is finished is kept: start the same command again to go on."


class OneLinePerJob(logging.Filter):
    """Of what Snakemake logs of jobs, show one line for each that is done; errors as they are.

    It knows records by their `event`, as Snakemake's logger plugins do. `say` logs a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say
        self._names: dict[int, str] = {}
        self._done: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown as it is."""
        event = getattr(getattr(record, "event", None), "value", None)
        about = record.__dict__
        if event == "job_info":
            names = [v for k, v in dict(about["wildcards"] or {}).items() if k != "experiment"]
            self._names[about["jobid"]] = " ".join([about["rule_name"], *map(str, names)])
        elif event == "job_finished":
            self._done.append(self._names.get(about["job_id"], "all"))
        elif event == "progress":
            done, self._done = ", ".join(self._done), []
            self._say(f"{time.strftime('%H:%M')}  {about['done']} of {about['total']} jobs: {done}")
        else:
            return event != "job_started" and record.getMessage() != "Select jobs to execute..."
        return False


def _finished(report: Report) -> int:
    """Cells of which every stage is done."""
    cells: Mapping[str, Mapping[str, Any]] = report["cells"]
    return sum(all(s["state"] == "done" for s in stages.values()) for stages in cells.values())


def _time_lines(
    experiment: Experiment, results: Path, report: Report, cores: int | None
) -> Iterator[str]:
    where, gpus = Results(results), gpu_count() if cores else 1
    bench = Bench(experiment.config.get("bench"))
    tasks = tasks_of(experiment, lambda name: where.store(name).manifest, bench)
    todo = _todo(experiment, where, report)
    jobs = jobs_of(
        experiment, tasks, todo, machine_here(gpus), lambda name: where.store(name).manifest
    )
    if not jobs:
        return
    stages = by_stage(jobs)
    longest = sorted(stages, key=stages.__getitem__, reverse=True)[:MOST_STAGES]
    total = sum(stages.values())
    parts = ", ".join(f"{stage} {stages[stage] / total:.0%}" for stage in longest)
    if cores is None:
        yield (
            f"About {rough_time(total)} of jobs to go (mostly {parts}), side by side as the "
            "cluster allows"
        )
    else:
        places = _places(experiment, cores, gpus)
        on = number_of(gpus, "GPU") if gpus else number_of(cores, "core")
        yield f"About {rough_time(side_by_side(jobs, places))} to go on {on} (mostly {parts})"
    benched = all(task.costs is not None for task in tasks.values())
    yield (
        "Estimated from the times in the file of the config key bench"
        if benched
        else "A rough estimate from the amount of work: half or twice as long is possible"
    )


def _places(experiment: Experiment, cores: int, gpus: int) -> int:
    """Jobs that run at a time."""
    threads = max(int(plan.cell["threads"]) for plan in experiment.plans.values())
    places = max(1, cores // threads)
    if not gpus:
        return places
    cells: int = gpus * experiment.setting("cells_per_gpu") // experiment.setting("gpus_per_cell")
    return max(1, min(places, cells))


def _todo(experiment: Experiment, where: Results, report: Report) -> Todo:
    """What is not done yet; embeddings are made for what is to be measured."""

    def left(stage: str) -> list[str]:
        reported = "measure" if stage == "embed" else stage
        return [
            cell
            for cell, stages in report["cells"].items()
            if reported in stages and stages[reported]["state"] != "done"
        ]

    stores = [name for name in experiment.stores if not where.store(name).manifest.exists()]
    figures = len(report["figures"])  # all are drawn again when a cell is new
    if _finished(report) == len(report["cells"]):
        figures -= sum(report["figures"].values())
    return Todo(stores, {stage: left(stage) for stage in OF_CELLS}, figures)


def _watch_lines(results: Path, started: Started) -> Iterator[str]:
    """The commands, as they can be typed where Snakemake was started."""
    program = "uv run cltools" if "UV" in os.environ else "cltools"
    config = "CONFIG"
    if len(started.configs) == 1 and not started.changed:
        (path,) = started.configs
        inside = path.is_relative_to(started.folder)
        config = shlex.quote(str(path.relative_to(started.folder) if inside else path))
    usual = (started.folder / Results().path).resolve() == results.resolve()
    there = "" if usual else f" --results {shlex.quote(str(results.absolute()))}"
    yield f"Watch it from another terminal: {program} watch {config}{there}"
    yield f"See what is done, cell by cell: {program} status {config}{there}"
    if config == "CONFIG":
        yield "CONFIG is one file with all settings of this run"
