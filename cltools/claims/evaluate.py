"""From an experiment's tables to a verdict for each claim.

A claim is tested in *arms*. An arm is a set of cells that differ in the seed only or, where the
claim is about a factor, in the seed and this factor. Arms without the rows that the claim needs are
left out. In an arm, a claim may have several *parts*, which must all hold (CKA and RSA, or NSCL
above SCL and NSCL above CE).

- Most tests use effects over seeds, see `cltools.maths.evidence`. They are about the median over
  seeds and assume that seeds are independent. The claims of an experiment, in all arms, form two
  families. Primary claims are corrected with Holm's method: the chance of any wrong decision among
  them is at most the error_rate of the file. All further claims are corrected with the method of
  Benjamini and Hochberg: the expected share of wrong ones among the decided ones is at most
  error_rate. The intervals in the table have the level that decides.
- `bound` checks every row. One violation refutes the claim. Without a violation, a bound that is
  proved for these rows holds, whatever the number of seeds. A bound that is not proved needs as
  many seeds as other tests.

A test may say how large an effect must be to matter. Then the claim also fails where its effect, if
there is any, is smaller than that.

A claim does not hold if it fails in any arm. It holds if it holds in some arm and fails in none.
Otherwise it is undecided.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
    bh_levels,
    bh_p,
    evidence,
    holm_levels,
    holm_p,
    interval,
    least_seeds,
    level_of_part,
    p_of_all,
    verdict,
)
from cltools.runtime.errors import InputError
from cltools.tidy import COLUMNS, not_told_apart, setting

UNTESTED = "not tested here"
VERDICTS = (HOLDS, FAILS, UNDECIDED, UNTESTED)
NO_ROWS = "this experiment has no such measurements"
PRIMARY, FURTHER = "primary", "further"
# Family of claims -> functions that correct its p values and find the levels of its tests.
CORRECTIONS = {PRIMARY: (holm_p, holm_levels), FURTHER: (bh_p, bh_levels)}
# Factor -> columns whose values follow from it.
DEPENDENT = {"classes": ("train_images",)}
SCHEMA = {
    "claim": pl.String,
    "verdict": pl.String,  # of the claim
    "family": pl.String,  # primary or further, which are corrected apart; empty for bounds
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
    "reading": pl.String,  # a sentence about the effect, see `cltools.claims.words`; not for bounds
    "effect": pl.Float64,  # median over seeds; for a bound, the smallest margin to it
    "low": pl.Float64,
    "high": pl.Float64,
    "level": pl.Float64,  # least coverage of this interval, considered alone
    "seeds": pl.Int64,
    "inside": pl.Int64,  # seeds whose effect lies in the claimed range
    "rows": pl.Int64,
    "violations": pl.Int64,  # for a bound only
    "p": pl.Float64,  # of the claim in this arm
    "p_holm": pl.Float64,  # for primary claims
    "p_bh": pl.Float64,  # for further claims
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
    """The result of one test in one arm: evidence over seeds, counts of a bound, or neither.

    `reason` says why the test is not decided, and `note` what its verdict does not say.
    """

    test: Test
    evidence: Evidence | None = None
    counts: Violations | None = None
    rows: int = 0
    reason: str = ""
    note: str = ""
    verdict: str = UNTESTED
    limits: tuple[float | None, float | None, float | None] = (None, None, None)


@dataclass
class Trial:
    """One claim in one arm."""

    claim: Claim
    key: tuple[str, str, str]
    parts: list[Part]
    p: float | None = None
    p_adjusted: float | None = None
    verdict: str = field(default=UNTESTED)

    @property
    def family(self) -> str:
        if not self.claim.over_seeds:
            return ""
        return PRIMARY if self.claim.primary else FURTHER

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
    least = least_seeds(claims.error_rate)
    trials = [trial for claim in claims.claims for trial in _trials(claim, arms, least)]
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
        found: list[Arm] = []
        for factor in (None, test.sweep) if test.base_too else (test.sweep,):
            key = test.table, factor, test.kind == "bound"
            if key not in self.made:
                self.made[key] = list(self._make(*key))
            found += self.made[key]
        return found

    def missing(self, test: Test) -> str:
        """Why there is no arm."""
        if test.table not in self.tables:
            return f"the table {test.table} is not part of this experiment"
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


def _trials(claim: Claim, arms: _Arms, least: int) -> list[Trial]:
    """The claim in every arm where a part of it can be tested, or one trial with the reason.

    A test needs `least` seeds, or more if it says so.
    """
    by_arm: dict[tuple[str, str, str], list[Part]] = {}
    for test in claim.tests:
        for arm in arms.of(test):
            by_arm.setdefault(arm.key, []).append(_part(test, arm, least))
    trials = [Trial(claim, key, parts) for key, parts in by_arm.items()]
    tested = [trial for trial in trials if any(part.rows for part in trial.parts)]
    if not tested:
        reason = NO_ROWS if trials else arms.missing(claim.tests[0])
        missing = [Part(test, reason=reason) for test in claim.tests]
        return [Trial(claim, ("", "", ""), missing)]
    return tested


def _part(test: Test, arm: Arm, least: int) -> Part:
    least = max(least, int(test.needs.get("seeds", 0)))
    rows = select(arm.rows, test)
    if rows.is_empty():
        return Part(test, reason=NO_ROWS)
    if test.kind == "bound":
        return _bound(test, violations(rows, test), least)
    found = STATISTICS[test.kind](rows, test)
    part = Part(test, rows=found.rows)
    epochs = float(rows["epoch"].to_numpy().max()) if "epoch" in rows.columns else math.inf
    part.note = _left_out(test, found)
    if not len(found.values):
        if found.levels < test.needs.get("levels", 0):
            part.reason = _too_few(test, found)
        elif not found.left_out:  # one side of the comparison is missing
            part.rows, part.reason = 0, NO_ROWS
    elif epochs < test.needs.get("epochs", 0):
        part.reason = f"trained for {epochs:g} epochs; at least {test.needs['epochs']:g} are needed"
    elif found.levels < test.needs.get("levels", 0):
        part.reason = _too_few(test, found)
    else:
        part.evidence = evidence(found.values, Region(*test.region, test.matters))
        part.verdict = UNDECIDED
        part.note = "; ".join(filter(None, (part.note, _shared_draws(rows, test))))
        if part.evidence.seeds < least:
            part.reason = _too_few_seeds(part.evidence, least)
        elif not part.evidence.decidable:
            part.reason = "no spread over seeds"
    return part


def _bound(test: Test, counts: Violations, least: int) -> Part:
    part = Part(test, counts=counts, rows=counts.rows)
    if not counts.rows:
        part.reason = NO_ROWS
    elif counts.violations:
        part.verdict = FAILS
    elif not test.proved and counts.seeds < least:
        part.verdict = UNDECIDED
        part.reason = f"only {counts.seeds} of at least {least} seeds"
    else:
        part.verdict = HOLDS
    return part


def _too_few(test: Test, found: Effects) -> str:
    factor, least = test.x or test.along, test.needs["levels"]
    return f"{found.levels} values of {factor}; at least {least} are needed"


def _left_out(test: Test, found: Effects) -> str:
    if not found.left_out:
        return ""
    seeds = "1 seed" if found.left_out == 1 else f"{found.left_out} seeds"
    return f"left out: {seeds} without all values of {test.x}"


def _too_few_seeds(part: Evidence, least: int) -> str:
    if part.seeds > 1:
        return f"{part.inside} of {part.seeds} seeds agree; at least {least} are needed"
    agrees = "agrees" if part.inside else "disagrees"
    return f"the one seed {agrees}; at least {least} are needed"


def _shared_draws(rows: pl.DataFrame, test: Test) -> str:
    """What to add to a claim about the number of classes whose seeds all have the same classes."""
    if test.sweep != "classes" or "class_draw" not in rows.columns:
        return ""
    of_seeds = rows.group_by("seed").agg(pl.col("class_draw").unique().sort())["class_draw"]
    draws = of_seeds.to_list()
    if len(draws) == 1 or any(some != draws[0] for some in draws):
        return ""
    words = "one draw" if len(draws[0]) == 1 else f"the same {len(draws[0])} draws"
    return f"{words} of classes: seeds say nothing of other draws"


def number(value: float) -> str:
    """A value as the readable tables give it."""
    return f"{value:.3g}".replace("-", "−")


def _decide(trials: list[Trial], error_rate: float) -> None:
    """Set the verdicts of trials and of their parts that use effects over seeds."""
    for family, (adjusted, levels) in CORRECTIONS.items():
        tested = [trial for trial in trials if trial.family == family and trial.deciding]
        p = [p_of_all(trial.deciding, len(trial.deciding) == len(trial.parts)) for trial in tested]
        for trial, *found in zip(tested, p, adjusted(p), levels(p, error_rate), strict=True):
            trial.p, trial.p_adjusted, level = map(float, found)
            _decide_parts(trial, level)
    for trial in trials:
        trial.verdict = over_parts(part.verdict for part in trial.parts)


def _decide_parts(trial: Trial, level: float) -> None:
    """Decide the parts of a claim that is tested at `level`."""
    count = len(trial.deciding)
    for part in trial.parts:
        if not part.evidence or part.reason:
            continue
        part.verdict = verdict(part.evidence, level, count)
        low, high = interval(part.evidence, level, count)
        if part.verdict == FAILS and (low in part.evidence.region or high in part.evidence.region):
            small = f"if there is an effect, it is smaller than {part.test.matters:g}"
            part.note = "; ".join(filter(None, (small, part.note)))
        of_part = level_of_part(part.evidence, level, count)
        if math.isfinite(low):
            part.limits = low, high, 1 - of_part
        else:
            part.reason = _too_few_seeds(part.evidence, least_seeds(of_part))


def _rows(trial: Trial, overall: str) -> Iterator[dict[str, Any]]:
    claim = trial.claim
    dataset, sweep, cells = trial.key
    for part in trial.parts:
        low, high, level = part.limits
        row = {
            "claim": claim.id,
            "verdict": overall,
            "family": trial.family,
            "dataset": dataset,
            "sweep": sweep,
            "cells": cells,
            "arm_verdict": trial.verdict,
            "part": part.test.label,
            "part_verdict": part.verdict,
            "reason": "; ".join(filter(None, (part.reason, part.note))),
            "statistic": part.test.kind,
            "claimed": part.test.claimed,
            "unit": part.test.unit,
            "reading": part.test.said,
            "low": low,
            "high": high,
            "level": level,
            "rows": part.rows,
            "p": trial.p,
            "p_holm": trial.p_adjusted if trial.family == PRIMARY else None,
            "p_bh": trial.p_adjusted if trial.family == FURTHER else None,
            "statement": claim.statement,
            "source": claim.source,
            "paper": claim.paper,
            "figure": claim.figure,
        }
        if part.evidence:
            row |= {"effect": part.evidence.median, "seeds": part.evidence.seeds,
                    "inside": part.evidence.inside}  # fmt: skip
        elif part.counts:
            row |= {"effect": part.counts.margin, "seeds": part.counts.seeds,
                    "violations": part.counts.violations}  # fmt: skip
        yield {name: row.get(name) for name in SCHEMA}
