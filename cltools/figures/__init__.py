"""Every figure of an experiment, by name: what it shows and which experiments can draw it.

This registry imports neither matplotlib nor polars, so that the Snakefile can list its targets in
no time; `draw` imports the module that draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cltools.errors import InputError

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from cltools.figures.tables import Experiment

Sweeps = Mapping[str, Mapping[str, Any]]


def base_sweep(sweeps: Sweeps) -> str | None:
    """The first sweep that varies nothing but the seed (or nothing at all), if there is one."""
    return next((name for name, sweep in sweeps.items() if set(sweep["factors"]) <= {"seed"}), None)


def sweeps_over(sweeps: Sweeps, factor: str) -> list[str]:
    """The sweeps that vary `factor`, in the order of the config."""
    return [name for name, sweep in sweeps.items() if factor in sweep["factors"]]


@dataclass(frozen=True)
class FigureSpec:
    """One figure: the function named like it in `cltools.figures.<module>` draws it.

    `factor` is what the figure's sweeps must vary; None stands for the base sweep.
    """

    description: str
    module: str
    factor: str | None = None
    tables: tuple[str, ...] = ("measures",)

    def needs(self, sweeps: Sweeps) -> bool:
        """Whether `sweeps` hold the cells that this figure needs."""
        if self.factor is None:
            return base_sweep(sweeps) is not None
        return bool(sweeps_over(sweeps, self.factor))


FIGURES: dict[str, FigureSpec] = {
    "alignment_training": FigureSpec(
        "CKA and RSA of every objective with DCL against the epoch, on training and test images.",
        "alignment",
    ),
    "alignment_classes": FigureSpec(
        "CKA and RSA with DCL at the end of training against the number of classes.",
        "alignment",
        factor="classes",
    ),
    "alignment_temperature": FigureSpec(
        "CKA and RSA with DCL at the end of training against the temperature.",
        "alignment",
        factor="tau",
    ),
    "alignment_batch_size": FigureSpec(
        "CKA and RSA with DCL at the end of training against the batch size, per learning-rate "
        "rule.",
        "alignment",
        factor="batch_size",
    ),
    "alignment_coupling": FigureSpec(
        "Alignment with DCL at the end of training by what randomness the objectives share.",
        "coupling",
        factor="coupling",
    ),
    "losses_training": FigureSpec(
        "DCL and NSCL loss during training beside the bound on their gap.",
        "losses",
        tables=("log",),
    ),
    "gap_classes": FigureSpec(
        "Loss gap DCL − NSCL against the number of classes beside its bound.",
        "losses",
        factor="classes",
    ),
    "weights_representations": FigureSpec(
        "How far weights and representations of every objective drift from those of DCL.",
        "weights",
    ),
    "bound_tightness": FigureSpec(
        "How far each bound of the papers lies from what it bounds, and how often it is violated.",
        "bounds",
        tables=("theory",),
    ),
    "downstream": FigureSpec(
        "Accuracy of the nearest class centre and of a linear probe for every objective.",
        "downstream",
    ),
}


def draw(name: str, experiment: "Experiment") -> tuple["Figure", "pl.DataFrame"]:
    """Draw figure `name`; returns it with exactly the numbers that it shows."""
    if name not in FIGURES:
        raise InputError(f"no figure is called {name!r}: choose one of {', '.join(FIGURES)}")
    spec = FIGURES[name]
    if not spec.needs(experiment.sweeps):
        varied = spec.factor or "only the seed"
        raise InputError(f"figure {name} needs a sweep that varies {varied}: add one to the config")
    return getattr(import_module(f"cltools.figures.{spec.module}"), name)(experiment)
