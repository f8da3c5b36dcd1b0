"""Embeddings on disk: what networks make of images, checkpoint by checkpoint.

One netCDF file per checkpoint. With n samples (training images first, then test images):

- `h` (objective, sample, feature): encoder output on the plain images, what the metrics use;
- `z` (objective, sample, dimension): normalised projector output on the plain images;
- `z_views` (objective, view, sample, dimension): the same on K augmented views, what the losses of
  a whole data set are defined on.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from cltools.layout import EmbeddingFolder, Embeddings
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, whole_file


def write_embeddings(path: Path, dataset: xr.Dataset, made_from: Mapping[str, Any]) -> None:
    """Write one checkpoint's embeddings with what they were made from."""
    dataset.attrs["cltools"] = canonical_json(made_from)
    with whole_file(path) as scratch:
        # Into memory first: HDF5 can crash as it closes a file on a disk that is full.
        scratch.write_bytes(dataset.to_netcdf(engine="h5netcdf"))


def read_embeddings(
    path: Path,
    store: str,
    weights: dict[str, str],
    made: Embeddings,
) -> xr.Dataset:
    """One checkpoint's embeddings. Raises InputError unless made from these weights and images."""
    options = (
        f"{' --recalibrate' * made.recalibrated}{' --dtype float16' * (made.dtype == 'float16')}"
    )
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
    if made_from["dtype"] != made.dtype:
        raise InputError(f"{path} holds {made_from['dtype']}, not {made.dtype}: {remedy}")
    return dataset


def made_from(path: Path) -> dict[str, Any] | None:
    """What an embedding file says it was made from; None where there is no such file."""
    try:
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            found: dict[str, Any] = json.loads(dataset.attrs["cltools"])
            return found
    except (OSError, KeyError, ValueError):
        return None


def discard(folder: EmbeddingFolder) -> None:
    """Remove a folder of embeddings, unless some experiment has it kept."""
    if not folder.kept.exists():
        shutil.rmtree(folder.path, ignore_errors=True)
