"""Where the tables of a trained cell lie. Light: it reads manifests and no numbers.

A table's name depends on everything that its rows depend on, so that it is made once: a table that
is there is up to date, and one that is not has to be made. They lie beside the manifest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cltools.cells import with_defaults
from cltools.experiment import Experiment
from cltools.files import canonical_json, sha256_file, sha256_text
from cltools.versions import VERSIONS


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
