"""P1's bound on the few-shot error of the nearest class center (arXiv 2506.04411)."""

import cmath
import math

SMALLEST_A = 5  # P1, Proposition 1
SMALLEST_SHOTS_DISPLAYED = 10  # from here on (1/2 - 2/a - 2^(3/2)/(a m))^(-2) ≤ 8 at a = 16


def few_shot_bound(
    dir_cdnv: float,
    cdnv: float,
    v_s: float,
    shots: float,
    classes: int,
    a: float | None = None,
) -> float:
    """Bound on the error of the nearest class center, centers being means of m images per class.

    P1, Proposition 1, for any a ≥ 5, with C' classes and m shots:

        (C' - 1) [ (1/2 - 2/a - 2^(3/2)/(a m))^(-2) V~ + (a/4) ((2/√m) (V^s + V) + V/m) ]

    as its authors restate it with arXiv 2603.03530, and Corollary 1, its minimum over a. Their
    earlier code (understanding-ssl, docs/evaluation.md), which drew the published curves, has
    another, older bound: without C' - 1 and V^s, and with a wrong root. For the form that P1
    displays see `few_shot_bound_displayed`. V is `cdnv`'s: P1's proof also uses twice that.

    Args:
        dir_cdnv: V~ ≥ 0, `directional_cdnv` of the C' classes.
        cdnv: V ≥ 0, `cdnv`.
        v_s: V^s ≥ 0, `cdnv_root`.
        shots: m ≥ 1; infinity gives the limit 4 V~ (C' - 1).
        classes: C' ≥ 2.
        a: default the best one, in closed form.

    Returns:
        The bound, 0 or above, and not clamped: above 1 it says nothing. It is infinity when a
        measure is, or when a given a is too small for so few shots (a ≤ 4 + 2^(5/2)/m, where the
        first bracket is not positive and the proposition is void); NaN when a measure is.

    Raises:
        ValueError: arguments outside these ranges.
    """
    _check_bound(dir_cdnv, cdnv, v_s, shots, classes)
    if a is not None and not SMALLEST_A <= a < math.inf:
        raise ValueError(f"a must be finite and at least {SMALLEST_A}, not {a}")
    if not math.isfinite(whole := dir_cdnv + cdnv + v_s):
        return whole
    slope = _slope(cdnv, v_s, shots)
    pole = 4 + 2**2.5 / shots  # the first bracket is (1 - pole/a) / 2
    if a is not None:
        u = a / pole - 1
        if u <= 0:
            return math.inf
    else:
        ratio = slope * pole / (8 * dir_cdnv) if dir_cdnv else math.inf
        if ratio == 0:  # a → ∞
            return (classes - 1) * 4 * dir_cdnv
        if ratio == math.inf:  # a → pole, and the first term → 0
            return (classes - 1) * slope * max(SMALLEST_A, pole)
        u = max(SMALLEST_A / pole - 1, _best_u(ratio))
    return (classes - 1) * (4 * dir_cdnv * (1 + 1 / u) ** 2 + slope * pole * (1 + u))


def few_shot_bound_displayed(
    dir_cdnv: float, cdnv: float, v_s: float, shots: float, classes: int
) -> float:
    """The form of `few_shot_bound` that P1 displays: a = 16, and 8 for the first factor.

    (C' - 1) [ 8 V~ + (8/√m) V^s + (8/√m) V + (4/m) V ], for m ≥ 10. Never below `few_shot_bound`.

    Raises:
        ValueError: as `few_shot_bound`, or fewer than 10 shots, where 8 is too small.
    """
    _check_bound(dir_cdnv, cdnv, v_s, shots, classes)
    if shots < SMALLEST_SHOTS_DISPLAYED:
        raise ValueError(f"P1's displayed bound needs {SMALLEST_SHOTS_DISPLAYED} shots: {shots}")
    return (classes - 1) * (8 * dir_cdnv + 16 * _slope(cdnv, v_s, shots))


def _slope(cdnv: float, v_s: float, shots: float) -> float:
    """What the bound's second term gains per unit of a."""
    return ((2 / math.sqrt(shots)) * (v_s + cdnv) + cdnv / shots) / 4


def _best_u(ratio: float) -> float:
    # With a = pole (1 + u) the bound is 4 V~ (1 + 1/u)² + slope pole (1 + u), and its derivative is
    # zero where ratio u³ = u + 1. By Descartes' rule one root is positive, and Viète gives it: the
    # cosine is a hyperbolic one, with complex arguments, when the other two are not real.
    root = math.sqrt(3) * math.sqrt(ratio)
    return 2 / root * cmath.cos(cmath.acos(1.5 * root) / 3).real


def _check_bound(dir_cdnv: float, cdnv: float, v_s: float, shots: float, classes: int) -> None:
    if min(dir_cdnv, cdnv, v_s) < 0:
        raise ValueError(f"variances are not negative: {dir_cdnv}, {cdnv}, {v_s}")
    if not (shots >= 1 and classes >= 2):
        raise ValueError(f"a few-shot task has 1 shot and 2 classes or more: {shots}, {classes}")
