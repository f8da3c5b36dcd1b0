"""Stage `plan`: the cells and sweeps of an experiment, as later stages need them."""

from pathlib import Path
from typing import Any

from cltools.config.experiment import Experiment
from cltools.figures import figures_of
from cltools.runtime.sealed import write_json


def run(*, experiment: Experiment, output: Path) -> None:
    """Write the plan of an experiment as JSON."""
    write_json(output, summary(experiment))


def summary(experiment: Experiment) -> dict[str, Any]:
    """Cells, sweeps and figures of an experiment, for JSON."""
    return {**experiment.summary(), "figures": figures_of(experiment)}
