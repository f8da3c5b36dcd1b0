"""Stage `measure`: from a trained cell's embeddings and weights to tidy rows, one row a value."""

import json
import logging
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

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
from cltools.maths.alignment import alignment
from cltools.maths.bounds import gap_bound
from cltools.maths.objectives import CONTRASTIVE
from cltools.maths.probes import linear_probe, nccc
from cltools.maths.weights import weight_gap
from cltools.maths.whole_set import whole_set_losses
from cltools.progress import track
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
Row = dict[str, Any]


def measure_cells(
    manifests: list[Path],
    done: Path,
    linear_probe_at: str = "last",
    discard_embeddings: bool = False,
    threads: int = 1,
) -> None:
    """Measure several embedded cells and write the list of tables, by manifest, to `done`.

    Raises InputError as `measure` does.
    """
    torch.set_num_threads(threads)
    tables = {}
    for path in manifests:
        tables[str(path)] = str(measure(path, linear_probe_at))
        if discard_embeddings:
            shutil.rmtree(path.parent / "embeddings", ignore_errors=True)
    write_json(done, {"tables": tables, "version": VERSION})


def measure(manifest_path: Path, linear_probe_at: str = "last") -> Path:
    """Measure one trained and embedded cell at all its checkpoints; the tidy parquet file.

    It lies in `measures/` beside the manifest. Its name depends on everything that its rows depend
    on, so that it is made once. `linear_probe_at` is "last" or "all" checkpoints. Raises InputError
    when embeddings are missing or are of other weights than the manifest's.
    """
    manifest = read_json(manifest_path, made_by="cltools train")
    folder, run = manifest_path.parent, manifest_path.parent / "run"
    depends_on = [sha256_file(manifest_path), linear_probe_at, VERSION]
    path = folder / "measures" / f"{sha256_text(canonical_json(depends_on))[:16]}.parquet"
    if path.exists():
        return path
    tau = manifest["cell"]["tau"]
    rows: list[Row] = []
    initial: dict[str, xr.Dataset] = {}
    for step, hashes in track(saved_weights(manifest), len(manifest["checkpoints"]), "measuring"):
        dataset = read_embeddings(
            embedding_file(folder / "embeddings", step), manifest["store"], hashes
        )
        probe = linear_probe_at == "all" or step == manifest["steps"]
        splits = {name: dataset.isel(sample=dataset.split == name) for name in ("train", "test")}
        if step == 0:
            initial = splits
        at = {"step": step, "epoch": step / manifest["steps_per_epoch"]}
        for split, part in splits.items():
            start = initial.get(split)
            for row in [*_alignment(part, start), *_losses(part, tau)]:
                rows.append({**at, "split": split, "n": part.sizes["sample"], **row})
        rows += [{**at, **row} for row in _downstream(splits["train"], splits["test"], probe)]
        rows += [{**at, **row} for row in _weights(run, hashes, step)]
    table = pl.DataFrame(
        [{"split": "", "reference": "", "features": "", "n": None, **row} for row in rows]
    ).with_columns(ci_low=pl.lit(None), ci_high=pl.lit(None))
    with whole_file(path) as scratch:
        table.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()).write_parquet(
            scratch
        )
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


def _objectives(dataset: xr.Dataset) -> list[str]:
    return dataset.objective.values.tolist()


def _features(dataset: xr.Dataset, variable: str) -> dict[str, np.ndarray]:
    return {o: dataset[variable].sel(objective=o).values for o in _objectives(dataset)}


def _alignment(part: xr.Dataset, start: xr.Dataset | None) -> Iterator[Row]:
    """CKA and RSA of all pairs of objectives, and of each objective with its untrained encoder."""
    for features in ("h", "z"):
        arrays = _features(part, features)
        pairs = list(combinations(arrays, 2))
        if features == "h" and start is not None:
            # All objectives start from the same encoder; the first one's stands for it.
            arrays["init"] = start["h"].isel(objective=0).values
            pairs += [("init", objective) for objective in _objectives(part)]
        for (reference, objective), values in alignment(arrays, pairs).items():
            for (metric, variant), value in values.items():
                yield {
                    "objective": objective,
                    "reference": reference,
                    "features": features,
                    "metric": f"{metric}_to_init" if reference == "init" else metric,
                    "variant": variant,
                    "value": value,
                }


def _losses(part: xr.Dataset, tau: float) -> Iterator[Row]:
    """Whole-set DCL and NSCL of every contrastive model on augmented views, and their gap."""
    labels = part.label.values
    bounds = {t: gap_bound(int(np.bincount(labels).max()), len(labels), t) for t in {tau, 1.0}}
    for objective in _objectives(part):
        if objective not in CONTRASTIVE:
            continue
        z = torch.from_numpy(part["z_views"].sel(objective=objective).values).float()
        losses = whole_set_losses(z, torch.from_numpy(labels), sorted(bounds))
        for variant, t in (("training_tau", tau), ("tau_1", 1.0)):
            dcl, nscl = losses[t]
            for metric, value in (
                ("dcl_loss", dcl),
                ("nscl_loss", nscl),
                ("gap", dcl - nscl),
                ("gap_bound", bounds[t]),
            ):
                yield {
                    "objective": objective,
                    "features": "z",
                    "metric": metric,
                    "variant": variant,
                    "value": value,
                }


def _downstream(train: xr.Dataset, test: xr.Dataset, probe: bool) -> Iterator[Row]:
    """Nearest class centre and, if `probe`, the linear probe on h; accuracies in [0, 1]."""
    y, test_y = train.label.values, test.label.values
    test_features = _features(test, "h")
    for objective, x in _features(train, "h").items():
        found = {"nccc": nccc(x, y, test_features[objective], test_y)}
        if probe:
            found["linear_probe"] = linear_probe(x, y, test_features[objective], test_y)[:2]
        for metric, accuracies in found.items():
            for split, value, n in zip(
                ("train", "test"), accuracies, (len(y), len(test_y)), strict=True
            ):
                yield {
                    "split": split,
                    "objective": objective,
                    "features": "h",
                    "metric": metric,
                    "variant": "accuracy",
                    "value": value,
                    "n": n,
                }


def _weights(run: Path, hashes: dict[str, str], step: int) -> Iterator[Row]:
    """How far every objective's encoder weights lie from those of DCL."""
    weights = {
        objective: {
            name: tensor.numpy()
            for name, tensor in load_weights(weights_file(run, objective, step), sha).items()
        }
        for objective, sha in hashes.items()
    }
    for objective in weights:
        if objective != "dcl" and "dcl" in weights:
            yield {
                "objective": objective,
                "reference": "dcl",
                "metric": "weight_gap",
                "variant": "mean_layer",
                "value": weight_gap(weights["dcl"], weights[objective])[0],
            }
