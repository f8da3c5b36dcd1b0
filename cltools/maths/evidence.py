"""What the effects of several seeds say about a claim: t intervals, corrected for many claims.

Each seed gives one effect. A claim says that mean effects lie in regions (above 0, below 0, within
±0.05 …). It holds if all of its intervals lie inside their regions. It does not hold if one lies
outside. Otherwise it is undecided. Three seeds can never pass a sign test (its smallest p is 0.25),
so effects are assumed to be normally distributed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
SAME = 1e-9  # relative; effects closer together than this are the same number, with rounding


class Region(NamedTuple):
    """Where a claim says that a mean lies: between `low` and `high`, without the borders.

    One of the two may be infinite.
    """

    low: float = -math.inf
    high: float = math.inf

    @property
    def sides(self) -> int:
        return math.isfinite(self.low) + math.isfinite(self.high)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, float | int) and self.low < value < self.high


class Evidence(NamedTuple):
    """Effects of `seeds` seeds: their mean, its standard error, and the region that is claimed.

    p_inside: one-sided p-value against the mean lying outside the region.
    p_outside: one-sided p-value against the mean lying inside the region.
    Both are 1 when nothing can be said: fewer than two seeds, or effects that are all equal.
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
    """One-sided t tests of effects (n,), one per seed, against the borders of a region.

    A mean counts as inside when it passes at both borders (two one-sided tests of equivalence). It
    counts as outside when it passes at one border, Bonferroni-corrected if there are two.

    Raises:
        ValueError: no effects, effects that are not finite, or a region without a border.
    """
    x = np.asarray(effects, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all() or not region.sides:
        raise ValueError("need finite effects (n,), n ≥ 1, and a region with a border")
    mean = float(x.mean())
    spread = float(x.std(ddof=1)) if len(x) > 1 else 0.0
    if spread <= SAME * float(np.abs(x).max()):
        return Evidence(region, len(x), mean, math.nan, 1.0, 1.0)
    error = spread / math.sqrt(len(x))
    # Distance of the mean from each border in standard errors, above 0 if it is inside.
    room = np.array([mean - region.low, region.high - mean]) / error
    inside = stdtr(len(x) - 1, -room).max()
    outside = min(1.0, region.sides * stdtr(len(x) - 1, room).min())
    return Evidence(region, len(x), mean, error, float(inside), float(outside))


def p_of_all(parts: Sequence[Evidence], complete: bool = True) -> float:
    """Two-sided p-value of a claim whose parts must all hold.

    For "all parts hold", the largest p-value needs no correction (intersection-union test). For
    "some part fails", the smallest is Bonferroni-corrected. The result is 1 without parts. If parts
    are missing (`complete` false), the claim can fail but not hold.
    """
    if not parts:
        return 1.0
    holds = max(part.p_inside for part in parts) if complete else 1.0
    fails = len(parts) * min(part.p_outside for part in parts)
    return min(1.0, 2 * min(holds, fails))


def holm_levels(p_values: ArrayLike, error_rate: float = 0.05) -> NDArray[np.float64]:
    """The level at which each of m claims is tested, in the order of `p_values` (m,).

    Holm's method: the smallest p is compared with error_rate / m, the next with
    error_rate / (m - 1) and so on, until one is larger. That one and all after it are tested at
    the level reached there. So a claim is decided exactly if its p is at most its level. The chance
    of any wrong decision among all claims is at most error_rate, however they depend on each other.

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
    """The t interval (low, high) that decides one of a claim's `parts` at the claim's `level`.

    If the mean lies inside the region, the interval is at 1 - level. If it lies outside, every part
    and every border is another chance to reject the claim, so it is at
    1 - level / (parts · borders). A single interval covers the true mean with at least that
    probability. NaN if the effects have no spread.
    """
    if not part.decidable:
        return math.nan, math.nan
    if part.mean not in part.region:
        level = level / (parts * part.region.sides)
    half = -float(stdtrit(part.seeds - 1, level / 2)) * part.error
    return part.mean - half, part.mean + half


def verdict(part: Evidence, level: float, parts: int = 1) -> str:
    """HOLDS if `interval` lies inside the region, FAILS if it lies outside, else UNDECIDED."""
    low, high = interval(part, level, parts)
    if part.region.low < low and high < part.region.high:
        return HOLDS
    if high <= part.region.low or low >= part.region.high:
        return FAILS
    return UNDECIDED
