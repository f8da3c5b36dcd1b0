"""How long all stages of an experiment take. Imports quickly.

The times are those of `estimates`, job by job, with the start of each process. They are coarse: a
machine is assumed where nothing was benched, and the figures and short stages take as long as
those of the default experiment did.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cltools.cluster.estimates import (
    ON_CPU,
    ON_GPU,
    Bench,
    Machine,
    Run,
    Task,
    embed_seconds,
    layers_seconds,
    measure_seconds,
    merge_seconds,
    prepare_seconds,
    theory_seconds,
    train_seconds,
)
from cltools.cluster.images import images_of_cell, images_of_set
from cltools.config.experiment import OF_SOME_SWEEPS, Experiment

STARTING_SECONDS = 4.0  # of a process, until it has imported torch
FIGURE_SECONDS = 2.0
SHORT_STAGE_SECONDS = 10.0  # of one that trains no cells, and of those that join all tables
SHORT_STAGES = ("surrogate", "minimise", "regularity", "project")
OF_CELLS = ("train", "embed", "measure", "theory", *OF_SOME_SWEEPS)
StoreManifest = Callable[[str], Path]  # name of a store -> its store.json, made or not


class Job(NamedTuple):
    """A job of a stage and about how long it takes."""

    stage: str
    seconds: float


class Todo(NamedTuple):
    """What is to be done: stores to make, the cells of each stage of OF_CELLS, figures to draw."""

    stores: Collection[str]
    cells: Mapping[str, Collection[str]]
    figures: int

    @classmethod
    def all_of(cls, experiment: Experiment, figures: int) -> "Todo":
        """Everything; an experiment has so many figures."""
        cells = {
            stage: [cell for batch in experiment.batches_of(stage).values() for cell in batch]
            for stage in OF_CELLS
        }
        return cls(list(experiment.stores), cells, figures)


def machine_here(gpus: int) -> Machine:
    """What is assumed of this machine, if it has so many GPUs."""
    return ON_GPU if gpus else ON_CPU


def tasks_of(
    experiment: Experiment, store_manifest: StoreManifest, bench: Bench
) -> dict[str, Task]:
    """The cells of an experiment as the estimates know them, with the costs that were benched."""
    found = {}
    for cell, plan in experiment.plans.items():
        store = plan.cell["dataset"]
        images = images_of_cell(plan.cell, experiment.stores[store], store_manifest(store))
        found[cell] = Task(bench.of(plan.cell), Run(plan.cell, plan.until), images)
    return found


def jobs_of(
    experiment: Experiment,
    tasks: Mapping[str, Task],
    todo: Todo,
    machine: Machine,
    store_manifest: StoreManifest,
) -> list[Job]:
    """The jobs that do what is to be done, in the order of the stages."""
    settings = {stage: experiment.settings_of(stage) for stage in ("theory", *OF_SOME_SWEEPS)}
    full_at = experiment.setting("measure", "full_at")
    precision = experiment.setting("embedding_precision")
    seconds: dict[str, Callable[[Task], float]] = {
        "train": lambda task: train_seconds(task, machine),
        "embed": lambda task: embed_seconds(task, precision, machine),
        "measure": lambda task: measure_seconds(task, full_at, machine),
        "theory": lambda task: theory_seconds(task, settings["theory"], machine),
        "merge": lambda task: merge_seconds(task, settings["merge"], machine),
        "layers": lambda task: layers_seconds(task, settings["layers"], machine),
    }
    jobs = [
        Job("prepare", STARTING_SECONDS + prepare_seconds(images_of_set(about, path)))
        for about, path in ((experiment.stores[name], store_manifest(name)) for name in todo.stores)
    ]
    for stage, of_task in seconds.items():
        one_by_one = {cell: [cell] for cell in experiment.plans}
        batches = one_by_one if stage == "train" else experiment.batches_of(stage)
        for batch in batches.values():
            left = [of_task(tasks[cell]) for cell in batch if cell in todo.cells[stage]]
            jobs += [Job(stage, STARTING_SECONDS + sum(left))] if left else []
    if todo.figures:
        short = [stage for stage in SHORT_STAGES if stage in experiment.config]
        jobs += [Job(stage, SHORT_STAGE_SECONDS) for stage in short]
        jobs += [Job("plot", FIGURE_SECONDS)] * todo.figures
        jobs.append(Job("report", SHORT_STAGE_SECONDS))  # with the tables of all cells, and claims
    return jobs


def by_stage(jobs: Iterable[Job]) -> dict[str, float]:
    """Seconds of all jobs of each stage, one after another."""
    found: dict[str, float] = defaultdict(float)
    for job in jobs:
        found[job.stage] += job.seconds
    return dict(found)


def side_by_side(jobs: Collection[Job], at_once: int) -> float:
    """Seconds that jobs take if so many run at a time: no less than the longest of them."""
    total = sum(job.seconds for job in jobs)
    return max([total / max(1, at_once), *(job.seconds for job in jobs)])
