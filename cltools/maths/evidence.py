"""What the effects of several seeds say about a claim: sign tests, corrected for many claims.

Each seed gives one effect. A claim says that medians of effects lie in regions (above 0, below 0,
within ±0.05 …). It holds if intervals for all of its medians lie inside their regions. It does not
hold if one lies outside. Otherwise it is undecided.

No number of seeds decides whether a median lies above 0 if it is 0. So a region may say how large
an effect must be to matter. The claim then does not hold either if the interval shows that the
effect, if there is any, is smaller.

The only assumption is that the seeds are independent of each other. Effects may be skewed and have
any distribution: each seed lies above the true median with probability 1/2 at most, and below it
with probability 1/2 at most. So the number of seeds above a border is compared with fair coins.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
SAME = 1e-9  # relative; effects closer together than this are the same number, with rounding


class Region(NamedTuple):
    """Where a claim says that a median lies: between `low` and `high`, without the borders.

    One of the two may be infinite. A median that is inside by less than `matters` is refuted like
    one outside, unless the claim holds.
    """

    low: float = -math.inf
    high: float = math.inf
    matters: float = 0.0

    @property
    def sides(self) -> int:
        return math.isfinite(self.low) + math.isfinite(self.high)

    @property
    def refuted(self) -> tuple[float, float]:
        """The claim does not hold for a median below the first or above the second number."""
        return self.low + self.matters, self.high - self.matters

    def __contains__(self, value: object) -> bool:
        return isinstance(value, float | int) and self.low < value < self.high


class Evidence(NamedTuple):
    """Effects of seeds, in ascending order, and the region that is claimed for their median.

    p_inside: one-sided p-value against the median lying outside the region.
    p_outside: one-sided p-value against the median lying inside the region (by `matters` at least).
    Both are 1 when nothing can be said: fewer than two seeds, or effects that are all equal.
    """

    region: Region
    effects: tuple[float, ...]
    p_inside: float
    p_outside: float

    @property
    def seeds(self) -> int:
        return len(self.effects)

    @property
    def inside(self) -> int:
        """The number of seeds whose effect lies inside the region."""
        return sum(effect in self.region for effect in self.effects)

    @property
    def median(self) -> float:
        return float(np.median(self.effects))

    @property
    def decidable(self) -> bool:
        return _spread(self.effects)


def evidence(effects: ArrayLike, region: Region) -> Evidence:
    """Exact one-sided sign tests of effects (n,), one per seed, against the borders of a region.

    A median counts as inside when it passes at both borders (two one-sided tests of equivalence).
    It counts as outside when it passes at one border, Bonferroni-corrected if there are two. An
    effect on a border is neither inside nor outside.

    Raises:
        ValueError: no effects, effects that are not finite, a region without a border, or one with
            two borders that says how much matters.
    """
    x = np.asarray(effects, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all() or not region.sides:
        raise ValueError("need finite effects (n,), n ≥ 1, and a region with a border")
    if region.matters and region.sides > 1:
        raise ValueError("a region with two borders says itself how much matters")
    found = tuple(np.sort(x).tolist())
    if not _spread(found):
        return Evidence(region, found, 1.0, 1.0)
    not_inside = np.maximum((x <= region.low).sum(), (x >= region.high).sum())
    below, above = region.refuted
    outside = np.maximum((x < below).sum(), (x > above).sum())
    p_outside = region.sides * _at_most(len(x) - outside, len(x))
    return Evidence(region, found, float(_at_most(not_inside, len(x))), min(1.0, float(p_outside)))


def _spread(effects: Sequence[float]) -> bool:
    """Whether ascending effects differ by more than rounding."""
    return effects[-1] - effects[0] > SAME * max(abs(effects[0]), abs(effects[-1]))


def _at_most(heads: ArrayLike, coins: int) -> NDArray[np.float64]:
    """The probability of at most so many heads among fair coins."""
    return np.asarray(bdtr(heads, coins, 0.5))


def least_seeds(level: float) -> int:
    """The smallest number of seeds that can decide a claim with one part and one border at `level`.

    If all n seeds agree, the two-sided p-value of the sign test is 2^(1 − n).
    """
    return math.ceil(1 - math.log2(level))


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
    p = _checked(p_values, error_rate)
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


def bh_levels(p_values: ArrayLike, error_rate: float = 0.05) -> NDArray[np.float64]:
    """The level at which each of m claims is tested, in the order of `p_values` (m,).

    Method of Benjamini and Hochberg (1995): let k be the largest number for which the k-th smallest
    p is at most error_rate · k / m. These k claims are decided, all at this level, and the others
    are tested at error_rate · (k + 1) / m. So a claim is decided exactly if its p is at most its
    level. Of the decided claims, the expected share of wrong decisions is at most error_rate if
    claims are independent or positively dependent (Benjamini and Yekutieli 2001).

    Raises:
        ValueError: p outside [0, 1], or error_rate outside (0, 1).
    """
    p = _checked(p_values, error_rate)
    levels = error_rate * np.arange(1, len(p) + 1) / len(p)
    passed = np.flatnonzero(np.sort(p) <= levels)
    decided = int(passed[-1]) + 1 if len(passed) else 0
    of_decided = levels[decided - 1] if decided else 0.0
    of_others = levels[min(decided, len(p) - 1)] if len(p) else 0.0
    return np.where(p <= of_decided, of_decided, of_others)


def bh_p(p_values: ArrayLike) -> NDArray[np.float64]:
    """Benjamini and Hochberg's adjusted p (m,): the least rate at which each claim is decided."""
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(np.asarray(p_values, dtype=np.float64)))


def _checked(p_values: ArrayLike, error_rate: float) -> NDArray[np.float64]:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all() or not 0 < error_rate < 1:
        raise ValueError("need p (m,) in [0, 1] and error_rate in (0, 1)")
    return p


def level_of_part(part: Evidence, level: float, parts: int = 1) -> float:
    """The level at which one of a claim's `parts` is tested, when the claim is tested at `level`.

    To show that the claim holds, it is `level`. To refute it, every part and every border is
    another chance, so it is level / (parts · borders). The median says which of the two is
    possible. If both are, because the median is inside by less than what matters, the claim holds
    if it can.
    """
    below, above = part.region.refuted
    refutable = part.median < below or part.median > above or part.median not in part.region
    if not refutable or _inside(part, _limits(part, level)):
        return level
    return level / (parts * part.region.sides)


def interval(part: Evidence, level: float, parts: int = 1) -> tuple[float, float]:
    """The interval (low, high) for a median that decides one of a claim's `parts`.

    It runs from the k-th smallest to the k-th largest effect, with the largest k for which it
    covers the true median with probability 1 - `level_of_part` at least (the chance of each end to
    miss it is that of fewer than k heads among n fair coins). NaN if there are too few seeds for
    this level, or if the effects have no spread.
    """
    return _limits(part, level_of_part(part, level, parts))


def _limits(part: Evidence, level: float) -> tuple[float, float]:
    k = int((_at_most(np.arange(part.seeds), part.seeds) <= level / 2).sum())
    if not k or not part.decidable:
        return math.nan, math.nan
    return part.effects[k - 1], part.effects[-k]


def _inside(part: Evidence, limits: tuple[float, float]) -> bool:
    return part.region.low < limits[0] and limits[1] < part.region.high


def verdict(part: Evidence, level: float, parts: int = 1) -> str:
    """HOLDS if `interval` lies inside the region, FAILS if it refutes it, else UNDECIDED."""
    low, high = interval(part, level, parts)
    if _inside(part, (low, high)):
        return HOLDS
    below, above = part.region.refuted
    return FAILS if high < below or low > above else UNDECIDED
