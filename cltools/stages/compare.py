"""Stage `compare`: the same measures on embeddings that other software made.

`cltools.data.feature_files` reads them, and says what the files hold.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cltools import measurements
from cltools.data.feature_files import Array, Arrays, as_text, differing, load, missing, read_arrays
from cltools.runtime.errors import InputError
from cltools.runtime.files import whole_file

log = logging.getLogger("cltools")

# What writes a table to a file with this ending.
WRITERS: dict[str, Callable[[pl.DataFrame, Path], None]] = {
    ".parquet": pl.DataFrame.write_parquet,
    ".csv": pl.DataFrame.write_csv,
}


def run(*, files: list[Path], output: Path, labels_file: Path | None = None) -> None:
    """Measure the representations in `files` against the first one; tidy rows to `output`.

    The ending of `output` says whether it is written as parquet or CSV.

    Representations are named like their files; of files with the same name in several folders, as
    much of the path is added as tells them apart. Images whose label is NaN are left out. Measured
    as h in `cltools measure`: alignment (all pairs), residual alignment, rank correlation,
    intervals, permutation tests, corollaries and collapse. Labels come from `labels_file` (.npy) or
    from the files themselves.

    Raises InputError when a file cannot be read, images or labels do not match, labels are missing,
    features are not finite, or `output` cannot be written or has another ending.
    """
    names = _names(files)
    _require_writable(output)
    loaded = {name: read_arrays(path) for name, path in zip(names, files, strict=True)}
    arrays = {name: found.features for name, found in loaded.items()}
    given = None
    if labels_file is not None:
        given = as_text(load(labels_file)["features"])
        if given.shape != arrays[names[0]].shape[:1]:
            raise InputError(f"{labels_file} does not hold one label for each image: give a .npy")
    by_file = dict(zip(files, loaded.values(), strict=True))
    _require_same_images(by_file)
    labels = given
    if labels is None:
        labels = _shared({path: found.labels for path, found in by_file.items()}, "labels")
    if labels is None:
        raise InputError("no file holds labels: give them with --labels (.npy)")
    arrays, labels = _labeled(arrays, labels)
    _say_constant(arrays)
    try:
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN was said above, with the reason
            rows = _rows(arrays, labels, names[0])
    except ValueError as error:
        raise InputError(f"the embeddings cannot be compared: {error}") from None
    table = measurements.tidy({"n": len(labels), **row} for row in rows)
    with whole_file(output) as scratch:
        WRITERS[output.suffix](table, scratch)


def _rows(arrays: dict[str, np.ndarray], labels: np.ndarray, first: str) -> list[dict[str, Any]]:
    of = measurements.Representations(arrays, labels, reference=first)
    rows = [
        *measurements.alignment_rows(of),
        *measurements.corollary_rows(of),
        *measurements.rank_rows(of),
        *measurements.null_rows(of),
        *measurements.geometry_rows(of, intervals=True),
    ]
    rows += measurements.angle_rows(rows, of)
    measurements.add_intervals(rows, of)
    return rows


def _names(files: list[Path]) -> list[str]:
    """A name for each file: its stem or, where stems are equal, as many folders as it takes."""
    paths = [path.absolute() for path in files]
    if len(set(paths)) < max(2, len(paths)):
        raise InputError("give at least two files, each of them once")
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [path.name for path in paths]


def _require_writable(output: Path) -> None:
    """Raises InputError, before any work, when the output cannot be made or has another ending."""
    if output.is_dir():
        raise InputError(f"{output} is a folder: give --output the name of a file")
    if output.suffix not in WRITERS:
        raise InputError(
            f"--output {output} must end in {' or '.join(WRITERS)}, which says how the table is "
            "written: give it one of these endings"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{output} cannot be written ({error.strerror}): choose another folder"
        ) from None


def _labeled(
    arrays: dict[str, np.ndarray], labels: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The images that have a label; how many do not is said in one line."""
    without = missing(labels)
    if not without.any():
        return arrays, labels
    log.warning("%d images are left out, as their label is NaN", without.sum())
    return {name: array[~without] for name, array in arrays.items()}, labels[~without]


def _say_constant(arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if len(array) and (array == array[0]).all():
            log.warning("%s: all images have the same features, so similarities are NaN", name)
        elif not array.any(axis=1).all():
            log.warning("%s: some images have only zeros as features, so cosines are NaN", name)


def _require_same_images(loaded: Mapping[Path, Arrays]) -> None:
    counts = {path: len(found.features) for path, found in loaded.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{path} has {count}" for path, count in counts.items())
        raise InputError(
            f"the files hold different numbers of images ({told}): embed the same ones"
        )
    _shared({path: found.ids for path, found in loaded.items()}, "ids")


def _shared(found: Mapping[Path, Array | None], kind: str) -> Array | None:
    """The labels or ids that all files which have them agree on; None where no file has any."""
    have = [(path, values) for path, values in found.items() if values is not None]
    for path, values in have[1:]:
        if (first := differing(values, have[0][1])) is not None:
            raise InputError(
                f"{have[0][0]} and {path} differ in their {kind}, first at image {first}: give the "
                "same images in the same order"
            )
    return have[0][1] if have else None
