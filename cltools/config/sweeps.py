"""Which sweep of an experiment is which: the base sweep, and those over a factor."""

from collections.abc import Mapping
from typing import Any

Sweeps = Mapping[str, Mapping[str, Any]]


def base_sweep(sweeps: Sweeps) -> str | None:
    """The first sweep that varies nothing but the seed (or nothing at all), if there is one."""
    return next((name for name, sweep in sweeps.items() if set(sweep["factors"]) <= {"seed"}), None)


def sweeps_over(sweeps: Sweeps, *factors: str) -> list[str]:
    """The sweeps that vary one of `factors`, in the order of the config."""
    return [name for name, sweep in sweeps.items() if set(factors) & set(sweep["factors"])]
