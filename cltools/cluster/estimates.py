"""Time and memory of jobs, from the cost of one training step. Imports quickly, for the rules.

`cltools bench` measures the costs, kind by kind; a kind is all cells whose steps cost the same.
Sizes are in MB of 10^6 bytes.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from cltools.cluster.arithmetic import network_size
from cltools.cluster.images import Images
from cltools.config.cells import canonical_cell
from cltools.config.durations import SECONDS_BETWEEN_SAVES, Duration
from cltools.config.schema import defaults
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json
from cltools.runtime.sealed import read_json

# Settings that do not change the time and memory of a step. Those for the length of a run and for
# what it keeps are here too, because they enter the estimate separately.
COST_FREE = (
    "base_batch", "checkpoints", "class_draw", "horizon", "key_momentum", "lr", "lr_rule",
    "lr_schedule", "seed", "tau", "trust_coefficient", "warmup", "weight_decay",
)  # fmt: skip
# What is assumed of machines, where nothing was benched: operations per second of a GPU such as an
# A100 in networks of these kinds (their memory limits them, not their arithmetic), and seconds of a
# core to read and decode a photograph of 500 x 375 pixels and to make one crop of it.
GPU_FLOPS = {"float32": 12e12, "tf32": 30e12, "bfloat16": 45e12}
FASTEST_GPU = 3  # times as fast: decoding has to keep up with it
SECONDS_TO_DECODE, SECONDS_TO_CROP = 2.3e-3, 1.15e-3
MOST_DECODING_CPUS = 16
# Columns of the training log, at 8 bytes each; parquet needs less.
LOG_COLUMNS = 14


@dataclass(frozen=True)
class Costs:
    """The measured costs of one kind of cell on one machine.

    A step and a save (of the resume state, in `state_mb`) are of all objectives together, and so
    are one checkpoint's weights and its float32 embeddings (of all training and test images).
    `seconds_per_epoch` is what the first step of an epoch takes more than the others: the epoch's
    order and views are drawn. `memory_mb` is the peak of the process in main memory,
    `gpu_memory_mb` that on the device, None without one.
    """

    steps_per_epoch: int
    seconds_per_step: float
    seconds_per_epoch: float
    seconds_per_save: float
    seconds_per_embedding: float
    memory_mb: float
    gpu_memory_mb: float | None
    weights_mb: float
    state_mb: float
    embedding_mb: float


class Needs(NamedTuple):
    """What a job requests from the scheduler: MB of main memory and minutes."""

    mem_mb: int
    runtime: int


class Run(NamedTuple):
    """A cell and where its training stops."""

    cell: Mapping[str, Any]
    until: Duration


# Requests of jobs that were not measured: enough for the papers' CIFAR cells.
TRAIN_DEFAULT = Needs(mem_mb=16000, runtime=1440)
EMBED_DEFAULT = Needs(mem_mb=16000, runtime=120)
MEASURE_DEFAULT = Needs(mem_mb=16000, runtime=480)
THEORY_DEFAULT = Needs(mem_mb=16000, runtime=120)
MERGE_DEFAULT = Needs(mem_mb=16000, runtime=240)
# Decoding photographs takes hours; images that are kept decoded must fit into memory.
PREPARE_ENCODED = Needs(mem_mb=6000, runtime=720)
PREPARE_DECODED = Needs(mem_mb=8000, runtime=60)
# Jobs request more than was measured: other jobs on the node and slow disks cost time, and starting
# Python, reading images and writing files are not part of a step.
MARGIN = 1.5
STARTING = Needs(mem_mb=500, runtime=10)


def kind_of(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a resolved cell that decide the cost of a step, without those at defaults."""
    settings = json.loads(canonical_cell(cell))
    return {key: value for key, value in settings.items() if key not in COST_FREE}


def checkpoint_steps(run: Run, steps_per_epoch: int) -> list[int]:
    """The steps at which a run keeps weights, including its end."""
    stop = run.until.in_steps(steps_per_epoch)
    kept = {Duration.parse(c).in_steps(steps_per_epoch) for c in run.cell["checkpoints"]}
    return sorted({step for step in kept if step < stop} | {stop})


def training_seconds(costs: Costs, run: Run) -> float:
    """Seconds of training a cell, including saves."""
    steps = run.until.in_steps(costs.steps_per_epoch)
    epochs = math.ceil(steps / costs.steps_per_epoch)
    seconds = steps * costs.seconds_per_step + epochs * costs.seconds_per_epoch
    checkpoints = len(checkpoint_steps(run, costs.steps_per_epoch))
    saves = seconds / SECONDS_BETWEEN_SAVES + checkpoints + 1
    return seconds + saves * costs.seconds_per_save


def disk_mb(costs: Costs, run: Run, embedding_bytes: int = 0) -> float:
    """Size in MB of a trained cell's folder: weights, resume state and log.

    At its horizon the state is without the slots of the optimizers: the networks, nearly. While the
    cell trains there are two whole ones. `embedding_bytes` is the size of a stored number (4 or 2)
    where embeddings are kept, else 0.
    """
    checkpoints = len(checkpoint_steps(run, costs.steps_per_epoch))
    rows = run.until.in_steps(costs.steps_per_epoch) * len(run.cell["objectives"])
    log = rows * LOG_COLUMNS * 8 / 1e6
    per_checkpoint = costs.weights_mb + costs.embedding_mb * embedding_bytes / 4
    at_horizon = run.until == Duration.parse(run.cell["horizon"])
    state = min(costs.state_mb, costs.weights_mb) if at_horizon else costs.state_mb
    return checkpoints * per_checkpoint + state + log


def train_needs(costs: Costs | None, run: Run, attempt: int = 1) -> Needs:
    """What the training job of a cell requests; a second attempt requests twice as much."""
    if costs is None:
        return _times(TRAIN_DEFAULT, attempt)
    return _needs(costs.memory_mb, training_seconds(costs, run), attempt)


def decoding_cpus(
    cell: Mapping[str, Any], images: Images, workers: int | None = None, gpus: int = 1
) -> int:
    """Cores that decode images while `gpus` GPUs train a resolved cell; 0 if nothing is decoded.

    `workers` is the config's key. Without it there are as many as a fast GPU keeps busy.
    """
    if not images.encoded:
        return 0
    if workers is not None:
        return workers
    size = network_size(cell, images.side, images.channels)
    flops = 3 * cell["views"] * len(cell["objectives"]) * size.flops  # forward and backward
    seconds = flops / (FASTEST_GPU * GPU_FLOPS[cell["precision"]] * gpus)
    return _cores((SECONDS_TO_DECODE + cell["views"] * SECONDS_TO_CROP) / seconds)


def _cores(wanted: float) -> int:
    return min(MOST_DECODING_CPUS, max(1, math.ceil(wanted)))


Work = Iterable[tuple[Costs | None, Run]]  # the cells that a job works through, one after another


def embed_needs(work: Work, attempt: int = 1) -> Needs:
    """What a job that embeds these cells requests.

    A checkpoint's embeddings are held three times while they are put together and written.
    """
    return _of_cells(
        work,
        EMBED_DEFAULT,
        lambda costs: costs.memory_mb + 3 * costs.embedding_mb,
        lambda costs, run: _checkpoints(costs, run) * costs.seconds_per_embedding,
        attempt,
    )


def measure_needs(work: Work, attempt: int = 1) -> Needs:
    """What a job that measures these cells requests.

    Embeddings are held as they were read, by split, and as float64 while they are compared. What
    measuring takes is not benched: the time is the default, whatever their number.
    """
    needs = _of_cells(
        work,
        MEASURE_DEFAULT,
        lambda costs: costs.memory_mb + 4 * costs.embedding_mb,
        lambda costs, run: 0.0,
        attempt,
    )
    return needs._replace(runtime=MEASURE_DEFAULT.runtime * attempt)


def theory_needs(work: Work, settings: Mapping[str, Any], attempt: int = 1) -> Needs:
    """What a job that works out the bounds of these cells requests; `settings` are the config's.

    A Hessian-vector product takes three times what a network's part of a training step takes, and
    is made for two networks. Its graph is held twice.
    """

    def seconds(costs: Costs, run: Run) -> float:
        at = _checkpoints(costs, run) if settings["curvature_at"] == "all" else 2
        network: float = costs.seconds_per_step / len(run.cell["objectives"])
        network *= min(1, settings["curvature_images"] / run.cell["batch_size"])
        return float(at * settings["power_iterations"] * 2 * 3 * network)

    return _of_cells(work, THEORY_DEFAULT, lambda costs: 2 * costs.memory_mb, seconds, attempt)


def merge_needs(work: Work, settings: Mapping[str, Any], attempt: int = 1) -> Needs:
    """What a job that merges the networks of these cells requests; `settings` are the config's.

    A network on the line sees the plain training images twice and the test images once, which is
    less than the plain images and views of all networks that an embedded checkpoint stands for.
    The probe of each is not benched: it has the margin and the time of the default.
    """
    needs = _of_cells(
        work,
        MERGE_DEFAULT,
        lambda costs: costs.memory_mb + costs.embedding_mb,
        lambda costs, run: settings["points"] * len(settings["with"]) * costs.seconds_per_embedding,
        attempt,
    )
    return needs._replace(runtime=max(needs.runtime, MERGE_DEFAULT.runtime * attempt))


def prepare_needs(definition: Mapping[str, Any], attempt: int = 1) -> Needs:
    """What a job that makes the store of a data set requests."""
    return _times(PREPARE_ENCODED if definition.get("encoded") else PREPARE_DECODED, attempt)


def _of_cells(
    work: Work,
    default: Needs,
    memory_mb: Callable[[Costs], float],
    seconds: Callable[[Costs, Run], float],
    attempt: int,
) -> Needs:
    """Memory of the largest cell, time of all; the default where one is not benched."""
    work = list(work)
    benched = [(costs, run) for costs, run in work if costs is not None]
    if len(benched) < len(work):
        return _times(default, attempt)
    memory = max(memory_mb(costs) for costs, _ in benched)
    return _needs(memory, sum(seconds(costs, run) for costs, run in benched), attempt)


def _checkpoints(costs: Costs, run: Run) -> int:
    return len(checkpoint_steps(run, costs.steps_per_epoch))


def _needs(memory_mb: float, seconds: float, attempt: int) -> Needs:
    once = Needs(
        mem_mb=math.ceil(MARGIN * memory_mb + STARTING.mem_mb),
        runtime=math.ceil(MARGIN * seconds / 60 + STARTING.runtime),
    )
    return _times(once, attempt)


def grows(amount: int) -> Callable[[Any, int], int]:
    """A rule's resource that is `amount` at the first attempt, twice that at the second."""
    return lambda wildcards, attempt: amount * attempt


def _times(needs: Needs, attempt: int) -> Needs:
    return Needs(needs.mem_mb * attempt, needs.runtime * attempt)


class Bench:
    """The costs in a file of `cltools bench`, by kind of cell; empty without a file.

    Raises InputError when the file is missing or is not one.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self._costs: dict[str, Costs] = {}
        if path is None:
            return
        content = read_json(Path(path), made_by="cltools bench CONFIG --output FILE")
        try:
            for entry in content["kinds"]:
                self._costs[canonical_json(entry["kind"])] = _costs(entry["costs"])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{path} is not a file of `cltools bench`: make it again with --output"
            ) from None

    def of(self, cell: Mapping[str, Any]) -> Costs | None:
        """The costs of a cell's kind, None where it was not measured."""
        return self._costs.get(canonical_json(kind_of(cell))) if self._costs else None


def _costs(entry: Mapping[str, Any]) -> Costs:
    """Costs from JSON; raises KeyError, TypeError or ValueError for what are none."""
    values = {field.name: entry[field.name] for field in fields(Costs)}
    numbers = [v for name, v in values.items() if v is not None or name != "gpu_memory_mb"]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError("costs must be numbers from 0 on")
    if values["steps_per_epoch"] < 1:
        raise ValueError("an epoch has at least one step")
    return Costs(**values)


def describe(kind: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()) -> str:
    """A kind in words: its main settings, and those in which it differs from the others."""
    cell = {**defaults(), **kind}
    classes = "all" if cell["classes"] is None else cell["classes"]
    main = ("dataset", "classes", "architecture", "batch_size", "objectives")
    differing = {key for other in others for key in ({*kind, *other} - {*main})
                 if other.get(key) != kind.get(key)}  # fmt: skip
    words = [
        f"{cell['dataset']} C={classes} {cell['architecture']} B={cell['batch_size']}",
        "+".join(cell["objectives"]),
        *(f"{key}={canonical_json(cell[key])}" for key in sorted(differing)),
    ]
    return " ".join(words)
