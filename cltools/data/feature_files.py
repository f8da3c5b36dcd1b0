"""Embeddings that other software wrote: `.npy`, `.npz`, `.safetensors` and netCDF.

Where a file holds several arrays, `features` (or `h`) is (N, d), `labels` (or `label`) are the N
classes and `ids` (or `sample_id`) name the N images. Nothing is ever unpickled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cltools.runtime.errors import InputError

NAMES = {"features": ("features", "h"), "labels": ("labels", "label"), "ids": ("ids", "sample_id")}
Array = NDArray[Any]


@dataclass(frozen=True)
class Arrays:
    """What a file holds: features (N, d), and labels and ids (N,) or None. Text is str."""

    features: Array
    labels: Array | None = None
    ids: Array | None = None


def read_arrays(path: Path) -> Arrays:
    """The arrays of one file.

    Raises InputError when the file cannot be read or its arrays do not fit each other.
    """
    loaded = load(path)
    features = loaded["features"]
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise InputError(
            f"the features in {path} are of shape {features.shape} and type {features.dtype}: "
            "give numbers of shape (images, dimensions)"
        )
    others = {kind: loaded[kind] for kind in ("labels", "ids") if kind in loaded}
    for kind, values in others.items():
        if values.shape != features.shape[:1]:
            raise InputError(
                f"{path} has {len(features)} images but {kind} of shape {values.shape}: "
                "give one for each image"
            )
    return Arrays(features, **{kind: as_text(values) for kind, values in others.items()})


def load(path: Path) -> dict[str, Array]:
    """The features and what there is of labels and ids, as they are; `.npy` has features alone.

    Raises InputError when the file cannot be read or holds no features.
    """
    if path.suffix not in _READERS:
        raise InputError(f"{path} is of an unknown type: give .npy, .npz, .safetensors or .nc")
    try:
        names, stored = _READERS[path.suffix](path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check its path") from None
    except Exception as error:  # each library has errors of its own for a damaged file
        remedy = "write it again"
        if "allow_pickle" in str(error):
            remedy = "write text as text, for example np.array(ids, dtype=str), not as objects"
        raise InputError(f"{path} cannot be read ({error}): {remedy}") from None
    if "features" not in stored:
        raise InputError(f"{path} holds no array 'features' (it has {', '.join(names)}): add it")
    return stored


def as_text(values: Array) -> Array:
    """Bytes and objects, such as the strings of netCDF, as str; numbers as they are."""
    if values.dtype.kind in "SO":
        texts = [
            value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
            for value in values.ravel()
        ]
        return np.array(texts, dtype=np.str_).reshape(values.shape)
    return values


def differing(first: Array, second: Array) -> int | None:
    """The first place in which two arrays (N,) differ, None if in none.

    NaN equals NaN. Where one is text and the other are numbers, the numbers are taken as text.
    """
    if (first.dtype.kind == "U") != (second.dtype.kind == "U"):
        first, second = first.astype(np.str_), second.astype(np.str_)
    differ = (first != second) & ~(missing(first) & missing(second))
    return int(differ.argmax()) if differ.any() else None


def missing(values: Array) -> NDArray[np.bool_]:
    """Which values are NaN, bool (N,)."""
    if values.dtype.kind == "f":
        return np.asarray(np.isnan(values))
    return np.zeros(len(values), dtype=bool)


Stored = tuple[list[str], dict[str, Array]]  # names of all arrays in a file, and those of NAMES


def _wanted(names: list[str], read: Callable[[str], Array]) -> Stored:
    """Read only the arrays that NAMES knows."""
    of = {kind: next((name for name in known if name in names), None)
          for kind, known in NAMES.items()}  # fmt: skip
    return names, {kind: read(name) for kind, name in of.items() if name is not None}


def _read_npy(path: Path) -> Stored:
    return ["features"], {"features": np.load(path, allow_pickle=False)}


def _read_npz(path: Path) -> Stored:
    with np.load(path, allow_pickle=False) as archive:
        return _wanted(list(archive.files), archive.__getitem__)


def _read_safetensors(path: Path) -> Stored:
    import torch
    from safetensors import safe_open

    def read(name: str) -> Array:
        tensor = file.get_tensor(name)
        if tensor.dtype == torch.bfloat16 or tensor.element_size() < 2:
            tensor = tensor.float() if tensor.is_floating_point() else tensor  # NumPy lacks these
        return np.asarray(tensor.numpy())

    with safe_open(path, "pt") as file:
        return _wanted(list(file.keys()), read)


def _read_netcdf(path: Path) -> Stored:
    import xarray as xr

    with open(path, "rb") as file:
        engine = "scipy" if file.read(3) == b"CDF" else "h5netcdf"  # netCDF-3, else HDF5
    with xr.open_dataset(path, engine=engine) as dataset:
        names = [str(name) for name in dataset.variables]
        return _wanted(names, lambda name: np.array(dataset[name].values))


_READERS: dict[str, Callable[[Path], Stored]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".nc": _read_netcdf,
    ".nc4": _read_netcdf,
    ".cdf": _read_netcdf,
}
