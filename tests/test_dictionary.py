"""docs/tables.md is up to date, and describes every column of every table.

Tests of stages compare the tables that they make as well.
"""

import dictionary
import polars as pl
import pytest
from small import small_cell

from cltools.claims.evaluate import SCHEMA as CLAIMS
from cltools.layout import TABLES
from cltools.maths.surrogate import Descent
from cltools.measurements import SCHEMA
from cltools.measurements.descriptions import COLUMNS, METRICS, QUANTITIES
from cltools.measurements.inequalities import SCHEMA as THEORY
from cltools.measurements.layers import LAYER_SCHEMA
from cltools.stages import minimise, surrogate
from cltools.stages.collect import cell_columns
from cltools.training.live import LiveRow

GRID = {"classes": [2], "taus": [1.0], "seeds": [0]}


def test_the_page_is_up_to_date():
    assert dictionary.PAGE.read_text() == dictionary.page(), "run: python docs/dictionary.py"


def test_every_table_is_described():
    assert {*dictionary.TABLES} == {*COLUMNS} == {*TABLES, "claims", "live"}


@pytest.mark.parametrize(
    ("name", "columns"),
    [("measures", SCHEMA), ("theory", THEORY), ("layers", LAYER_SCHEMA), ("claims", CLAIMS),
     ("live", LiveRow._fields)],
)  # fmt: skip
def test_columns_of_fixed_tables(name, columns):
    assert {*COLUMNS[name]} == {*columns}


def test_columns_of_cells():
    cell = small_cell()
    about = {"cell": cell, "id": "", "class_ids": [], "peak_lr": 0, "train_images": 0, "steps": 0}
    columns = pl.select(*cell_columns(about, "", [])).columns
    assert {*dictionary.cell_columns()} == {*columns}


def test_tables_of_simulations(tmp_path):
    """Neither lacks a description, nor is one of something that is not there."""
    table = tmp_path / "table.parquet"
    small = {"batch_sizes": [8], "sum_lrs": [1.0], "images": 20, "steps": 2}
    surrogate.run(settings=GRID | small, output=table)
    assert {*COLUMNS["surrogate"]} == {*pl.read_parquet_schema(table)} > {*Descent._fields}
    small = {"objectives": ["nscl"], "dimensions": [2], "per_class": 2, "descent_steps": 1}
    minimise.run(settings=GRID | small, output=table)
    assert {*COLUMNS["minimise"]} == {*pl.read_parquet_schema(table)}


def test_what_lacks_a_description_is_found():
    rows = {"metric": ["nccc", "beauty", "knn"], "variant": ["speed", "all", "k_7"], "size": 1}
    found = dictionary.missing("measures", pl.DataFrame(rows))
    assert found == ["size", "beauty", "nccc/speed"]


@pytest.mark.parametrize("described", [METRICS, QUANTITIES])
def test_descriptions_are_whole(described):
    for name, (meaning, unit, variants) in described.items():
        assert all([meaning, unit, variants, *variants.values()]), name
