"""Stage `compare`: the same measures on embeddings that other software made.

`cltools.data.feature_files` reads them, and says what the files hold. `cltools.measurements.shown`
chooses what people are told of the rows.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cltools import measurements
from cltools.data.feature_files import (
    Array,
    Arrays,
    differing,
    missing,
    read_arrays,
    read_labels,
    split_name,
)
from cltools.measurements.shown import Comparison
from cltools.runtime.errors import InputError
from cltools.runtime.files import whole_file
from cltools.runtime.text_table import TextTable

log = logging.getLogger("cltools")

# What writes a table to a file with this ending.
WRITERS: dict[str, Callable[[pl.DataFrame, Path], None]] = {
    ".parquet": pl.DataFrame.write_parquet,
    ".csv": pl.DataFrame.write_csv,
}
PICTURES = (".png", ".pdf", ".svg")
NEED_LABELS = "alignment within classes, its permutation tests, and collapse"


def run(
    *,
    files: list[Path],
    output: Path | None = None,
    labels_file: Path | None = None,
    heatmap: Path | None = None,
) -> Comparison:
    """Measure the representations in `files` against the first one, and alignment of all pairs.

    Representations are named like their files; of files with the same name in several folders, as
    much of the path is added as tells them apart. A layer, one of several arrays in a file, and one
    that FILE:NAME asks for are called `file:name`. Images whose label is NaN are left out. Measured
    as h in `cltools measure`: alignment (all pairs, with intervals), residual alignment, rank
    correlation, permutation tests, corollaries and collapse. Labels come from `labels_file` or from
    the files themselves; without any, what needs labels is left out, and said.

    The tidy rows are written to `output`, as parquet or CSV by its ending; CKA and RSA of all pairs
    are drawn in `heatmap`, a PNG, PDF or SVG.

    Raises InputError when a file cannot be read, images or labels do not match, features are not
    finite, or a file to write cannot be written or has another ending.
    """
    _require_writable(output, "--output", tuple(WRITERS))
    _require_writable(heatmap, "--heatmap", PICTURES)
    loaded = _loaded(files)
    arrays = _by_name(loaded)
    _require_same_images(loaded)
    labels = _labels(labels_file, loaded)
    if labels is None:
        log.info("no labels: without --labels, %s are left out", NEED_LABELS)
    else:
        arrays, labels = _labeled(arrays, labels)
    _say_constant(arrays)
    try:
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN was said above, with the reason
            rows = _rows(arrays, labels)
    except ValueError as error:
        raise InputError(f"the embeddings cannot be compared: {error}") from None
    n = len(next(iter(arrays.values())))
    table = measurements.tidy({"n": n, **row} for row in rows)
    if output is not None:
        with whole_file(output) as scratch:
            WRITERS[output.suffix](table, scratch)
    widths = {name: array.shape[1] for name, array in arrays.items()}
    comparison = Comparison(table, widths, n)
    if heatmap is not None:
        from cltools.figures.comparison import draw_pairs

        draw_pairs(heatmap, list(widths), comparison.matrices(), comparison.about())
    return comparison


def report(comparison: Comparison) -> list[TextTable | str]:
    """What is printed: the measures of two representations or of all pairs, and what to cite."""
    names = list(comparison.widths)
    if len(names) == 2:
        return [TextTable(*comparison.measures()), comparison.advice()]
    tables = [TextTable(*comparison.against_first())]
    for title, matrix in comparison.matrices().items():
        rows = [
            [f"{i} {name}", *("–" if i == j else f"{x:.3f}" for j, x in enumerate(row, 1))]
            for i, (name, row) in enumerate(zip(names, matrix, strict=True), 1)
        ]
        tables.append(TextTable([title, *map(str, range(1, len(names) + 1))], rows))
    return [*tables, comparison.advice()]


def _rows(arrays: dict[str, np.ndarray], labels: np.ndarray | None) -> list[dict[str, Any]]:
    of = measurements.Representations(arrays, labels, reference=next(iter(arrays)))
    rows = [
        *measurements.alignment_rows(of),
        *measurements.corollary_rows(of),
        *measurements.rank_rows(of),
        *measurements.null_rows(of),
        *measurements.geometry_rows(of, intervals=True),
    ]
    rows += measurements.angle_rows(rows, of)
    measurements.add_intervals(rows, of, of.pairs)
    return rows


Loaded = dict[Path, Arrays]  # by the path that was given, which may name an array


def _loaded(given: list[Path]) -> Loaded:
    if len(set(given)) < len(given):
        raise InputError("give each file, or each array of a file, once")
    return {path: read_arrays(*split_name(path)) for path in given}


def _by_name(loaded: Loaded) -> dict[str, Array]:
    """The representations under the names that tables and figures call them."""
    files = list(dict.fromkeys(split_name(path)[0] for path in loaded))
    stems = dict(zip(files, _names(files), strict=True))
    named = {}
    for path, found in loaded.items():
        file, _ = split_name(path)
        for name, features in found.features.items():
            named[f"{stems[file]}:{name}" if name else stems[file]] = features
    if len(named) < 2:
        raise InputError("give at least two files, or a file with two arrays, to be compared")
    return named


def _names(files: list[Path]) -> list[str]:
    """A name for each file: its stem or, where stems are equal, as many folders as it takes."""
    paths = [path.absolute() for path in files]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [path.name for path in paths]


def _require_writable(output: Path | None, option: str, endings: tuple[str, ...]) -> None:
    """Raises InputError, before any work, when the output cannot be made or has another ending."""
    if output is None:
        return
    if output.is_dir():
        raise InputError(f"{output} is a folder: give {option} the name of a file")
    if output.suffix not in endings:
        raise InputError(
            f"{option} {output} must end in {' or '.join(endings)}, which says how it is written: "
            "give it one of these endings"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{output} cannot be written ({error.strerror}): choose another folder"
        ) from None


def _labels(file: Path | None, loaded: Loaded) -> Array | None:
    """The class of each image; None if neither `file` nor the others have any."""
    if file is None:
        return _shared({path: found.labels for path, found in loaded.items()}, "labels")
    labels = read_labels(file)
    images = len(next(iter(loaded.values())))
    if labels.shape != (images,):
        raise InputError(
            f"{file} does not hold one label for each image, but an array of shape {labels.shape} "
            f"for {images} images: give as many labels, in the order of the images"
        )
    return labels


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


def _require_same_images(loaded: Loaded) -> None:
    counts = {path: len(found) for path, found in loaded.items()}
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
