"""Stage `minimise`: minimize the objectives over free embeddings, for a grid of settings.

It needs no training. Theorem 2 of P1 (arXiv 2506.04411) says where NSCL, the contrastive loss with
negatives of other classes only, must end; see `cltools.maths.minimise`.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import torch

from cltools.config.grids import grid_settings
from cltools.maths.minimise import minimise, nscl_minimum
from cltools.runtime.errors import InputError
from cltools.runtime.progress import track
from cltools.runtime.sealed import write_table


def run(*, settings: Mapping[str, Any], output: Path) -> None:
    """Run the whole grid and write a tidy parquet, one row per run and iteration, to `output`.

    Columns: objective, classes, dimension, tau (null for CE, cross-entropy, which does not use it
    and runs once per other setting), seed, per_class, iteration (0 is the start), phase ("start",
    "descent" or "newton"), minimum_loss (of NSCL where d ≥ C - 1, else null), then the trajectory
    of `cltools.maths.minimise.Minimum`; null where it is undefined. Runs of one seed, number of
    classes and dimension start from the same embeddings.

    Dimensions that come out equal are run once. d = 1 is left out, even with two classes, where
    Theorem 2 includes it: the sphere then has only two points, so that descent cannot move.

    Args:
        settings: keys of the config schema's `minimise` that replace their defaults.
        output: the parquet file.

    Raises:
        InputError: settings that the schema refuses, a grid that is too large, no dimension above
            1, a temperature so extreme that embeddings come out as NaN.
    """
    chosen = grid_settings(settings, "minimise")
    runs = list(_runs(chosen))
    if not runs:
        raise InputError(
            f"config key minimise.dimensions is {chosen['dimensions']!r}, but must give a dimension"
            f" of at least 2 with minimise.classes {chosen['classes']!r}: at d = 1 nothing moves"
        )
    steps, per_class = chosen["descent_steps"], chosen["per_class"]
    tables = []
    for objective, classes, dimension, tau, seed in track(runs, len(runs), "minimizing", "run"):
        labels = torch.arange(classes * per_class) % classes
        try:
            found = minimise(
                objective,
                labels,
                dimension,
                1.0 if tau is None else tau,
                seed,
                descent_steps=steps,
                descent_lr=chosen["descent_lr"],
            )
        except ValueError as error:
            where = f"objective = {objective}, classes = {classes}, tau = {tau}"
            raise InputError(f"minimise with {where}: {error}") from None
        least = None
        if objective == "nscl" and tau is not None and dimension >= classes - 1:
            least = nscl_minimum(per_class, classes, tau)
        trajectory = found._asdict()
        del trajectory["z"]
        tables.append(
            pl.DataFrame(trajectory).select(
                pl.lit(objective).alias("objective"),
                pl.lit(classes, pl.Int64).alias("classes"),
                pl.lit(dimension, pl.Int64).alias("dimension"),
                pl.lit(tau, pl.Float64).alias("tau"),
                pl.lit(seed, pl.Int64).alias("seed"),
                pl.lit(per_class, pl.Int64).alias("per_class"),
                pl.int_range(pl.len()).alias("iteration"),
                _phase(steps).alias("phase"),
                pl.lit(least, pl.Float64).alias("minimum_loss"),
                pl.col(*trajectory).fill_nan(None),
            )
        )
    write_table(output, pl.concat(tables), {"table": "minimise"})


def _runs(chosen: Mapping[str, Any]) -> Iterator[tuple[str, int, int, float | None, int]]:
    """(objective, classes, dimension, tau, seed) of every run of the grid, each once."""
    for objective, classes in product(chosen["objectives"], chosen["classes"]):
        named = {"C": classes, "C-1": classes - 1, "C/2": -(-classes // 2)}
        dimensions = dict.fromkeys(named.get(d, d) for d in chosen["dimensions"])
        taus = [None] if objective == "ce" else chosen["taus"]
        for dimension, tau, seed in product(dimensions, taus, chosen["seeds"]):
            if dimension > 1:
                yield objective, classes, dimension, tau, seed


def _phase(descent_steps: int) -> pl.Expr:
    iteration = pl.int_range(pl.len())
    return (
        pl.when(iteration == 0)
        .then(pl.lit("start"))
        .when(iteration <= descent_steps)
        .then(pl.lit("descent"))
        .otherwise(pl.lit("newton"))
    )
