"""Stage `plot`: one figure from the tidy tables, as PDF, PNG and the plotted numbers as CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cltools.figures import FIGURES, draw
from cltools.figures.sheet import save
from cltools.figures.style import applied
from cltools.figures.tables import PAPERS, ExperimentTables
from cltools.runtime.errors import InputError
from cltools.tidy import made_by, read_experiment, read_plan


def run(
    *,
    name: str,
    plan: Path,
    tables: Mapping[str, Path],
    output: Path,
    style: Mapping[str, Any],
    papers: Sequence[Path] = (),
) -> None:
    """Write `<output>.pdf`, `.png`, `.csv` and `.txt` of figure `name`, a key of `FIGURES`.

    `plan` is the file that `cltools plan` wrote. The keys of `tables` are those of
    `cltools.layout.TABLES`; only the tables that the figure shows are read. `style` may set the
    keys of `cltools.figures.style.DEFAULTS`. `papers` are files of the papers' numbers, which are
    drawn too where they are about the same data set. Raises InputError when a table or the rows of
    the figure are missing.
    """
    experiment = read_for(name, plan, tables, papers)
    with applied(style, name):
        if unknown := style.get("panels", {}).keys() - FIGURES.keys():
            raise InputError(
                f"figure style panels: no figure is called {min(unknown)!r}: choose from "
                f"{', '.join(FIGURES)}"
            )
        figure, plotted = draw(name, experiment)
        save(figure, plotted, output)


def read_for(
    name: str, plan: Path, tables: Mapping[str, Path], papers: Sequence[Path] = ()
) -> ExperimentTables:
    """The tables that figure `name` shows; arguments and errors are those of `run`."""
    planned = read_plan(plan)
    sweeps = {sweep["name"]: sweep for sweep in planned["sweeps"]}
    used = FIGURES[name].tables_of(tables) if name in FIGURES else ()
    read = {table: _read(tables.get(table), table, plan) for table in used}
    numbers = read_papers(papers)
    return ExperimentTables(sweeps, **read, papers=numbers, reference=planned["reference"])


def _read(path: Path | None, name: str, plan: Path) -> pl.DataFrame:
    if path is None:
        raise InputError(
            f"this figure needs the table of `cltools {made_by(name)}`: give it with --{name}"
        )
    return read_experiment(path, name, plan)


def read_papers(paths: Sequence[Path]) -> pl.DataFrame:
    """The papers' numbers in these files, with the columns of `PAPERS`; missing text is "".

    Raises InputError for a file that cannot be read.
    """
    tables = [PAPERS]
    for path in paths:
        try:
            read = pl.read_csv(path, schema_overrides=PAPERS.schema)
            tables.append(read.select(PAPERS.columns))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise InputError(
                f"the papers' numbers cannot be read from {path} ({error}): correct the file"
            ) from None
    return pl.concat(tables).fill_null("")
