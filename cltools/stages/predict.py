"""Predict what cells take on a GPU that is not here (`cltools bench --on h100`).

A step is counted with fake tensors (`training.trace`); the data sheet of the GPU turns the counts
into seconds (`cluster.roofline`). The report has the layout of one of `bench`, so that jobs can
request time and memory by it.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import cltools
from cltools.cluster.estimates import (
    CACHED_BYTES,
    COST_FREE,
    READS_OF_FEATURES,
    Costs,
    Run,
    Task,
    checkpoint_steps,
    describe,
    merge_seconds,
    theory_seconds,
)
from cltools.cluster.images import Images, images_known
from cltools.cluster.roofline import (
    CONTEXT,
    DECODING,
    Gpu,
    Step,
    gpu_of,
    measuring_seconds,
    step_on,
)
from cltools.cluster.timings import by_kind, entry_of, kept_bytes, rounded, totals
from cltools.config.cells import cell_id
from cltools.config.durations import Duration
from cltools.config.experiment import Experiment
from cltools.config.projectors import z_width
from cltools.config.schema import defaults, with_defaults
from cltools.config.sharing import Share, splits_batch
from cltools.data.store import PER_CLASS, ImageStore, select
from cltools.layout import StoreFolder
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json
from cltools.runtime.progress import rough_time, time_text
from cltools.runtime.words import number_of
from cltools.training.trace import Extent, Trace, graphs_of_step, trace_step

MB = 1e6
WORKERS = 8  # threads that decode, where neither the command nor the config says how many
PROCESS = 3e9  # bytes of main memory of Python with torch and CUDA
DRAWN = 200  # bytes of an image's parameters of a view, while they are drawn
DRAWING = 1e-6  # seconds for them
WRITING = 0.5e9  # bytes a second at which a state is hashed and written
CLASSES = 1000  # of the cells that are traced
# What changes the number of steps, but nothing of a step.
NOT_TRACED = ("classes", "imbalance", "images_per_class", "test_images_per_class", "dataset")


@dataclass(frozen=True)
class DataSet:
    """What a prediction needs to know of a data set; images are those of both splits."""

    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int
    encoded: bool = False


class Given(NamedTuple):
    """Sizes from the command line; None takes the value from the store, or the known one."""

    image_size: int | None = None
    images: int | None = None
    classes: int | None = None
    channels: int | None = None
    encoded: bool = False


NOTHING_GIVEN = Given()


class Sharing(NamedTuple):
    """The GPUs of a cell, and what they share: config keys gpus_per_cell and share."""

    gpus: int = 1
    what: Share = "auto"

    def parts(self, objectives: int) -> int:
        """The number of parts that a batch is split into."""
        return self.gpus if splits_batch(self.what, self.gpus, objectives) else 1


def run(
    *,
    on: str,
    experiment: Experiment | None = None,
    cell: dict[str, Any] | None = None,
    store: Path | None = None,
    given: Given = NOTHING_GIVEN,
    workers: int | None = None,
) -> dict[str, Any]:
    """Predict an experiment, or a single cell, on the GPU named `on`; return the report.

    `store` is the store of the cell, or the folder that holds those of the experiment. Where it is
    missing, sizes come from `given` and `cluster.images`. Raises InputError for an unknown GPU, for
    sizes that are not known and for settings that do not fit the data.
    """
    torch.set_num_threads(1)
    on_gpu = _On(gpu_of(on), workers or WORKERS, with_defaults({}, "theory"))
    definitions: Mapping[str, Any] = {}
    if experiment is not None:
        runs = [Run(plan.cell, plan.until) for plan in experiment.plans.values()]
        definitions, merged = experiment.stores, experiment.batches_of("merge")
        on_gpu = on_gpu._replace(
            sharing=Sharing(experiment.setting("gpus_per_cell"), experiment.setting("share")),
            bytes_kept=kept_bytes(experiment),
            theory=experiment.settings_of("theory"),
            merge=experiment.settings_of("merge") if merged else {},
            merged={identity for batch in merged.values() for identity in batch},
        )
    elif cell is not None:
        runs = [Run(cell, Duration.parse(cell["horizon"]))]
    else:
        raise InputError("there is nothing to predict: give an experiment or a cell")
    entries = []
    for of_kind in by_kind(runs):
        settings = dict(of_kind[0].cell)
        folder = store / settings["dataset"] if store and experiment else store
        definition = definitions.get(settings["dataset"], {})
        data = data_set(settings["dataset"], folder, given, bool(definition.get("extra")))
        trace = _trace(canonical_json(_traced(settings)), data.shape, data.encoded)
        entries.append(_entry(of_kind, data, trace, on_gpu))
    made_by = {"stage": "bench", "cltools": cltools.__version__, "torch": torch.__version__}
    return {
        "device": f"{on_gpu.gpu.name} (predicted)",
        "kinds": entries,
        "made_by": made_by,
        "totals": totals(entries),
    }


class _On(NamedTuple):
    """The GPU, and the settings of an experiment, of which a single cell needs the first three.

    workers: threads that decode. theory, merge: the settings of these stages. bytes_kept: see
    `kept_bytes`. merged: the cells that are merged.
    """

    gpu: Gpu
    workers: int
    theory: Mapping[str, Any]
    sharing: Sharing = Sharing()
    bytes_kept: int = 0
    merge: Mapping[str, Any] = {}
    merged: Collection[str] = ()


def data_set(
    name: str, store: Path | None, given: Given = NOTHING_GIVEN, extra: bool = False
) -> DataSet:
    """The sizes of a data set: those given, else those of its store, else those that are known.

    `name` may end in the hash of its definition, as the folders of stores do. `extra` as in
    `images_known`. Raises InputError.
    """
    known = images_known(re.sub(r"-[0-9a-f]{8}$", "", name), extra)
    like = None if known is None else _of_images(known)
    if store is not None and StoreFolder(store).manifest.exists():
        opened = ImageStore.open(store)
        train, test = (len(opened.labels[split]) for split in PER_CLASS)
        stays = not isinstance(opened.images["train"], np.ndarray)
        like = DataSet(opened.image_shape, len(opened.class_names), train, test, stays)
    if like is None:
        needed = {"--image-size": given.image_size, "--images": given.images,
                  "--classes": given.classes}  # fmt: skip
        if missing := [option for option, value in needed.items() if value is None]:
            raise InputError(
                f"the sizes of data set {name!r} are not known: prepare it, or give --synthetic "
                f"with {', '.join(missing)}"
            )
        like = DataSet((0, 0, 3), 0, 0, 0)
    size, images, classes, channels, encoded = given
    height, width, colors = like.shape
    return DataSet(
        (size or height, size or width, channels or colors),
        classes or like.classes,
        images or like.train,
        images // 5 if images else like.test,
        encoded or like.encoded,
    )


def _of_images(images: Images) -> DataSet:
    shape = (images.side, images.side, images.channels)
    return DataSet(shape, images.classes, images.train, images.test, images.encoded)


def _traced(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The cell with defaults for what does not change a step."""
    usual = defaults()
    plain = {key: usual[key] for key in (*COST_FREE, *NOT_TRACED) if key in usual}
    return {**cell, **plain, "dataset": "any", "horizon": "1 epochs"}


@cache
def _trace(cell: str, shape: tuple[int, int, int], encoded: bool) -> Trace:
    """The step of a cell, given as JSON. The number of classes hardly matters to it."""
    return trace_step(json.loads(cell), Extent(shape, CLASSES, encoded))


def _images(cell: Mapping[str, Any], data: DataSet, split: str) -> int:
    """How many images of a split a cell uses, if all classes have the same number."""
    count = data.train if split == "train" else data.test
    subset = select(
        np.arange(count) % data.classes,
        [str(number) for number in range(data.classes)],
        classes=cell["classes"],
        per_class=cell[PER_CLASS[split]],
        imbalance=cell["imbalance"] if split == "train" else 1.0,
        split=split,
        name=cell["dataset"],
    )
    return len(subset.indices)


def _entry(runs: list[Run], data: DataSet, trace: Trace, on: _On) -> dict[str, Any]:
    """One kind of cells in the report; beside what `bench` reports, `predicted`.

    That is: hours of the longest cell by stage, how many cells are merged, what limits a step, and
    its counts.
    """
    cell, gpu, sharing, workers = dict(runs[0].cell), on.gpu, on.sharing, on.workers
    images = {split: _images(cell, data, split) for split in PER_CLASS}
    if cell["batch_size"] > images["train"]:
        raise InputError(
            f"config key batch_size is {cell['batch_size']}, but the training set of a cell has "
            f"{images['train']} images: lower batch_size"
        )
    decoded = cell["batch_size"] if data.encoded else 0
    step = step_on(
        gpu, trace.kernels, cell["precision"] == "tf32", decoded, workers, graphs_of_step(cell)
    )
    objectives = len(cell["objectives"])
    split = sharing.parts(objectives)
    step = _shared(step, objectives, sharing.gpus, split)
    peak = round(trace.peak / split)
    costs = _costs(cell, data, images, trace._replace(peak=peak), step, workers)
    entry = entry_of(cell, runs, costs, _shares(step), on.bytes_kept)
    longest = max(runs, key=lambda one: one.until.in_steps(costs.steps_per_epoch))
    checkpoints = len(checkpoint_steps(longest, costs.steps_per_epoch))
    classes = cell["classes"] or data.classes
    each, last = measuring_seconds(
        gpu, cell, trace.features, images["train"], images["test"], classes
    )
    each += READS_OF_FEATURES * costs.embedding_mb * MB / CACHED_BYTES
    hours = {
        "train": entry["longest_seconds"] / 3600,
        "embed": checkpoints * costs.seconds_per_embedding / 3600,
        "measure": (checkpoints * each + last) / 3600,
    }
    merged = sum(cell_id(dict(run.cell)) in on.merged for run in runs)
    task = Task(costs, longest, _as_images(data, images, classes))
    hours["theory"] = theory_seconds(task, on.theory) / 3600
    hours["merge"] = merge_seconds(task, on.merge) / 3600 if merged else 0.0
    entry["predicted"] = {
        "cells_merged": merged,
        "hours": {stage: rounded(value) for stage, value in hours.items()},
        "limit": step.limit,
        "limit_share": rounded(step.limits[step.limit] / step.on_gpu)
        if step.limit in step.limits
        else 1.0,
        "saved_gb": rounded(peak / 1e9),
        "moved_gb": rounded(sum(k.moved * k.times for k in trace.kernels) / 1e9),
        "tflop": rounded(sum(k.flops * k.times for k in trace.kernels) / 1e12),
        "launches": step.launches,
        "fits": costs.gpu_memory_mb is not None and costs.gpu_memory_mb <= gpu.memory * 1e3,
    }
    return entry


def _as_images(data: DataSet, images: Mapping[str, int], classes: int) -> Images:
    height, _, channels = data.shape
    return Images(images["train"], images["test"], height, channels, classes, data.encoded)


def _shared(step: Step, objectives: int, gpus: int, split: int) -> Step:
    """The step of the GPU that has most to do, of `gpus` that share a cell; see `Sharing`."""
    own = objectives if split > 1 else math.ceil(objectives / gpus)
    share = own / objectives / split
    parts = {
        part: seconds * (1 / split if part == "views" else share)
        for part, seconds in step.parts.items()
    }
    shrunk = sum(parts.values()) / step.on_gpu
    return step._replace(
        parts=parts,
        limits={name: seconds * shrunk for name, seconds in step.limits.items()},
        launches=math.ceil(step.launches * own / objectives),
    )


def _shares(step: Step) -> dict[str, float]:
    return {part: rounded(seconds / step.on_gpu) for part, seconds in sorted(step.parts.items())}


def _costs(
    cell: Mapping[str, Any],
    data: DataSet,
    images: Mapping[str, int],
    trace: Trace,
    step: Step,
    workers: int,
) -> Costs:
    """What `bench` would measure."""
    views, total = cell["views"], sum(images.values())
    of_view = (step.parts["forward"] + step.parts["views"]) / (cell["batch_size"] * views)
    decoding = DECODING / workers if data.encoded else 0.0
    drawn = images["train"] * views
    pixels = 0 if data.encoded else images["train"] * math.prod(data.shape)
    numbers = trace.features + (1 + views) * z_width(cell, trace.features)
    state = trace.held
    return Costs(
        steps_per_epoch=images["train"] // cell["batch_size"],
        seconds_per_step=rounded(step.seconds),
        seconds_per_epoch=rounded(drawn * DRAWING),
        seconds_per_save=rounded(state / WRITING),
        seconds_per_embedding=rounded(total * max(of_view * (1 + views), decoding)),
        memory_mb=rounded((PROCESS + state + 2 * pixels + 2 * drawn * DRAWN) / MB),
        gpu_memory_mb=rounded((CONTEXT + trace.held + trace.peak + pixels) / MB),
        weights_mb=rounded(trace.weights / MB),
        state_mb=rounded(state / MB),
        embedding_mb=rounded(total * len(cell["objectives"]) * numbers * 4 / MB),
    )


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as text: a line for each kind of cell."""
    kinds = [entry["kind"] for entry in report["kinds"]]
    yield (
        f"{report['device']}: nothing was run there. Hours are of the longest cell of its kind, "
        "from bytes and arithmetic of a step and the data sheet of the GPU."
    )
    yield (
        "cells  train h  embed h  measure h  theory h  merge h  step ms  GPU GB"
        "  limited by                kind"
    )
    for entry in report["kinds"]:
        found, costs = entry["predicted"], entry["costs"]
        hours = found["hours"]
        limit = f"{found['limit']} ({found['limit_share']:.0%})"
        much = "" if found["fits"] else " (more than it has)"
        yield (
            f"{entry['cells']:5d}  {hours['train']:7.3g}  {hours['embed']:7.3g}"
            f"  {hours['measure']:9.3g}  {hours['theory']:8.3g}  {hours['merge']:7.3g}"
            f"  {costs['seconds_per_step'] * 1e3:7.3g}"
            f"  {costs['gpu_memory_mb'] / 1e3:6.3g}{much}  {limit:<24}"
            f"  {describe(entry['kind'], kinds)}"
        )
    summed = report["totals"]
    yield (
        f"{number_of(summed['cells'], 'cell')}, one after another: "
        f"{time_text(3600 * summed['hours'])} of training, at most "
        f"{rough_time(3600 * sum(map(hours_of_all, report['kinds'])))} of all stages of cells, "
        f"{summed['disk_mb'] / 1e3:.3g} GB on disk"
    )


def hours_of_all(entry: Mapping[str, Any]) -> float:
    """Hours of all stages of all cells of a kind, as if each took as long as the longest there."""
    found = entry["predicted"]
    hours = found["hours"]
    each = sum(hours[stage] for stage in ("embed", "measure", "theory"))
    rest = entry["cells"] * each + found["cells_merged"] * hours["merge"]
    return float(entry["seconds"] / 3600 + rest)
