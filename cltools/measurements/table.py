"""The tidy table of measures: its columns, and helpers to make its rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
import polars as pl

from cltools.maths.blocks import RowSource

Row = dict[str, Any]
Features = Mapping[str, np.ndarray]  # name of an objective (or of a file) -> (n, d)
Sources = Mapping[str, np.ndarray] | Mapping[str, RowSource]  # the same, or read from a file
# (K, n, d), or K views (n, d).
ViewSources = Mapping[str, np.ndarray] | Mapping[str, Sequence[RowSource]]
SCHEMA = {
    "step": pl.Int64,
    "epoch": pl.Float64,
    "split": pl.String,
    "objective": pl.String,
    "reference": pl.String,
    "features": pl.String,
    "metric": pl.String,
    "variant": pl.String,
    "value": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
}
EMPTY = {name: "" if dtype == pl.String else None for name, dtype in SCHEMA.items()}


def tidy(rows: Iterable[Row]) -> pl.DataFrame:
    """The rows as a table with all columns; missing text is "", missing numbers are null."""
    return pl.DataFrame([{**EMPTY, **row} for row in rows], schema=SCHEMA)


def rows_of(values: Mapping[tuple[str, str], SupportsFloat], **about: Any) -> Iterator[Row]:
    """A row for each (metric, variant)."""
    for (metric, variant), value in values.items():
        yield {**about, "metric": metric, "variant": variant, "value": float(value)}


def others(arrays: Mapping[str, Any], reference: str) -> list[str]:
    """All names except the reference; an empty list if the reference is not there."""
    return [name for name in arrays if name != reference] if reference in arrays else []
