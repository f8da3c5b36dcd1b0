"""The tables from which figures are drawn: rows of sweeps, and numbers of the papers."""

from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from cltools.config.sweeps import Sweeps, base_sweep, sweeps_over
from cltools.figures.style import look_of
from cltools.tidy import COLUMNS, FURTHER, against, in_sweep, in_words

# An empty table for numbers of the papers; papers/README.md explains its columns.
NUMBERS = ("value", "tolerance")
TEXTS = (
    "figure", "dataset", "architecture", "objective", "reference", "metric", "variant", "split",
    "features", "epoch", "factor", "factor_value", "source", "note",
)  # fmt: skip
PAPERS = pl.DataFrame(schema=dict.fromkeys(TEXTS, pl.String) | dict.fromkeys(NUMBERS, pl.Float64))
# Table -> the columns that name objectives.
OBJECTIVES_OF = {
    "measures": ("objective", "reference"),
    "log": ("model",),
    "theory": ("objective",),
    "project": ("objective",),
    "layers": ("objective", "reference"),
}


@dataclass(frozen=True)
class ExperimentTables:
    """The tidy tables of one experiment; None stands for a table that was not read.

    `reference` is the objective that all others are compared with.
    """

    sweeps: Sweeps
    measures: pl.DataFrame | None = None
    log: pl.DataFrame | None = None
    theory: pl.DataFrame | None = None
    surrogate: pl.DataFrame | None = None
    minimise: pl.DataFrame | None = None
    regularity: pl.DataFrame | None = None
    project: pl.DataFrame | None = None
    layers: pl.DataFrame | None = None
    papers: pl.DataFrame = field(default_factory=PAPERS.clone)
    reference: str = "dcl"

    @property
    def reference_label(self) -> str:
        """The name of the reference in figures."""
        return look_of(self.reference).label

    def against_reference(self, table: pl.DataFrame) -> pl.DataFrame:
        """The rows that compare another objective with the reference."""
        return against(table, self.reference)

    def without_own_labels(self, *kept: str) -> "ExperimentTables":
        """The same, but only objectives with the labels of the data set, and those in `kept`."""
        found = {}
        for name, columns in OBJECTIVES_OF.items():
            table = getattr(self, name)
            if table is not None:
                shown = [
                    ~pl.col(column).str.contains(":", literal=True) | pl.col(column).is_in(kept)
                    for column in columns
                ]
                found[name] = table.filter(shown)
        return replace(self, **found)

    def base(self, table: pl.DataFrame) -> pl.DataFrame:
        """The rows of `table` that belong to the base sweep."""
        return in_sweep(table, base_sweep(self.sweeps))

    def over(self, table: pl.DataFrame, *factors: str) -> pl.DataFrame:
        """The rows of every sweep over `factors`, with the columns `panel` and `arm`.

        An arm is a set of cells that differ only in `factors` and in the seed. A sweep that varies
        other settings too has one arm for each of their values. `panel` is the number of the arm
        and `arm` its title.
        """
        arms = []
        names = sweeps_over(self.sweeps, *factors)
        for name in names:
            varied = self.sweeps[name]["factors"]
            rest = [c for c in (*COLUMNS, *FURTHER) if c in varied and c not in factors]
            if "batch_size" in factors and "lr_rule" not in rest:
                rest.append("lr_rule")  # the effect of B depends on the rule, so all panels name it
            cells = in_sweep(table, name)
            parts = cells.sort(rest).partition_by(rest, maintain_order=True) if rest else [cells]
            for part in parts:
                title = [in_words(column, part[column]) for column in rest]
                if len(names) > 1 or not rest:
                    title.insert(0, self.sweeps[name]["label"])
                named = {"panel": pl.lit(len(arms)), "arm": pl.lit(", ".join(title))}
                arms.append(part.with_columns(**named))
        return pl.concat(arms)


def papers_rows(
    experiment: ExperimentTables, cells: pl.DataFrame, factor: str | None = None, **wanted: Any
) -> pl.DataFrame:
    """The numbers of the papers that can be compared with `cells`; `wanted` as in `tidy.rows`.

    They have the data set, architecture and framework of the cells, and epochs up to their last
    one. Other settings are the base setting of the papers, except `factor`. Often there are none.
    The column `epoch` is numeric in the result.
    """
    last = cells["epoch"].max()
    other = pl.col("factor") == "framework"
    table = experiment.papers.with_columns(
        pl.col("epoch").cast(pl.Float64, strict=False),
        framework=pl.when(other).then("factor_value").otherwise(pl.lit("simclr")),
        factor=pl.when(other).then(pl.lit("")).otherwise("factor"),
    ).filter(
        *(
            pl.col(name).is_in(cells[name].unique().implode())
            for name in ("dataset", "architecture", "framework")
        ),
        pl.col("factor") == (factor or ""),
        pl.col("epoch") <= last,
    )
    for column, value in wanted.items():
        table = table.filter(pl.col(column).is_in(value if isinstance(value, list) else [value]))
    return table


def with_papers(plotted: pl.DataFrame, papers: pl.DataFrame) -> pl.DataFrame:
    """The plotted numbers, followed by those of the papers, where `figure` is not null."""
    if papers.is_empty():
        return plotted
    shared = [column for column in ("figure", *plotted.columns) if column in papers.columns]
    return pl.concat([plotted, papers.select(shared)], how="diagonal")


def means_note(plotted: pl.DataFrame) -> str:
    """One sentence on what heat maps show of the result of `tidy.spread`."""
    low, high = plotted["seeds"].min(), plotted["seeds"].max()
    runs = f"{high}" if low == high else f"{low} to {high}"
    return f"Means over {runs} run{'s' * (high > 1)} (seeds and class draws)."


def seeds_note(
    plotted: pl.DataFrame, cells: pl.DataFrame, spread_as: str = "bars", points: bool = True
) -> str:
    """One sentence that explains the drawn spread.

    `plotted` is the result of `tidy.spread` for `cells` or a part of them.
    """
    low, high = plotted["seeds"].min(), plotted["seeds"].max()
    if high == 1:
        return "One seed: no spread drawn."
    count = f"{low}–{high}" if low < high else f"{high}"
    runs = "seeds" if cells["class_draw"].n_unique() == 1 else "runs (seeds and class draws)"
    small = "; small points: single runs" if points else ""
    small += "; open markers: one run alone" if low == 1 else ""
    return f"Mean over {count} {runs}, {spread_as}: ± one standard deviation{small}."
