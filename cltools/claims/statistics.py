"""The statistics that decide claims: one number per seed, from the rows of a table.

Each function takes the rows of one arm, whose cells differ in the seed and in the factor of a sweep
only. It returns an `Effects`. The rows of each seed are averaged before they are compared: over
draws of classes, over checkpoints where a test reads several, and over the settings of a grid. A
seed for which one side of a comparison is missing is left out.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cltools.claims import EXPRESSIONS, Test, Where
from cltools.runtime.errors import InputError

LEAST_POINTS = 3  # for a correlation, since that of two points is always ±1
ROUNDING = 1e-6  # relative; features are stored in float32

# Table -> the columns that identify a run, and the column that counts its steps.
RUNS = {
    "measures": (("cell",), "step"),
    "theory": (("cell",), "step"),
    "training_log": (("cell", "model"), "step"),
    "surrogate": (("classes", "tau", "batch_size", "total_lr", "seed"), "step"),
    "minimise": (("objective", "classes", "dimension", "tau", "seed"), "iteration"),
    "regularity": (("seed", "objective"), "step"),
}


class Effects(NamedTuple):
    """Effects (n,) of n seeds, in ascending order of seeds.

    `levels` is the number of values of x, or of points of a correlation. `rows` is the number of
    rows that were read, and `left_out` that of the seeds without some value of x.
    """

    values: NDArray[np.float64]
    levels: int
    rows: int
    left_out: int = 0


class Violations(NamedTuple):
    """How many of `rows` rows, from `seeds` seeds, violate a bound.

    `margin` is the smallest distance of a value to its bound: negative if a bound is violated, NaN
    without rows.
    """

    rows: int
    violations: int
    margin: float
    seeds: int


def select(table: pl.DataFrame, test: Test) -> pl.DataFrame:
    """The rows of a table that a test reads, before the conditions of its terms.

    The last step of a run is the largest in its rows between `from_epoch` and `until_epoch`,
    whatever the other conditions.

    Raises InputError when the table lacks a column, or an expression is not valid SQL.
    """
    keys, clock = RUNS[test.table]
    if "epoch" in table.columns:
        table = table.filter(pl.col("epoch").is_between(test.from_epoch, test.until_epoch))
    at = {
        "start": pl.col(clock) == 0,
        "last": pl.col(clock) == pl.col(clock).max().over(keys),
        "all": pl.lit(True),
        "trained": pl.col(clock) > 0,
    }
    found = matching(table.filter(at[test.at]), test.where)
    if only := test.only:
        return _evaluated(lambda: found.filter(pl.sql_expr(only)), test)
    return found


def matching(rows: pl.DataFrame, where: Where) -> pl.DataFrame:
    """The rows whose columns have the given value, or one of the given values.

    Raises InputError when the table lacks such a column.
    """
    for column, value in where.items():
        if column in EXPRESSIONS:
            continue
        if column not in rows.columns:
            raise InputError(
                f"a claim asks for column {column}, which its table lacks: it has "
                f"{', '.join(rows.columns)}"
            )
        rows = rows.filter(pl.col(column).is_in(value if isinstance(value, list) else [value]))
    return rows


def level(rows: pl.DataFrame, test: Test) -> Effects:
    """The mean value of each seed."""
    rows = _values(rows, test)
    return _effects(_by_seed(rows), 1, rows)


def difference(rows: pl.DataFrame, test: Test) -> Effects:
    """Value of the first term minus that of the second, for each seed.

    The value of a term is the mean of its rows. With `take`, it is the smallest or largest of the
    means for each combination of the values that the term lists. Then a seed without one of the
    combinations that other seeds have is left out, and all are if nobody has a listed value.
    """
    (first, read), (second, more) = (_side(rows, test, term) for term in test.terms)
    both = first.join(second.rename({"y": "other"}), on="seed")
    return _effects(both.select("seed", y=pl.col("y") - pl.col("other")), 1, read, more)


def change(rows: pl.DataFrame, test: Test) -> Effects:
    """Value at the last step of a run minus its value at step 0, for each seed."""
    changes, *read = _changes(rows, test)
    return _effects(changes, 1, *read)


def share(rows: pl.DataFrame, test: Test) -> Effects:
    """Decrease of the first term during a run, divided by that of the second, for each seed.

    Decreases are from step 0 to the last step. A seed where the second term does not decrease is
    left out.
    """
    (first, *read), (second, *more) = (_changes(rows, test, term) for term in test.terms)
    both = first.join(second.rename({"y": "whole"}).filter(pl.col("whole") < 0), on="seed")
    return _effects(both.select("seed", y=pl.col("y") / pl.col("whole")), 1, *read, *more)


def trend(rows: pl.DataFrame, test: Test) -> Effects:
    """How much the value changes when x doubles, for each seed: least-squares slope over log2(x).

    There must be at least two values of x. A seed that lacks one of those that other seeds have is
    left out, since a slope over fewer values would be another effect.
    """
    column = test.named("x")
    rows = _values(rows, test)
    means = rows.group_by("seed", column).agg(pl.col("y").mean())
    levels, left_out = means[column].n_unique(), 0
    found = []
    for (seed,), points in means.sort("seed", column).group_by("seed", maintain_order=True):
        if len(points) < levels:
            left_out += 1
        elif levels > 1:
            x = np.log2(points[column].to_numpy().astype(float))
            slope = ((x - x.mean()) @ points["y"].to_numpy()) / ((x - x.mean()) ** 2).sum()
            found.append({"seed": seed, "y": float(slope)})
    return _effects(_table(found), levels, rows)._replace(left_out=left_out)


def correlation(rows: pl.DataFrame, test: Test) -> Effects:
    """Pearson correlation of the two terms over the values of `along`, for each seed.

    A seed needs at least three values. It is left out if one of the terms is constant.
    """
    along = test.named("along")
    sides = []
    for name, term in zip(("y", "other"), test.terms, strict=True):
        side = _values(rows, test, term)
        sides.append(side.group_by("seed", along).agg(pl.col("y").mean().alias(name)))
    both = sides[0].join(sides[1], on=["seed", along])
    found, levels = [], 0
    for (seed,), points in both.sort("seed", along).group_by("seed", maintain_order=True):
        levels = max(levels, len(points))
        if len(points) >= LEAST_POINTS:
            r = np.corrcoef(points["y"], points["other"])[0, 1] if _spread(points) else np.nan
            found.append({"seed": seed, "y": float(r)})
    return _effects(_table(found), levels, rows)


def halving(rows: pl.DataFrame, test: Test) -> Effects:
    """log10 of the ratio of two halving times, the first term's over the second's, for each seed.

    The halving time of a run is the first time at which its `column` is below half of its first
    value. The terms are compared at equal settings, and the results are averaged over settings.
    Settings are the columns that identify a run, without tau and those that the terms name. A run
    that does not reach half counts as if it did at its last time, so that differences come out too
    small.
    """
    keys, clock = RUNS[test.table]
    falling, elapsed = pl.col(test.named("column")), pl.col(test.named("clock"))
    named = {column for term in test.terms for column in term}
    settings = [key for key in keys if key not in named and key != "tau"]
    sides = []
    for name, term in zip(("y", "other"), test.terms, strict=True):
        runs = matching(rows, term).filter(elapsed.is_finite()).sort(clock)
        halved = falling < falling.first() / 2
        time = elapsed.filter(halved).first().fill_null(elapsed.last())
        times = runs.group_by(keys).agg(time.log10().alias(name))
        sides.append(times.group_by(settings).agg(pl.col(name).mean()))
    both = sides[0].join(sides[1], on=settings)
    means = both.group_by("seed").agg((pl.col("y") - pl.col("other")).mean().alias("y"))
    return _effects(means, len(both), rows)


def violations(rows: pl.DataFrame, test: Test) -> Violations:
    """Count the rows whose value violates its bounds by more than rounding.

    Rows where a distance to a bound is NaN or null are not counted at all.
    """

    def margins() -> pl.DataFrame:
        value = pl.sql_expr(test.value).cast(pl.Float64)
        room = []
        if test.lower is not None:
            room.append(value - pl.sql_expr(test.lower))
        if test.upper is not None:
            room.append(pl.sql_expr(test.upper) - value)
        # Values may be logarithms of 0. These are infinite and must not make the slack infinite.
        size = pl.when(value.is_finite()).then(value.abs()).otherwise(1.0)
        slack = ROUNDING * pl.max_horizontal(1.0, size)
        table = rows.with_columns(
            said=pl.all_horizontal(one.is_not_nan() & one.is_not_null() for one in room),
            margin=pl.min_horizontal(room),
            slack=slack,
        )
        return table.filter("said")

    found = _evaluated(margins, test)
    broken = (found["margin"] < -found["slack"]).sum()
    margin = float(found["margin"].cast(pl.Float64).to_numpy().min()) if len(found) else math.nan
    seeds = found["seed"].n_unique() if "seed" in found.columns else 0
    return Violations(len(found), int(broken), margin, seeds)


STATISTICS = {
    "level": level,
    "difference": difference,
    "change": change,
    "share": share,
    "trend": trend,
    "correlation": correlation,
    "halving": halving,
}


def _values(rows: pl.DataFrame, test: Test, term: Where | None = None) -> pl.DataFrame:
    """The rows of a term where its value is finite, with this value as the column `y`."""
    term = term or {}
    y = pl.sql_expr(term.get("value", test.value)).cast(pl.Float64).alias("y")
    found = matching(rows, term)
    return _evaluated(lambda: found.with_columns(y).filter(pl.col("y").is_finite()), test)


def _side(rows: pl.DataFrame, test: Test, term: Where) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The value `y` of a term of a difference for each seed, and the rows that it is of."""
    where = {column: value for column, value in term.items() if column != "take"}
    found = _values(rows, test, where)
    if "take" not in term:
        return _by_seed(found), found
    listed = {column: value for column, value in where.items() if isinstance(value, list)}
    if any(set(value) - set(found[column]) for column, value in listed.items()):
        found = found.clear()
    means = found.group_by("seed", *listed).agg(pl.col("y").mean())
    one = pl.col("y").min() if term["take"] == "smallest" else pl.col("y").max()
    by_seed = means.group_by("seed").agg(one, combinations=pl.len())
    whole = by_seed.filter(pl.col("combinations") == pl.col("combinations").max())
    return whole.select("seed", "y"), found


def _changes(
    rows: pl.DataFrame, test: Test, term: Where | None = None
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The change `y` of each seed, and the rows of the last step and of step 0."""
    keys, clock = RUNS[test.table]
    last = pl.col(clock) == pl.col(clock).max().over(keys)
    parts = rows.filter(last, pl.col(clock) > 0), rows.filter(pl.col(clock) == 0)
    end, start = (_values(part, test, term) for part in parts)
    both = _by_seed(end).join(_by_seed(start, "start"), on="seed")
    return both.select("seed", y=pl.col("y") - pl.col("start")), end, start


def _by_seed(rows: pl.DataFrame, name: str = "y") -> pl.DataFrame:
    return rows.group_by("seed").agg(pl.col("y").mean().alias(name))


def _table(found: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(found, schema={"seed": pl.Int64, "y": pl.Float64})


def _effects(by_seed: pl.DataFrame, levels: int, *read: pl.DataFrame) -> Effects:
    finite = by_seed.filter(pl.col("y").is_finite()).sort("seed")
    return Effects(finite["y"].to_numpy(), levels, sum(map(len, read)))


def _spread(points: pl.DataFrame) -> bool:
    return bool((points.select(pl.col("y", "other").std()).to_numpy() > 0).all())


def _evaluated(made: Callable[[], pl.DataFrame], test: Test) -> pl.DataFrame:
    """The result of `made`. Raises InputError for expressions that polars cannot evaluate."""
    try:
        return made()
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the claim's {test.kind} test on table {test.table} cannot be evaluated ({reason}): "
            "correct its value, lower, upper or only"
        ) from None
