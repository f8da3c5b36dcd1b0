"""The measured numbers of the pages: taken from finished experiments, written into the text.

    python docs/measured.py take results/laptop_digits    # from a finished experiment to docs/data/
    python docs/measured.py write                         # from docs/templates/ to the pages

`take` keeps the rows that SELECTIONS names, in the form that docs/data/README.md describes. Run it
in the checkout and on the machine of the experiment, since it notes both. In a template every
experiment of docs/data/ is an object of its name with the methods of `Numbers`:
`{{ laptop_digits.mean("cka", sweep="base", objective="nscl") }}`.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import polars as pl
from scipy.stats import t as student

from cltools.claims import load_claims
from cltools.config.durations import Duration
from cltools.config.experiment import load_experiment, read_config
from cltools.config.sweeps import RUNS
from cltools.layout import ExperimentFolder, Results
from cltools.maths.evidence import FAILS, HOLDS, UNDECIDED
from cltools.runtime import processor
from cltools.runtime.errors import InputError
from cltools.runtime.files import whole_file
from cltools.tidy import in_sweep, last_step, read_experiment, read_plan, rows
from cltools.training.manifests import read_manifest

ROOT = Path(__file__).parents[1]
DATA, TEMPLATES = ROOT / "docs/data", ROOT / "docs/templates"
PAGES = {"README.md": "README.md.j2", "docs/findings.md": "findings.md.j2"}
HEAD = (
    "<!-- Made from {template}. Change that file, then run: uv run python docs/measured.py write -->"
)


class Selection(NamedTuple):
    """Rows of a table that the pages use, and what is kept of them beside CELL.

    Of a table with steps, only the last step of each cell is kept, unless `training` is set.
    """

    table: str
    where: Mapping[str, Any]
    columns: Sequence[str] = ("value",)
    training: bool = False


TEST = {"split": "test", "features": "h"}
WITH_DCL = {**TEST, "metric": "cka", "reference": "dcl"}
BOUND = ("variant", "bound", "measured")
# Name -> rows. Every name is one quantity, so that a template names only a cell and an objective.
SELECTIONS = {
    "cka": Selection("measures", {**WITH_DCL, "variant": "cosine_biased"}, training=True),
    "residual_cka": Selection("measures", {**WITH_DCL, "variant": "residual_biased"}),
    "cka_null": Selection(
        "measures", {**TEST, "metric": "cka_null", "variant": "cosine_biased", "reference": "dcl"}
    ),
    "cka_to_init": Selection(
        "measures", {**TEST, "metric": "cka_to_init", "variant": "cosine_biased"}
    ),
    "weight_gap": Selection(
        "measures", {"metric": "weight_gap", "variant": "mean_layer", "reference": "dcl"}
    ),
    "linear_probe": Selection("measures", {**TEST, "metric": "linear_probe"}),
    "merged_nccc": Selection(
        "measures", {**TEST, "metric": "merged_nccc"}, columns=("variant", "value")
    ),
    "gap": Selection(
        "theory",
        {"source": "P1 Theorem 1", "quantity": "gap", "variant": "training_tau", "side": "upper",
         "split": "test", "objective": "dcl"},
        columns=BOUND,
    ),
    "cka_bound": Selection(
        "theory", {**TEST, "source": "P2 Corollary 1", "kind": "bound", "side": "lower"}, BOUND
    ),
    "regularity": Selection(
        "regularity",
        {"objective": "dcl"},
        columns=("images", "touched_distance", "log10_bound", "log10_bound_realised",
                 "amplification_cosine", "jacobian_norm"),
        training=True,
    ),
}  # fmt: skip
CELL = (
    "sweeps", "dataset", "architecture", "classes", "class_draw", "coupling", "imbalance",
    "framework", "tau", "batch_size", "lr_rule", "seed", "step", "epoch", "objective",
)  # fmt: skip
CLAIM = (
    "claim", "verdict", "family", "dataset", "sweep", "cells", "part", "part_verdict", "claimed",
    "effect", "low", "high", "seeds", "inside", "rows", "violations", "p", "p_holm", "p_bh",
    "statement", "source",
)  # fmt: skip

KEPT_DIGITS = 6  # of values in docs/data/
DIGITS = 2  # decimals in a page: on another processor CKA and RSA differ by about 0.01
COUNT_ERROR = 0.02  # of a count in a page: counts of rows differ a little as well
# A verdict is a close call if rounding might change it: if the corrected p is off the error rate by
# at most this share of it, or an end of the interval is off the claimed border by at most this
# share of the interval's width.
NEAR = 0.1
LEVEL = 0.9  # of t intervals


# ---- from an experiment to docs/data/ --------------------------------------------------------


def take(folder: Path, into: Path = DATA) -> None:
    """Write the rows of SELECTIONS, the claims and what made them, from an experiment's results.

    Raises InputError when the experiment is not finished, is older than its config, or its tables
    have other columns.
    """
    results = ExperimentFolder(folder)
    plan = read_plan(results.plan)
    claims = read_experiment(results.claims, "claims", results.plan)
    made = _made_by(results, plan)
    values = pl.concat(
        [_selected(results, name, chosen) for name, chosen in SELECTIONS.items()
         if results.table(chosen.table).exists()],
        how="diagonal_relaxed",
    )  # fmt: skip
    name = plan["experiment"]
    _write_csv(into / f"{name}.csv", values)
    _write_csv(into / f"{name}-claims.csv", _columns(claims, CLAIM, results.claims))
    with whole_file(into / f"{name}.json") as scratch:
        scratch.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


def _selected(results: ExperimentFolder, name: str, chosen: Selection) -> pl.DataFrame:
    """The rows of one selection; none if the experiment has no such rows."""
    path = results.table(chosen.table)
    table = read_experiment(path, chosen.table, results.plan)
    if "sweeps" in table.columns:
        table = table.with_columns(pl.col("sweeps").list.join(" "))
    if not chosen.training:
        table = last_step(table)
    for column, value in chosen.where.items():
        table = table.filter(pl.col(column) == value)
    cell = [column for column in CELL if column in table.columns]
    found = _columns(table, [*cell, *chosen.columns], path)
    return found.select(pl.lit(name).alias("selection"), pl.all())


def _columns(table: pl.DataFrame, names: Sequence[str], path: Path) -> pl.DataFrame:
    if missing := [name for name in names if name not in table.columns]:
        raise InputError(
            f"{path} has no column {missing[0]}, so an older version made it: run its stage again"
        )
    return table.select(names)


def _write_csv(path: Path, table: pl.DataFrame) -> None:
    floats = pl.selectors.float()
    with whole_file(path) as scratch:
        table.with_columns(floats.round_sig_figs(KEPT_DIGITS)).write_csv(scratch)


def _made_by(results: ExperimentFolder, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What made an experiment: code, machine, settings."""
    cells = {
        name: read_manifest(
            Results(results.path.parent)
            .cell(name)
            .manifest(Duration.parse(about["until"]).slug)
        )
        for name, about in plan["cells"].items()
    }  # fmt: skip
    finished = datetime.fromtimestamp(results.claims.stat().st_mtime, UTC)
    return {
        "experiment": plan["experiment"],
        "config": str(_config_of(plan).relative_to(ROOT)),
        "commit": _commit(),
        "date": f"{finished:%Y-%m-%d}",
        "processor": processor.name(),
        "trained_on": sorted({cell["made_by"]["processor"] for cell in cells.values()}),
        "torch": sorted({cell["made_by"]["torch"] for cell in cells.values()}),
        "threads": sorted({cell["cell"]["threads"] for cell in cells.values()}),
        "cells": len(cells),
        "seeds": sorted({cell["cell"]["seed"] for cell in cells.values()}),
    }


def _config_of(plan: Mapping[str, Any]) -> Path:
    """The shipped config that asks for these cells."""
    for path in sorted((ROOT / "config").rglob("*.yaml")):
        config = read_config(path)
        if config.get("experiment") == plan["experiment"]:
            if load_experiment(config).plans.keys() != plan["cells"].keys():
                raise InputError(f"{path} asks for other cells than the results have: run it again")
            return path
    raise InputError(f"no file in {ROOT / 'config'} is of experiment {plan['experiment']}: add it")


def _commit() -> str:
    """The commit of this checkout; "-dirty" is added where files that git knows were changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


# ---- from docs/data/ to the pages ------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    """The numbers of one experiment as text. `value` may be any SQL expression of columns.

    `where` are values of columns (lists: any of them) and `sweep`, the name of a sweep. What is
    over seeds needs one row per seed, and raises InputError where there are more or none.
    """

    values: pl.DataFrame
    claims: pl.DataFrame
    error_rate: float

    @classmethod
    def read(cls, about: Path) -> "Numbers":
        """Those of an experiment in docs/data/, by its JSON file."""
        values = pl.read_csv(about.with_suffix(".csv"), infer_schema_length=None)
        claims = pl.read_csv(about.with_name(f"{about.stem}-claims.csv"), infer_schema_length=None)
        split = pl.col("sweeps").fill_null("").str.split(" ")
        return cls(values.with_columns(split), claims, load_claims().error_rate)

    def mean(self, name: str, **where: Any) -> str:
        """The mean over seeds."""
        return self._said(name, lambda found: found.mean(), seeds=True, **where)

    def sd(self, name: str, **where: Any) -> str:
        """The standard deviation over seeds."""
        return self._said(name, lambda found: found.std(), seeds=True, **where)

    def interval(self, name: str, **where: Any) -> str:
        """The mean over seeds ± half of its t interval."""
        return f"{self.mean(name, **where)} ± {self._said(name, _half, seeds=True, **where)}"
