"""Stage `collect`: the tidy tables of an experiment from the files of its cells."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from cltools.config.projectors import projector_words
from cltools.layout import of_experiment, whose
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import read_json, read_table, write_table
from cltools.tidy import read_plan
from cltools.training.manifests import read_manifest
from cltools.training.trained import training_log

# Stage -> the table that the rows of its tables of cells go to.
TABLES_OF_CELLS = {
    "measure": "measures", "merge": "measures", "theory": "theory", "layers": "layers",
}  # fmt: skip
# Settings of a cell that become columns unchanged.
SETTINGS = (
    "class_draw", "imbalance", "framework", "tau", "batch_size", "sampler", "view_forward",
    "optimizer", "lr_rule", "lr_schedule", "precision", "seed",
)  # fmt: skip


def cell_columns(manifest: Mapping[str, Any], dataset: str, sweeps: list[str]) -> list[pl.Expr]:
    """The columns that say which cell a row belongs to."""
    cell = manifest["cell"]
    encoder = f"{cell['architecture']} ×{cell['width']}"
    values = {
        "cell": manifest["id"],
        "sweeps": sweeps,
        "dataset": dataset,
        "architecture": ", ".join(filter(None, (encoder, projector_words(cell)))),
        "classes": len(manifest["class_ids"]),
        "coupling": " + ".join(cell["coupling"]) or "nothing",
        **{key: cell[key] for key in SETTINGS},
        "peak_lr": manifest["peak_lr"],
        "train_images": manifest["train_images"],
        "total_steps": manifest["steps"],
    }
    return [pl.lit(value).alias(name) for name, value in values.items()]


def run(
    *,
    plan: Path,
    lists: list[Path],
    measures: Path,
    log: Path,
    theory: Path | None = None,
    layers: Path | None = None,
) -> None:
    """Join the tables of an experiment's cells into one parquet file of each kind.

    `plan` is the file that `cltools plan` wrote. `lists` are the files that `cltools measure`,
    `merge`, `theory` and `layers` wrote for these cells. The rows of the first two go to
    `measures`, those of `theory` to `theory`, those of `layers` to `layers`, and the training logs
    to `log`. Raises InputError when a cell of the plan has no table of measures, or none of theory
    although `theory` is given, and when `layers` is given but no cell has such a table.
    """
    cells = read_plan(plan)["cells"]
    tables: dict[str, dict[str, str]] = {stage: {} for stage in TABLES_OF_CELLS}
    for path in lists:
        found = read_json(path, made_by="cltools measure", keys=["stage", "tables"])
        if found.get("stage") not in tables:
            raise InputError(
                f"{path} is no list of tables: give those that `cltools measure`, `merge`, "
                "`theory` and `layers` wrote"
            )
        tables[found["stage"]] |= found["tables"]
    manifests = {path: read_manifest(Path(path)) for path in tables["measure"]}
    by_cell = {manifest["id"]: path for path, manifest in manifests.items()}
    needed = {"measure": set(by_cell)}
    if theory is not None:
        needed["theory"] = {c for c, path in by_cell.items() if path in tables["theory"]}
    for stage, have in needed.items():
        if missing := sorted(set(cells) - have):
            raise InputError(f"cell {missing[0]} of {plan} lacks its table: run `cltools {stage}`")
    if layers is not None and not tables["layers"].keys() & set(by_cell.values()):
        raise InputError(f"no cell of {plan} has a table of layers: run `cltools layers`")
    targets = {"measures": measures, "log": log}
    targets |= {"theory": theory} if theory else {}
    targets |= {"layers": layers} if layers else {}
    joined: dict[str, list[pl.DataFrame]] = {name: [] for name in targets}
    for identity, entry in cells.items():
        trained = by_cell[identity]
        columns = cell_columns(manifests[trained], entry["dataset"], entry["sweeps"])
        own = [("log", training_log(Path(trained), manifests[trained]))]
        own += [
            (name, _rows_of(stage, trained, tables))
            for stage, name in TABLES_OF_CELLS.items()
            if name in joined and trained in tables[stage]
        ]
        for name, table in own:
            joined[name].append(table.select(*columns, *table.columns))
    for name, parts in joined.items():
        # Cells of older versions may have an integer in a column of floats.
        table = pl.concat(parts, how="diagonal_relaxed")
        write_table(targets[name], table, of_experiment(name, plan))


def _rows_of(stage: str, manifest: str, tables: Mapping[str, Mapping[str, str]]) -> pl.DataFrame:
    """The table that a stage made of one cell; raises InputError unless it is whole and its own."""
    table = Path(tables[stage][manifest])
    first = "embed" if stage == "measure" else stage
    remedy = f"run `cltools {stage}` on {manifest} again, or `snakemake --forcerun {first}`"
    return read_table(table, remedy, whose(table, Path(manifest)))
