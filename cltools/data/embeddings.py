"""Embeddings on disk: what networks make of images, checkpoint by checkpoint.

One netCDF file per checkpoint. With n samples (training images first, then test images):

- `h` (objective, sample, feature): encoder output on the plain images, what the metrics use;
- `z` (objective, sample, dimension): normalized projector output on the plain images;
- `z_views` (objective, view, sample, dimension): the same on K augmented views, what the losses of
  a whole data set are defined on.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from cltools.layout import VERSIONS, EmbeddingFolder, Embeddings
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, whole_file
from cltools.runtime.sealed import BLANK, KEY, METADATA, Damaged, check_seal, sealed, usable


def origin(
    manifest: Mapping[str, Any], step: int, weights: Mapping[str, str], made: Embeddings
) -> dict[str, Any]:
    """What the embeddings of one checkpoint are made from; `weights` are hashes by objective."""
    found = {
        "cell": manifest["id"],
        "dtype": made.dtype,
        "step": step,
        "steps_per_epoch": manifest["steps_per_epoch"],
        "store": manifest["store"],
        "version": VERSIONS["embed"],
        "weights": dict(weights),
    }
    return {**found, "recalibrated": True} if made.recalibrated else found


def write_embeddings(path: Path, dataset: xr.Dataset, made_from: Mapping[str, Any]) -> None:
    """Write one checkpoint's embeddings, sealed, with what they were made from."""
    dataset.attrs[METADATA] = canonical_json({**made_from, KEY: BLANK})
    # Into memory first: HDF5 can crash as it closes a file on a disk that is full.
    content = sealed(bytes(dataset.to_netcdf(engine="h5netcdf")))
    with whole_file(path) as scratch:
        scratch.write_bytes(content)


def read_embeddings(path: Path, made_from: Mapping[str, Any], made: Embeddings) -> xr.Dataset:
    """One checkpoint's embeddings.

    Raises InputError unless the file is as it was written, from these weights and images.
    """
    options = (
        f"{' --recalibrate' * made.recalibrated}{' --dtype float16' * (made.dtype == 'float16')}"
    )
    remedy = f"run `cltools embed{options}` on this cell again"
    try:
        _check(path, made_from)
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            return opened.load()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {remedy}") from None
    except Damaged as error:
        raise InputError(f"{path} {error}: {remedy}") from None


def usable_embeddings(path: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether this file is there as it was written, from these weights and images.

    If it is damaged, one line of the log says that it is made again.
    """
    return usable(path, lambda: _check(path, made_from))


def _check(path: Path, made_from: Mapping[str, Any]) -> None:
    """Raise Damaged unless a file is as it was written, and made from this."""
    try:
        check_seal(path)
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            found = json.loads(dataset.attrs[METADATA])
    except (FileNotFoundError, Damaged):
        raise
    except (OSError, KeyError, ValueError):
        raise Damaged("is damaged") from None
    del found[KEY]
    if found["dtype"] != made_from["dtype"]:
        raise Damaged(f"holds {found['dtype']}, not {made_from['dtype']}")
    if found != json.loads(canonical_json(made_from)):
        raise Damaged("was made from other weights or images than trained")


def discard(folder: EmbeddingFolder) -> None:
    """Remove a folder of embeddings, unless some experiment has it kept."""
    if not folder.kept.exists():
        shutil.rmtree(folder.path, ignore_errors=True)
