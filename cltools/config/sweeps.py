"""Which sweep of an experiment is which, and whether its cells can be told apart."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cltools.runtime.files import canonical_json

Sweep = Mapping[str, Any]
Sweeps = Mapping[str, Sweep]
RUNS = ("seed", "class_draw")  # what the runs differ in that are spread over


def is_base(sweep: Sweep) -> bool:
    """Whether a sweep varies nothing but the seed (or nothing at all)."""
    return set(sweep["factors"]) <= {"seed"}


def base_sweep(sweeps: Sweeps) -> str | None:
    """The first sweep that varies nothing but the seed, if there is one."""
    return next((name for name, sweep in sweeps.items() if is_base(sweep)), None)


def base_or_first(sweeps: Sequence[Sweep]) -> Sweep:
    """The base sweep, or the first where there is none."""
    return next(filter(is_base, sweeps), sweeps[0])


def sweeps_over(sweeps: Sweeps, *factors: str) -> list[str]:
    """The sweeps that vary one of `factors`, in the order of the config."""
    return [name for name, sweep in sweeps.items() if set(factors) & set(sweep["factors"])]


def alike(
    cells: Sequence[Mapping[str, Any]], factors: Collection[str]
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Two cells that neither `factors` nor `RUNS` tell apart, if there are any."""
    known: dict[str, Mapping[str, Any]] = {}
    for cell in cells:
        values = canonical_json([cell.get(factor) for factor in sorted({*factors, *RUNS})])
        other = known.setdefault(values, cell)
        if other is not cell:
            return other, cell
    return None
