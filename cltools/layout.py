"""Paths of all results: stores, cells, experiments, and the logs and benchmarks of jobs.

No other module spells a path below `results/`. A name may be a wildcard of Snakemake, so that the
patterns of rules and the paths of stages come from the same code:
`RESULTS.cell("{cell}").manifest("{until}")`. The module imports quickly, since rules import it.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cltools.runtime.files import LOCK, canonical_json, sha256_file, sha256_text

if TYPE_CHECKING:
    from cltools.config.experiment import Experiment

# The version of each stage. Raise it when a change of the code changes the stage's results.
#
# Snakemake does not notice edits of the package. These numbers are parameters of its rules, so that
# a raised number runs that stage and all later ones again.
VERSIONS = {
    "prepare": 2,
    "train": 1,
    "embed": 3,
    "measure": 8,
    "plan": 4,
    "collect": 5,
    "plot": 5,
    "surrogate": 2,
    "theory": 4,
    "merge": 4,
    "layers": 1,
    "project": 3,
    "minimise": 2,
    "regularity": 3,
    "claims": 5,
    "report": 4,
}

# Name -> file name of the tables that figures are drawn from. Every experiment has the first three.
# Each of the others is there if the config asks for the stage of its name, which writes it. Only
# `layers` works cell by cell, and `collect` joins its tables, as it makes the first three.
TABLES = {
    "measures": "measures.parquet",
    "log": "training_log.parquet",
    "theory": "theory.parquet",
    "surrogate": "surrogate.parquet",
    "minimise": "minimise.parquet",
    "regularity": "regularity.parquet",
    "project": "project.parquet",
    "layers": "layers.parquet",
}
OF_CELLS = ("measures", "log", "theory")
COLLECTED = (*OF_CELLS, "layers")

# Stages whose jobs process batches of cells -> folder of the lists that these jobs write.
LISTS = {"embed": "embedded", "measure": "measured", "theory": "theory", "merge": "merged",
         "layers": "layers"}  # fmt: skip
# Stage -> what names its jobs. Jobs of all other stages are named by the experiment.
JOBS = {
    "prepare": "{store}",
    "train": "{cell}-{until}",
    **dict.fromkeys(LISTS, "{experiment}-{batch}"),
    "plot": "{experiment}-{figure}",
}


@dataclass(frozen=True)
class Embeddings:
    """How embeddings are made: their type, and whether BatchNorm statistics are computed again.

    `precision` is that of networks on a GPU: "float32", or that of their "training".
    """

    dtype: str = "float32"
    recalibrated: bool = False
    precision: str = "float32"


PLAIN = Embeddings()


class MeasureSettings(NamedTuple):
    """What is measured: the checkpoints that are measured in full, and compared with what."""

    full_at: str = "last"  # or "all"
    reference: str = "dcl"


USUAL = MeasureSettings()


@dataclass(frozen=True)
class Results:
    """The folder of all results."""

    path: Path = Path("results")

    @property
    def stores(self) -> Path:
        return self.path / "stores"

    @property
    def logs(self) -> Path:
        """One folder for each stage, with the logs of its jobs."""
        return self.path / "logs"

    @property
    def benchmarks(self) -> Path:
        return self.path / "benchmarks"

    def store(self, name: str) -> "StoreFolder":
        return StoreFolder(self.stores / name)

    def cell(self, name: str) -> "CellFolder":
        return CellFolder(self.path / "cells" / name)

    def experiment(self, name: str) -> "ExperimentFolder":
        return ExperimentFolder(self.path / name)

    def log(self, stage: str, **names: str) -> Path:
        """The log of a stage's job; without `names`, the pattern of the logs of all its jobs."""
        return self.logs / stage / f"{_job(stage, names)}.log"

    def benchmark(self, stage: str, **names: str) -> Path:
        """The file with time and memory of a stage's job; arguments as for `log`."""
        return self.benchmarks / stage / f"{_job(stage, names)}.tsv"


RESULTS = Results()

_TRAINED = "trained-"  # how the names of manifests begin
_ID_OF_CELL = re.compile(r".*-[0-9a-f]{10}")  # see `cell_id`


def _job(stage: str, names: Mapping[str, str]) -> str:
    pattern = JOBS.get(stage, "{experiment}")
    return pattern.format(**names) if names else pattern


def benchmarks_of(
    folder: Path, experiment: str, cells: Collection[str], stores: Collection[str]
) -> Iterator[tuple[str, list[Path]]]:
    """For each stage, the benchmark files in `folder` of an experiment's jobs."""
    for stage in sorted(path for path in folder.glob("*") if path.is_dir()):
        found = []
        for file in sorted(stage.glob("*.tsv")):
            of_cell = file.stem.rsplit("-", 1)[0] in cells
            of_experiment = file.stem == experiment or file.stem.startswith(f"{experiment}-")
            if of_cell or of_experiment or file.stem in stores:
                found.append(file)
        yield stage.name, found


@dataclass(frozen=True)
class StoreFolder:
    """The images of a data set; `cltools.data.store` describes the files."""

    path: Path

    @property
    def manifest(self) -> Path:
        """Describes the other files; written last."""
        return self.path / "store.json"

    def array(self, split: str, kind: str) -> Path:
        """`kind` is images, labels, offsets or sizes."""
        return self.path / f"{split}-{kind}.npy"

    def encoded_images(self, split: str) -> Path:
        return self.path / f"{split}-images.bin"

    @property
    def preparing(self) -> Path:
        """The folder that records which parts are written; removed when the store is complete."""
        return self.path / "preparing"

    @property
    def source(self) -> Path:
        """What the parts in `preparing` are made from."""
        return self.preparing / "source.json"

    def part(self, split: str, number: int) -> Path:
        return self.preparing / f"{split}-{number:05d}.json"


@dataclass(frozen=True)
class RunFolder:
    """Files that training a cell writes. A killed run continues from them, as does a longer run."""

    path: Path

    @property
    def lock(self) -> Path:
        return self.path / LOCK

    @property
    def all_weights(self) -> Path:
        return self.path / "weights"

    def weights(self, objective: str, step: int) -> Path:
        """The weights of one objective before training step `step`.

        Not every file system and copying tool takes the colon of `nscl:shuffled` in a name.
        """
        return self.all_weights / f"{objective.replace(':', '-')}-{step:07d}.safetensors"

    def log(self, until: str) -> Path:
        return self.path / f"log-{until}.parquet"

    @property
    def state(self) -> Path:
        """The latest resume state."""
        return self.path / "resume.safetensors"

    @property
    def previous_state(self) -> Path:
        return self.path / "resume-previous.safetensors"

    def live(self, rank: int = 0) -> Path:
        """Rows for watching a run (`cltools.training.live`): the first rank's, or another's."""
        return self.path / (f"live-{rank}.csv" if rank else "live.csv")

    @property
    def all_live(self) -> list[Path]:
        """The live rows of all ranks, those of the first one first."""
        return [path for path in sorted(self.path.glob("live*.csv"), key=_rank) if path.is_file()]

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def told(self, tracker: str) -> Path:
        """The number of the last step that a tracker was told."""
        return self.path / f"told-{tracker}"

    def apart(self, until: str) -> "RunFolder":
        """The folder for the states of a run that stops earlier than a previous one."""
        return RunFolder(self.path / f"until-{until}")


def _rank(live: Path) -> int:
    digits = re.sub(r"\D", "", live.stem)
    return int(digits or 0)


@dataclass(frozen=True)
class CellFolder:
    """All results of one cell."""

    path: Path

    @classmethod
    def of(cls, manifest: Path) -> "CellFolder":
        """The folder of a training manifest."""
        return cls(manifest.parent)

    @property
    def results(self) -> Results:
        """The folder of all results, if this cell lies in one."""
        return Results(self.path.parent.parent)

    @property
    def settings(self) -> Path:
        return self.path / "cell.json"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.path / "run")

    def manifest(self, until: str) -> Path:
        """The training manifest of a run that stops at `until`, e.g. "20epochs"."""
        return self.path / f"{_TRAINED}{until}.json"

    def embeddings(self, made: Embeddings) -> "EmbeddingFolder":
        """All but plain embeddings have folders of their own."""
        apart = "-recalibrated" * made.recalibrated
        apart += f"-{made.dtype}" * (made.dtype != "float32")
        apart += f"-precision-of-{made.precision}" * (made.precision != "float32")
        return EmbeddingFolder(self.path / f"embeddings{apart}")


def belongs_at(manifest: Path, cell: str, until: str) -> bool:
    """Whether a training manifest of this cell and stop may have this path.

    Only names like those of the workflow are told apart: people may choose any others.
    """
    folder, own = manifest.absolute().parent.name, CellFolder(Path(cell)).manifest(until)
    another_cell = _ID_OF_CELL.fullmatch(folder) is not None and folder != cell
    another_stop = manifest.name.startswith(_TRAINED) and manifest.name != own.name
    return not (another_cell or another_stop)


@dataclass(frozen=True)
class EmbeddingFolder:
    """A cell's embeddings, one file per checkpoint."""

    path: Path

    def file(self, step: int) -> Path:
        return self.path / f"step-{step:07d}.nc"

    @property
    def kept(self) -> Path:
        """Where this file exists, the embeddings are not discarded."""
        return self.path / "kept"


@dataclass(frozen=True)
class ExperimentFolder:
    """Results that are made from many cells."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    def list_of(self, stage: str, batch: str) -> Path:
        """The list that a job of a stage in `LISTS` writes when its batch is done."""
        return self.path / LISTS[stage] / f"{batch}.json"

    def table(self, name: str) -> Path:
        """The file of a table in `TABLES`."""
        return self.path / TABLES[name]

    def tables(self) -> list[str]:
        """The file names of the tables that exist."""
        return sorted(path.name for path in self.path.glob("*.parquet"))

    @property
    def claims(self) -> Path:
        return self.path / "claims.parquet"

    @property
    def readable_claims(self) -> Path:
        return readable(self.claims)

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def figure(self, name: str, ending: str = "pdf") -> Path:
        return figure_file(self.figures, name, ending)

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def partial(self) -> "ExperimentFolder":
        """Tables and figures of the finished cells, while others are still running."""
        return ExperimentFolder(self.path / "partial")

    @property
    def with_theory(self) -> "ExperimentFolder":
        """Of `partial`, the tables of those cells that have their theory, if others lack it."""
        return ExperimentFolder(self.path / "with-theory")

    def partial_list(self, stage: str) -> Path:
        """As `list_of`, with all cells in one list."""
        return self.path / f"{stage}.json"


def readable(claims: Path) -> Path:
    """The table of claims as text, in the same folder."""
    return claims.with_suffix(".md")


def figure_file(folder: Path, name: str, ending: str) -> Path:
    """`ending` is pdf, png, csv or txt."""
    return folder / f"{name}.{ending}"


# Tables of a cell. The name of a table depends on everything that its rows depend on. So a table
# that exists is up to date.


def measures_table(manifest: Path, settings: MeasureSettings, embeddings: Embeddings) -> Path:
    """The table of `cltools measure` with these options, for the cell of this training manifest."""
    versions = [VERSIONS["embed"], VERSIONS["measure"]]
    depends_on = [
        sha256_file(manifest), *settings, embeddings.recalibrated, embeddings.dtype, versions,
        *([embeddings.precision] if embeddings.precision != "float32" else []),
    ]  # fmt: skip
    return _table(manifest, "measures", depends_on)


def theory_table(manifest: Path, measures: Path, settings: Mapping[str, Any]) -> Path:
    """The table of `cltools theory`, given all its settings and the table of measures it reads."""
    depends_on = [sha256_file(manifest), measures.name, dict(settings), VERSIONS["theory"]]
    return _table(manifest, "theory", depends_on)


def merge_table(manifest: Path, settings: Mapping[str, Any], reference: str) -> Path:
    """The table of `cltools merge`, given all its settings and the end of all its lines."""
    chosen = {
        "with": sorted(settings["with"]), "points": settings["points"], "reference": reference,
    }  # fmt: skip
    return _table(manifest, "merge", [sha256_file(manifest), chosen, VERSIONS["merge"]])


def layers_table(
    manifest: Path, settings: Mapping[str, Any], reference: str, recalibrated: bool
) -> Path:
    """The table of `cltools layers`, given its settings and the objective it compares with."""
    chosen = {"at": settings["at"], "split": settings["split"], "reference": reference}
    depends_on = [sha256_file(manifest), chosen, recalibrated, VERSIONS["layers"]]
    return _table(manifest, "layers", depends_on)


def tables_of(experiment: "Experiment", manifest: Path) -> dict[str, Path]:
    """Stage -> its table for the cell of this manifest, with the settings of the config."""
    made = Embeddings(
        experiment.setting("embedding_type"),
        experiment.setting("recalibrate_batchnorm"),
        experiment.setting("embedding_precision"),
    )
    settings = MeasureSettings(experiment.setting("measure", "full_at"), experiment.reference)
    measures = measures_table(manifest, settings, made)
    theory = theory_table(manifest, measures, experiment.settings_of("theory"))
    tables = {"measure": measures, "theory": theory}
    if "merge" in experiment.config:
        tables["merge"] = merge_table(
            manifest, experiment.settings_of("merge"), experiment.reference
        )
    if "layers" in experiment.config:
        tables["layers"] = layers_table(
            manifest, experiment.settings_of("layers"), experiment.reference, made.recalibrated
        )
    return tables


def whose(table: Path, manifest: Path) -> dict[str, str]:
    """What a table of a cell, or a part of one, says of itself: its name and its manifest."""
    return {"table": f"{table.parent.name}/{table.name}", "manifest": sha256_file(manifest)}


def of_experiment(table: str, plan: Path) -> dict[str, str]:
    """What a table of an experiment says of itself: its name and the plan that it was made for."""
    return {"table": table, "plan": sha256_file(plan)}


def step_of(table: Path, step: int) -> Path:
    """The rows of one checkpoint, kept until the table is complete."""
    return unfinished(table) / f"step-{step:07d}.parquet"


def begun_of(table: Path, step: int) -> Path:
    """The first rows of one checkpoint, kept until `step_of` is written."""
    return unfinished(table) / f"begun-{step:07d}.parquet"


def unfinished(table: Path) -> Path:
    """The folder of the parts of a table that is not complete."""
    return table.with_name(f"{table.stem}-steps")


def _table(manifest: Path, folder: str, depends_on: list[Any]) -> Path:
    return manifest.parent / folder / f"{sha256_text(canonical_json(depends_on))[:16]}.parquet"
