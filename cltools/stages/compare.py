"""Stage `compare`: measure embeddings that other software made, as `measure` does.

Files are `.npy` (features only), `.npz`, `.safetensors` or netCDF (`.nc`). In a file of several
arrays, `features` (or `h`) is (N, d), `labels` (or `label`) holds the classes of the N images, and
`ids` (or `sample_id`) their names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cltools import measurements
from cltools.runtime.errors import InputError
from cltools.runtime.files import whole_file

NAMES = {"features": ("features", "h"), "labels": ("labels", "label"), "ids": ("ids", "sample_id")}


def run(*, files: list[Path], output: Path, labels_file: Path | None = None) -> None:
    """Measure the representations in `files` against the first one; tidy rows to `output`.

    Each representation has the name of its file. The measures are those of h in `cltools measure`:
    alignment (all pairs), residual alignment, rank correlation, intervals, permutation tests,
    corollaries and collapse. Labels come from `labels_file` (.npy) or from the files themselves.

    Raises InputError when a file cannot be read, images or labels do not match, labels are missing,
    or features are not finite.
    """
    names = [path.stem for path in files]
    if len(files) < 2 or len(set(names)) < len(names):
        raise InputError("give at least two files with different names")
    loaded = {path: read_arrays(path) for path in files}
    arrays = {path.stem: found.features for path, found in loaded.items()}
    given = None
    if labels_file is not None:
        given = _load(labels_file).get("features")
        if given is None or given.shape != arrays[names[0]].shape[:1]:
            raise InputError(f"{labels_file} does not hold one label for each image: give a .npy")
    _require_same_images(loaded)
    labels = _shared(loaded, "labels") if given is None else given
    if labels is None:
        raise InputError("no file holds labels: give them with --labels (.npy)")
    try:
        rows = [
            *measurements.alignment_rows(arrays, labels),
            *measurements.corollary_rows(arrays, names[0]),
            *measurements.rank_rows(arrays, names[0]),
            *measurements.null_rows(arrays, labels, names[0]),
            *measurements.geometry_rows(arrays, labels, intervals=True),
        ]
        rows += measurements.angle_rows(rows, arrays, names[0])
        measurements.add_intervals(rows, arrays, names[0])
    except ValueError as error:
        raise InputError(f"the embeddings cannot be compared: {error}") from None
    table = measurements.tidy({**row, "n": len(labels)} for row in rows)
    with whole_file(output) as scratch:
        table.write_parquet(scratch)


@dataclass(frozen=True)
class Arrays:
    """What a file holds: features (N, d), and labels and ids (N,) or None."""

    features: np.ndarray
    labels: np.ndarray | None
    ids: np.ndarray | None


def read_arrays(path: Path) -> Arrays:
    """The arrays of one file.

    Raises InputError when the file cannot be read, holds no features, or holds arrays of a wrong
    shape or type.
    """
    stored = _load(path)
    found = {
        kind: next((stored[name] for name in names if name in stored), None)
        for kind, names in NAMES.items()
    }
    features = found["features"]
    if features is None:
        raise InputError(f"{path} holds no array 'features' (it has {', '.join(stored)}): add it")
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise InputError(
            f"the features in {path} are of shape {features.shape} and type {features.dtype}: "
            "give numbers of shape (images, dimensions)"
        )
    for kind in ("labels", "ids"):
        array = found[kind]
        if array is not None and array.shape != features.shape[:1]:
            raise InputError(
                f"{path} has {len(features)} images but {kind} of shape {array.shape}: "
                "give one for each image"
            )
    return Arrays(features, found["labels"], found["ids"])


def _load(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name. Pickled objects are refused, because loading them could run code."""
    try:
        match path.suffix:
            case ".npy":
                return {"features": np.load(path, allow_pickle=False)}
            case ".npz":
                with np.load(path, allow_pickle=False) as archive:
                    return dict(archive)
            case ".safetensors":
                from safetensors.numpy import load_file

                return load_file(path)
            case ".nc":
                import xarray as xr

                with xr.open_dataset(path, engine="h5netcdf") as dataset:
                    return {str(name): dataset[name].values for name in dataset.variables}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check its path") from None
    except Exception as error:  # each library raises other errors for a damaged file
        raise InputError(f"{path} cannot be read ({error}): write it again") from None
    raise InputError(f"{path} has an unknown type: give .npy, .npz, .safetensors or .nc")


def _require_same_images(loaded: Mapping[Path, Arrays]) -> None:
    counts = {path: len(found.features) for path, found in loaded.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{path} has {count}" for path, count in counts.items())
        raise InputError(
            f"the files hold different numbers of images ({told}): embed the same ones"
        )
    _shared(loaded, "ids")


def _shared(loaded: Mapping[Path, Arrays], kind: Literal["labels", "ids"]) -> np.ndarray | None:
    """The labels or ids, which must be the same in all files that have them.

    None where no file has any. Raises InputError where two files differ.
    """
    found: dict[Path, np.ndarray | None]
    found = {path: getattr(arrays, kind) for path, arrays in loaded.items()}
    have = [(path, values) for path, values in found.items() if values is not None]
    if not have:
        return None
    (first_path, first), *others = have
    for path, values in others:
        if not np.array_equal(values, first):
            image = int(np.flatnonzero(values != first)[0])
            raise InputError(
                f"{first_path} and {path} differ in their {kind}, first at image {image}: give the "
                "same images in the same order"
            )
    return first
