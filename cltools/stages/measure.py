"""Stage `measure`: measure a trained cell's embeddings and weights, one tidy row per value."""

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from cltools import measurements
from cltools.cluster.estimates import measuring_seconds
from cltools.cluster.images import Images
from cltools.config.durations import SECONDS_BETWEEN_SAVES
from cltools.data.embeddings import EmbeddedSplit, discard, open_embeddings, origin
from cltools.layout import (
    PLAIN,
    USUAL,
    VERSIONS,
    CellFolder,
    Embeddings,
    MeasureSettings,
    RunFolder,
    begun_of,
    measures_table,
    step_of,
    unfinished,
    whose,
)
from cltools.maths.blocks import RowSource
from cltools.runtime.devices import choose_device
from cltools.runtime.files import only_process
from cltools.runtime.gpus import claim_gpus
from cltools.runtime.progress import numbered, track
from cltools.runtime.sealed import read_table, usable_table, write_json, write_table
from cltools.training.manifests import read_manifest, saved_weights
from cltools.training.trained import load_weights

# Seconds of a CPU from which a cell is measured on a GPU. Below, GPUs are left to training.
WORTH_A_GPU = 60
Weights = Mapping[str, Mapping[str, NDArray[Any]]]  # objective -> name -> array
AGAIN = "run `cltools measure` on this cell again"
log = logging.getLogger("cltools")


def run(
    *,
    manifests: list[Path],
    done: Path,
    settings: MeasureSettings = USUAL,
    embeddings: Embeddings = PLAIN,
    discard_embeddings: bool = False,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Measure several embedded cells and write the list of tables, by manifest, to `done`.

    With `discard_embeddings`, the embeddings of a cell are deleted once it is measured. Raises
    InputError as `measure_cell` does, and for a device that this machine does not have.
    """
    torch.set_num_threads(threads)
    if device != "auto":
        choose_device(device)  # fail now, not after hours, if it is missing
    tables = {}
    for path in numbered(manifests, "cell"):
        home = CellFolder.of(path)
        with only_process(home.path, wait=True):  # experiments may share cells
            tables[str(path)] = str(measure_cell(path, settings, embeddings, device))
            if discard_embeddings:
                discard(home.embeddings(embeddings))
    write_json(done, {"stage": "measure", "tables": tables, "version": VERSIONS["measure"]})


def measure_cell(
    manifest_path: Path,
    settings: MeasureSettings = USUAL,
    embeddings: Embeddings = PLAIN,
    device_name: str = "cpu",
) -> Path:
    """Measure one trained and embedded cell at all its checkpoints; return the tidy parquet file.

    The file is made once, see `measures_table`. Until it is complete, the rows of each checkpoint
    are kept in a folder beside it, and every `SECONDS_BETWEEN_SAVES` those of the checkpoint at
    hand. So a call after a kill continues where the last one ended.

    The checkpoints of `settings.full_at`, "last" or "all", also get the slow measures: linear
    probe, few-shot, kNN (k nearest neighbors), permutation nulls, rank correlation, other labels,
    intervals. Weights, angles and tests compare every objective with `settings.reference`, if the
    cell trained it; CKA and RSA compare all pairs. `embeddings` says which embeddings to use. They
    are computed on the named device ("auto": on a GPU if a CPU would take more than `WORTH_A_GPU`
    seconds). Raises InputError when embeddings are missing, have another type or come from other
    weights than the manifest's, and for a device that this machine does not have.
    """
    manifest = read_manifest(manifest_path)
    path = measures_table(manifest_path, settings, embeddings)
    if usable_table(path, whose(path, manifest_path)):
        shutil.rmtree(unfinished(path), ignore_errors=True)
        return path
    cell, home = manifest["cell"], CellFolder.of(manifest_path)
    steps: list[Path] = []
    start = _Start()
    number = len(manifest["checkpoints"])
    with ExitStack() as until_the_end:
        for step, hashes in track(saved_weights(manifest), number, "measuring", "checkpoint"):
            steps.append(step_of(path, step))
            there = usable_table(steps[-1], whose(steps[-1], manifest_path))
            if step > 0 and there:
                continue
            file = home.embeddings(embeddings).file(step)
            about = origin(manifest, step, hashes, embeddings)
            weights = _read_weights(home.run, hashes, step)
            with ExitStack() as while_measured:
                opened = until_the_end if step == 0 else while_measured
                splits = opened.enter_context(open_embeddings(file, about, embeddings))
                if step == 0:
                    start = _start_of(cell, splits, weights)
                if there:
                    continue
                full = settings.full_at == "all" or step == manifest["steps"]
                device = _device(device_name, _seconds_on_a_cpu(manifest, settings.full_at, splits))
                own = {o: made["dropped"] for o, made in manifest.get("labels", {}).items()}
                checkpoint = _Checkpoint(
                    cell, splits, weights, start, own, full, settings.reference, device
                )
                at = {"step": step, "epoch": step / manifest["steps_per_epoch"]}
                begun = begun_of(path, step)
                rows = _rows(checkpoint, at, begun, whose(begun, manifest_path))
                write_table(steps[-1], measurements.tidy(rows), whose(steps[-1], manifest_path))
                begun.unlink(missing_ok=True)
    tables = [read_table(part, AGAIN, whose(part, manifest_path)) for part in steps]
    write_table(path, pl.concat(tables).rechunk(), whose(path, manifest_path))
    shutil.rmtree(unfinished(path))
    return path


@dataclass(frozen=True)
class _Start:
    """The untrained networks: h by split and objective, and the weights if all share them."""

    h: Mapping[str, Mapping[str, RowSource]] = field(default_factory=dict)
    weights: Mapping[str, NDArray[Any]] | None = None


def _start_of(
    cell: Mapping[str, Any], splits: Mapping[str, EmbeddedSplit], weights: Weights
) -> _Start:
    if "init" not in cell["coupling"]:
        return _Start({split: part.h for split, part in splits.items()})
    # All start from one encoder, so the first one is used.
    return _Start(
        {
            split: dict.fromkeys(part.h, next(iter(part.h.values())))
            for split, part in splits.items()
        },
        next(iter(weights.values())),
    )


@dataclass(frozen=True)
class _Checkpoint:
    """What is measured of one checkpoint; `own` are the shares of `measurements.dropped_rows`."""

    cell: Mapping[str, Any]
    splits: Mapping[str, EmbeddedSplit]
    weights: Weights
    start: _Start
    own: Mapping[str, Mapping[str, float | None]]
    full: bool
    reference: str
    device: torch.device


# Some rows of a checkpoint; it is given those of its split that come before.
Unit = Callable[[list[measurements.Row]], Iterable[measurements.Row]]


def _rows(
    checkpoint: _Checkpoint, at: Mapping[str, Any], begun: Path, of: Mapping[str, str]
) -> list[measurements.Row]:
    """All rows of a checkpoint, unit after unit, but for those that are already in `begun`."""
    found: list[measurements.Row] = []
    done = 0
    if usable_table(begun, of):
        saved = read_table(begun, AGAIN, of)
        done, found = saved["units"][0], saved.drop("units").to_dicts()
    last = time.monotonic()
    for number, (about, unit) in enumerate(_units(checkpoint)):
        if number < done:
            continue
        before = [row for row in found if row.get("split") == about.get("split")]
        found += [{**at, **about, **row} for row in unit(before)]
        if found and time.monotonic() - last >= SECONDS_BETWEEN_SAVES:
            units = pl.lit(number + 1).alias("units")
            write_table(begun, measurements.tidy(found).with_columns(units), of)
            last = time.monotonic()
    return found


def _units(checkpoint: _Checkpoint) -> Iterator[tuple[dict[str, Any], Unit]]:
    """The units of a checkpoint in the order of its rows, with what all rows of a unit have."""
    for split, part in checkpoint.splits.items():
        about = {"split": split, "n": len(part.labels)}
        for unit in _units_of_split(checkpoint, part, checkpoint.start.h.get(split)):
            yield about, unit
    train, test = checkpoint.splits.values()
    y, test_y, full, device = train.labels, test.labels, checkpoint.full, checkpoint.device
    yield {}, lambda _: measurements.downstream_rows(train.h, y, test.h, test_y, full, "h", device)
    yield {}, lambda _: measurements.downstream_rows(train.z, y, test.z, test_y, full, "z", device)
    about = {"split": "train", "n": len(y)}
    yield about, lambda _: measurements.dropped_rows(checkpoint.weights, y, checkpoint.own)
    starts = checkpoint.weights, checkpoint.start.weights
    yield {}, lambda _: measurements.weight_rows(*starts, checkpoint.reference)


def _units_of_split(
    checkpoint: _Checkpoint, part: EmbeddedSplit, starts: Mapping[str, RowSource] | None
) -> Iterator[Unit]:
    cell, labels, full = checkpoint.cell, part.labels, checkpoint.full
    reference, device, tau = checkpoint.reference, checkpoint.device, checkpoint.cell["tau"]
    of_h = measurements.Representations(part.h, labels, starts, reference, device)
    of_z = measurements.Representations(part.z, labels, None, reference, device)
    of_views = part.z_views, labels, tau, device

    def with_intervals(_: list[measurements.Row]) -> list[measurements.Row]:
        rows = list(measurements.alignment_rows(of_h, "h"))
        if full:
            measurements.add_intervals(rows, of_h)
        return rows

    yield with_intervals
    yield lambda _: measurements.alignment_rows(of_z, "z")
    yield lambda _: measurements.corollary_rows(of_h, "h")
    yield lambda _: measurements.corollary_rows(of_z, "z")
    yield lambda _: measurements.loss_rows(*of_views)
    yield lambda _: measurements.batch_loss_rows(
        part.z_views, part.z, labels, tau, cell["batch_size"], device
    )
    yield lambda _: measurements.geometry_rows(of_h, "h", intervals=full)
    yield lambda _: measurements.geometry_rows(of_z, "z", intervals=full)
    yield lambda _: measurements.view_rows(part.z_views, device)
    yield lambda before: measurements.angle_rows(before, of_h, "h")
    yield lambda before: measurements.angle_rows(before, of_z, "z")
    if "ce" in part.z:
        ce = checkpoint.weights["ce"]
        head = ce["head.weight"], ce["head.bias"]
        yield lambda _: measurements.head_rows(
            part.z["ce"], labels, *head, device=device, objective="ce"
        )
    if full:
        yield lambda _: measurements.rank_rows(of_h)
        yield lambda _: measurements.null_rows(of_h)
        yield lambda _: measurements.labelling_rows(*of_views)


def _seconds_on_a_cpu(
    manifest: Mapping[str, Any], full_at: str, splits: Mapping[str, EmbeddedSplit]
) -> float:
    """About how long a CPU would take for all checkpoints of a cell."""
    train, test = splits.values()
    features = next(iter(train.h.values())).shape[1]
    images = Images(len(train.labels), len(test.labels), 0, classes=int(train.labels.max()) + 1)
    return measuring_seconds(
        manifest["cell"], images, features, len(manifest["checkpoints"]), full_at
    )


def _device(name: str, seconds: float) -> torch.device:
    if name == "auto":
        if seconds < WORTH_A_GPU:
            name = "cpu"
        else:
            claim_gpus(1)  # held until the process ends
    return choose_device(name)


def _read_weights(
    run: RunFolder, hashes: dict[str, str], step: int
) -> dict[str, dict[str, np.ndarray]]:
    """Objective -> name -> array of one checkpoint."""
    return {
        objective: {
            name: tensor.numpy()
            for name, tensor in load_weights(run.weights(objective, step), sha).items()
        }
        for objective, sha in hashes.items()
    }
