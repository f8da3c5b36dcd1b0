"""Effects and verdicts in words that a person reads.

The `reading` of a test in `claims.yaml` is a sentence with one place for its effect:

- {value}: the effect as it is; {signed}: with its sign; {percent}: times 100
- {points}: times 100, with its sign
- {ratio}: 10 to the power of the effect, for effects in log10
- {more}: the size of a difference, followed by “higher” or “lower”; {more_points}: times 100, as
  percentage points

{part} stands for the entry of `each`, {first} and {second} for what a pair compares.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Names in claims.yaml -> what a reader knows them by.
NAMES = {
    "dcl": "DCL", "nscl": "NSCL", "scl": "SCL", "ce": "CE", "lambda_0.00": "DCL",
    "lambda_1.00": "NSCL",
}  # fmt: skip
# Verdict -> of one claim, and of several.
COUNTED = {
    "holds": ("claim holds", "claims hold"),
    "does not hold": ("claim does not hold", "claims do not hold"),
    "undecided": ("claim is undecided", "claims are undecided"),
    "not tested here": ("claim was not tested here", "claims were not tested here"),
}
SCALES = ("value", "signed", "percent", "points", "ratio", "more", "more_points")
PERCENT = {"percent": " %", "points": " points", "more_points": " points"}
MOST_DECIMALS = 6
NOTHING = 1e-9  # a number this small is rounding


def counted(verdict: str, count: int) -> str:
    """How many claims have a verdict: “21 claims hold”."""
    one, several = COUNTED[verdict]
    return f"{count} {one if count == 1 else several}"


def reading_of(reading: str, part: str, pair: Sequence[Mapping[str, Any]]) -> str:
    """A reading with the names of its part and of the two things that it compares."""
    names = [" ".join(NAMES.get(str(v), str(v)) for v in term.values()) for term in pair]
    filled = {"part": part, **dict(zip(("first", "second"), names, strict=False))}
    for key, name in filled.items():
        reading = reading.replace(f"{{{key}}}", name)
    return reading[:1].upper() + reading[1:]


def scale_of(reading: str) -> str:
    """The place for the effect in a reading: "value", "ratio" and so on."""
    return next((scale for scale in SCALES if f"{{{scale}}}" in reading), "value")


def claimed_in_words(region: tuple[float, float], scale: str) -> str:
    """The claimed region on the scale of a reading: “above 0”, “0.85 to 1.15”."""
    if scale.startswith("more") and 0 in region:
        return "higher" if region[0] == 0 else "lower"
    low, high = map(_on(scale), region)
    unit = PERCENT.get(scale, "")
    if math.isinf(region[1]):
        return f"above {_plain(low)}{unit}"
    if math.isinf(region[0]):
        return f"below {_plain(high)}{unit}"
    return f"{_plain(low)} to {_plain(high)}{unit}"


def sentence(row: Mapping[str, Any]) -> str:
    """The result of one part, a row of the table of claims; empty where nothing was tested."""
    if row["violations"] is not None:
        found = ": ".join(filter(None, (row["part"], _of_bound(row))))
        return found[:1].upper() + found[1:]
    if row["effect"] is None:
        return ""
    scale = scale_of(row["reading"])
    numbers = [row["effect"], *(row[end] for end in ("low", "high") if row[end] is not None)]
    numbers = [_on(scale)(number) for number in numbers]
    shown, *ends = (_minus(f"{number:.{_decimals(numbers)}f}") for number in numbers)
    if scale.startswith("more"):
        unit = " percentage points" if scale == "more_points" else ""
        shown = f"{shown.lstrip('−')}{unit} {'lower' if numbers[0] < 0 else 'higher'}"
    elif scale in ("signed", "points") and numbers[0] > 0:
        shown = f"+{shown}"
    interval = f" ({' to '.join(ends)})" if ends else ""
    return str(row["reading"]).replace(f"{{{scale}}}", shown).replace("{interval}", interval)


def _decimals(numbers: Sequence[float]) -> int:
    """Decimals that tell an effect from its interval and from 0, and a correlation from 1."""
    sizes = [abs(number) for number in numbers]
    apart = [max(numbers) - min(numbers), *sizes, *(1 - size for size in sizes if size > 0.9)]
    least = min((one for one in apart if one > NOTHING), default=1.0)
    usual = 2 if max(sizes) < 10 else 1
    return min(MOST_DECIMALS, max(usual, -math.floor(math.log10(least) + NOTHING)))


def _of_bound(row: Mapping[str, Any]) -> str:
    unit = f" {row['unit']}" if row["unit"] else ""
    margin = row["effect"] if abs(row["effect"] or 0.0) > NOTHING else 0.0
    if not row["violations"]:
        return f"no violation in {row['rows']:,} cases; smallest margin {_plain(margin)}{unit}."
    count = f"{row['violations']:,} of {row['rows']:,} cases violate it"
    return f"{count}, the worst by {_plain(abs(margin))}{unit}."


def _on(scale: str) -> Callable[[float], float]:
    if scale == "ratio":
        return lambda value: 10**value
    return (lambda value: 100 * value) if scale in PERCENT else (lambda value: value)


def _plain(value: float) -> str:
    return _minus(f"{value:.3g}")


def _minus(text: str) -> str:
    text = "0" if re.fullmatch(r"-0\.?0*", text) else text
    return text.replace("-", "−")
