"""Where the tables of a trained cell lie. Light: it reads manifests and no numbers.

A table's name depends on everything that its rows depend on, so that it is made once: a table that
is there is up to date, and one that is not has to be made. They lie beside the manifest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cltools.config.experiment import Experiment
from cltools.config.schema import with_defaults
from cltools.runtime.files import canonical_json, sha256_file, sha256_text

# The version of each stage, raised by hand when the same input would give other results.
#
# Snakemake cannot see edits of package code; these numbers are parameters of its rules, so raising
# one runs that stage and all after it again. Edits that change no result leave them alone.
VERSIONS = {
    "prepare": 1,
    "train": 1,
    "embed": 2,
    "measure": 3,
    "plan": 2,
    "collect": 4,
    "plot": 1,
    "surrogate": 1,
    "theory": 2,
    "merge": 2,
    "project": 2,
    "minimise": 1,
    "regularity": 1,
    "claims": 1,
    "report": 2,
}


def measures_table(
    manifest: Path, full_at: str = "last", recalibrated: bool = False, dtype: str = "float32"
) -> Path:
    """Of `cltools measure` with these options, for the cell of this training manifest."""
    versions = [VERSIONS["embed"], VERSIONS["measure"]]
    depends_on = [sha256_file(manifest), full_at, recalibrated, dtype, versions]
    return _table(manifest, "measures", depends_on)


def theory_table(manifest: Path, measures: Path, settings: Mapping[str, Any]) -> Path:
    """Of `cltools theory` with these settings, all of them, on that table of measures."""
    depends_on = [sha256_file(manifest), measures.name, dict(settings), VERSIONS["theory"]]
    return _table(manifest, "theory", depends_on)


def merge_table(manifest: Path, settings: Mapping[str, Any]) -> Path:
    """Of `cltools merge` with these settings, all of them."""
    chosen = {"with": sorted(settings["with"]), "points": settings["points"]}
    return _table(manifest, "merge", [sha256_file(manifest), chosen, VERSIONS["merge"]])


def tables_of(experiment: Experiment, manifest: Path) -> dict[str, Path]:
    """Stage -> its table of the cell of this manifest, as the config asks for it."""
    measures = measures_table(
        manifest,
        experiment.setting("measure", "full_at"),
        experiment.setting("recalibrate_batchnorm"),
        experiment.setting("embedding_type"),
    )
    settings = with_defaults(experiment.setting("theory"), "theory")
    tables = {"measure": measures, "theory": theory_table(manifest, measures, settings)}
    if "merge" in experiment.config:
        settings = with_defaults(experiment.setting("merge"), "merge")
        tables["merge"] = merge_table(manifest, settings)
    return tables


def _table(manifest: Path, folder: str, depends_on: list[Any]) -> Path:
    return manifest.parent / folder / f"{sha256_text(canonical_json(depends_on))[:16]}.parquet"


# The tables that figures are drawn from, by their file names. Every experiment has the first three;
# each of the others is of the stage of its name, which runs where the config names it.
TABLES = {
    "measures": "measures.parquet",
    "log": "training_log.parquet",
    "theory": "theory.parquet",
    "surrogate": "surrogate.parquet",
    "minimise": "minimise.parquet",
    "regularity": "regularity.parquet",
    "project": "project.parquet",
}
OF_CELLS = ("measures", "log", "theory")
