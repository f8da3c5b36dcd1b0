"""The table of claims as Markdown: one line per claim, then the results behind each verdict."""

from collections.abc import Iterable
from typing import Any

import polars as pl

from cltools.claims.evaluate import FURTHER, PRIMARY, UNTESTED, VERDICTS, number
from cltools.claims.words import counted, sentence

HOW = """\
A claim is about the median over seeds of an effect. It **holds** if an interval for this median
lies completely inside the claimed range, and it **does not hold** if the interval lies completely
outside. The intervals belong to sign tests. They assume that the seeds are independent of each
other, and nothing about how effects are distributed. They are corrected for the number of claims
that are tested over seeds. The {primary} tests of the **primary** claims are corrected among
themselves (Holm): the chance of any wrong decision among them is at most {error:.0%}. The
{further} tests of all **further** claims are corrected among themselves (Benjamini and Hochberg):
of their decisions, a share of at most {error:.0%} is expected to be wrong, if claims do not
depend on each other or tend to be wrong together. A claim is **undecided** if the interval
contains values inside and outside, or if there are too few seeds. The more claims are tested
together, the more seeds each of them may need. A bound is checked in every row: one violation
refutes it. A proved bound needs no minimum number of seeds. **Not tested here** means that the
experiment has no such rows, or is smaller than the test needs. All parts of a claim must hold, in
every sweep that decides it."""
SUMMARY = ("claim", "verdict", "because", "the papers", "source", "our figure")
DETAILS = (
    "claim", "family", "sweep", "part", "verdict", "claimed", "effect", "seeds", "rows", "p",
    "p, corrected",
)  # fmt: skip
RESTS = """\
Effect: the median over seeds, with its interval and the least coverage of this interval considered
alone; for a bound, the smallest margin between a value and its bound. Seeds: how many of them have
an effect in the claimed range. p: the p value of the whole claim in that sweep, before and after
the correction for the number of claims in its family."""


def markdown(name: str, table: pl.DataFrame, error_rate: float) -> str:
    """The claims of experiment `name` as Markdown; `table` is the result of `evaluate`."""
    claims = table.unique("claim", keep="first", maintain_order=True)
    counts = dict(claims["verdict"].value_counts().iter_rows())
    summary = ", ".join(counted(v, counts.get(v, 0)) for v in VERDICTS)
    arms = table.filter(pl.col("p").is_not_null()).unique(["claim", "dataset", "sweep", "cells"])
    tested = {family: len(arms.filter(family=family)) for family in (PRIMARY, FURTHER)}
    lines = [
        f"# Claims of the papers in the experiment {name}",
        "",
        f"Of {len(claims)} claims: {summary}.",
        "",
        *HOW.format(**tested, error=error_rate).splitlines(),
        "",
        *_table(
            SUMMARY,
            (_claim(table.filter(claim=claim["claim"])) for claim in claims.iter_rows(named=True)),
        ),
        "",
        "## Results behind the verdicts",
        "",
        *RESTS.splitlines(),
        "",
        *_table(
            DETAILS,
            (_part(row) for row in table.iter_rows(named=True) if row["part_verdict"] != UNTESTED),
        ),
        "",
        "Cells of the sweeps:",
        "",
        *(
            f"- {row['sweep']}: {row['cells']}"
            for row in table.filter(pl.col("sweep") != "")
            .unique(["sweep", "cells"], maintain_order=True)
            .iter_rows(named=True)
            if row["sweep"] != "all"
        ),
    ]
    return "\n".join(lines) + "\n"


def _claim(rows: pl.DataFrame) -> tuple[str, ...]:
    one = rows.row(0, named=True)
    return (
        one["statement"],
        " ".join(filter(None, (f"**{one['verdict']}**", in_sweeps(rows)))),
        because(rows),
        one["paper"],
        one["source"],
        f"`{one['figure']}`",
    )


def in_sweeps(rows: pl.DataFrame) -> str:
    """In how many of its sweeps a claim has its verdict, in words.

    Empty for a single sweep, and for claims that were not tested.
    """
    arms = rows.unique(["dataset", "sweep", "cells"])
    if len(arms) == 1 or rows["verdict"][0] == UNTESTED:
        return ""
    count = (arms["arm_verdict"] == arms["verdict"]).sum()
    return f"in {count} of {len(arms)} sweeps"


def because(rows: pl.DataFrame, most: int = 2) -> str:
    """The reason for a claim's verdict: sentences on the parts that have this verdict.

    At most so many are given. A reason that all of them share stands once, at the end.
    """
    verdict = rows["verdict"][0]
    if verdict == UNTESTED:
        return _capital(next((reason for reason in rows["reason"] if reason), ""))
    deciding = rows.filter(arm_verdict=verdict)
    same = deciding.filter(part_verdict=verdict)
    shown = same if len(same) else deciding
    reasons = shown["reason"].unique()
    common = reasons[0] if len(shown) > 1 and len(reasons) == 1 else ""
    several = len(shown.unique(["dataset", "sweep", "cells"])) > 1
    texts = dict.fromkeys(
        (f"{row['sweep']}: " if several else "")
        + result(row | {"reason": "" if common else row["reason"]})
        for row in shown.iter_rows(named=True)
    )
    said = list(texts)[:most]
    if len(texts) > most:
        said.append(f"And {len(texts) - most} more.")
    return " ".join(filter(None, (*said, _capital(common))))


def result(row: dict[str, Any]) -> str:
    """What one part found, as a sentence, with the reason for its verdict if there is one."""
    return " ".join(filter(None, (sentence(row), _capital(row["reason"]))))


def _capital(text: str) -> str:
    """A reason as a sentence."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def part_verdict(row: dict[str, Any]) -> str:
    """The verdict on one part, with the reason for it or what it does not say."""
    return ", ".join(filter(None, (row["part_verdict"], row["reason"])))


def seeds(row: dict[str, Any]) -> str:
    """How many seeds have an effect in the claimed range; for a bound, the number of seeds."""
    if row["seeds"] is None:
        return ""
    return f"{row['seeds']}" if row["inside"] is None else f"{row['inside']} of {row['seeds']}"


def _part(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"`{row['claim']}`",
        row["family"],
        row["sweep"],
        row["part"],
        part_verdict(row),
        claimed(row),
        effect(row),
        seeds(row),
        f"{row['rows']:,}",
        _p(row["p"]),
        _p(row["p_holm"] if row["family"] == PRIMARY else row["p_bh"]),
    )


def claimed(row: dict[str, Any]) -> str:
    """The range that is claimed for an effect, and its unit."""
    unit = row["unit"] if row["violations"] is None else ""
    return str(row["claimed"]) + (f" ({unit})" if unit else "")


def effect(row: dict[str, Any]) -> str:
    """The effect of one part with its interval, or its violations."""
    if row["violations"] is not None:
        return f"{row['violations']:,} violations, smallest margin {_number(row['effect'])}"
    return " ".join(filter(None, (_number(row["effect"]), _limits(row))))


def _limits(row: dict[str, Any]) -> str:
    """An interval and its least coverage, considered alone; empty where there is none."""
    if row["low"] is None or row["level"] is None:
        return ""
    return f"[{_number(row['low'])}, {_number(row['high'])}] at {100 * row['level']:.3g} %"


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
