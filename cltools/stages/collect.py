"""Stage `collect`: the tidy tables of an experiment from the files of its cells."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from cltools.layout import CellFolder
from cltools.runtime.errors import InputError
from cltools.runtime.files import read_json, whole_file
from cltools.training.manifests import read_manifest

# Settings of a cell that become columns unchanged.
SETTINGS = (
    "class_draw", "imbalance", "framework", "tau", "batch_size", "sampler", "view_forward",
    "optimizer", "lr_rule", "lr_schedule", "precision", "seed",
)  # fmt: skip


def cell_columns(manifest: Mapping[str, Any], dataset: str, sweeps: list[str]) -> list[pl.Expr]:
    """The columns that say which cell a row belongs to."""
    cell = manifest["cell"]
    values = {
        "cell": manifest["id"],
        "sweeps": sweeps,
        "dataset": dataset,
        "architecture": f"{cell['architecture']} ×{cell['width']}",
        "classes": len(manifest["class_ids"]),
        "coupling": " + ".join(cell["coupling"]) or "nothing",
        **{key: cell[key] for key in SETTINGS},
        "peak_lr": manifest["peak_lr"],
        "train_images": manifest["train_images"],
        "total_steps": manifest["steps"],
    }
    return [pl.lit(value).alias(name) for name, value in values.items()]


def run(
    *, plan: Path, lists: list[Path], measures: Path, log: Path, theory: Path | None = None
) -> None:
    """Join the tables of an experiment's cells into one parquet file of each kind.

    `plan` is the file that `cltools plan` wrote. `lists` are the files that `cltools measure`,
    `merge` and `theory` wrote for these cells. The rows of the first two go to `measures`, those of
    `theory` to `theory`, and the training logs to `log`. Raises InputError when a cell of the plan
    has no table of measures, or none of theory although `theory` is given.
    """
    cells = read_json(plan, made_by="cltools plan")["cells"]
    tables: dict[str, dict[str, str]] = {"measure": {}, "merge": {}, "theory": {}}
    for path in lists:
        found = read_json(path, made_by="cltools measure")
        tables[found["stage"]] |= found["tables"]
    manifests = {path: read_manifest(Path(path)) for path in tables["measure"]}
    by_cell = {manifest["id"]: path for path, manifest in manifests.items()}
    needed = {"measure": set(by_cell)}
    if theory is not None:
        needed["theory"] = {c for c, path in by_cell.items() if path in tables["theory"]}
    for stage, have in needed.items():
        if missing := sorted(set(cells) - have):
            raise InputError(f"cell {missing[0]} of {plan} lacks its table: run `cltools {stage}`")
    joined: dict[Path, list[pl.DataFrame]] = {measures: [], log: []}
    if theory is not None:
        joined[theory] = []
    for identity, entry in cells.items():
        trained = by_cell[identity]
        columns = cell_columns(manifests[trained], entry["dataset"], entry["sweeps"])
        log_file = CellFolder.of(Path(trained)).run.path / manifests[trained]["log"]["file"]
        sources = [(measures, Path(tables["measure"][trained])), (log, log_file)]
        if trained in tables["merge"]:
            sources.append((measures, Path(tables["merge"][trained])))
        if theory is not None:
            sources.append((theory, Path(tables["theory"][trained])))
        for target, source in sources:
            table = pl.read_parquet(source)
            joined[target].append(table.select(*columns, *table.columns))
    for target, parts in joined.items():
        with whole_file(target) as scratch:
            # Cells of older versions may have an integer in a column of floats.
            pl.concat(parts, how="diagonal_relaxed").write_parquet(scratch)
