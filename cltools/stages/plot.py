"""Stage `plot`: one figure from the tidy tables, as PDF, PNG and the plotted numbers as CSV."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl
from matplotlib import rc_context

from cltools.errors import InputError
from cltools.figures import FIGURES, Sweeps, draw
from cltools.figures.style import parameters, save
from cltools.figures.tables import Experiment
from cltools.versions import VERSIONS

VERSION = VERSIONS["plot"]


def plot(
    name: str,
    measures: Path,
    log: Path | None,
    sweeps: Sweeps,
    output_stem: Path,
    style: Mapping[str, float],
    theory: Path | None = None,
) -> None:
    """Write `<output_stem>.pdf`, `.png` and `.csv` of figure `name`, a key of `FIGURES`.

    Only the tables that the figure needs are read. `style` may set the keys of
    `cltools.figures.style.DEFAULTS`. Raises InputError when a table or the rows are missing.
    """
    used = FIGURES[name].tables if name in FIGURES else ()
    experiment = Experiment(
        measures=_read(measures, "measure") if "measures" in used else None,
        log=_read(log, "train") if "log" in used else None,
        sweeps=sweeps,
        theory=_read(theory, "theory") if "theory" in used else None,
    )
    # Matplotlib reads some settings only when it draws, so saving belongs inside too.
    with rc_context(parameters(style)):
        figure, plotted = draw(name, experiment)
        save(figure, plotted, output_stem)


def _read(table: Path | None, stage: str) -> pl.DataFrame:
    if table is None or not Path(table).exists():
        raise InputError(f"{table} does not exist: run `cltools {stage}` first")
    try:
        return pl.read_parquet(table)
    except pl.exceptions.PolarsError:
        raise InputError(f"{table} is damaged: delete it and run `cltools {stage}` again") from None
