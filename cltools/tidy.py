"""Work with tidy tables: rows of a sweep, last steps, spread over seeds, descriptions of cells."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cltools.config.sweeps import RUNS
from cltools.layout import COLLECTED, of_experiment
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import read_any_table, read_json

# Column that describes a cell -> how a footnote or a panel title gives its value.
COLUMNS = {
    "dataset": "{}",
    "architecture": "{}",
    "classes": "C = {}",
    "coupling": "sharing {}",
    "train_images": "N = {} training images",
    "tau": "τ = {}",
    "batch_size": "B = {}",
    "lr_rule": "{}",
}
# The same for columns that few experiments vary.
FURTHER = {
    "imbalance": "imbalance {}",
    "framework": "{}",
    "sampler": "sampler {}",
    "view_forward": "views {}",
    "optimizer": "{}",
    "lr_schedule": "{}",
    "precision": "{}",
    "peak_lr": "peak rate {}",
    "total_steps": "{} steps",
    "cell": "{}",
}
# Column -> its values in words.
WORDS = {
    "lr_rule": {
        "linear": "learning rate ∝ B",
        "sqrt": "learning rate ∝ √B",
        "fourth_root": "learning rate ∝ B^¼",
        "constant": "constant learning rate",
        "authors_sqrt": "authors’ √B learning rate",
        "authors_fourth_root": "authors’ B^¼ learning rate",
    },
    "lr_schedule": {
        "per_step": "cosine by the step",
        "per_epoch": "cosine by the epoch",
        "constant": "rate stays after the warm-up",
    },
}


def read_plan(path: Path) -> dict[str, Any]:
    """What `cltools plan` wrote of an experiment. Raises InputError as `read_json` does."""
    return read_json(path, "cltools plan", keys=["experiment", "reference", "cells", "sweeps"])


def made_by(table: str) -> str:
    """The command that makes a table of an experiment."""
    return "collect" if table in COLLECTED else table


def read_experiment(path: Path, table: str, plan: Path) -> pl.DataFrame:
    """A table of an experiment, by its name in `layout.TABLES` or "claims".

    A table that someone made without cltools is taken as it is. Raises InputError when the file is
    missing, damaged, another table or of another plan.
    """
    of = {"table": table}
    if table in (*COLLECTED, "claims"):
        of = of_experiment(table, plan)
    return read_any_table(path, f"cltools {made_by(table)}", of)


def in_sweep(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """The rows whose cell belongs to sweep `name`. Raises InputError when there are none."""
    found = table.filter(pl.col("sweeps").list.contains(name))
    if found.is_empty():
        raise InputError(f"the tables hold no cell of sweep {name!r}: run its cells first")
    return found


def rows(table: pl.DataFrame, **wanted: Any) -> pl.DataFrame:
    """The rows with a finite value whose columns have the values of `wanted`.

    A list stands for several allowed values. Raises InputError when there are no such rows.
    """
    for column, value in wanted.items():
        values = value if isinstance(value, list) else [value]
        # Unlike `is_in`, this takes 1 for 1.0.
        table = table.filter(pl.any_horizontal(False, *(pl.col(column) == one for one in values)))
    table = table.filter(pl.col("value").is_finite())
    if table.is_empty():
        names = ", ".join(f"{column} {value}" for column, value in wanted.items())
        raise InputError(f"no finite measure has {names}: measure these cells again")
    return table


def against(table: pl.DataFrame, reference: str) -> pl.DataFrame:
    """The rows that compare another objective with this one."""
    return table.filter(pl.col("reference") == reference, pl.col("objective") != reference)


def with_setting(table: pl.DataFrame, given: Sequence[str] = ()) -> pl.DataFrame:
    """The table with a column `setting`, which says in words how a row's cell differs from others.

    Differences in seed and class draw are not named. `given` are columns that the reader sees
    elsewhere, so that only differences between cells with equal values of these are named. Without
    a difference, `setting` is empty.
    """
    known = [c for c in (*COLUMNS, *FURTHER) if c in table.columns and c not in given]
    cells = table.unique("cell", maintain_order=True)
    named: list[str] = []
    for column in known:
        by = [*given, *named]
        if column == "cell":  # tried last, for cells that differ in no other column
            differ = bool(not_told_apart(cells, by))
        else:
            groups = cells.partition_by(by) if by else [cells]
            differ = any(group[column].n_unique() > 1 for group in groups)
        if differ:
            named.append(column)
    words = [
        ", ".join(in_words(column, [row[column]]) for column in named)
        for row in cells.iter_rows(named=True)
    ]
    return table.join(cells.select("cell").with_columns(setting=pl.Series(words, dtype=pl.String)),
                      on="cell", how="left", maintain_order="left")  # fmt: skip


def evenly(values: Iterable[float], most: int) -> list[float]:
    """At most `most` of the distinct values: ascending, evenly spaced, with first and last one."""
    values = sorted(set(values))
    count = min(len(values), most)
    return [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]


def last_step(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of each cell's last step. Call it before `rows`, which may drop that step."""
    return table.filter(pl.col("step") == pl.col("step").max().over("cell"))


def not_told_apart(table: pl.DataFrame, by: Sequence[str]) -> list[str]:
    """The cells of rows that equal another row in the columns `by` and `RUNS`."""
    return table.filter(table.select(*by, *RUNS).is_duplicated())["cell"].unique().sort().to_list()


def spread(table: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """One row per run, sorted, with the `mean`, `sd` and number of `seeds` of its group.

    A group are the runs with equal values of `by`. The result has the columns `by`, `seed`,
    `value` and these three, which are what a figure draws and what its CSV file contains. `sd` is
    null for a single run.

    Raises InputError when two runs of a group have the same seed and class draw: their spread would
    not be one over seeds.
    """
    if alike := not_told_apart(table, by):
        cells = " and ".join(alike[:2])
        raise InputError(
            f"a figure cannot tell {cells} apart: vary the setting in which they differ in a sweep "
            "of its own"
        )
    return (
        table.sort(*by, *RUNS, "cell")
        .with_columns(
            mean=pl.col("value").mean().over(by),
            sd=pl.col("value").std().over(by),
            seeds=pl.col("cell").n_unique().over(by),
        )
        .select(*by, "seed", "value", "mean", "sd", "seeds")
    )


def in_words(column: str, values: Iterable[Any]) -> str:
    """The values of a column in `COLUMNS` or `FURTHER`, as a footnote gives them."""
    values = sorted(set(values))
    if column in WORDS:
        text = [WORDS[column].get(value, value) for value in values]
    else:
        text = [v if isinstance(v, str) else f"{v:,}" if v > 1000 else f"{v:g}" for v in values]
    if len(text) > 4 and column not in WORDS:
        text = [f"{text[0]}–{text[-1]}"]
    return (COLUMNS | FURTHER)[column].format(", ".join(text))


def setting(table: pl.DataFrame, leave_out: Sequence[str] = ()) -> str:
    """One line that describes the cells of a table: data set, network, C, N, τ, B and so on."""
    return " · ".join(
        in_words(column, table[column].unique()) for column in COLUMNS if column not in leave_out
    )
