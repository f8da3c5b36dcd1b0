"""The measured numbers of the pages: from finished experiments and benchmarks into the text.

    python docs/measured.py take results/laptop_digits    # from a finished experiment to docs/data/
    python docs/measured.py bench alignment               # runs a benchmark, one of BENCHMARKS
    python docs/measured.py write                         # from docs/templates/ to the pages

`take` notes commit and processor: run it where the experiment ran. In templates, experiments are
objects: `{{ laptop_digits.mean("cka", sweep="base", objective="nscl", epoch=12) }}`.
docs/data/README.md says more.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import polars as pl
import polars.selectors as cs
from as_text import FILTERS, Numbers, claims_of, claims_table, of_paper

from cltools.config.durations import Duration
from cltools.config.experiment import load_experiment, read_config
from cltools.layout import ExperimentFolder, Results
from cltools.runtime import processor
from cltools.runtime.errors import InputError
from cltools.runtime.files import whole_file
from cltools.tidy import last_step, read_experiment, read_plan
from cltools.training.manifests import read_manifest


class Selection(NamedTuple):
    """Rows of a table that the pages use, and which columns are kept beside those of CELL.

    Only the last step of each cell is kept, unless `training` is set.
    """

    table: str
    where: Mapping[str, Any]
    columns: Sequence[str] = ("value",)
    training: bool = False


# fmt: off
TEST = {"split": "test", "features": "h"}
WITH_DCL = {**TEST, "reference": "dcl"}
# Name -> rows. Each is one quantity, so that a template names only cell, objective and epoch.
SELECTIONS = {
    "cka": Selection(
        "measures", {**WITH_DCL, "metric": "cka", "variant": "cosine_biased"}, training=True),
    "cka_of_z": Selection(
        "measures", {**WITH_DCL, "features": "z", "metric": "cka", "variant": "cosine_biased"}),
    "residual_cka": Selection(
        "measures", {**WITH_DCL, "metric": "cka", "variant": "residual_biased"}),
    "cka_null": Selection(
        "measures", {**WITH_DCL, "metric": "cka_null", "variant": "cosine_biased"}),
    "cka_to_init": Selection(
        "measures", {**TEST, "metric": "cka_to_init", "variant": "cosine_biased"}),
    "cka_of_pairs": Selection(
        "measures", {**TEST, "metric": "cka", "variant": "cosine_debiased"},
        ("reference", "value")),
    "weight_gap": Selection(
        "measures", {"metric": "weight_gap", "variant": "mean_layer", "reference": "dcl"}),
    "linear_probe": Selection("measures", {**TEST, "metric": "linear_probe"}),
    "knn": Selection("measures", {**TEST, "metric": "knn"}),
    "nccc": Selection("measures", {**TEST, "metric": "nccc"}, training=True),
    "effective_rank": Selection("measures", {**TEST, "metric": "effective_rank"}),
    "merged_nccc": Selection("measures", {**TEST, "metric": "merged_nccc"}, ("variant", "value")),
    "layer_cka": Selection(
        "layers", {"split": "test", "reference": "dcl", "metric": "cka",
                   "variant": "cosine_debiased"}, ("features", "reference_features", "value")),
    "gap": Selection(
        "theory", {"source": "P1 Theorem 1", "quantity": "gap", "variant": "training_tau",
                   "side": "upper", "split": "test", "objective": "dcl"}, ("bound", "measured")),
    "cka_bound": Selection(
        "theory", {**TEST, "source": "P2 Corollary 1", "kind": "bound", "side": "lower"},
        ("variant", "bound", "measured")),
    "regularity": Selection(
        "regularity", {}, ("images", "touched_distance", "log10_bound", "log10_bound_realised",
                           "amplification_cosine"), training=True),
}
CELL = (
    "sweeps", "dataset", "architecture", "classes", "class_draw", "coupling", "imbalance",
    "framework", "tau", "batch_size", "lr_rule", "lr_schedule", "seed", "step", "epoch",
    "objective",
)
CLAIM = (
    "claim", "verdict", "dataset", "sweep", "part", "part_verdict", "claimed", "effect", "low",
    "high", "seeds", "inside", "rows", "violations", "p_holm", "p_bh", "statement", "source",
)
# fmt: on

# Name -> script in benchmarks/ and its options.
BENCHMARKS = {
    "coupled_step": "coupled_step.py --architecture small_resnet --batch 256",
    "coupled_step_resnet18": "coupled_step.py --steps 2",
    "alignment": "alignment.py --repeats 1",
    "alignment_large": "alignment_large.py --n 10000",
    "claims": "claims.py",
    "regularity": "regularity.py",
}
BENCHMARKED = "benchmarks.json"  # in docs/data/
PACKAGES = ("numpy", "scipy", "torch")  # whose versions are noted beside a benchmark

KEPT_DIGITS = 6  # of measured values in docs/data/
ROOT = Path(__file__).parents[1]
CONFIGS, DATA, TEMPLATES = ROOT / "config", ROOT / "docs/data", ROOT / "docs/templates"
PAGES = {
    "README.md": "README.md.j2",
    "docs/findings.md": "findings.md.j2",
    "docs/how_it_works.md": "how_it_works.md.j2",
    "docs/limits.md": "limits.md.j2",
}
HEAD = (
    "<!-- Made from docs/templates/{}: edit that, then `uv run python docs/measured.py write` -->"
)


def take(folder: Path, into: Path = DATA) -> None:
    """Write the rows of SELECTIONS, the claims and what made them, from an experiment's results.

    Raises InputError when the experiment is not finished, its config asks for other cells by now,
    or an older version made its tables.
    """
    results = ExperimentFolder(folder)
    plan = read_plan(results.plan)
    claims = read_experiment(results.claims, "claims", results.plan)
    made = _made_by(results, plan)
    found = [
        _selected(results, name, chosen)
        for name, chosen in SELECTIONS.items()
        if results.table(chosen.table).exists()
    ]
    path = into / f"{plan['experiment']}.json"
    with whole_file(path.with_suffix(".parquet")) as scratch:
        _rounded(pl.concat(found, how="diagonal_relaxed")).write_parquet(scratch)
    with whole_file(claims_of(path)) as scratch:
        _rounded(_columns(claims, CLAIM, results.claims)).write_csv(scratch)
    with whole_file(path) as scratch:
        scratch.write_text(json.dumps(made, indent=1) + "\n")


def bench(name: str, into: Path = DATA) -> None:
    """Run a benchmark on one thread; write its numbers and what made them to the others.

    Raises InputError for a name that is not in BENCHMARKS and for a benchmark that fails.
    """
    if name not in BENCHMARKS:
        raise InputError(f"no benchmark is called {name}: choose from {', '.join(BENCHMARKS)}")
    command = command_of(name)
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "numbers.json"
        done = subprocess.run(
            [sys.executable, *command.split()[1:], "--json", str(output)],
            cwd=ROOT,
            env={**os.environ, **one_thread},
        )
        if done.returncode:
            raise InputError(f"{command} ended with exit code {done.returncode}: see above")
        numbers = json.loads(output.read_text())
    made = {
        "command": command,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": processor.name(),
        "cores": os.cpu_count(),
        "threads": 1,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
    with whole_file(into / BENCHMARKED) as scratch:
        found = benchmarks(into) | {name: {**made, "numbers": _rounded_numbers(numbers)}}
        scratch.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def command_of(name: str) -> str:
    """The command of a benchmark."""
    return f"python benchmarks/{BENCHMARKS[name]}"


def benchmarks(folder: Path = DATA) -> dict[str, Any]:
    """What `bench` wrote, by the names of the benchmarks."""
    path = folder / BENCHMARKED
    return json.loads(path.read_text()) if path.exists() else {}


def _rounded_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded_numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded_numbers(one) for one in value]
    return float(f"{value:.{KEPT_DIGITS}g}") if isinstance(value, float) else value


def _selected(results: ExperimentFolder, name: str, chosen: Selection) -> pl.DataFrame:
    path = results.table(chosen.table)
    table = read_experiment(path, chosen.table, results.plan)
    if "sweeps" in table.columns:
        table = table.with_columns(pl.col("sweeps").list.join(" "))
    if not chosen.training:
        table = last_step(table)
    table = table.filter(**chosen.where)
    cell = [column for column in CELL if column in table.columns]
    found = _columns(table, [*cell, *chosen.columns], path)
    return found.select(pl.lit(name).alias("selection"), pl.all())


def _columns(table: pl.DataFrame, names: Sequence[str], path: Path) -> pl.DataFrame:
    if missing := [name for name in names if name not in table.columns]:
        raise InputError(f"{path} has no column {missing[0]}, so it is old: run its stage again")
    return table.select(names)


def _rounded(table: pl.DataFrame) -> pl.DataFrame:
    measured = cs.float() - cs.by_name(*CELL, require_all=False)
    return table.with_columns(measured.round_sig_figs(KEPT_DIGITS))


def _made_by(results: ExperimentFolder, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The code, machine and settings that made an experiment."""
    everything = Results(results.path.parent)
    cells = [
        read_manifest(everything.cell(name).manifest(Duration.parse(about["until"]).slug))
        for name, about in plan["cells"].items()
    ]
    return {
        "config": str(_config_of(plan).relative_to(CONFIGS.parent)),
        "commit": _commit(),
        "date": f"{datetime.fromtimestamp(results.claims.stat().st_mtime, UTC):%Y-%m-%d}",
        "processor": processor.name(),
        "trained_on": sorted({cell["made_by"]["processor"] for cell in cells}),
        "torch": sorted({cell["made_by"]["torch"] for cell in cells}),
        "threads": sorted({cell["cell"]["threads"] for cell in cells}),
        "cells": len(cells),
        "seeds": sorted({cell["cell"]["seed"] for cell in cells}),
    }


def _commit() -> str:
    """The commit of this checkout, and whether the code is another one; docs/ does not matter."""
    changed = _git("status", "--porcelain", "--", "cltools", "config", "workflow", "Snakefile")
    return (_git("rev-parse", "HEAD") or "unknown") + " with changes" * bool(changed)


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def _config_of(plan: Mapping[str, Any]) -> Path:
    """The shipped config that asks for exactly these cells."""
    for path in sorted(CONFIGS.rglob("*.yaml")):
        config = read_config(path)
        if config.get("experiment") == plan["experiment"]:
            if load_experiment(config).plans.keys() != plan["cells"].keys():
                raise InputError(f"{path} asks for other cells than were run: run it again")
            return path
    raise InputError(f"no config in {CONFIGS} is called {plan['experiment']}: add it")


def written() -> dict[str, str]:
    """Page -> its text. Raises InputError and the errors of jinja2."""
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    experiments = set(DATA.glob("*.json")) - {DATA / BENCHMARKED}
    jinja.filters |= FILTERS
    jinja.globals |= {about.stem: Numbers.read(about) for about in experiments}
    jinja.globals |= {"claims_table": claims_table, "of_paper": of_paper}
    jinja.globals["benchmarks"] = {
        name: about["numbers"] for name, about in benchmarks(DATA).items()
    }
    return {
        page: f"{HEAD.format(template)}\n{jinja.get_template(template).render()}"
        for page, template in PAGES.items()
    }


def main(command: Sequence[str]) -> None:
    """`take FOLDER`, `bench NAME` or `write`."""
    match command:
        case ["take", folder]:
            take(Path(folder))
        case ["bench", name]:
            bench(name)
        case ["write"]:
            for page, text in written().items():
                (ROOT / page).write_text(text)
        case _:
            raise InputError(
                "give `take` and the folder of an experiment, `bench` and a name, or `write`"
            )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, jinja2.TemplateError, pl.exceptions.PolarsError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
