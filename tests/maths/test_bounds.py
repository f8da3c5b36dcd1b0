"""The bounds of both papers: numbers worked out by hand, limits, and the facts they rest on."""

import math

import numpy as np
import pytest
from formulas import gap_at_initialization
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from cltools.maths.bounds import (
    batch_class_counts,
    batch_composition_deviation,
    cka_lower_bound,
    cosine_lower_bound,
    delta_pi,
    drift_bound,
    epsilon,
    few_shot_bound,
    few_shot_bound_displayed,
    gap_bound,
    gradient_gap_bound,
    lipschitz_sides,
    reweighting_sides,
    rsa_lower_bound,
    step_bound,
    vacuous_orders,
    weight_bound,
)
from cltools.maths.collapse import (
    cdnv,
    cdnv_root,
    class_statistics,
    directional_cdnv,
)
from cltools.maths.probes import nccc
from cltools.maths.surrogate import batch_gradient

SEEDS = st.integers(0, 10**6)
ROUNDING = 1 + 1e-12


def test_the_numbers_of_real_runs():
    # 1200 epochs of 48 steps at B = 1024; 100 balanced classes.
    eps = epsilon(57_600, 1024, 0.05)
    assert eps == pytest.approx(0.101, abs=5e-4)
    assert delta_pi(1.0, 0.01, eps) == pytest.approx(1.85, abs=5e-3)
    assert delta_pi(1.0, 0.01) == pytest.approx(0.149, abs=5e-4)
    assert 1e7 < delta_pi(0.1, 0.01, eps) < 1e9
    # LARS: Ση = 34,330, of which the exponent is 16.8 at τ = 1 and 1676 at τ = 0.1.
    bound = drift_bound(0.1, 1024, 34_330, delta_pi(0.1, 0.01, eps))
    assert bound.value == math.inf
    assert bound.log10 == pytest.approx(1676 / math.log(10) + 4.03 + 8.0, abs=1.0)
    assert vacuous_orders(bound.log10, 10_000**2) > 700


def test_without_other_classes_nothing_is_bounded():
    assert delta_pi(1.0, 0.5, 0.5) == math.inf  # C = 2, B = 16: the formula would be negative
    assert delta_pi(1.0, 0.5, 0.6) == math.inf
    assert delta_pi(1.0, [0.5, 1.0]).tolist() == [pytest.approx(2 * math.e**2), math.inf]
    assert drift_bound(1.0, 16, 1.0, math.inf) == (math.inf, math.inf)


def test_drift_bound_is_the_formula_where_it_does_not_overflow():
    tau, size, sum_lr, delta = 0.5, 32, 3.0, 0.7
    expected = math.exp(sum_lr / (2 * tau**2 * size)) * sum_lr * delta / (tau * math.sqrt(size))
    bound = drift_bound(tau, size, sum_lr, delta)
    assert bound.value == pytest.approx(expected)
    assert bound.log10 == pytest.approx(math.log10(expected))
    assert drift_bound(tau, size, 0.0, math.inf) == (-math.inf, 0.0)
    assert drift_bound(tau, size, [0.0, sum_lr], delta).value == pytest.approx([0, expected])


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, tau=st.floats(0.1, 3), size=st.integers(2, 512))
def test_the_recurrence_stays_below_theorem_1(seed, tau, size):
    lrs = np.random.default_rng(seed).exponential(size * tau**2, 20)
    distance = 0.0
    for lr in lrs:
        distance = step_bound(distance, lr, tau, size, 0.3)
    assert math.log10(distance) <= drift_bound(tau, size, lrs.sum(), 0.3).log10 + 1e-9


def test_step_bound_is_one_step_along_the_largest_gap():
    gap = gradient_gap_bound(2.0, 0.5, 16, 0.3)
    assert gap == pytest.approx(0.3 / (0.5 * 4) + 2.0 / (2 * 0.25 * 16))
    assert step_bound(2.0, 0.1, 0.5, 16, 0.3) == pytest.approx(2.0 + 0.1 * gap)
    assert step_bound(2.0, 0.0, 0.5, 16, math.inf) == 2.0


def test_weight_bound_is_the_formula_and_never_overflows():
    expected = 3 * math.e**4 / (2 * 0.5 * 10) * math.expm1(2 * 1.5)
    bound = weight_bound(3, 2, 0.5, 10, 1.5)
    assert bound == pytest.approx((math.log10(expected), expected))
    assert weight_bound(3, 2, 0.5, 10, 0) == (-math.inf, 0)
    assert weight_bound(1, 1, 1, 1, 1e5).log10 == pytest.approx((1e5 + 2) / math.log(10))


def cosines(rng, n, d, offset):
    z = rng.standard_normal((n, d)) + offset
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z @ z.T


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, noise=st.floats(1e-3, 2), offset=st.floats(0, 1))
def test_corollaries_1_and_2(seed, noise, offset):
    rng = np.random.default_rng(seed)
    n = 12
    a = cosines(rng, n, 5, offset)
    b = a + noise * (cosines(rng, n, 5, 0) - a) / 2
    centring = np.eye(n) - 1 / n
    upper = np.triu_indices(n, 1)
    for x, y, claim in (
        (centring @ a @ centring, centring @ b @ centring, cka_lower_bound),
        (1 - a[upper], 1 - b[upper], rsa_lower_bound),
    ):
        # Centering does nothing to K; r is of the plain difference, as P2 defines it.
        spread = np.linalg.norm(x - x.mean())
        ratio = np.linalg.norm(x - y) / spread
        x, y = x - x.mean(), y - y.mean()
        similarity = (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())
        if ratio < 1:
            assert similarity >= cosine_lower_bound(ratio) - 1e-12
            assert cosine_lower_bound(ratio) >= claim(ratio)
        else:
            assert math.isnan(claim(ratio))
            assert math.isnan(cosine_lower_bound(ratio))


def test_bounds_on_cosines_at_their_ends():
    assert cka_lower_bound([0, 0.5, 1, 2, math.nan]).tolist()[:2] == [1, pytest.approx(1 / 3)]
    assert np.isnan(cka_lower_bound([1, 2, math.nan, -0.1])).all()
    assert cosine_lower_bound(0.6) == pytest.approx(0.8)


def test_batch_class_counts():
    labels = np.random.default_rng(0).integers(0, 5, (7, 9))
    counts = batch_class_counts(labels, 6)
    assert counts.tolist() == [[int((row == c).sum()) for c in range(6)] for row in labels]


def test_batch_composition():
    labels = [[0, 0, 0, 1], [0, 0, 1, 1], [2, 2, 0, 1]]
    assert batch_composition_deviation(labels, [0.5, 0.3, 0.2]) == pytest.approx(0.3)
    # A class of no anchor does not count: its deviation would be 0.4.
    assert batch_composition_deviation([[0, 0, 1, 1]], [0.3, 0.3, 0.4]) == pytest.approx(0.2)
    assert batch_composition_deviation([[1, 1]], [0.0, 1.0]) == 0


def test_corollary_3_holds_at_least_as_often_as_it_says():
    rng = np.random.default_rng(0)
    fractions = [0.5, 0.3, 0.2]
    steps, size, delta = 20, 16, 0.2
    limit = epsilon(steps, size, delta)
    runs = [
        batch_composition_deviation(rng.choice(3, (steps, size), p=fractions), fractions)
        for _ in range(300)
    ]
    assert np.mean(np.array(runs) <= limit) >= 1 - delta
    assert max(runs) > limit / 3  # and it is about the same quantity


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, tau=st.floats(0.05, 5), m=st.integers(2, 40))
def test_reweighting(seed, tau, m):
    rng = np.random.default_rng(seed)
    similarities, same = rng.uniform(-1, 1, m), rng.random(m) < 0.4
    same[0] = False
    left, right = reweighting_sides(similarities, same, tau)
    p = np.exp(similarities / tau) / np.exp(similarities / tau).sum()
    assert left == pytest.approx(2 * p[same].sum(), abs=1e-12)
    assert left <= right * ROUNDING


def test_reweighting_is_nearly_tight_at_the_extremes():
    # All of the class at 1, all others at -1: p(class) is odds / (1 + odds), Δ/2 the odds.
    same = np.arange(1000) < 1
    left, right = reweighting_sides(np.where(same, 1.0, -1.0), same, 2.0)
    assert left == pytest.approx(right / (1 + right / 2))
    assert left > 0.99 * right


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, tau=st.floats(0.1, 5), size=st.integers(2, 16), step=st.floats(1e-3, 1))
def test_lipschitz(seed, tau, size, step):
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(-1, 1, (size, 2 * size))
    other = np.clip(sigma + step * rng.standard_normal(sigma.shape), -1, 1)
    negatives = np.tile(~np.eye(size, dtype=bool), 2)
    gradients = (batch_gradient(s, negatives, tau) for s in (sigma, other))
    left, right = lipschitz_sides(*gradients, sigma, other, tau, size)
    assert left <= right * ROUNDING


def test_the_lipschitz_constant_is_attained():
    # Two equal negatives, moved apart: the Hessian's eigenvalue is 1/2.
    sigma = np.zeros((2, 4))
    move = 1e-4 * np.array([[0, 1, 0, -1], [1, 0, -1, 0]])
    negatives = np.tile(~np.eye(2, dtype=bool), 2)
    gradients = (batch_gradient(s, negatives, 0.5) for s in (sigma, sigma + move))
    left, right = lipschitz_sides(*gradients, sigma, sigma + move, 0.5, 2)
    assert left == pytest.approx(right, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, n=st.integers(1, 20))
def test_centring_contracts(seed, n):
    sigma = np.random.default_rng(seed).uniform(-1, 1, (n, n))
    centring = np.eye(n) - 1 / n
    assert np.linalg.norm(centring @ sigma @ centring) <= np.linalg.norm(sigma) * ROUNDING


def test_vacuous_orders():
    assert vacuous_orders(5.0, 50 * 50) == pytest.approx(3)  # 2N = 100
    assert vacuous_orders([-1.0, math.inf], 25).tolist() == [-2, math.inf]


@pytest.mark.parametrize(
    "call",
    [
        lambda: epsilon(0, 16, 0.05),
        lambda: epsilon(10, 16, 1.0),
        lambda: delta_pi(0.0, 0.5),
        lambda: delta_pi(1.0, 0.0),
        lambda: delta_pi(1.0, 0.5, -0.1),
        lambda: delta_pi(1.0, math.nan),
        lambda: gradient_gap_bound(-1.0, 1.0, 16, 0.1),
        lambda: gradient_gap_bound(1.0, 1.0, 0, 0.1),
        lambda: step_bound(1.0, -0.1, 1.0, 16, 0.1),
        lambda: drift_bound(1.0, 16, -1.0, 0.1),
        lambda: drift_bound(1.0, 16, 1.0, math.nan),
        lambda: weight_bound(1, 0, 1, 1, 1),
        lambda: batch_composition_deviation([0, 1], [0.5, 0.5]),
        lambda: batch_composition_deviation([[0, 2]], [0.5, 0.5]),
        lambda: reweighting_sides([0.1, 0.2], [True, True], 1.0),
        lambda: vacuous_orders(1.0, 0),
    ],
)
def test_what_is_out_of_range_is_refused(call):
    with pytest.raises(ValueError, match=r"need|must|at least|differ"):
        call()


# The gap of losses


@pytest.mark.parametrize(
    ("classes", "tau", "expected"),
    [
        (2, 1, 2.127),
        (10, 1, 0.599),
        (100, 1, 0.0720),
        (10, 0.5, 1.955),
        (10, 0.1, 17.8),
        (1000, 1, 0.0074),
    ],
)
def test_gap_bound_has_the_papers_values(classes, tau, expected):
    assert gap_bound(50, 50 * classes, tau) == pytest.approx(expected, rel=5e-3)


def test_gap_bound_neither_overflows_nor_loses_digits():
    assert gap_bound(50, 500, 1e-4) == pytest.approx(2e4 - math.log(9))
    tiny = gap_bound(1, 10**12, 100.0)
    assert tiny == pytest.approx(math.exp(0.02) / (10**12 - 1), rel=1e-12)
    assert math.isnan(gap_bound(5, 5, 1.0))


def test_gap_at_initialization():
    assert gap_at_initialization(144, 1440) == pytest.approx(math.log(1439 / 1296), rel=1e-14)
    assert gap_at_initialization(5000, 50_000) == pytest.approx(math.log(10 / 9), abs=3e-5)
    assert gap_at_initialization(1, 100) == 0


def test_bounds_refuse_impossible_counts():
    for count in (0, 6):
        with pytest.raises(ValueError, match="does not fit"):
            gap_bound(count, 5, 1.0)
    with pytest.raises(ValueError, match="tau"):
        gap_bound(1, 5, 0.0)


# The error of few-shot centers


def proposition(v_dir, v, v_s, m, c, a):
    first = (1 / 2 - 2 / a - 2**1.5 / (a * m)) ** -2 * v_dir
    return (c - 1) * (first + a / 4 * (2 / math.sqrt(m) * (v_s + v) + v / m))


@pytest.mark.parametrize("m", [1, 3, 10, 100, 10**6])
@pytest.mark.parametrize(("v_dir", "v", "v_s"), [(0.047, 0.844, 0.9), (1e-6, 2, 1), (5, 0.01, 0.1)])
def test_few_shot_bound_equals_the_proposition_and_its_minimum(v_dir, v, v_s, m):
    for a in (16, 40):
        expected = proposition(v_dir, v, v_s, m, 10, a)
        assert few_shot_bound(v_dir, v, v_s, m, 10, a) == pytest.approx(expected, rel=1e-12)
    smallest = math.log(max(5, 4 + 2**2.5 / m))
    best = minimize_scalar(
        lambda log_a: proposition(v_dir, v, v_s, m, 10, math.exp(log_a)),
        bounds=(smallest, smallest + 12),
        method="bounded",
        options={"xatol": 1e-9},
    ).fun
    assert few_shot_bound(v_dir, v, v_s, m, 10) == pytest.approx(best, rel=1e-6)


def test_few_shot_bound_as_displayed():
    v_dir, v, v_s, m = 0.05, 0.6, 0.7, 25
    shown = 9 * (8 * v_dir + 8 / 5 * v_s + 8 / 5 * v + 4 / m * v)
    assert few_shot_bound_displayed(v_dir, v, v_s, m, 10) == pytest.approx(shown, rel=1e-12)
    for m in (10, 100, 10**4):
        general = few_shot_bound(v_dir, v, v_s, m, 10, a=16)
        assert few_shot_bound(v_dir, v, v_s, m, 10) <= general
        assert general <= few_shot_bound_displayed(v_dir, v, v_s, m, 10)
    with pytest.raises(ValueError, match="10 shots"):
        few_shot_bound_displayed(v_dir, v, v_s, 9, 10)


def test_few_shot_bound_in_the_limits():
    assert few_shot_bound(0.05, 0.6, 0.7, math.inf, 10) == pytest.approx(9 * 4 * 0.05)
    assert few_shot_bound(0.05, 0.6, 0.7, 1e20, 10) == pytest.approx(9 * 4 * 0.05, rel=1e-3)
    assert few_shot_bound(0.05, 0, 0, 5, 10) == pytest.approx(9 * 4 * 0.05)
    assert few_shot_bound(0, 0.6, 0.7, 100, 2) == pytest.approx(
        few_shot_bound(1e-15, 0.6, 0.7, 100, 2), rel=1e-3
    )
    assert few_shot_bound(0, 0.6, 0.7, 1, 2) == pytest.approx(
        few_shot_bound(1e-15, 0.6, 0.7, 1, 2), rel=1e-3
    )
    assert few_shot_bound(0, 0, 0, 1, 2) == 0
    assert few_shot_bound(0.05, 0.6, 0.7, 1, 2, a=5) == math.inf  # the bracket is negative
    assert few_shot_bound(math.inf, math.inf, math.inf, math.inf, 2) == math.inf
    assert math.isnan(few_shot_bound(math.nan, 0.6, 0.7, 5, 2))


def test_few_shot_bound_never_overflows_on_the_way():
    for v_dir in (1e-300, 1e-40, 1.0, 1e300):
        for v in (1e-300, 1e-9, 1e9):
            for m in (1, 10):
                bound = few_shot_bound(v_dir, v, v, m, 2)
                assert 4 * v_dir <= bound <= few_shot_bound(v_dir, v, v, m, 2, a=16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 1, 1, 1, 2), "negative"),
        ((0.1, 1, 1, 0, 2), "1 shot"),
        ((0.1, 1, 1, 1, 1), "2 classes"),
        ((0.1, 1, 1, 1, 2, 4.9), "a must be"),
        ((0.1, 1, 1, 1, 2, math.inf), "a must be"),
    ],
)
def test_few_shot_bound_refuses_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        few_shot_bound(*arguments)


@pytest.mark.parametrize(("classes", "distance", "useful"), [(2, 6.0, True), (5, 3.0, False)])
def test_few_shot_bound_is_above_the_error_of_few_shot_centres(classes, distance, useful):
    rng = np.random.default_rng(0)
    d, n = 12, 2000
    y = np.repeat(np.arange(classes), n)
    x = distance / math.sqrt(2) * np.eye(classes, d)[y] + rng.standard_normal((n * classes, d))
    s = class_statistics(x, y)
    for m in (1, 5, 20, 100, 1000):
        errors = []
        for _ in range(5):
            few = np.concatenate([c * n + rng.choice(n, m, replace=False) for c in range(classes)])
            errors.append(1 - nccc(x[few], y[few], x, y)[1])
        bound = few_shot_bound(directional_cdnv(s), cdnv(s), cdnv_root(s), m, classes)
        assert bound >= np.mean(errors)
    assert (bound < 1) == useful  # it says something at 1000 shots, or never
