"""From an experiment's tables to a verdict for each claim.

A claim is tested in every *arm* that can test it: the cells of the base sweep, or of each sweep
over its factor, that differ in nothing else but the seed. In an arm it may have several *parts*
(CKA and RSA; NSCL above SCL and above CE), which must all hold.

- Tests by effects over seeds: see `cltools.maths.evidence`. All claims of an experiment, in all
  their arms, are one family: Holm's procedure keeps the chance of any wrong decision among them
  below the file's error_rate. Intervals are at the level that decides.
- `bound`: every row counts and no seed is needed. One violation refutes; none is what a theorem
  says, and it holds. What is not proved for the rows at hand needs as many seeds as other tests.

Over arms a claim is a general statement: it does not hold where it fails in one of them, holds
where it holds in all that decide it, and is undecided where none does.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from cltools.claims import Claim, Claims, Test
from cltools.claims.statistics import STATISTICS, Effects, Violations, select, violations
from cltools.config.sweeps import Sweeps, base_sweep, sweeps_over
from cltools.maths.evidence import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Evidence,
    Region,
    evidence,
    holm_levels,
    holm_p,
    interval,
    p_of_all,
    verdict,
)
from cltools.runtime.errors import InputError
from cltools.tidy import COLUMNS, not_told_apart, setting

UNTESTED = "not tested here"
VERDICTS = (HOLDS, FAILS, UNDECIDED, UNTESTED)
NO_ROWS = "no such rows"
# Correlations have their spread over seeds on Fisher's scale, where it does not shrink near 1.
ALMOST_1 = 1 - 1e-12
# There and back; of a number or an array.
Scale = tuple[Callable[[Any], Any], Callable[[Any], Any]]
SCALES: dict[str, Scale] = {
    "correlation": (lambda r: np.arctanh(np.clip(r, -ALMOST_1, ALMOST_1)), np.tanh)
}
PLAIN: Scale = (lambda x: x, lambda x: x)
# Columns that follow from the number of classes.
DEPENDENT = {"classes": ("train_images",)}
SCHEMA = {
    "claim": pl.String,
    "verdict": pl.String,  # of the claim
    "dataset": pl.String,
    "sweep": pl.String,
    "cells": pl.String,
    "arm_verdict": pl.String,
    "part": pl.String,
    "part_verdict": pl.String,
    "reason": pl.String,
    "statistic": pl.String,
    "claimed": pl.String,
    "unit": pl.String,
    "effect": pl.Float64,  # mean over seeds; of a bound, the least room left
    "low": pl.Float64,
    "high": pl.Float64,
    "level": pl.Float64,  # at which the interval covers, by itself
    "seeds": pl.Int64,
    "rows": pl.Int64,
    "violations": pl.Int64,  # of a bound
    "p": pl.Float64,  # of the claim in this arm
    "p_holm": pl.Float64,
    "statement": pl.String,
    "source": pl.String,
    "paper": pl.String,
    "figure": pl.String,
}


class Arm(NamedTuple):
    """Cells that differ in the seed, and in the factor of a sweep, alone."""

    dataset: str
    sweep: str
    cells: str
    rows: pl.DataFrame

    @property
    def key(self) -> tuple[str, str, str]:
        return self[:3]


@dataclass
class Part:
    """What one test finds in one arm: evidence over seeds, or counts of a bound, or neither."""

    test: Test
    evidence: Evidence | None = None
    counts: Violations | None = None
    rows: int = 0
    reason: str = ""
    verdict: str = UNTESTED
    limits: tuple[float | None, float | None, float | None] = (None, None, None)


@dataclass
class Trial:
    """One claim in one arm."""

    claim: Claim
    key: tuple[str, str, str]
    parts: list[Part]
    p: float | None = None
    p_holm: float | None = None
    verdict: str = field(default=UNTESTED)

    @property
    def deciding(self) -> list[Evidence]:
        return [part.evidence for part in self.parts if part.evidence and not part.reason]


def evaluate(claims: Claims, tables: Mapping[str, pl.DataFrame], sweeps: Sweeps) -> pl.DataFrame:
    """One row for each part of each claim in each arm, columns as in SCHEMA.

    `tables` by their names (`measures`, `theory`, …); any may be missing. `sweeps` as in the plan.
    Raises InputError where a test does not fit its table, and where cells of an arm that have one
    seed cannot be told apart.
    """
    arms = _Arms(tables, sweeps)
    trials = [trial for claim in claims.claims for trial in _trials(claim, arms)]
    _decide(trials, claims.error_rate)
    overall = {
        claim.id: over_arms(t.verdict for t in trials if t.claim.id == claim.id)
        for claim in claims.claims
    }
    rows = [row for trial in trials for row in _rows(trial, overall[trial.claim.id])]
    return pl.DataFrame(rows, schema=SCHEMA)


def over_parts(verdicts: Iterable[str]) -> str:
    """The verdict of a claim in an arm from those of its parts, which must all hold."""
    found = set(verdicts)
    if FAILS in found:
        return FAILS
    return found.pop() if len(found) == 1 else UNDECIDED


def over_arms(verdicts: Iterable[str]) -> str:
    """The verdict of a claim from those of its arms."""
    found = set(verdicts)
    return next((one for one in (FAILS, HOLDS, UNDECIDED) if one in found), UNTESTED)


class _Arms:
    """The arms of each table and factor, each made once."""

    def __init__(self, tables: Mapping[str, pl.DataFrame], sweeps: Sweeps) -> None:
        self.tables, self.sweeps = tables, sweeps
        self.made: dict[tuple[str, str | None, bool], list[Arm]] = {}

    def of(self, test: Test) -> list[Arm]:
        whole = test.kind == "bound"
        key = test.table, test.sweep, whole
        if key not in self.made:
            self.made[key] = list(self._make(*key))
        return self.made[key]

    def missing(self, test: Test) -> str:
        """Why there is no arm."""
        if test.table not in self.tables:
            return f"no table {test.table}"
        return f"no sweep varies {test.sweep or 'the seed alone'}"

    def _make(self, name: str, factor: str | None, whole: bool) -> Iterator[Arm]:
        table = self.tables.get(name)
        if table is None:
            return
        if "sweeps" not in table.columns:
            yield Arm("", "", "", table)
            return
        if whole:
            for part in table.sort("dataset", maintain_order=True).partition_by(
                "dataset", maintain_order=True
            ):
                yield Arm(part["dataset"][0], "all", "all cells", part)
            return
        base = base_sweep(self.sweeps)
        names = sweeps_over(self.sweeps, factor) if factor else [base] if base else []
        left_out = (factor, *DEPENDENT.get(factor, ())) if factor else ()
        same = [c for c in (*COLUMNS, "imbalance") if c in table.columns and c not in left_out]
        for sweep in names:
            rows = table.filter(pl.col("sweeps").list.contains(sweep))
            for part in rows.sort(same, maintain_order=True).partition_by(
                same, maintain_order=True
            ):
                _check_told_apart(part, factor)
                yield Arm(part["dataset"][0], sweep, setting(part, left_out), part)


def _check_told_apart(arm: pl.DataFrame, factor: str | None) -> None:
    """Raise InputError where cells of one seed differ in something that no column tells."""
    if alike := not_told_apart(arm.unique("cell"), [factor] if factor else []):
        raise InputError(
            f"claims cannot tell {' and '.join(alike[:2])} apart: give what they differ in a sweep "
            "of its own"
        )


def _trials(claim: Claim, arms: _Arms) -> list[Trial]:
    """The claim in every arm where a part of it can be tested, or in one where it cannot."""
    by_arm: dict[tuple[str, str, str], list[Part]] = {}
    for test in claim.tests:
        for arm in arms.of(test):
            by_arm.setdefault(arm.key, []).append(_part(test, arm))
    trials = [Trial(claim, key, parts) for key, parts in by_arm.items()]
    tested = [trial for trial in trials if any(part.rows for part in trial.parts)]
    if not tested:
        reason = NO_ROWS if trials else arms.missing(claim.tests[0])
        missing = [Part(test, reason=reason) for test in claim.tests]
        return [Trial(claim, ("", "", ""), missing)]
    return tested


def _part(test: Test, arm: Arm) -> Part:
    rows = select(arm.rows, test)
    if rows.is_empty():
        return Part(test, reason=NO_ROWS)
    if test.kind == "bound":
        counts = violations(rows, test)
        return Part(test, counts=counts, rows=counts.rows, reason="" if counts.rows else NO_ROWS)
    found = STATISTICS[test.kind](rows, test)
    part = Part(test, rows=found.rows)
    epochs = float(rows["epoch"].to_numpy().max()) if "epoch" in rows.columns else math.inf
    if not len(found.values):
        # With one side of a comparison there is nothing to compare.
        enough = found.levels >= test.needs.get("levels", 0)
        part.rows, part.reason = (0, NO_ROWS) if enough else (found.rows, _too_few(test, found))
    elif epochs < test.needs.get("epochs", 0):
        part.reason = f"{epochs:g} of {test.needs['epochs']:g} epochs"
    elif found.levels < test.needs.get("levels", 0):
        part.reason = _too_few(test, found)
    else:
        there, _ = SCALES.get(test.kind, PLAIN)
        region = Region(*(float(there(b)) if math.isfinite(b) else b for b in test.region))
        part.evidence = evidence(there(found.values), region)
        part.verdict = UNDECIDED
        if len(found.values) < test.seeds:
            part.reason = f"{len(found.values)} of {test.seeds} seeds"
        elif not part.evidence.decidable:
            part.reason = "no spread over seeds"
    return part


def _too_few(test: Test, found: Effects) -> str:
    return f"{found.levels} of {test.needs['levels']} values of {test.x or test.along}"


def _decide(trials: list[Trial], error_rate: float) -> None:
    """Set the verdicts of parts and trials; those by seeds are one family."""
    family = [trial for trial in trials if trial.deciding]
    for trial in family:
        trial.p = p_of_all(trial.deciding, len(trial.deciding) == len(trial.parts))
    p = [trial.p for trial in family if trial.p is not None]
    for trial, p_holm, level in zip(family, holm_p(p), holm_levels(p, error_rate), strict=True):
        trial.p_holm = float(p_holm)
        count = len(trial.deciding)
        for part in trial.parts:
            if part.evidence and not part.reason:
                part.verdict = verdict(part.evidence, level, count)
                _, back = SCALES.get(part.test.kind, PLAIN)
                low, high = (float(back(end)) for end in interval(part.evidence, level, count))
                part.limits = low, high, 1 - _error_of(part.evidence, level, count)
    for trial in trials:
        for part in trial.parts:
            if part.counts and part.counts.rows:
                part.verdict = _of_counts(part, part.counts)
        trial.verdict = over_parts(part.verdict for part in trial.parts)


def _error_of(part: Evidence, level: float, parts: int) -> float:
    """The chance that `interval` misses the mean."""
    return level if part.mean in part.region else level / (parts * part.region.sides)


def _of_counts(part: Part, counts: Violations) -> str:
    if counts.violations:
        return FAILS
    if not part.test.proved and counts.seeds < part.test.seeds:
        part.reason = f"{counts.seeds} of {part.test.seeds} seeds"
        return UNDECIDED
    return HOLDS


def _rows(trial: Trial, overall: str) -> Iterator[dict[str, Any]]:
    claim = trial.claim
    dataset, sweep, cells = trial.key
    for part in trial.parts:
        low, high, level = part.limits
        row = {
            "claim": claim.id,
            "verdict": overall,
            "dataset": dataset,
            "sweep": sweep,
            "cells": cells,
            "arm_verdict": trial.verdict,
            "part": part.test.label,
            "part_verdict": part.verdict,
            "reason": part.reason,
            "statistic": part.test.kind,
            "claimed": part.test.claimed,
            "unit": part.test.unit,
            "low": low,
            "high": high,
            "level": level,
            "rows": part.rows,
            "p": trial.p,
            "p_holm": trial.p_holm,
            "statement": claim.statement,
            "source": claim.source,
            "paper": claim.paper,
            "figure": claim.figure,
        }
        if part.evidence:
            _, back = SCALES.get(part.test.kind, PLAIN)
            row |= {"effect": float(back(part.evidence.mean)), "seeds": part.evidence.seeds}
        elif part.counts:
            row |= {"effect": part.counts.margin, "seeds": part.counts.seeds,
                    "violations": part.counts.violations}  # fmt: skip
        yield {name: row.get(name) for name in SCHEMA}
