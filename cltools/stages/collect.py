"""Stage `collect`: the tidy tables of an experiment from the files of its cells."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from cltools.errors import InputError
from cltools.files import read_json, whole_file
from cltools.versions import VERSIONS

VERSION = VERSIONS["collect"]
# Settings of a cell that become columns, as they are.
SETTINGS = ("class_draw", "tau", "batch_size", "lr_rule", "seed")


def cell_columns(manifest: Mapping[str, Any], dataset: str, sweeps: list[str]) -> list[pl.Expr]:
    """The columns that say which cell a row is of."""
    cell = manifest["cell"]
    values = {
        "cell": manifest["id"],
        "sweeps": sweeps,
        "dataset": dataset,
        "architecture": f"{cell['architecture']} ×{cell['width']}",
        "classes": len(manifest["class_ids"]),
        **{key: cell[key] for key in SETTINGS},
        "peak_lr": manifest["peak_lr"],
        "train_images": manifest["train_images"],
        "total_steps": manifest["steps"],
    }
    return [pl.lit(value).alias(name) for name, value in values.items()]


def collect(plan: Path, measured: list[Path], measures: Path, training_log: Path) -> None:
    """Join the tables of an experiment's cells into `measures` and `training_log` (parquet).

    `plan` is what `cltools plan` wrote, `measured` what `cltools measure` wrote for these cells.
    Raises InputError when a cell of the plan was not measured.
    """
    cells = read_json(plan, made_by="cltools plan")["cells"]
    tables: dict[str, str] = {}
    for path in measured:
        tables |= read_json(path, made_by="cltools measure")["tables"]
    manifests = {path: read_json(Path(path), made_by="cltools train") for path in tables}
    by_cell = {manifest["id"]: path for path, manifest in manifests.items()}
    missing = sorted(set(cells) - set(by_cell))
    if missing:
        raise InputError(f"cell {missing[0]} of {plan} was not measured: run `cltools measure`")
    rows, logs = [], []
    for identity, entry in cells.items():
        path = by_cell[identity]
        columns = cell_columns(manifests[path], entry["dataset"], entry["sweeps"])
        log_file = Path(path).parent / "run" / manifests[path]["log"]["file"]
        for collected, source in ((rows, tables[path]), (logs, log_file)):
            table = pl.read_parquet(source)
            collected.append(table.select(*columns, *table.columns))
    for collected, target in ((rows, measures), (logs, training_log)):
        with whole_file(target) as scratch:
            pl.concat(collected, how="diagonal").write_parquet(scratch)
