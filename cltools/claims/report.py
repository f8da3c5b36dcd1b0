"""The table of claims as Markdown: one line per claim, then the results behind each verdict."""

from collections.abc import Iterable
from typing import Any

import polars as pl

from cltools.claims.evaluate import UNTESTED, VERDICTS

HOW = """\
A claim **holds** if an interval over seeds lies completely inside the claimed range, and it
**does not hold** if the interval lies completely outside. The level of the interval is
corrected for the {family} tests over seeds in this experiment (Holm; the chance of any wrong
decision among them is at most {error:.0%}). A claim is **undecided** if the interval contains
values inside and outside, or if there are fewer seeds than the test needs. A bound is checked
in every row: one violation refutes it. A proved bound needs no minimum number of seeds. **Not
tested here** means that the experiment has no such rows, or is smaller than the test needs. All
parts of a claim must hold, in every sweep that decides it."""
SUMMARY = ("claim", "verdict", "because", "the papers", "source", "our figure")
DETAILS = (
    "claim", "sweep", "part", "verdict", "claimed", "effect", "seeds", "rows", "p", "p, Holm",
)  # fmt: skip
RESTS = """\
Effect: the mean over seeds, with its interval and the coverage of this interval considered
alone; for a bound, the smallest distance of a value to its bound. p: the p value of the whole
claim in that sweep, before and after Holm's correction."""


def markdown(name: str, table: pl.DataFrame, error_rate: float) -> str:
    """The claims of experiment `name` as Markdown; `table` is the result of `evaluate`."""
    claims = table.unique("claim", keep="first", maintain_order=True)
    counts = dict(claims["verdict"].value_counts().iter_rows())
    summary = ", ".join(f"{counts.get(v, 0)} {v}" for v in VERDICTS)
    arm = ["claim", "dataset", "sweep", "cells"]
    family = table.filter(pl.col("p").is_not_null()).unique(arm).height
    lines = [
        f"# Claims of the papers in the experiment {name}",
        "",
        f"{len(claims)} claims: {summary}.",
        "",
        *HOW.format(family=family, error=error_rate).splitlines(),
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
        f"**{one['verdict']}**",
        because(rows),
        one["paper"],
        one["source"],
        f"`{one['figure']}`",
    )


def because(rows: pl.DataFrame) -> str:
    """The reason for a claim's verdict: the parts and arms that have this verdict."""
    verdict = rows["verdict"][0]
    arms = rows.select("dataset", "sweep", "cells", "arm_verdict").unique(maintain_order=True)
    said = []
    if len(arms) > 1:
        count = (arms["arm_verdict"] == verdict).sum()
        said.append(f"in {count} of {len(arms)} sweeps")
    deciding = rows.filter(arm_verdict=verdict)
    same = deciding.filter(part_verdict=verdict)
    if verdict == UNTESTED:
        return next((reason for reason in rows["reason"] if reason), "")
    shown = same if len(same) else deciding
    texts = dict.fromkeys(_found(row) for row in shown.iter_rows(named=True))
    said += list(texts)[:2]
    if len(texts) > 2:
        said.append(f"and {len(texts) - 2} more")
    return "; ".join(said)


def _found(row: dict[str, Any]) -> str:
    """One part in words: its name, then its effect and interval, or its counts."""
    part = f"{row['part']}: " if row["part"] else ""
    if row["violations"] is not None:
        cases = f"{row['violations']:,} violations in {row['rows']:,} cases"
        if row["reason"]:
            return f"{part}{cases}, {row['reason']}"
        return f"{part}{cases}, smallest distance {_number(row['effect'])}"
    return f"{part}{effect(row)}" + (f", {row['reason']}" if row["reason"] else "")


def _part(row: dict[str, Any]) -> tuple[str, ...]:
    verdict = row["part_verdict"]
    if row["reason"]:
        verdict += f" ({row['reason']})"
    return (
        f"`{row['claim']}`",
        row["sweep"],
        row["part"],
        verdict,
        row["claimed"] + (f" ({row['unit']})" if row["unit"] else ""),
        effect(row),
        "" if row["seeds"] is None else str(row["seeds"]),
        f"{row['rows']:,}",
        _p(row["p"]),
        _p(row["p_holm"]),
    )


def effect(row: dict[str, Any]) -> str:
    """The effect of one part with its interval, or its violations."""
    if row["violations"] is not None:
        return f"{row['violations']:,} violations, smallest distance {_number(row['effect'])}"
    return " ".join(filter(None, (_number(row["effect"]), _limits(row))))


def _limits(row: dict[str, Any]) -> str:
    """An interval and its coverage, considered alone; empty where there is none."""
    if row["low"] is None or row["level"] is None:
        return ""
    return f"[{_number(row['low'])}, {_number(row['high'])}] at {100 * row['level']:.3g} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
