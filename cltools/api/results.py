"""The tables of an experiment, and curves over its seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cltools import tidy
from cltools.config.sweeps import RUNS
from cltools.layout import TABLES, USUAL, ExperimentFolder
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import read_any_table

CLOCKS = ("epoch", "step")
# What `curve` takes where a metric has several and none is asked for. The variants are the defaults
# of `cka`, `rsa` and `cdnv`.
PREFERRED: dict[str, tuple[str, ...]] = {
    "variant": ("cosine_debiased", "pearson_cosine", "pairs"),
    "split": ("test",),
    "features": ("h",),
    "reference": (USUAL.reference,),
}


def read_results(folder: str | Path, table: str = "measures") -> pl.DataFrame:
    """A tidy table of an experiment: one row per cell, checkpoint, objective and measure.

    Args:
        folder: the folder of the experiment, as results/quickstart, or one parquet file.
        table: "measures", "log" (every logged step of training), "theory" (bounds beside measured
            values), "claims", or another that the config asks for. Not used for a file.

    Returns:
        The table. `.to_pandas()` makes a pandas frame of it, and `pandas.read_parquet` reads the
        file itself.

    Raises:
        cltools.runtime.errors.InputError: one sentence, where the table does not exist, is damaged,
            or was made for another plan than that in its folder.
        ValueError: no such table.

    >>> import cltools
    >>> measures = cltools.read_results("results/quickstart")
    >>> {"dcl", "nscl"} <= set(measures["objective"])
    True
    """
    path = Path(folder)
    if path.suffix == ".parquet":
        return _read_file(path)
    if table not in (*TABLES, "claims"):
        raise ValueError(f"no table is called {table!r}: choose from {', '.join(TABLES)}, claims")
    if not path.is_dir():
        raise InputError(f"{path} is no folder: give that of an experiment, or a parquet file")
    of = ExperimentFolder(path)
    tidy.read_plan(of.plan)
    file = of.claims if table == "claims" else of.table(table)
    return tidy.read_experiment(file, table, of.plan)


def _read_file(path: Path) -> pl.DataFrame:
    """A table by its file, which may lie in the folder of an experiment or anywhere else."""
    of = ExperimentFolder(path.parent)
    names = {of.table(name): name for name in TABLES} | {of.claims: "claims"}
    if path in names and of.plan.exists():
        return tidy.read_experiment(path, names[path], of.plan)
    return read_any_table(path, "cltools collect", {})


def curve(
    results: pl.DataFrame,
    metric: str,
    objective: str | Sequence[str] | None = None,
    *,
    x: str = "epoch",
    sweep: str | None = None,
    **where: Any,
) -> pl.DataFrame:
    """A metric against the epoch, or against a setting of the cells, over seeds.

    Args:
        results: the measures of `read_results`.
        metric: as in their column `metric`: "cka", "rsa", "linear_probe", "nccc", "cdnv", …
        objective: one or several of their column `objective`; None: all of them.
        x: "epoch" or "step"; or a setting of the cells, such as "tau" or "classes", and then the
            values are those at the end of training.
        sweep: take only cells of this sweep of the config.
        where: values of further columns, or lists of them: variant="cosine_biased", split="train",
            tau=0.5. Where a metric has several and none is given, they are: variant, what `cka`,
            `rsa` and `cdnv` compute by default; split, test; features, h; reference, dcl.

    Returns:
        One row per objective and x: `objective`, x, `mean`, `low` and `high` (the mean minus and
        plus one standard deviation over seeds, as in the figures; null for one seed), `seeds`. If
        cells differ in more than x and the seed, `setting` says in what, and rows are per setting.
        So they are for several variants, splits, features or references, if these were asked for.

    Raises:
        ValueError: a metric or column that `results` lacks, or several variants to choose from.
        cltools.runtime.errors.InputError: no finite value is left, no cell is of this sweep.

    >>> import cltools
    >>> measures = cltools.read_results("results/quickstart")
    >>> cka = cltools.curve(measures, "cka", "nscl", sweep="base")
    >>> cka.columns
    ['objective', 'epoch', 'mean', 'low', 'high', 'seeds']
    >>> cka["mean"][0]  # networks of one start
    1.0
    """
    needed = {"cell", "objective", "metric", "value", *RUNS, *CLOCKS, *PREFERRED, x, *where}
    needed |= {"sweeps"} if sweep else set()
    if missing := sorted(needed - {*results.columns}):
        raise ValueError(f"the results have no column {', '.join(missing)}: see results.columns")
    if metric not in results["metric"]:
        raise ValueError(f"the results have no metric {metric!r}: see results['metric'].unique()")
    table = results if sweep is None else tidy.in_sweep(results, sweep)
    if x not in CLOCKS:
        table = tidy.last_step(table)
    wanted = {"metric": metric, **where}
    if objective is not None:
        wanted["objective"] = [objective] if isinstance(objective, str) else list(objective)
    table = _one_of_each(tidy.rows(table, **wanted), metric, where)
    table = tidy.with_setting(table, [] if x in CLOCKS else [x])
    differ = ["setting"] if (table["setting"] != "").any() else []
    several = [column for column in PREFERRED if table[column].n_unique() > 1]
    by = ["objective", *several, *differ, x]
    found = tidy.spread(table, by).unique(by, maintain_order=True)
    mean, sd = pl.col("mean"), pl.col("sd")
    return found.select(*by, mean, (mean - sd).alias("low"), (mean + sd).alias("high"), "seeds")


def _one_of_each(table: pl.DataFrame, metric: str, where: Mapping[str, Any]) -> pl.DataFrame:
    """The rows of one variant, split, kind of features and reference, unless they were asked for.

    Raises ValueError where none of several is the usual one.
    """
    for column, usual in PREFERRED.items():
        present = table[column].unique().sort().to_list()
        if column in where or len(present) == 1:
            continue
        chosen = next((value for value in usual if value in present), None)
        if chosen is None:
            raise ValueError(
                f"{metric} has several values of {column} ({', '.join(present)}): "
                f"choose one, as {column}={present[0]!r}"
            )
        table = table.filter(pl.col(column) == chosen)
    return table
