"""The table of claims as Markdown: one line a claim, then what each verdict rests on."""

from collections.abc import Iterable
from typing import Any

import polars as pl

from cltools.claims.evaluate import UNTESTED, VERDICTS

HOW = """\
A claim **holds** or **does not hold** where an interval over seeds says so: it lies wholly on one
side of what is claimed, at a level that allows for the {family} tests over seeds of this experiment
(Holm; the chance of any wrong decision among them is at most {error:.0%}). It is **undecided**
where the interval has both sides in it, or where there are fewer seeds than the test needs. A bound
is checked in every row: one violation refutes it, and no seeds are needed for what is proved. **Not
tested here**: the experiment has no such rows, or is smaller than the test needs. All parts of a
claim must hold, in every sweep that decides it."""
SUMMARY = ("claim", "verdict", "because", "the papers", "source", "our figure")
DETAILS = (
    "claim", "sweep", "part", "verdict", "claimed", "effect", "seeds", "rows", "p", "p, Holm",
)  # fmt: skip
RESTS = """\
Effect: mean over seeds, with its interval and the level at which that covers by itself; of a bound,
the least room between a value and its bound. p: of the whole claim in that sweep, before and after
Holm's correction."""


def markdown(name: str, table: pl.DataFrame, error_rate: float) -> str:
    """The report of experiment `name`; `table` as `evaluate` returns it."""
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
        "## What the verdicts rest on",
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
    """What decided: of the arms that have the claim's verdict the parts that have it."""
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
    """One part in words: what it is, its effect and interval, or its counts."""
    part = f"{row['part']}: " if row["part"] else ""
    if row["violations"] is not None:
        cases = f"{row['violations']:,} violations in {row['rows']:,} cases"
        if row["reason"]:
            return f"{part}{cases}, {row['reason']}"
        return f"{part}{cases}, least room {_number(row['effect'])}"
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
        return f"{row['violations']:,} violations, room {_number(row['effect'])}"
    return " ".join(filter(None, (_number(row["effect"]), _limits(row))))


def _limits(row: dict[str, Any]) -> str:
    """An interval and the level at which it covers by itself; empty where there is none."""
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
