"""Where everything lies: stores, cells, experiments, logs and benchmarks of jobs. Light.

Rules, stages and commands ask here, and nowhere else is a path below `results/` spelled. A name may
be a wildcard of Snakemake, so that the rules' patterns and the paths of stages are one:
`RESULTS.cell("{cell}").manifest("{until}")`.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cltools.runtime.files import LOCK, canonical_json, sha256_file, sha256_text

if TYPE_CHECKING:
    from cltools.config.experiment import Experiment

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

# Stages that work through batches of cells -> the folder of the lists that they write at their end.
LISTS = {"embed": "embedded", "measure": "measured", "theory": "theory", "merge": "merged"}
# What tells the jobs of a stage apart; of all others the experiment does.
JOBS = {
    "prepare": "{store}",
    "train": "{cell}-{until}",
    **dict.fromkeys(LISTS, "{experiment}-{batch}"),
    "plot": "{experiment}-{figure}",
}


@dataclass(frozen=True)
class Embeddings:
    """How embeddings are made: as numbers of which type, with batch statistics worked out anew."""

    dtype: str = "float32"
    recalibrated: bool = False


PLAIN = Embeddings()


@dataclass(frozen=True)
class Results:
    """The folder of all results."""

    path: Path = Path("results")

    @property
    def stores(self) -> Path:
        return self.path / "stores"

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
        """The log of a stage's job; without `names` the pattern of all of them."""
        return self.path / "logs" / stage / f"{_job(stage, names)}.log"

    def benchmark(self, stage: str, **names: str) -> Path:
        """Time and memory of a stage's job, as `log`."""
        return self.benchmarks / stage / f"{_job(stage, names)}.tsv"


RESULTS = Results()


def _job(stage: str, names: Mapping[str, str]) -> str:
    pattern = JOBS.get(stage, "{experiment}")
    return pattern.format(**names) if names else pattern


def benchmarks_of(
    folder: Path, experiment: str, cells: Collection[str], stores: Collection[str]
) -> Iterator[tuple[str, list[Path]]]:
    """Stage by stage the benchmarks, in `folder`, of an experiment's jobs."""
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
    """The images of a data set; `data.store` says what is in the files."""

    path: Path

    @property
    def manifest(self) -> Path:
        """Describes the others; written last."""
        return self.path / "store.json"

    def array(self, split: str, kind: str) -> Path:
        """`kind`: images, labels, offsets or sizes."""
        return self.path / f"{split}-{kind}.npy"

    def encoded_images(self, split: str) -> Path:
        return self.path / f"{split}-images.bin"

    @property
    def preparing(self) -> Path:
        """What is remembered of parts that are written already; gone when the store is whole."""
        return self.path / "preparing"

    @property
    def source(self) -> Path:
        """Of what `preparing` is."""
        return self.preparing / "source.json"

    def part(self, split: str, number: int) -> Path:
        return self.preparing / f"{split}-{number:05d}.json"


@dataclass(frozen=True)
class RunFolder:
    """What training one cell keeps; it outlives kills and later, longer runs."""

    path: Path

    @property
    def lock(self) -> Path:
        return self.path / LOCK

    @property
    def all_weights(self) -> Path:
        return self.path / "weights"

    def weights(self, objective: str, step: int) -> Path:
        """The weights of one objective before training step `step`."""
        return self.all_weights / f"{objective}-{step:07d}.safetensors"

    def log(self, until: str) -> Path:
        return self.path / f"log-{until}.parquet"

    @property
    def state(self) -> Path:
        """The latest resume state."""
        return self.path / "resume.safetensors"

    @property
    def previous_state(self) -> Path:
        return self.path / "resume-previous.safetensors"

    def apart(self, until: str) -> "RunFolder":
        """For the states of a shorter run than one that has been here."""
        return RunFolder(self.path / f"until-{until}")


@dataclass(frozen=True)
class CellFolder:
    """All that is made of one cell."""

    path: Path

    @classmethod
    def of(cls, manifest: Path) -> "CellFolder":
        """The folder that a training manifest lies in."""
        return cls(manifest.parent)

    @property
    def settings(self) -> Path:
        return self.path / "cell.json"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.path / "run")

    def manifest(self, until: str) -> Path:
        """The training manifest of a run that stops there, e.g. "20epochs"."""
        return self.path / f"trained-{until}.json"

    def embeddings(self, made: Embeddings) -> "EmbeddingFolder":
        """Recalibrated ones, and those of another type than float32, lie apart."""
        apart = "-recalibrated" * made.recalibrated
        apart += f"-{made.dtype}" * (made.dtype != "float32")
        return EmbeddingFolder(self.path / f"embeddings{apart}")


@dataclass(frozen=True)
class EmbeddingFolder:
    """A cell's embeddings, one file a checkpoint."""

    path: Path

    def file(self, step: int) -> Path:
        return self.path / f"step-{step:07d}.nc"

    @property
    def kept(self) -> Path:
        """A file that says that these embeddings are not to be discarded."""
        return self.path / "kept"


@dataclass(frozen=True)
class ExperimentFolder:
    """What is made from many cells."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    def list_of(self, stage: str, batch: str) -> Path:
        """The list that a stage of `LISTS` writes when it is through a batch."""
        return self.path / LISTS[stage] / f"{batch}.json"

    def table(self, name: str) -> Path:
        """A table of `TABLES`."""
        return self.path / TABLES[name]

    def tables(self) -> list[str]:
        """The file names of the tables that are there."""
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
        """Tables and figures of the cells that are done while others are at work."""
        return ExperimentFolder(self.path / "partial")

    def partial_list(self, stage: str) -> Path:
        """In place of `list_of`, where all cells are in one list."""
        return self.path / f"{stage}.json"


def readable(claims: Path) -> Path:
    """The table of claims as text, beside the table itself."""
    return claims.with_suffix(".md")


def figure_file(folder: Path, name: str, ending: str) -> Path:
    """`ending`: pdf, png or csv."""
    return folder / f"{name}.{ending}"


# Tables of a cell. A table's name depends on everything that its rows depend on, so that it is made
# once: a table that is there is up to date, and one that is not has to be made.


def measures_table(manifest: Path, full_at: str, embeddings: Embeddings) -> Path:
    """Of `cltools measure` with these options, for the cell of this training manifest."""
    versions = [VERSIONS["embed"], VERSIONS["measure"]]
    depends_on = [
        sha256_file(manifest), full_at, embeddings.recalibrated, embeddings.dtype, versions,
    ]  # fmt: skip
    return _table(manifest, "measures", depends_on)


def theory_table(manifest: Path, measures: Path, settings: Mapping[str, Any]) -> Path:
    """Of `cltools theory` with these settings, all of them, on that table of measures."""
    depends_on = [sha256_file(manifest), measures.name, dict(settings), VERSIONS["theory"]]
    return _table(manifest, "theory", depends_on)


def merge_table(manifest: Path, settings: Mapping[str, Any]) -> Path:
    """Of `cltools merge` with these settings, all of them."""
    chosen = {"with": sorted(settings["with"]), "points": settings["points"]}
    return _table(manifest, "merge", [sha256_file(manifest), chosen, VERSIONS["merge"]])


def tables_of(experiment: "Experiment", manifest: Path) -> dict[str, Path]:
    """Stage -> its table of the cell of this manifest, as the config asks for it."""
    made = Embeddings(
        experiment.setting("embedding_type"), experiment.setting("recalibrate_batchnorm")
    )
    measures = measures_table(manifest, experiment.setting("measure", "full_at"), made)
    theory = theory_table(manifest, measures, experiment.settings_of("theory"))
    tables = {"measure": measures, "theory": theory}
    if "merge" in experiment.config:
        tables["merge"] = merge_table(manifest, experiment.settings_of("merge"))
    return tables


def step_of(table: Path, step: int) -> Path:
    """The rows of one checkpoint, kept until the table of all is whole (see `unfinished`)."""
    return unfinished(table) / f"step-{step:07d}.parquet"


def unfinished(table: Path) -> Path:
    """The folder of the parts of a table that is not whole."""
    return table.with_name(f"{table.stem}-steps")


def _table(manifest: Path, folder: str, depends_on: list[Any]) -> Path:
    return manifest.parent / folder / f"{sha256_text(canonical_json(depends_on))[:16]}.parquet"
