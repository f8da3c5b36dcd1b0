"""Stage `bench`: time training steps on this machine and estimate what whole runs will take."""

import io
import math
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import cltools
from cltools.cluster.estimates import ON_CPU, ON_GPU, Bench, Costs, Run, describe
from cltools.cluster.forecast import Todo, by_stage, jobs_of, tasks_of
from cltools.cluster.timings import by_kind, entry_of, kept_bytes, rounded, totals
from cltools.config.cells import canonical_cell
from cltools.config.durations import Duration
from cltools.config.experiment import Experiment
from cltools.config.projectors import z_width
from cltools.config.schema import defaults
from cltools.config.sharing import Share
from cltools.data.encoded import EncodedSource, write_encoded_store
from cltools.data.image_set import cell_subset, image_set, open_store
from cltools.data.store import EncodedImages, ImageStore, write_store
from cltools.figures import figures_of
from cltools.layout import RESULTS, StoreFolder
from cltools.runtime.errors import InputError
from cltools.runtime.progress import rough_time, time_text, track
from cltools.runtime.sealed import read_json
from cltools.runtime.tensors import save_tensors
from cltools.runtime.words import number_of
from cltools.training.distributed import join_ranks
from cltools.training.trace import PHOTOGRAPH
from cltools.training.trainer import CoupledTrainer

WARM_UP = 3  # untimed steps first: they allocate buffers and choose or compile kernels
PARTS = ("views", "forward", "losses", "backward", "optimizer", "logging")
LARGEST_SYNTHETIC = 8e9  # bytes
DIFFERENT = 16  # random photographs; a store repeats them
MB = 1e6


@dataclass(frozen=True)
class Synthetic:
    """Random images instead of a store: side in pixels, training images, classes, channels.

    None takes the value from the store, which must then exist. With `encoded`, or if the store's
    images are, they are JPEG files of the size `PHOTOGRAPH`, which training decodes.
    """

    image_size: int | None = None
    images: int | None = None
    classes: int | None = None
    channels: int | None = None
    encoded: bool = False


def run(
    *,
    experiment: Experiment | None = None,
    cell: dict[str, Any] | None = None,
    store: Path | None = None,
    device: str = "auto",
    steps: int = 20,
    synthetic: Synthetic | None = None,
    workers: int | None = None,
    share: Share = "auto",
) -> dict[str, Any]:
    """Time one cell of each kind of an experiment, or a single cell; return the report.

    `_report` says what a report holds. `store` is the store of the cell, or the folder that holds
    the stores of the experiment [the one in the results folder]. Raises InputError when both
    are None, and as `bench_experiment` and `bench_cell` do.
    """
    if experiment is not None:
        stores = store or RESULTS.stores
        return bench_experiment(experiment, stores, device, steps, synthetic, workers)
    if cell is None:
        raise InputError("there is nothing to time: give an experiment or a cell")
    return bench_cell(cell, store, device, steps, synthetic, workers, share)


def bench_cell(
    cell: dict[str, Any],
    store_folder: Path | None,
    device_name: str = "auto",
    steps: int = 20,
    synthetic: Synthetic | None = None,
    workers: int | None = None,
    share: Share = "auto",
) -> dict[str, Any]:
    """Time `steps` training steps of a cell and one save; return a report of one kind.

    `_report` says what a report holds; `workers` is described in `image_set`. Processes that
    torchrun started time the cell together, as they would train it (see `config.sharing`). The
    report of the first is for all of them; memory is that of one.

    Raises InputError for settings that do not fit the data or the processes, and for a missing
    store.
    """
    torch.set_num_threads(cell["threads"])
    ranks, device = join_ranks(device_name, share, len(cell["objectives"]))
    with _images(cell, store_folder, synthetic) as folder:
        store = open_store(folder, cell)
        data = image_set(store, cell, "train", device, workers)
        tests = len(cell_subset(store, cell, "test").indices)
        with closing(CoupledTrainer(cell, data, device, ranks)) as trainer:
            costs, shares = _measure(trainer, steps, len(data.labels) + tests)
        ranks.leave()
    entry = entry_of(cell, [Run(cell, Duration.parse(cell["horizon"]))], costs, shares)
    return _report([entry], device)


def bench_experiment(
    experiment: Experiment,
    stores: Path,
    device: str = "auto",
    steps: int = 20,
    synthetic: Synthetic | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Time one cell of each kind of an experiment and return the report.

    `stores` is the folder that holds the stores of all data sets. Each kind has its own process, so
    that the memory of one kind does not count for another; with the config key gpus_per_cell, it
    has as many processes, which torchrun starts. Random images are encoded if the config says so of
    their data set.

    Raises InputError as `bench_cell` does, and when a process ends without a result.
    """
    kinds = by_kind(Run(plan.cell, plan.until) for plan in experiment.plans.values())
    entries, about = [], {}
    for runs in track(kinds, len(kinds), "timing", "kind of cell"):
        cell = runs[0].cell
        encoded = bool(experiment.stores[cell["dataset"]].get("encoded"))
        images = synthetic and replace(synthetic, encoded=synthetic.encoded or encoded)
        about = _in_a_process(
            cell, images, experiment.setting("gpus_per_cell"),
            store=stores / cell["dataset"], device=device, steps=steps, workers=workers,
            share=experiment.setting("share"),
        )  # fmt: skip
        (measured,) = about["kinds"]
        costs = Costs(**measured["costs"])
        entries.append(entry_of(cell, runs, costs, measured["shares"], kept_bytes(experiment)))
    report = {**about, "kinds": entries, "totals": totals(entries)}
    return {**report, "stages": _stages(experiment, stores, report)}


def _stages(
    experiment: Experiment, stores: Path, report: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Stage -> its jobs and the seconds of all of them, one after another; only training is timed.

    Where there is no store, a cell has as many training images as were timed.
    """

    def manifest(name: str) -> Path:
        return StoreFolder(stores / name).manifest

    tasks = tasks_of(experiment, manifest, Bench.of_report(report))
    for cell, task in tasks.items():
        if task.costs is not None and not manifest(task.run.cell["dataset"]).exists():
            train = task.costs.steps_per_epoch * task.run.cell["batch_size"]
            tasks[cell] = task._replace(images=task.images._replace(train=train))
    machine = ON_CPU if report["device"] == "cpu" else ON_GPU
    todo = Todo.all_of(experiment, len(figures_of(experiment)))
    jobs = jobs_of(experiment, tasks, todo, machine, manifest)
    return {
        stage: {"jobs": sum(job.stage == stage for job in jobs), "seconds": rounded(seconds)}
        for stage, seconds in by_stage(jobs).items()
    }


def not_prepared(experiment: Experiment, stores: Path) -> list[str]:
    """The data sets of an experiment that have no store in this folder."""
    return [name for name in experiment.stores if not StoreFolder(stores / name).manifest.exists()]


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as text: the parts of a step if there is one kind, else one line per kind."""
    kinds = [entry["kind"] for entry in report["kinds"]]
    if len(kinds) == 1:
        yield from _kind_lines(report["kinds"][0], report["device"])
    else:
        yield "cells  steps/s  images/s  GB memory  longest run   all runs   GB disk  kind"
    for entry in report["kinds"] if len(kinds) > 1 else ():
        yield (
            f"{entry['cells']:5d}  {entry['steps_per_second']:7.3g}"
            f"  {entry['images_per_second']:8.0f}  {entry['costs']['memory_mb'] / 1e3:9.2f}"
            f"  {time_text(entry['longest_seconds']):>11}  {time_text(entry['seconds']):>9}"
            f"  {entry['disk_mb'] / 1e3:8.2f}  {describe(entry['kind'], kinds)}"
        )
    summed = report["totals"]
    cells = number_of(summed["cells"], "cell")
    yield (
        f"{cells} on {report['device']}, one after another: {time_text(3600 * summed['hours'])} of "
        f"training, {summed['disk_mb'] / 1e3:.3g} GB on disk"
    )
    if stages := report.get("stages"):
        times = {stage: about["seconds"] for stage, about in stages.items()}
        parts = ", ".join(f"{stage} {rough_time(s)}" for stage, s in times.items())
        yield (
            f"all stages, one after another: about {rough_time(sum(times.values()))} ({parts}); "
            "training is timed, the others follow from it and from their arithmetic"
        )


def _kind_lines(entry: dict[str, Any], device: str) -> Iterator[str]:
    costs = entry["costs"]
    threads = entry["kind"].get("threads", defaults()["threads"])
    yield f"{describe(entry['kind'])} on {device}, {threads} thread(s)"
    for part, share in entry["shares"].items():
        yield f"{part:>10}: {share * costs['seconds_per_step'] * 1e3:9.2f} ms  {share:6.1%}"
    yield (
        f"{entry['steps_per_second']:.3g} steps and {entry['images_per_second']:.0f} images a "
        f"second; a new epoch takes {time_text(costs['seconds_per_epoch'])} more"
    )
    gpu = costs["gpu_memory_mb"]
    on_gpu = "" if gpu is None else f", {gpu / 1e3:.2f} GB on the GPU"
    yield f"memory: {costs['memory_mb'] / 1e3:.2f} GB{on_gpu}"


def _report(entries: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """What --output writes; a config and a single cell give the same layout."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    made_by = {"stage": "bench", "cltools": cltools.__version__, "torch": torch.__version__}
    return {"device": name, "kinds": entries, "made_by": made_by, "totals": totals(entries)}


def _in_a_process(
    cell: Mapping[str, Any], synthetic: Synthetic | None, gpus: int, **options: Any
) -> dict[str, Any]:
    """The report of `cltools bench --cell`, run in a new process, or in one for each GPU.

    `options` are those of the command, by name; those that are None are left out. Raises InputError
    when the command fails.
    """
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m", "--"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "bench.json"
        command = [sys.executable, "-m", *(torchrun if gpus > 1 else ()), "cltools.cli", "bench"]
        command += ["--cell", canonical_cell(cell)]
        if synthetic is not None:
            sizes = asdict(synthetic)
            command += ["--synthetic", *(["--encoded"] if sizes.pop("encoded") else ())]
            options |= sizes
        for name, value in {**options, "output": output}.items():
            command += [] if value is None else [f"--{name.replace('_', '-')}", value]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode == 0:
            report: dict[str, Any] = read_json(output, made_by="cltools bench")
            return report
    lines = done.stderr.strip().splitlines() or [""]
    said = [line for line in lines if line.startswith("Error: ")]
    if said and (gpus > 1 or (done.returncode == 2 and said[-1] == lines[-1])):
        raise InputError(said[0].removeprefix("Error: "))
    raise InputError(
        f"the process that timed the cell {canonical_cell(cell)} ended with exit code "
        f"{done.returncode} (a negative number is a signal; -9 is often a lack of memory): "
        f"{lines[-1]}"
    )


@contextmanager
def _images(
    cell: dict[str, Any], store: Path | None, synthetic: Synthetic | None
) -> Iterator[Path]:
    """The folder of the store to time: the given one, or a temporary one of random images."""
    there = store if store is not None and StoreFolder(store).manifest.exists() else None
    if synthetic is None:
        if there is None:
            raise InputError(
                f"{store or 'no --store'} is not an image store: run `cltools prepare` first, or "
                "give --synthetic"
            )
        yield there
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_synthetic(Path(folder), cell, synthetic, there)
        yield Path(folder)


def _write_synthetic(
    folder: Path, cell: dict[str, Any], synthetic: Synthetic, like: Path | None
) -> None:
    """Write a store of random images in classes of equal size.

    `like` is the store that the images stand for, if there is one. Raises InputError as `_extent`
    does, and for more than `LARGEST_SYNTHETIC` bytes of images.
    """
    shape, classes, counts = _extent(cell, synthetic, like)
    encoded = synthetic.encoded or (like is not None and _is_encoded(like))
    photographs = _photographs() if encoded else []
    each = max(map(len, photographs)) if encoded else math.prod(shape)
    if (size := sum(counts.values()) * each) > LARGEST_SYNTHETIC:
        raise InputError(
            f"--synthetic would make {size / 1e9:.0f} GB of random images: give fewer --images, "
            f"for at most {LARGEST_SYNTHETIC / 1e9:.0f} GB"
        )
    random, name = np.random.default_rng(0), cell["dataset"]
    names = [str(number) for number in range(classes)]
    about = {"source": "synthetic"}
    labels = {split: np.arange(count) % classes for split, count in counts.items()}
    if encoded:

        def images(split: str, start: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
            for number in range(start, counts[split]):
                yield str(number), partial(_nth, photographs, number)

        write_encoded_store(folder, name, EncodedSource(names, labels, images, about, shape[0]))
        return
    splits = {
        split: (random.integers(0, 256, (count, *shape), np.uint8), labels[split])
        for split, count in counts.items()
    }
    write_store(folder, name, names, splits, about)


def _is_encoded(store: Path) -> bool:
    return isinstance(ImageStore.open(store).images["train"], EncodedImages)


def _nth(photographs: Sequence[bytes], number: int) -> bytes:
    return photographs[number % len(photographs)]


def _photographs() -> list[bytes]:
    """JPEG files that take as long to decode as photographs do: smooth, with a little noise."""
    random, found = np.random.default_rng(0), []
    height, width = PHOTOGRAPH
    for _ in range(DIFFERENT):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + random.integers(-12, 13, smooth.shape, np.int16)
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def _extent(
    cell: dict[str, Any], synthetic: Synthetic, like: Path | None
) -> tuple[tuple[int, int, int], int, dict[str, int]]:
    """Shape (H, W, c), number of classes, and images by split of a store of random images.

    Values that are None in `synthetic` come from the store `like`. If the number of training images
    is given, there is one test image for every five, or as many as the cell asks for if those are
    more. Raises InputError when a value is None and there is no such store.
    """
    size, images, classes = synthetic.image_size, synthetic.images, synthetic.classes
    counts: dict[str, int] = {}
    if like is not None:
        store = ImageStore.open(like)
        height, width, channels = store.image_shape
        shape = (size or height, size or width, synthetic.channels or channels)
        classes = classes or len(store.class_names)
        counts = {split: len(labels) for split, labels in store.labels.items()}
    elif size is None or images is None or classes is None:
        needed = {"--image-size": size, "--images": images, "--classes": classes}
        missing = ", ".join(option for option, value in needed.items() if value is None)
        raise InputError(f"--synthetic needs {missing} where there is no store to take it from")
    else:
        shape = (size, size, synthetic.channels or 3)
    if images is not None:
        tests = max(images // 5, classes * (cell["test_images_per_class"] or 1))
        counts = {"train": images, "test": tests}
    return shape, classes, counts


class _Clock:
    """Seconds by part of a step; the parts are those that `CoupledTrainer.lap` is called with.

    With `wait`, every call waits for the device, so that the work of a part on the device counts
    for that part.
    """

    def __init__(self, device: torch.device, wait: bool) -> None:
        self.device, self.wait = device, wait
        self.seconds: dict[str, float] = defaultdict(float)
        _synchronize(device)
        self.last = time.perf_counter()

    def __call__(self, part: str) -> None:
        if self.wait:
            _synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(trainer: CoupledTrainer, steps: int, wait: bool) -> tuple[float, float, _Clock]:
    """Seconds per step, extra seconds per new epoch (0 if none began), and the clock."""
    first = trainer.step
    epochs = sum(step % trainer.steps_per_epoch == 0 for step in range(first, first + steps))
    clock = trainer.lap = _Clock(trainer.device, wait)
    began = clock.last
    for _ in range(steps):
        trainer.train_step()
    _synchronize(trainer.device)
    drawing = clock.seconds["epoch"]
    per_step = (time.perf_counter() - began - drawing) / steps
    return per_step, drawing / max(1, epochs), clock


def _measure(trainer: CoupledTrainer, steps: int, images: int) -> tuple[Costs, dict[str, float]]:
    """Costs of a cell with `images` images in both splits, and the shares of a step's parts.

    On CUDA, waiting after every part makes steps slower. The parts are therefore timed in a second
    round of steps.
    """
    cell, cuda = trainer.cell, trainer.device.type == "cuda"
    _, first_epoch, _ = _timed(trainer, WARM_UP, wait=False)  # step 0 begins an epoch
    per_step, per_epoch, parts = _timed(trainer, steps, wait=False)
    if cuda:
        _, _, parts = _timed(trainer, steps, wait=True)
    of_parts = sum(parts.seconds[part] for part in PARTS)
    shares = {part: rounded(parts.seconds[part] / of_parts) for part in PARTS}

    saved, state_bytes, weights_bytes = _seconds_of_a_save(trainer)
    features = next(iter(trainer.networks.values())).encoder.features
    views, objectives = cell["views"], len(cell["objectives"])
    numbers = features + (1 + views) * z_width(cell, features)
    costs = Costs(
        steps_per_epoch=trainer.steps_per_epoch,
        seconds_per_step=rounded(per_step),
        seconds_per_epoch=rounded(per_epoch or first_epoch),
        seconds_per_save=rounded(saved),
        seconds_per_embedding=rounded(images * _seconds_of_an_embedding(cell, per_step, shares)),
        memory_mb=rounded(_peak_memory() / MB),
        gpu_memory_mb=rounded(torch.cuda.max_memory_allocated(trainer.device) / MB)
        if cuda
        else None,
        weights_mb=rounded(weights_bytes / MB),
        state_mb=rounded(state_bytes / MB),
        embedding_mb=rounded(images * objectives * numbers * 4 / MB),
    )
    return costs, shares


def _seconds_of_an_embedding(
    cell: Mapping[str, Any], per_step: float, shares: Mapping[str, float]
) -> float:
    """Estimated seconds to make the views of one image and embed it and them with all networks.

    The estimate comes from the training step, whose forward pass also stores what the backward pass
    needs. It is therefore too high.
    """
    views: int = cell["views"]
    of_one_view: float = per_step / (cell["batch_size"] * views)
    return of_one_view * (views * shares["views"] + (1 + views) * shares["forward"])


def _seconds_of_a_save(trainer: CoupledTrainer) -> tuple[float, int, int]:
    """Seconds and bytes of a save of the resume state, in the folder for temporary files.

    Also the bytes of the weights in it, which are those of all objectives.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        began = time.perf_counter()
        tensors, about = trainer.state()
        save_tensors(path, tensors, about)
        seconds = time.perf_counter() - began
        weights = [value.nbytes for name, value in tensors.items() if name.startswith("network/")]
        return seconds, path.stat().st_size, sum(weights)


def _peak_memory() -> int:
    """The most bytes of main memory that this process has used at any time.

    Read from /proc where there is one, because the value of `resource` includes the process that
    started this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource  # on macOS

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
