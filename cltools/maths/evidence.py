"""What effects over seeds say about a claim: t intervals, and decisions that allow for many claims.

A claim says that mean effects lie in regions (above 0, below 0, within ±0.05 …), one effect a seed.
It holds where all of its intervals lie inside their regions, does not hold where one lies outside,
and is undecided otherwise. Three seeds can never pass a sign test (its smallest p is 0.25), so
effects are taken as normal.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
SAME = 1e-9  # effects that differ by less, relatively, are one number written three times


class Region(NamedTuple):
    """Where a claim says that a mean lies: between `low` and `high`, one of them possibly infinite.

    The borders are outside.
    """

    low: float = -math.inf
    high: float = math.inf

    @property
    def sides(self) -> int:
        return math.isfinite(self.low) + math.isfinite(self.high)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, float | int) and self.low < value < self.high


class Evidence(NamedTuple):
    """Effects of `seeds` seeds: their mean and its standard error, beside what is claimed.

    p_inside: one-sided p against a mean outside the region; p_outside: against one inside.
    Both are 1 where nothing can be said: below two seeds, or where all effects are one number.
    """

    region: Region
    seeds: int
    mean: float
    error: float
    p_inside: float
    p_outside: float

    @property
    def decidable(self) -> bool:
        return self.error > 0


def evidence(effects: ArrayLike, region: Region) -> Evidence:
    """One-sided t tests of effects (n,), one a seed, against the borders of a region.

    To lie inside, a mean must pass at both borders (the two one-sided tests of equivalence); to lie
    outside, at one of them, which is Bonferroni-corrected where there are two.

    Raises:
        ValueError: no effects, some not finite, or a region without a border.
    """
    x = np.asarray(effects, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all() or not region.sides:
        raise ValueError("need finite effects (n,), n ≥ 1, and a region with a border")
    mean = float(x.mean())
    spread = float(x.std(ddof=1)) if len(x) > 1 else 0.0
    if spread <= SAME * float(np.abs(x).max()):
        return Evidence(region, len(x), mean, math.nan, 1.0, 1.0)
    error = spread / math.sqrt(len(x))
    # How far inside of each border, in standard errors; their t distribution function.
    room = np.array([mean - region.low, region.high - mean]) / error
    inside = stdtr(len(x) - 1, -room).max()
    outside = min(1.0, region.sides * stdtr(len(x) - 1, room).min())
    return Evidence(region, len(x), mean, error, float(inside), float(outside))


def p_of_all(parts: Sequence[Evidence], complete: bool = True) -> float:
    """Two-sided p of one claim from its parts, of which all must hold.

    That all hold needs no correction: the largest p is one (the intersection-union test). That one
    of them fails does, by Bonferroni. Without parts, 1; where parts are missing (`complete` false),
    the claim can only fail.
    """
    if not parts:
        return 1.0
    holds = max(part.p_inside for part in parts) if complete else 1.0
    fails = len(parts) * min(part.p_outside for part in parts)
    return min(1.0, 2 * min(holds, fails))


def holm_levels(p_values: ArrayLike, error_rate: float = 0.05) -> NDArray[np.float64]:
    """The level at which each of m claims is tested, in the order of `p_values` (m,).

    Holm: the smallest p is set against error_rate / m, the next against error_rate / (m - 1) …
    until one is larger; it and all beyond are tested at the level where that stopped. So a claim
    is decided exactly where its p is at most its level, and the chance of any wrong decision among
    all claims is at most error_rate, however they depend on each other.

    Raises:
        ValueError: p outside [0, 1], or error_rate outside (0, 1).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all() or not 0 < error_rate < 1:
        raise ValueError("need p (m,) in [0, 1] and error_rate in (0, 1)")
    order = np.argsort(p, kind="stable")
    levels = error_rate / np.arange(len(p), 0, -1)
    beyond = p[order] > levels
    if beyond.any():
        first = int(beyond.argmax())
        levels[first:] = levels[first]
    found = np.empty_like(levels)
    found[order] = levels
    return found


def holm_p(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p (m,): the smallest error rate at which each claim is decided."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty_like(p)
    found[order] = np.minimum(adjusted, 1.0)
    return found


def interval(part: Evidence, level: float, parts: int = 1) -> tuple[float, float]:
    """The t interval that decides one of a claim's `parts` at the claim's `level`: (low, high).

    Where the mean lies inside the region it is at 1 - level; outside, where each part and each
    border is a chance of its own to refute the claim, at 1 - level / (parts · borders). It covers
    the mean with at least that probability, taken by itself. NaN where there is no spread.
    """
    if not part.decidable:
        return math.nan, math.nan
    if part.mean not in part.region:
        level = level / (parts * part.region.sides)
    half = -float(stdtrit(part.seeds - 1, level / 2)) * part.error
    return part.mean - half, part.mean + half


def verdict(part: Evidence, level: float, parts: int = 1) -> str:
    """HOLDS, FAILS or UNDECIDED, by whether `interval` lies inside the region or outside."""
    low, high = interval(part, level, parts)
    if part.region.low < low and high < part.region.high:
        return HOLDS
    if high <= part.region.low or low >= part.region.high:
        return FAILS
    return UNDECIDED
