"""From an experiment's tables to a verdict for each claim.

A claim is tested in *arms*. An arm is a set of cells that differ in the seed only or, where the
claim is about a factor, in the seed and this factor. Arms without the rows that the claim needs are
left out. In an arm, a claim may have several *parts*, which must all hold (CKA and RSA, or NSCL
above SCL and NSCL above CE).

- Most tests use effects over seeds, see `cltools.maths.evidence`. All claims of an experiment, in
  all arms, form one family: with Holm's procedure, the chance of any wrong decision in the family
  is below the error_rate of the file. The intervals in the table have the level that decides.
- `bound` checks every row. One violation refutes the claim. Without a violation, a bound that is
  proved for these rows holds, whatever the number of seeds. A bound that is not proved needs as
  many seeds as other tests.

A claim does not hold if it fails in any arm. It holds if it holds in some arm and fails in none.
Otherwise it is undecided.
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
# Correlations are compared on Fisher's scale (artanh). On it, their spread does not shrink near 1.
ALMOST_1 = 1 - 1e-12
# A function of a number or an array, and its inverse.
Scale = tuple[Callable[[Any], Any], Callable[[Any], Any]]
SCALES: dict[str, Scale] = {
    "correlation": (lambda r: np.arctanh(np.clip(r, -ALMOST_1, ALMOST_1)), np.tanh)
}
PLAIN: Scale = (lambda x: x, lambda x: x)
# Factor -> columns whose values follow from it.
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
    "effect": pl.Float64,  # mean over seeds; for a bound, the smallest distance to it
    "low": pl.Float64,
    "high": pl.Float64,
    "level": pl.Float64,  # coverage of this interval, considered alone
    "seeds": pl.Int64,
    "rows": pl.Int64,
    "violations": pl.Int64,  # for a bound only
    "p": pl.Float64,  # of the claim in this arm
    "p_holm": pl.Float64,
    "statement": pl.String,
    "source": pl.String,
    "paper": pl.String,
    "figure": pl.String,
}


class Arm(NamedTuple):
    """Rows of cells that differ only in the seed and in the factor of a sweep."""

    dataset: str
    sweep: str
    cells: str
    rows: pl.DataFrame

    @property
    def key(self) -> tuple[str, str, str]:
        return self[:3]


@dataclass
class Part:
    """The result of one test in one arm: evidence over seeds, counts of a bound, or neither."""

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
    """The verdicts: one row for each part of each claim in each arm, with the columns of SCHEMA.

    Args:
        claims: as `load_claims` returns them.
        tables: name (`measures`, `theory`, …) -> table; any may be missing.
        sweeps: as in the plan.

    Raises:
        InputError: a test does not fit its table, or two cells of an arm have the same seed and
            differ in something that no column shows.
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
    """The verdict of a claim in an arm, from the verdicts of its parts, which must all hold."""
    found = set(verdicts)
    if FAILS in found:
        return FAILS
    return found.pop() if len(found) == 1 else UNDECIDED


def over_arms(verdicts: Iterable[str]) -> str:
    """The verdict of a claim, from its verdicts in the arms."""
    found = set(verdicts)
    return next((one for one in (FAILS, HOLDS, UNDECIDED) if one in found), UNTESTED)


class _Arms:
    """The arms of each table and factor; each is computed once."""

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
    """Raise InputError when cells of one seed differ in something that no column shows."""
    if alike := not_told_apart(arm.unique("cell"), [factor] if factor else []):
        raise InputError(
            f"the claims cannot tell cells {' and '.join(alike[:2])} apart: vary the setting in "
            "which they differ in a sweep of its own"
        )


def _trials(claim: Claim, arms: _Arms) -> list[Trial]:
    """The claim in every arm where a part of it can be tested, or one trial with the reason."""
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
        # No effect, although there are enough values of x: one side of the comparison is missing.
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
    """Set the verdicts of parts and trials. All tests over seeds are one family."""
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
    """The probability that `interval` does not contain the mean."""
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
