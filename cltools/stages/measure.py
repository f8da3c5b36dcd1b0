"""Stage `measure`: from a trained cell's embeddings and weights to tidy rows, one row a value."""

import json
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
from cltools.layout import VERSIONS, measures_table
from cltools.runtime.devices import choose_device
from cltools.runtime.errors import InputError
from cltools.runtime.files import whole_file, write_json
from cltools.runtime.gpus import claim_gpus
from cltools.runtime.progress import track
from cltools.stages.embed import discard, embedding_file, embedding_folder
from cltools.stages.train import weights_file
from cltools.training.manifests import read_manifest, saved_weights
from cltools.training.trained import load_weights

VERSION = VERSIONS["measure"]
# Images of a split from which its losses are worth a GPU that other cells could train on: the time
# of losses of a whole data set grows with their square, and is minutes of a CPU thread below.
LARGE = 100_000
log = logging.getLogger("cltools")


def measure_cells(
    manifests: list[Path],
    done: Path,
    full_at: str = "last",
    discard_embeddings: bool = False,
    threads: int = 1,
    recalibrated: bool = False,
    dtype: str = "float32",
    device_name: str = "cpu",
) -> None:
    """Measure several embedded cells and write the list of tables, by manifest, to `done`.

    Raises InputError as `measure` does, and for a device that this machine lacks.
    """
    torch.set_num_threads(threads)
    if device_name != "auto":
        choose_device(device_name)  # or say at once that it is missing
    tables = {}
    for path in manifests:
        tables[str(path)] = str(measure(path, full_at, recalibrated, dtype, device_name))
        if discard_embeddings:
            discard(embedding_folder(path.parent, recalibrated, dtype))
    write_json(done, {"stage": "measure", "tables": tables, "version": VERSION})


def measure(
    manifest_path: Path,
    full_at: str = "last",
    recalibrated: bool = False,
    dtype: str = "float32",
    device_name: str = "cpu",
) -> Path:
    """Measure one trained and embedded cell at all its checkpoints; the tidy parquet file.

    It is made once, see `measures_table`. Until it is whole, the rows of each checkpoint lie in a
    folder beside it, from where the next call goes on after a kill.

    `full_at` is "last" or "all" checkpoints: there the dearer measures are made too (linear probe,
    few-shot, kNN, permutation nulls, rank correlation, other labels, intervals). `recalibrated` and
    `dtype` say which embeddings to take. The losses of whole data sets are worked out on
    the device that is named ("auto": on a GPU if they are `LARGE`), all else on the CPU. Raises
    InputError when embeddings are missing, of another type or of other weights than the manifest's,
    and for a device that this machine lacks.
    """
    manifest = read_manifest(manifest_path)
    run = manifest_path.parent / "run"
    embeddings = embedding_folder(manifest_path.parent, recalibrated, dtype)
    path = measures_table(manifest_path, full_at, recalibrated, dtype)
    unfinished = path.with_name(f"{path.stem}-steps")
    if path.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        return path
    cell = manifest["cell"]
    steps: list[Path] = []
    initial: dict[str, dict[str, np.ndarray]] = {}
    initial_weights: dict[str, np.ndarray] | None = None
    for step, hashes in track(saved_weights(manifest), len(manifest["checkpoints"]), "measuring"):
        steps.append(unfinished / f"step-{step:07d}.parquet")
        if step > 0 and steps[-1].exists():
            continue
        dataset = read_embeddings(
            embedding_file(embeddings, step), manifest["store"], hashes, recalibrated, dtype
        )
        full = full_at == "all" or step == manifest["steps"]
        weights = _read_weights(run, hashes, step)
        parts = {name: dataset.isel(sample=dataset.split == name) for name in ("train", "test")}
        if step == 0:
            initial = {split: _arrays(part, "h") for split, part in parts.items()}
            if "init" in cell["coupling"]:  # all start from one encoder: the first one's serves
                initial = {
                    split: dict.fromkeys(arrays, next(iter(arrays.values())))
                    for split, arrays in initial.items()
                }
                initial_weights = next(iter(weights.values()))
            if steps[-1].exists():
                continue
        found: list[measurements.Row] = []
        for split, part in parts.items():
            rows = _measure_split(part, initial.get(split), weights, cell, full, device_name)
            found += [{"split": split, "n": part.sizes["sample"], **row} for row in rows]
        train, test = parts.values()
        found += measurements.downstream_rows(
            _arrays(train, "h"), train.label.values, _arrays(test, "h"), test.label.values, full
        )
        found += measurements.weight_rows(weights, initial_weights)
        at = {"step": step, "epoch": step / manifest["steps_per_epoch"]}
        with whole_file(steps[-1]) as scratch:
            measurements.tidy({**at, **row} for row in found).write_parquet(scratch)
    with whole_file(path) as scratch:
        pl.concat(pl.read_parquet(step) for step in steps).rechunk().write_parquet(scratch)
    shutil.rmtree(unfinished)
    return path


def read_embeddings(
    path: Path,
    store: str,
    weights: dict[str, str],
    recalibrated: bool = False,
    dtype: str = "float32",
) -> xr.Dataset:
    """One checkpoint's embeddings. Raises InputError unless made from these weights and images."""
    options = f"{' --recalibrate' * recalibrated}{' --dtype float16' * (dtype == 'float16')}"
    remedy = f"run `cltools embed{options}` on this cell again"
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            dataset = opened.load()
        made_from = json.loads(dataset.attrs["cltools"])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {remedy}") from None
    except (OSError, KeyError, ValueError):
        raise InputError(f"{path} is damaged: {remedy}") from None
    if made_from["weights"] != weights or made_from["store"] != store:
        raise InputError(f"{path} was made from other weights or images than trained: {remedy}")
    if made_from["dtype"] != dtype:
        raise InputError(f"{path} holds {made_from['dtype']}, not {dtype}: {remedy}")
    return dataset


def _arrays(part: xr.Dataset, variable: str) -> dict[str, np.ndarray]:
    """Objective -> array of "h", "z" or "z_views", in the order of the objectives."""
    return {o: part[variable].sel(objective=o).values for o in part.objective.values.tolist()}


def _measure_split(
    part: xr.Dataset,
    starts: Mapping[str, np.ndarray] | None,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    cell: Mapping[str, Any],
    full: bool,
    device_name: str,
) -> list[measurements.Row]:
    """Rows of one checkpoint and split; `starts` is the h of the untrained encoders."""
    h, z, z_views = (_arrays(part, variable) for variable in ("h", "z", "z_views"))
    labels, tau = part.label.values, cell["tau"]
    device = _device_of_losses(device_name, len(labels))
    rows = [
        *measurements.alignment_rows(h, labels, "h", starts),
        *measurements.alignment_rows(z, labels, "z"),
        *measurements.corollary_rows(h, features="h"),
        *measurements.corollary_rows(z, features="z"),
        *measurements.loss_rows(z_views, labels, tau, device),
        *measurements.batch_loss_rows(z_views, z, labels, tau, cell["batch_size"]),
        *measurements.geometry_rows(h, labels, intervals=full),
        *measurements.view_rows(z_views),
    ]
    for features, arrays in (("h", h), ("z", z)):
        rows += measurements.angle_rows(rows, arrays, features=features)
    if "ce" in z:
        head = weights["ce"]["head.weight"], weights["ce"]["head.bias"]
        rows += measurements.head_rows(z["ce"], labels, *head, objective="ce")
    if full:
        rows += measurements.rank_rows(h)
        rows += measurements.null_rows(h, labels)
        rows += measurements.labelling_rows(z_views, labels, tau, device)
        measurements.add_intervals(rows, h)
    return rows


def _device_of_losses(name: str, images: int) -> torch.device:
    if name == "auto":
        if images < LARGE:
            name = "cpu"
        else:
            claim_gpus(1)  # which the process then keeps
    return choose_device(name)


def _read_weights(run: Path, hashes: dict[str, str], step: int) -> dict[str, dict[str, np.ndarray]]:
    """Objective -> name -> array of one checkpoint."""
    return {
        objective: {
            name: tensor.numpy()
            for name, tensor in load_weights(weights_file(run, objective, step), sha).items()
        }
        for objective, sha in hashes.items()
    }
