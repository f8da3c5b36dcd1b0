"""Stage `measure`: measure a trained cell's embeddings and weights, one tidy row per value."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import xarray as xr

from cltools import measurements
from cltools.data.embeddings import discard, origin, read_embeddings
from cltools.layout import (
    PLAIN,
    USUAL,
    VERSIONS,
    CellFolder,
    Embeddings,
    MeasureSettings,
    RunFolder,
    measures_table,
    step_of,
    unfinished,
    whose,
)
from cltools.runtime.devices import choose_device
from cltools.runtime.files import only_process
from cltools.runtime.gpus import claim_gpus
from cltools.runtime.progress import track
from cltools.runtime.sealed import read_table, usable_table, write_json, write_table
from cltools.training.manifests import read_manifest, saved_weights
from cltools.training.trained import load_weights

# From this many images, the losses of a split are computed on a GPU. Their time grows with the
# square of the number of images. Below it they take a CPU thread minutes, and the GPU is left to
# cells that train.
LARGE = 100_000
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
    for path in manifests:
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
    are kept in a folder beside it, so that a call after a kill continues where the last one ended.

    The checkpoints of `settings.full_at`, "last" or "all", also get the slow measures: linear
    probe, few-shot, kNN (k nearest neighbors), permutation nulls, rank correlation, other labels,
    intervals. Weights, angles and tests compare every objective with `settings.reference`, if the
    cell trained it; CKA and RSA compare all pairs. `embeddings` says which embeddings to use. The
    losses of whole data sets are computed on the named device ("auto": on a GPU from `LARGE` images
    on), everything else on the CPU.
    Raises InputError when embeddings are missing, have another type or come from other weights than
    the manifest's, and for a device that this machine does not have.
    """
    manifest = read_manifest(manifest_path)
    home = CellFolder.of(manifest_path)
    path = measures_table(manifest_path, settings, embeddings)
    if usable_table(path, whose(path, manifest_path)):
        shutil.rmtree(unfinished(path), ignore_errors=True)
        return path
    cell = manifest["cell"]
    steps: list[Path] = []
    initial: dict[str, dict[str, np.ndarray]] = {}
    initial_weights: dict[str, np.ndarray] | None = None
    for step, hashes in track(saved_weights(manifest), len(manifest["checkpoints"]), "measuring"):
        steps.append(step_of(path, step))
        of = whose(steps[-1], manifest_path)
        there = usable_table(steps[-1], of)
        if step > 0 and there:
            continue
        file = home.embeddings(embeddings).file(step)
        dataset = read_embeddings(file, origin(manifest, step, hashes, embeddings), embeddings)
        full = settings.full_at == "all" or step == manifest["steps"]
        weights = _read_weights(home.run, hashes, step)
        parts = {name: dataset.isel(sample=dataset.split == name) for name in ("train", "test")}
        if step == 0:
            initial = {split: _arrays(part, "h") for split, part in parts.items()}
            if "init" in cell["coupling"]:  # all start from one encoder, so the first one is used
                initial = {
                    split: dict.fromkeys(arrays, next(iter(arrays.values())))
                    for split, arrays in initial.items()
                }
                initial_weights = next(iter(weights.values()))
            if there:
                continue
        found: list[measurements.Row] = []
        for split, part in parts.items():
            about = (cell, full, settings.reference, device_name)
            rows = _measure_split(part, initial.get(split), weights, *about)
            found += [{"split": split, "n": part.sizes["sample"], **row} for row in rows]
        train, test = parts.values()
        for features in ("h", "z"):
            x, test_x = _arrays(train, features), _arrays(test, features)
            y, test_y = train.label.values, test.label.values
            found += measurements.downstream_rows(x, y, test_x, test_y, full, features)
        own = {o: made["dropped"] for o, made in manifest.get("labels", {}).items()}
        dropped = measurements.dropped_rows(hashes, train.label.values, own)
        found += [{"split": "train", "n": train.sizes["sample"], **row} for row in dropped]
        found += measurements.weight_rows(weights, initial_weights, settings.reference)
        at = {"step": step, "epoch": step / manifest["steps_per_epoch"]}
        write_table(steps[-1], measurements.tidy({**at, **row} for row in found), of)
    tables = [read_table(part, AGAIN, whose(part, manifest_path)) for part in steps]
    write_table(path, pl.concat(tables).rechunk(), whose(path, manifest_path))
    shutil.rmtree(unfinished(path))
    return path


def _arrays(part: xr.Dataset, variable: str) -> dict[str, np.ndarray]:
    """Objective -> array of `variable` ("h", "z" or "z_views"), in the order of the objectives."""
    return {o: part[variable].sel(objective=o).values for o in part.objective.values.tolist()}


def _measure_split(
    part: xr.Dataset,
    starts: Mapping[str, np.ndarray] | None,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    cell: Mapping[str, Any],
    full: bool,
    reference: str,
    device_name: str,
) -> list[measurements.Row]:
    """Rows of one checkpoint and split; `starts` holds the h of the untrained encoders."""
    h, z, z_views = (_arrays(part, variable) for variable in ("h", "z", "z_views"))
    labels, tau = part.label.values, cell["tau"]
    device = _device_of_losses(device_name, len(labels))
    of_h = measurements.Representations(h, labels, starts, reference)
    of_z = measurements.Representations(z, labels, reference=reference)
    rows = [
        *measurements.alignment_rows(of_h, "h"),
        *measurements.alignment_rows(of_z, "z"),
        *measurements.corollary_rows(of_h, "h"),
        *measurements.corollary_rows(of_z, "z"),
        *measurements.loss_rows(z_views, labels, tau, device),
        *measurements.batch_loss_rows(z_views, z, labels, tau, cell["batch_size"]),
        *measurements.geometry_rows(of_h, "h", intervals=full),
        *measurements.geometry_rows(of_z, "z", intervals=full),
        *measurements.view_rows(z_views),
    ]
    for features, of in (("h", of_h), ("z", of_z)):
        rows += measurements.angle_rows(rows, of, features)
    if "ce" in z:
        head = weights["ce"]["head.weight"], weights["ce"]["head.bias"]
        rows += measurements.head_rows(z["ce"], labels, *head, objective="ce")
    if full:
        rows += measurements.rank_rows(of_h)
        rows += measurements.null_rows(of_h)
        rows += measurements.labelling_rows(z_views, labels, tau, device)
        measurements.add_intervals(rows, of_h)
    return rows


def _device_of_losses(name: str, images: int) -> torch.device:
    if name == "auto":
        if images < LARGE:
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
