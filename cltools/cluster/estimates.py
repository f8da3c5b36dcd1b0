"""Time, memory and cores of jobs. Imports quickly, for the rules.

`cltools bench` measures what a training step costs, kind by kind; a kind is all cells whose steps
cost the same. Jobs of kinds that were not benched are sized from images x features x objectives x
checkpoints and the arithmetic of the networks, for the machine that the constants below describe.
Sizes are in MB of 10^6 bytes.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from cltools.cluster.arithmetic import NetworkSize, network_size
from cltools.cluster.images import PHOTOGRAPH_BYTES, Images
from cltools.config.cells import canonical_cell
from cltools.config.durations import Duration, saves_in
from cltools.config.projectors import projector_widths, z_width
from cltools.config.schema import defaults
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json
from cltools.runtime.sealed import read_json

# Settings that do not change the time and memory of a step. Those for the length of a run and for
# what it keeps are here too, because they enter the estimate separately.
COST_FREE = (
    "base_batch", "checkpoints", "class_draw", "horizon", "key_momentum", "lr", "lr_rule",
    "lr_schedule", "objective_settings", "seed", "tau", "trust_coefficient", "warmup",
    "weight_decay",
)  # fmt: skip
# What is assumed of machines, where nothing was benched: operations per second of a GPU such as an
# A100 in networks of these kinds (their memory limits them, not their arithmetic), and seconds of a
# core to read and decode a photograph of 500 x 375 pixels and to make one crop of it.
GPU_FLOPS = {"float32": 12e12, "tf32": 30e12, "bfloat16": 45e12}
FASTEST_GPU = 3  # times as fast: decoding has to keep up with it
SECONDS_TO_DECODE, SECONDS_TO_CROP = 2.3e-3, 1.15e-3
MOST_DECODING_CPUS = 16
# Operations a second of a CPU's thread in products of matrices and in networks, and of a GPU in
# products of float64; bytes a second of a disk.
CPU_FLOPS, GPU_FLOPS_OF_MEASURES, DISK_BYTES = 30e9, 5e12, 2e8
SECONDS_PER_STEP = 0.02  # at least, of training: so long does Python take to start all kernels
# Seconds of a CPU up to which a stage is worth no job of its own, and from which it is worth a GPU.
SHORT, LONG = 300, 3600
# What `measure` does, as counts: draws of nulls and intervals from a sample of at most so many
# images, steps of the linear probe and of the few-shot probes, and labeled images of a class that
# the latter have in all their draws.
DRAWS, LARGEST_SAMPLE, PROBE_STEPS = 200, 4096, 500
LARGEST_SUMS = 4 << 30  # bytes of products that `layers` sums up in one pass
FEW_SHOT_STEPS, FEW_SHOT_IMAGES = 200, 5 * 2 * 686
READS_OF_FEATURES, CACHED_BYTES = 20, 2e9  # how often, and bytes a second: files are cached
MB = 1e6
NETWORK_MB = 2000  # of networks that `embed` holds at a time
PREPARING_CPUS = 8
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


class Machine(NamedTuple):
    """What is assumed of the machine that runs a stage, where nothing was benched.

    networks: operations per second in networks, by precision. measures: the same in products of
    float64. step: seconds that a training step takes at least.
    """

    networks: Mapping[str, float]
    measures: float
    step: float


ON_GPU = Machine(GPU_FLOPS, GPU_FLOPS_OF_MEASURES, SECONDS_PER_STEP)
ON_CPU = Machine(dict.fromkeys(GPU_FLOPS, CPU_FLOPS), CPU_FLOPS, SECONDS_PER_STEP)  # one thread


# Jobs request more than was measured: other jobs on the node and slow disks cost time, and starting
# Python, reading images and writing files are not part of a step.
MARGIN = 1.5
STARTING = Needs(mem_mb=500, runtime=10)
# Of jobs that were not benched: what Python, torch and CUDA take of main memory, and the shortest
# time, since the machine may be much slower than assumed, or have no GPU.
LIBRARIES_MB = 2500
SHORTEST = 60


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
    saves = saves_in(seconds) + checkpoints + 1
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


class Task(NamedTuple):
    """One of the cells that a job works through: its costs, None if not benched, and its images."""

    costs: Costs | None
    run: Run
    images: Images


Work = Iterable[Task]


def train_needs(task: Task, attempt: int = 1) -> Needs:
    """What the training job of a cell requests; a second attempt requests twice as much."""
    if task.costs is not None:
        return _needs(task.costs.memory_mb, train_seconds(task), attempt)
    cell, size = task.run.cell, _size(task)
    # The resume state, with its copy while it is saved: weights, and the slots of the optimizer.
    state = 2 * 2 * 4 * size.parameters * len(cell["objectives"])
    decoded = cell["batch_size"] * (1 + cell["views"]) * 3 * _pixels(task.images)
    memory = _images_mb(task.images) + (state + decoded) / MB
    return _assumed(memory, train_seconds(task), attempt)


def train_seconds(task: Task, machine: Machine = ON_GPU) -> float:
    """About how long a cell trains."""
    if task.costs is not None:
        return training_seconds(task.costs, task.run)
    cell = task.run.cell
    steps = task.run.until.in_steps(_steps_per_epoch(task))
    views = cell["batch_size"] * cell["views"] * len(cell["objectives"])
    forward_and_backward = 3 * views * _size(task).flops / machine.networks[cell["precision"]]
    return float(steps * max(forward_and_backward, machine.step))


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


def embedding_cpus(work: Work, precision: str = "float32", workers: int | None = None) -> int:
    """Cores that a job which embeds these cells requests: those that decode, at least one.

    `precision` and `workers` are the config's `embedding_precision` and `workers`.
    """
    encoded = [task for task in work if task.images.encoded]
    if encoded and workers is not None:
        return workers
    wanted = [
        _decoding_seconds(task) * FASTEST_GPU / _forward_seconds(task, precision)
        for task in encoded
    ]
    return _cores(max(wanted, default=1))


def embed_needs(work: Work, precision: str = "float32", attempt: int = 1) -> Needs:
    """What a job that embeds these cells requests; `precision` is the config's for embedding.

    Memory: the images, and the networks of all checkpoints as far as they are held together.
    Embeddings are written block by block, and what layers put out is on the GPU.
    """

    def memory(task: Task) -> float:
        networks = min(NETWORK_MB, _networks(task) * 4 * _size(task).parameters / MB)
        if task.costs is not None:
            return task.costs.memory_mb + networks
        return _images_mb(task.images) + networks

    return _of_cells(work, memory, lambda task: embed_seconds(task, precision), attempt)


def embed_seconds(task: Task, precision: str = "float32", machine: Machine = ON_GPU) -> float:
    """About how long one process embeds a cell at all its checkpoints."""
    if task.costs is not None:
        return float(_checkpoints(task) * task.costs.seconds_per_embedding)
    written = _networks(task) * _numbers(task) * 4 / DISK_BYTES
    cpus = embedding_cpus([task], precision)
    forward = _forward_seconds(task, precision, machine)
    return forward + _decoding_seconds(task) / cpus + written


def measure_needs(work: Work, full_at: str, on_gpu: bool, attempt: int = 1) -> Needs:
    """What a job that measures these cells requests; `full_at` is the config's.

    Memory: embeddings are read in blocks. What is held are d x d sums for each pair of objectives,
    each objective with its start, and each alone, before and after class means are removed; the
    sums of each class; and, for the linear probe, the features of one objective.
    """

    def memory(task: Task) -> float:
        d, count = _size(task).features, len(task.run.cell["objectives"])
        sums = 2 * (count * (count + 3) / 2) * 8 * d**2
        classes = 8 * task.images.classes * d * count
        return (sums + classes + 4 * task.images.both * d) / MB

    machine = ON_GPU if on_gpu else ON_CPU
    return _of_cells(
        work, memory, lambda task: measure_seconds(task, full_at, machine), attempt, benched=False
    )


def measure_seconds(task: Task, full_at: str, machine: Machine) -> float:
    """About how long one process measures a cell, with the reading of its embeddings."""
    read = READS_OF_FEATURES * _networks(task) * _numbers(task) * 4 / CACHED_BYTES
    return read + cpu_seconds_of_measuring(task, full_at) * CPU_FLOPS / machine.measures


def cpu_seconds_of_measuring(task: Task, full_at: str) -> float:
    """About how long one thread measures a cell."""
    features = _size(task).features
    return measuring_seconds(task.run.cell, task.images, features, _checkpoints(task), full_at)


def measuring_seconds(
    cell: Mapping[str, Any], images: Images, features: int, checkpoints: int, full_at: str
) -> float:
    """About how long one thread measures so many checkpoints of a cell; h has so many features."""
    full = checkpoints if full_at == "all" else 1
    each, in_full = (_seconds_of_products(cell, images, features, f) for f in (False, True))
    return (checkpoints - full) * each + full * in_full


def _seconds_of_products(
    cell: Mapping[str, Any], images: Images, features: int, full: bool
) -> float:
    """What the products of one checkpoint take."""
    objectives, views, dim = len(cell["objectives"]), cell["views"], z_width(cell, features)
    flops = 0.0
    for n in (images.train, images.test):
        # Sums of products for all pairs of objectives and starts, centered and by class.
        flops += 2 * n * (features**2 + dim**2) * 4 * objectives**2
        # Losses of the whole set at two temperatures, also with three other labelings.
        flops += 2 * 2 * (views * n) ** 2 * dim * objectives * (4 if full else 1)
        flops += 2 * n**2 * dim * objectives  # uniformity
    if full:
        sampled = min(images.train, LARGEST_SAMPLE)
        flops += 2 * 4 * sampled**2 * DRAWS * objectives  # nulls and intervals, both splits
        for d in (features, dim):
            flops += 2 * images.train * images.test * d * objectives  # nearest neighbors
            once = 4 * d * images.classes * objectives  # of one image, in a step of a linear probe
            flops += once * PROBE_STEPS * images.train
            flops += once * FEW_SHOT_STEPS * FEW_SHOT_IMAGES * images.classes
    return flops / CPU_FLOPS


def theory_needs(work: Work, settings: Mapping[str, Any], attempt: int = 1) -> Needs:
    """What a job that works out the bounds of these cells requests; `settings` are the config's.

    A Hessian-vector product takes three times what a network's part of a training step takes, and
    is made for two networks. Its graph is held twice; that of a job that was not benched is on the
    GPU.
    """

    def memory(task: Task) -> float:
        if task.costs is not None:
            return 2 * task.costs.memory_mb
        return _images_mb(task.images) + 4 * 4 * _size(task).parameters / MB

    return _of_cells(work, memory, lambda task: theory_seconds(task, settings), attempt)


def theory_seconds(task: Task, settings: Mapping[str, Any], machine: Machine = ON_GPU) -> float:
    """About how long the products of `theory_needs` take for one cell."""
    cell, images = task.run.cell, settings["curvature_images"]
    at = _checkpoints(task) if settings["curvature_at"] == "all" else 2
    if task.costs is not None:
        network = task.costs.seconds_per_step / len(cell["objectives"])
        network *= min(1, images / cell["batch_size"])
    else:
        network = 3 * images * cell["views"] * _size(task).flops / machine.networks["float32"]
        network = max(network, machine.step)
    return float(at * settings["power_iterations"] * 2 * 3 * network)


def merge_needs(work: Work, settings: Mapping[str, Any], attempt: int = 1) -> Needs:
    """What a job that merges the networks of these cells requests; `settings` are the config's.

    A network on the line sees the plain training images twice and the test images once, which is
    less than the plain images and views of all networks that an embedded checkpoint stands for.
    Each has a linear probe, which a CPU fits.
    """

    def memory(task: Task) -> float:
        features = 3 * 4 * task.images.both * _size(task).features / MB  # h, twice as it is sorted
        held = _images_mb(task.images) if task.costs is None else task.costs.memory_mb
        return held + features

    return _of_cells(work, memory, lambda task: merge_seconds(task, settings), attempt)


def merge_seconds(task: Task, settings: Mapping[str, Any], machine: Machine = ON_GPU) -> float:
    """About how long the points of `merge_needs` take for one cell."""
    points = settings["points"] * len(settings["with"])
    size = _size(task)
    probe = 4 * size.features * task.images.classes * PROBE_STEPS * task.images.train
    if task.costs is not None:
        network = task.costs.seconds_per_embedding
    else:
        network = 3 * task.images.both * size.flops / machine.networks["float32"]
        network += 3 * task.images.both * _seconds_to_decode(task.images, 0)
    return float(points * (network + probe / CPU_FLOPS))


def layers_needs(work: Work, settings: Mapping[str, Any], attempt: int = 1) -> Needs:
    """What a job that compares the layers of these cells requests; `settings` are the config's.

    Images pass through all networks, and the products of layers are summed up on a GPU: of the same
    layers at each checkpoint, of every two layers at the last one.
    """

    def memory(task: Task) -> float:
        sums = min(LARGEST_SUMS, 8 * sum(_widths(task)) ** 2)
        held = _images_mb(task.images) if task.costs is None else task.costs.memory_mb
        return held + sums / MB

    return _of_cells(
        work, memory, lambda task: layers_seconds(task, settings), attempt, benched=False
    )


def layers_seconds(task: Task, settings: Mapping[str, Any], machine: Machine = ON_GPU) -> float:
    """About how long the products of `layers_needs` take for one cell."""
    images = task.images.test if settings["split"] == "test" else task.images.train
    widths, objectives = _widths(task), len(task.run.cell["objectives"])
    checkpoints = _checkpoints(task) if settings["at"] == "all" else 2
    networks = checkpoints * objectives
    forward = networks * images * _size(task).flops / machine.networks["float32"]
    decoded = checkpoints * images * _seconds_to_decode(task.images, 0)
    same = 3 * 2 * networks * sum(w**2 for w in widths)
    every = 2 * 2 * objectives * sum(widths) ** 2
    read = 2 * 4 * networks * images * sum(widths) / DISK_BYTES
    return forward + decoded + read + images * (same + every) / machine.measures


def _widths(task: Task) -> list[int]:
    """Of what every layer of a network puts out, projector included."""
    size = _size(task)
    after = projector_widths(task.run.cell, size.features)[1:]  # of a projector's layers
    return [*size.widths, *(after or [size.features])]


def prepare_needs(images: Images, attempt: int = 1) -> Needs:
    """What a job that makes the store of a data set requests.

    Images that are kept decoded are held in memory, twice as they are sorted; those that stay
    encoded are read once and decoded once, to see that they can be.
    """
    memory = 2 * LIBRARIES_MB if images.encoded else 3 * _images_mb(images)
    return _assumed(memory, prepare_seconds(images), attempt)


def prepare_seconds(images: Images) -> float:
    """About how long it takes to make the store of a data set, without a download."""
    if not images.encoded:
        return images.both * 1e-3
    read = images.both * PHOTOGRAPH_BYTES / DISK_BYTES
    return read + images.both * _seconds_to_decode(images, 1) / PREPARING_CPUS


def prepare_cpus(images: Images, workers: int | None = None) -> int:
    """Cores that decode in such a job, at least one."""
    return (workers or PREPARING_CPUS) if images.encoded else 1


def _of_cells(
    work: Work,
    memory_mb: Callable[[Task], float],
    seconds: Callable[[Task], float],
    attempt: int,
    benched: bool = True,
) -> Needs:
    """Memory of the largest cell, time of all. `benched`: whether benched costs say both."""
    work = list(work)
    memory, time = max(map(memory_mb, work)), sum(map(seconds, work))
    if benched and all(task.costs is not None for task in work):
        return _needs(memory, time, attempt)
    return _assumed(memory, time, attempt)


def _size(task: Task) -> NetworkSize:
    return network_size(task.run.cell, task.images.side, task.images.channels)


def _steps_per_epoch(task: Task) -> int:
    if task.costs is not None:
        return task.costs.steps_per_epoch
    return max(1, task.images.train // int(task.run.cell["batch_size"]))


def _networks(task: Task) -> int:
    """Networks of a cell at all its checkpoints."""
    return _checkpoints(task) * len(task.run.cell["objectives"])


def _numbers(task: Task) -> float:
    """Numbers that one network's embeddings of all images have."""
    cell, features = task.run.cell, _size(task).features
    each = features + (1 + cell["views"]) * z_width(cell, features)
    return float(task.images.both * each)


def _forward_seconds(task: Task, precision: str, machine: Machine = ON_GPU) -> float:
    """Seconds to pass all images and views through the networks of all checkpoints."""
    chosen = task.run.cell["precision"] if precision == "training" else precision
    passes = _networks(task) * task.images.both * (1 + task.run.cell["views"])
    return float(passes) * _size(task).flops / machine.networks[chosen]


def _decoding_seconds(task: Task) -> float:
    """Seconds of one core to decode all images and make their views."""
    crops = 1 + task.run.cell["views"]
    return task.images.both * _seconds_to_decode(task.images, crops)


def _seconds_to_decode(images: Images, crops: int) -> float:
    return SECONDS_TO_DECODE + crops * SECONDS_TO_CROP if images.encoded else 0.0


def _pixels(images: Images) -> int:
    return images.side**2 * images.channels


def _images_mb(images: Images) -> float:
    """Main memory for all images of a cell that are kept decoded, while they are chosen."""
    return 0.0 if images.encoded else 2 * images.both * _pixels(images) / MB


def _checkpoints(task: Task) -> int:
    return len(checkpoint_steps(task.run, _steps_per_epoch(task)))


def _assumed(memory_mb: float, seconds: float, attempt: int) -> Needs:
    """What a job requests that was not benched."""
    needs = _needs(LIBRARIES_MB + memory_mb, seconds, 1)
    return _times(needs._replace(runtime=max(SHORTEST, needs.runtime)), attempt)


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
            self._costs = self.of_report(content)._costs
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{path} is not a file of `cltools bench`: make it again with --output"
            ) from None

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> "Bench":
        """The costs in a report. Raises KeyError, TypeError or ValueError for what is none."""
        bench = cls()
        for entry in report["kinds"]:
            bench._costs[canonical_json(entry["kind"])] = _costs(entry["costs"])
        return bench

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
