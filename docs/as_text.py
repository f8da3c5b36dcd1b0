"""Measured numbers as the pages write them, for the templates of docs/measured.py."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import t as student

from cltools.claims import load_claims
from cltools.claims.evaluate import UNTESTED
from cltools.config.sweeps import RUNS
from cltools.figures import papers_file
from cltools.maths.evidence import FAILS, HOLDS, UNDECIDED
from cltools.runtime.errors import InputError
from cltools.tidy import in_sweep

DIGITS = 2  # decimals in a page: on another processor means of CKA differ by about 0.01
COUNT_ERROR = 0.02  # of a count in a page: how many rows there are may differ a little
LEVEL = 0.9  # of t intervals
# A verdict is a close call if rounding might change it: its corrected p is off the error rate by at
# most this share of it, or an end of its interval is off a claimed border by at most this share of
# the interval's width.
NEAR = 0.1


def claims_of(about: Path) -> Path:
    """The claims of an experiment in docs/data/, by its JSON file."""
    return about.with_name(f"{about.stem}-claims.csv")


@dataclass(frozen=True)
class Numbers:
    """The numbers of one experiment as text.

    `name` is one of SELECTIONS. `where` are values of columns that rows must have (a list: any of
    them), and `sweep`, a sweep that they belong to; `value`, any SQL expression of columns;
    `minus`, other values of columns, whose rows are subtracted seed by seed; `digits`, decimals.

    Methods over seeds need one row per seed (and draw of classes). All raise InputError where there
    are no such rows.
    """

    values: pl.DataFrame
    claims: pl.DataFrame
    error_rate: float

    @classmethod
    def read(cls, about: Path) -> "Numbers":
        """Those of an experiment in docs/data/, by its JSON file."""
        values = pl.read_parquet(about.with_suffix(".parquet"))
        claims = pl.read_csv(claims_of(about), infer_schema_length=None)
        split = pl.col("sweeps").str.split(" ")
        return cls(values.with_columns(split), claims, load_claims().error_rate)

    def mean(self, name: str, digits: int = DIGITS, **where: Any) -> str:
        """The mean over seeds."""
        return decimals(self._over_seeds(name, **where).mean(), digits)

    def sd(self, name: str, digits: int = DIGITS, **where: Any) -> str:
        """The standard deviation over seeds."""
        return decimals(self._over_seeds(name, least=2, **where).std(ddof=1), digits)

    def interval(self, name: str, digits: int = DIGITS, **where: Any) -> str:
        """The mean over seeds ± half of its t interval."""
        x = self._over_seeds(name, least=2, **where)
        half = student.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
        return f"{decimals(x.mean(), digits)} ± {decimals(half, digits)}"

    def seeds(self, name: str, **where: Any) -> str:
        """The number of seeds, or of seeds and draws of classes."""
        return str(len(self._over_seeds(name, **where)))

    def smallest(self, name: str, digits: int = DIGITS, **where: Any) -> str:
        """The smallest value of all rows."""
        return decimals(self._rows(name, **where)["value"].to_numpy().min(), digits)

    def median(self, name: str, digits: int = DIGITS, **where: Any) -> str:
        """The median of all rows."""
        return decimals(np.median(self._rows(name, **where)["value"]), digits)

    def largest(self, name: str, digits: int = DIGITS, **where: Any) -> str:
        """The largest value of all rows."""
        return decimals(self._rows(name, **where)["value"].to_numpy().max(), digits)

    def verdict(self, claim: str) -> str:
        """The verdict on a claim; whether all seeds agree, if it is undecided; a close call."""
        found = self._claim(claim)
        said = str(found["verdict"][0])
        over_seeds = found.filter(pl.col("inside").is_not_null())
        least = min(over_seeds["seeds"], default=0)
        if said == UNDECIDED and least > 1 and over_seeds["inside"].equals(over_seeds["seeds"]):
            said += f", all {least} seeds agree"
        near = any(close_call(row, self.error_rate) for row in found.iter_rows(named=True))
        return (f"**{said}**" if said in (HOLDS, FAILS) else said) + ", close call" * near

    def needs(self, **verdicts: Sequence[str]) -> str:
        """Nothing; raises InputError unless each of these claims has one of its verdicts.

        For text whose words follow from them.
        """
        for claim, wanted in verdicts.items():
            if (said := str(self._claim(claim)["verdict"][0])) not in wanted:
                raise InputError(
                    f"the text is wrong if the verdict on {claim} is {said}: reword it"
                )
        return ""

    def cases(self, claim: str) -> str:
        """How many rows the tests of a claim read."""
        return count(int(self._claim(claim)["rows"].sum()))

    def _claim(self, claim: str) -> pl.DataFrame:
        found = self.claims.filter(claim=claim)
        if found.is_empty():
            raise InputError(
                f"no claim is called {claim}: take a name in cltools/claims/claims.yaml"
            )
        return found

    def _rows(
        self, name: str, value: str = "value", sweep: str | None = None, **where: Any
    ) -> pl.DataFrame:
        found = self.values if sweep is None else in_sweep(self.values, sweep)
        for column, wanted in {"selection": name, **where}.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            found = found.filter(pl.any_horizontal(pl.col(column) == one for one in values))
        found = found.with_columns(value=pl.sql_expr(value)).filter(pl.col("value").is_finite())
        if found.is_empty():
            raise InputError(f"docs/data/ has no {name} with {where}: see SELECTIONS")
        return found

    def _over_seeds(
        self, name: str, minus: Mapping[str, Any] | None = None, least: int = 1, **where: Any
    ) -> NDArray[np.float64]:
        found = self._rows(name, **where)
        if minus:
            other = self._rows(name, **{**where, **minus}).select(*RUNS, less="value")
            found = found.join(other, on=RUNS, nulls_equal=True)
            found = found.with_columns(pl.col("value") - pl.col("less"))
        if found.select(RUNS).is_duplicated().any():
            differ = [c for c in found.columns if c not in RUNS and found[c].n_unique() > 1]
            raise InputError(f"{name} {where} has rows of one seed with several {differ}: name one")
        if len(found) < least:
            raise InputError(f"{name} {where} has {len(found)} seeds: give no spread")
        return found["value"].to_numpy()


def decimals(value: float, digits: int) -> str:
    """A number with so many decimals, as the pages write it."""
    return f"{value:z,.{digits}f}".replace("-", "−")


def times(ratio: float) -> str:
    """A ratio of two times with one digit, below 2 with two: more would be of one machine."""
    return significant(ratio, 2 if ratio < 2 else 1)


def percent(share: float, digits: int = 0) -> str:
    """A share, in percent."""
    return decimals(100 * share, digits)


def significant(value: float, digits: int = 2) -> str:
    """A number with so many significant digits."""
    return f"{float(f'{value:.{digits}g}'):,g}"


def count(number: int) -> str:
    """A count, rounded to a power of ten such that the error is at most COUNT_ERROR."""
    unit = 10 ** max(0, math.floor(math.log10(2 * COUNT_ERROR * max(number, 1))))
    return f"{round(number / unit) * unit:,}"


def of_paper(file: str, digits: int = DIGITS, **where: Any) -> str:
    """The largest number of a file in cltools/figures/papers/ in rows with these values."""
    found = pl.read_csv(papers_file(file), infer_schema_length=None).filter(**where)
    if found.is_empty():
        raise InputError(f"{papers_file(file)} has no row with {where}")
    return decimals(found["value"].to_numpy().max(), digits)


def close_call(row: Mapping[str, Any], error_rate: float) -> bool:
    """Whether a row of the table of claims is near to another verdict (see NEAR)."""
    p = row["p_bh"] if row["p_holm"] is None else row["p_holm"]
    if p is not None and abs(p - error_rate) <= NEAR * error_rate:
        return True
    if row["low"] is None:
        return False
    claimed = re.findall(r"-?[\d.]+(?:e-?\d+)?", row["claimed"].replace("−", "-"))
    ends, width = (row["low"], row["high"]), row["high"] - row["low"]
    return any(abs(end - float(border)) <= NEAR * width for end in ends for border in claimed)


def claims_table(*experiments: tuple[str, Numbers]) -> str:
    """All claims that one of these (title, experiment) can test, as a table in Markdown."""
    titles, numbers = zip(*experiments, strict=True)
    lines = [["claim", "source", *titles], ["---"] * (2 + len(titles))]
    for claim in numbers[0].claims.unique("claim", maintain_order=True).to_dicts():
        verdicts = [one.verdict(claim["claim"]) for one in numbers]
        if {*verdicts} != {UNTESTED}:
            lines.append([claim["statement"].removesuffix("."), claim["source"], *verdicts])
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in x) + " |" for x in lines)


# What templates may put after a number: `{{ number | percent(1) }}`.
FILTERS = {one.__name__: one for one in (decimals, times, percent, significant, count)}
