"""Stage `measure`: from a trained cell's embeddings and weights to tidy rows, one row a value."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import torch
import xarray as xr

from cltools.errors import InputError
from cltools.files import (
    canonical_json,
    read_json,
    sha256_file,
    sha256_text,
    whole_file,
    write_json,
)
from cltools.progress import track
from cltools.stages import measurements
from cltools.stages.embed import embedding_file, load_weights
from cltools.stages.train import saved_weights, weights_file
from cltools.versions import VERSIONS

VERSION = VERSIONS["measure"]
log = logging.getLogger("cltools")

SCHEMA = {
    "step": pl.Int64,
    "epoch": pl.Float64,
    "split": pl.String,
    "objective": pl.String,
    "reference": pl.String,
    "features": pl.String,
    "metric": pl.String,
    "variant": pl.String,
    "value": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
}
EMPTY = {
    "split": "",
    "reference": "",
    "features": "",
    "ci_low": None,
    "ci_high": None,
    "n": None,
}


def measure_cells(
    manifests: list[Path],
    done: Path,
    full_at: str = "last",
    discard_embeddings: bool = False,
    threads: int = 1,
) -> None:
    """Measure several embedded cells and write the list of tables, by manifest, to `done`.

    Raises InputError as `measure` does.
    """
    torch.set_num_threads(threads)
    tables = {}
    for path in manifests:
        tables[str(path)] = str(measure(path, full_at))
        if discard_embeddings:
            shutil.rmtree(path.parent / "embeddings", ignore_errors=True)
    write_json(done, {"tables": tables, "version": VERSION})


def measure(manifest_path: Path, full_at: str = "last") -> Path:
    """Measure one trained and embedded cell at all its checkpoints; the tidy parquet file.

    It lies in `measures/` beside the manifest. Its name depends on everything that its rows depend
    on, so that it is made once. `full_at` is "last" or "all" checkpoints: there the dearer measures
    are made too (linear probe, few-shot, kNN, permutation null, intervals). Raises InputError when
    embeddings are missing or are of other weights than the manifest's.
    """
    manifest = read_json(manifest_path, made_by="cltools train")
    folder, run = manifest_path.parent, manifest_path.parent / "run"
    depends_on = [sha256_file(manifest_path), full_at, VERSION]
    path = folder / "measures" / f"{sha256_text(canonical_json(depends_on))[:16]}.parquet"
    if path.exists():
        return path
    tau = manifest["cell"]["tau"]
    rows: list[measurements.Row] = []
    initial: dict[str, xr.Dataset] = {}
    for step, hashes in track(saved_weights(manifest), len(manifest["checkpoints"]), "measuring"):
        dataset = read_embeddings(
            embedding_file(folder / "embeddings", step), manifest["store"], hashes
        )
        full = full_at == "all" or step == manifest["steps"]
        splits = {name: dataset.isel(sample=dataset.split == name) for name in ("train", "test")}
        if step == 0:
            initial = splits
        found = []
        for split, part in splits.items():
            about = {"split": split, "n": part.sizes["sample"]}
            of_split = [
                *measurements.alignment_rows(part, initial.get(split)),
                *measurements.corollary_rows(part),
                *measurements.loss_rows(part, tau),
                *measurements.geometry_rows(part),
            ]
            if full:
                of_split += measurements.null_rows(part)
                _add_intervals(of_split, measurements.intervals(part))
            found += [{**about, **row} for row in of_split]
        found += measurements.downstream_rows(splits["train"], splits["test"], full)
        found += measurements.weight_rows(_read_weights(run, hashes, step))
        at = {"step": step, "epoch": step / manifest["steps_per_epoch"]}
        rows += [{**EMPTY, **at, **row} for row in found]
    with whole_file(path) as scratch:
        pl.DataFrame(rows, schema=SCHEMA).write_parquet(scratch)
    return path


def read_embeddings(path: Path, store: str, weights: dict[str, str]) -> xr.Dataset:
    """One checkpoint's embeddings. Raises InputError unless made from these weights and images."""
    remedy = "run `cltools embed` on this cell again"
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
    return dataset


def _add_intervals(
    rows: list[measurements.Row], intervals: dict[tuple[str, str, str], tuple[float, float]]
) -> None:
    """Put intervals over images beside the values of h against DCL."""
    for row in rows:
        if row.get("reference") == measurements.REFERENCE and row["features"] == "h":
            key = (row["objective"], row["metric"], row["variant"])
            row["ci_low"], row["ci_high"] = intervals.get(key, (None, None))


def _read_weights(run: Path, hashes: dict[str, str], step: int) -> dict[str, dict[str, np.ndarray]]:
    """Objective -> name -> array of one checkpoint."""
    return {
        objective: {
            name: tensor.numpy()
            for name, tensor in load_weights(weights_file(run, objective, step), sha).items()
        }
        for objective, sha in hashes.items()
    }
