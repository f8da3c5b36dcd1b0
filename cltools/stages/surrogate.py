"""Stage `surrogate`: similarity descent for a grid of settings, beside its bounds.

Similarity descent is from P2 (arXiv 2510.08852); `cltools.maths.surrogate` has its equations. It
needs no training. The reference set is drawn as Gaussian class clusters, or is given as the
embeddings of two views.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cltools.config.grids import grid_settings
from cltools.maths.surrogate import similarities_of_views, similarity_descent
from cltools.runtime.errors import InputError
from cltools.runtime.progress import track
from cltools.runtime.sealed import write_table

# Settings of drawn clusters, which have no meaning when features are given.
_CLUSTERS = ("classes", "images", "dimension", "spread", "view_noise")


def run(*, settings: Mapping[str, Any], output: Path) -> None:
    """Run the whole grid and write a tidy parquet, one row per run and step, to `output`.

    Columns: classes, tau, batch_size, total_lr (Ση of the whole run), seed, images, step (from 1),
    then the fields of `cltools.maths.surrogate.Descent`. The batches of a run depend only on the
    seed, the batch size and the number of steps, so that runs which differ in other settings have
    the same batches. The clusters depend only on the seed and the number of classes.

    Args:
        settings: keys of the config schema's `surrogate` that replace their defaults.
        output: the parquet file.

    Raises:
        InputError: settings that the schema refuses or that do not fit together, a grid that is too
            large, files that are missing or do not fit, a batch drawn of one class (NSCL is
            undefined on it).
    """
    chosen = _checked(settings)
    axes = [chosen[key] for key in ("seeds", "batch_sizes", "taus", "sum_lrs")]
    tables = []
    for seed, classes, sigma, labels in _references(chosen):
        runs = list(product(*axes[1:]))
        for size, tau, total in track(runs, len(runs), f"seed {seed}, {classes} classes", "run"):
            batches = _batches(len(labels), size, chosen["steps"], seed)
            lrs = np.full(chosen["steps"], total / chosen["steps"])
            try:
                descent = similarity_descent(sigma, labels, batches, lrs, tau, chosen["delta"])
            except ValueError as error:
                where = f"classes = {classes}, batch_size = {size}, seed = {seed}"
                raise InputError(f"surrogate with {where}: {error}") from None
            tables.append(
                pl.DataFrame(descent._asdict()).select(
                    pl.lit(classes, pl.Int64).alias("classes"),
                    pl.lit(tau, pl.Float64).alias("tau"),
                    pl.lit(size, pl.Int64).alias("batch_size"),
                    pl.lit(total, pl.Float64).alias("total_lr"),
                    pl.lit(seed, pl.Int64).alias("seed"),
                    pl.lit(len(labels), pl.Int64).alias("images"),
                    pl.int_range(1, pl.len() + 1).alias("step"),
                    *descent._fields,
                )
            )
    write_table(output, pl.concat(tables), {"table": "surrogate"})


def gaussian_views(
    classes: int,
    images: int,
    dimension: int,
    spread: float,
    view_noise: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Two views (2, N, d) of N images in Gaussian classes of nearly equal size, and labels (N,).

    Class centers are drawn evenly from the unit sphere. Offsets are Gaussian, with an expected
    squared length of spread² (image from center) and view_noise² (view from image). Rows are not
    normalized.
    """
    labels = np.arange(images) % classes
    centers = rng.standard_normal((classes, dimension))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    scale = 1 / np.sqrt(dimension)
    offsets = spread * scale * rng.standard_normal((images, dimension))
    noise = view_noise * scale * rng.standard_normal((2, images, dimension))
    return centers[labels] + offsets + noise, labels


def _references(
    chosen: Mapping[str, Any],
) -> Iterator[tuple[int, int, NDArray[np.float64], NDArray[np.integer]]]:
    """(seed, number of classes, Σ, labels) of every reference set of the grid."""
    if chosen["features"] is None:
        for seed, classes in product(chosen["seeds"], chosen["classes"]):
            rng = np.random.default_rng([seed, classes])
            sizes = {key: chosen[key] for key in _CLUSTERS[1:]}
            z, labels = gaussian_views(classes, rng=rng, **sizes)
            yield seed, classes, similarities_of_views(z), labels
        return
    features, given = _load(chosen["features"]), _load(chosen["labels"])
    try:
        sigma = similarities_of_views(features)
    except ValueError as error:
        raise InputError(f"{chosen['features']}: {error}") from None
    if given.shape != features.shape[1:2] or not np.issubdtype(given.dtype, np.integer):
        raise InputError(
            f"{chosen['labels']} must hold {features.shape[1]} integer labels, one per image of"
            f" {chosen['features']}, not {given.dtype} {given.shape}"
        )
    if max(chosen["batch_sizes"]) > len(given):
        raise InputError(_too_large("batch_sizes", chosen, f"{len(given)} images of the features"))
    for seed in chosen["seeds"]:
        yield seed, len(np.unique(given)), sigma, given


def _batches(images: int, size: int, steps: int, seed: int) -> NDArray[np.int64]:
    """Image numbers (steps, size), each batch drawn without repeats."""
    rng = np.random.default_rng([seed, size, steps])
    return np.array([rng.permutation(images)[:size] for _ in range(steps)])


def _load(path: str | Path) -> NDArray[Any]:
    """The array of a .npy file, of whatever type it is. Raises InputError."""
    try:
        with open(path, "rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check its path") from None
    except (OSError, ValueError):
        raise InputError(f"{path} is not a .npy file of numbers: write it again") from None
    return array


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with defaults for those left out. Raises InputError as `run` does."""
    chosen = grid_settings(settings, "surrogate")
    given = chosen["features"] is not None
    if given != (chosen["labels"] is not None):
        raise InputError(
            "config keys surrogate.features and surrogate.labels must be given together: add the "
            "missing one"
        )
    if given and (both := sorted(set(settings) & set(_CLUSTERS))):
        raise InputError(f"config key surrogate.{both[0]} is for drawn clusters: leave it out")
    for key in ("classes", "batch_sizes"):
        if not given and max(chosen[key]) > chosen["images"]:
            raise InputError(_too_large(key, chosen, f"{chosen['images']} of surrogate.images"))
    return chosen


def _too_large(key: str, chosen: Mapping[str, Any], limit: str) -> str:
    return f"config key surrogate.{key} is {chosen[key]!r}, but must be at most the {limit}"
