"""Stage `compare`: the same measures on embeddings that other software made.

Files: `.npy` (features alone), `.npz`, `.safetensors` or netCDF (`.nc`). Where a file holds several
arrays, `features` (or `h`) is (N, d), `labels` (or `label`) are the N classes and `ids` (or
`sample_id`) name the N images.
"""

from pathlib import Path
from typing import Any

import numpy as np

from cltools import measurements
from cltools.runtime.errors import InputError
from cltools.runtime.files import whole_file

NAMES = {"features": ("features", "h"), "labels": ("labels", "label"), "ids": ("ids", "sample_id")}


def run(*, files: list[Path], output: Path, labels_file: Path | None = None) -> None:
    """Measure the representations in `files` against the first one; tidy rows to `output`.

    Representations are named like their files. Measured as h in `cltools measure`: alignment (all
    pairs), residual alignment, rank correlation, intervals, permutation tests, corollaries and
    collapse. Labels come
    from `labels_file` (.npy) or from the files themselves.

    Raises InputError when a file cannot be read, images or labels do not match, labels are missing,
    or features are not finite.
    """
    names = [path.stem for path in files]
    if len(files) < 2 or len(set(names)) < len(names):
        raise InputError("give at least two files with different names")
    loaded = {name: read_arrays(path) for name, path in zip(names, files, strict=True)}
    if labels_file is not None:
        loaded = {name: {**arrays, "labels": None} for name, arrays in loaded.items()}
        labels = _load(labels_file).get("features")
        if labels is None or labels.shape != loaded[names[0]]["features"].shape[:1]:
            raise InputError(f"{labels_file} does not hold one label for each image: give a .npy")
        loaded[names[0]]["labels"] = labels
    arrays = {name: found["features"] for name, found in loaded.items()}
    _require_same_images(loaded, files)
    labels = _shared(loaded, "labels", files)
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


def read_arrays(path: Path) -> dict[str, np.ndarray | None]:
    """features (N, d) and, where the file has them, labels and ids (N,). Raises InputError."""
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
        if found[kind] is not None and found[kind].shape != features.shape[:1]:
            raise InputError(
                f"{path} has {len(features)} images but {kind} of shape {found[kind].shape}: "
                "give one for each image"
            )
    return found


def _load(path: Path) -> dict[str, Any]:
    """Arrays by name; never unpickles."""
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
    except Exception as error:  # each library has errors of its own for a damaged file
        raise InputError(f"{path} cannot be read ({error}): write it again") from None
    raise InputError(f"{path} is of no known type: give .npy, .npz, .safetensors or .nc")


def _require_same_images(loaded: dict[str, dict[str, Any]], files: list[Path]) -> None:
    counts = {str(path): len(found["features"]) for path, found in zip(files, loaded.values(),
                                                                      strict=True)}  # fmt: skip
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{path} has {count}" for path, count in counts.items())
        raise InputError(
            f"the files hold different numbers of images ({told}): embed the same ones"
        )
    _shared(loaded, "ids", files)


def _shared(loaded: dict[str, dict[str, Any]], kind: str, files: list[Path]) -> Any:
    """The labels or ids that all files which have them agree on; None where no file has any."""
    have = [
        (path, found[kind])
        for path, found in zip(files, loaded.values(), strict=True)
        if found[kind] is not None
    ]
    for path, values in have[1:]:
        if not np.array_equal(values, have[0][1]):
            first = int(np.flatnonzero(np.asarray(values) != np.asarray(have[0][1]))[0])
            raise InputError(
                f"{have[0][0]} and {path} differ in their {kind}, first at image {first}: give the "
                "same images in the same order"
            )
    return have[0][1] if have else None
