"""P1's bound on the few-shot error of the nearest class center (arXiv 2506.04411)."""

import cmath
import math

SMALLEST_A = 5  # P1, Proposition 1
SMALLEST_SHOTS_DISPLAYED = 10  # for more, too, (1/2 - 2/a - 2^(3/2)/(a m))^(-2) ≤ 8 at a = 16


def few_shot_bound(
    dir_cdnv: float,
    cdnv: float,
    v_s: float,
    shots: float,
    classes: int,
    a: float | None = None,
) -> float:
    """Bound on the error of the nearest class center, where centers are means of m images.

    P1, Proposition 1, for any a ≥ 5, with C' classes and m shots:

        (C' - 1) [ (1/2 - 2/a - 2^(3/2)/(a m))^(-2) V~ + (a/4) ((2/√m) (V^s + V) + V/m) ]

    as its authors restate it in arXiv 2603.03530. Corollary 1 is the minimum over a. The published
    curves show another, older bound, which is in the authors' earlier code (understanding-ssl,
    docs/evaluation.md): it lacks C' - 1 and V^s, and has a wrong root. `few_shot_bound_displayed`
    is the form that P1 displays. V is as in `cdnv`; in parts of P1's proof it is twice that.

    Args:
        dir_cdnv: V~ ≥ 0, `directional_cdnv` of the C' classes.
        cdnv: V ≥ 0, `cdnv`.
        v_s: V^s ≥ 0, `cdnv_root`.
        shots: m ≥ 1; infinity gives the limit 4 V~ (C' - 1).
        classes: C' ≥ 2.
        a: default the one with the smallest bound, which is computed in closed form.

    Returns:
        The bound, 0 or above. It is not clipped, and says nothing above 1. It is infinity when V~,
        V or V^s is, or when the given a is too small for so few shots: for a ≤ 4 + 2^(5/2)/m the
        first bracket is not positive and the proposition does not hold. It is NaN when V~, V or V^s
        is.

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
    """The form of `few_shot_bound` that P1 displays: a = 16, and first factor 8.

    (C' - 1) [ 8 V~ + (8/√m) V^s + (8/√m) V + (4/m) V ], for m ≥ 10. It is never below
    `few_shot_bound`.

    Raises:
        ValueError: as `few_shot_bound`, or fewer than 10 shots, where 8 is too small.
    """
    _check_bound(dir_cdnv, cdnv, v_s, shots, classes)
    if shots < SMALLEST_SHOTS_DISPLAYED:
        raise ValueError(f"P1's displayed bound needs {SMALLEST_SHOTS_DISPLAYED} shots: {shots}")
    return (classes - 1) * (8 * dir_cdnv + 16 * _slope(cdnv, v_s, shots))


def _slope(cdnv: float, v_s: float, shots: float) -> float:
    """The second term of the bound divided by a."""
    return ((2 / math.sqrt(shots)) * (v_s + cdnv) + cdnv / shots) / 4


def _best_u(ratio: float) -> float:
    # With a = pole (1 + u) the bound is 4 V~ (1 + 1/u)² + slope pole (1 + u). Its derivative is 0
    # where ratio u³ = u + 1. By Descartes' rule this has one positive root, for which there is
    # Viète's formula. The arguments are complex when the other two roots are not real.
    root = math.sqrt(3) * math.sqrt(ratio)
    return 2 / root * cmath.cos(cmath.acos(1.5 * root) / 3).real


def _check_bound(dir_cdnv: float, cdnv: float, v_s: float, shots: float, classes: int) -> None:
    if min(dir_cdnv, cdnv, v_s) < 0:
        raise ValueError(f"variances are not negative: {dir_cdnv}, {cdnv}, {v_s}")
    if not (shots >= 1 and classes >= 2):
        raise ValueError(f"a few-shot task has 1 shot and 2 classes or more: {shots}, {classes}")
