"""Measures of collapse against loops straight from the formulas, and the few-shot bound."""

import math
import tracemalloc
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from numerics import rows_per_block
from scipy.stats import ortho_group
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

from cltools.maths import collapse
from cltools.maths.collapse import (
    cdnv,
    cdnv_root,
    class_mean_cosines,
    class_spread,
    class_statistics,
    directional_cdnv,
    effective_rank,
    etf_deviation,
    nc1,
    nc1_quotient,
    nc2_equiangularity,
    nc2_equinorm,
    nc3,
    nc4,
    spreads_of_subsets,
    within_class_spread,
)

SCALARS = {
    f.__name__: f
    for f in (
        cdnv,
        cdnv_root,
        directional_cdnv,
        etf_deviation,
        nc1,
        nc1_quotient,
        nc2_equinorm,
        within_class_spread,
    )
} | {
    "nc2_std": lambda s: nc2_equiangularity(s)[0],
    "nc2_mean": lambda s: nc2_equiangularity(s)[1],
    "effective_rank": lambda s: effective_rank(s.total),
}


def clusters(counts=(40, 7, 1, 25, 12), d=8, seed=0):
    """Unbalanced classes, each with its own mean and its own correlated features, shuffled."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = 3 * rng.standard_normal((len(counts), d)) + 5
    mixing = rng.standard_normal((len(counts), d, d)) / 2
    noise = np.einsum("nij,nj->ni", mixing[labels], rng.standard_normal((len(labels), d)))
    return means[labels] + noise, labels


def etf(classes=5, d=8, per_class=3, spread=0.0, seed=0):
    """Class means at the corners of a simplex, somewhere in space."""
    rng = np.random.default_rng(seed)
    corners = np.eye(classes, d) @ ortho_group.rvs(d, random_state=seed)
    labels = np.repeat(np.arange(classes), per_class)
    return 2 * corners[labels] + spread * rng.standard_normal((len(labels), d)), labels


def measures(x, y):
    s = class_statistics(x, y)
    return {name: measure(s) for name, measure in SCALARS.items()}


def by_loop(x, y):
    """The same, image by image and pair by pair, in float64."""
    names = sorted(set(y.tolist()))
    c, n = len(names), len(x)
    members = [[x[i] for i in range(n) if y[i] == name] for name in names]
    mu = [sum(rows) / len(rows) for rows in members]
    v = [
        sum(float((r - m) @ (r - m)) for r in rows) / len(rows)
        for rows, m in zip(members, mu, strict=True)
    ]
    v_f, v_s, v_dir = [], [], []
    for i, j in combinations(range(c), 2):
        v_f.append((v[i] + v[j]) / 2 / np.linalg.norm(mu[i] - mu[j]) ** 2)
    for i, j in permutations(range(c), 2):
        distance = np.linalg.norm(mu[i] - mu[j])
        u = (mu[i] - mu[j]) / distance
        v_s.append(math.sqrt(v[i] / distance**2))
        v_dir.append(np.mean([((r - mu[i]) @ u) ** 2 for r in members[i]]) / distance**2)

    within = sum(np.outer(r - m, r - m) for k, m in zip(members, mu, strict=True) for r in k) / n
    centre = sum(mu) / c
    between = sum(np.outer(m - centre, m - centre) for m in mu) / c
    total = sum(np.outer(r - x.mean(0), r - x.mean(0)) for r in x) / n
    norms = [np.linalg.norm(m - centre) for m in mu]
    gram = np.array(
        [[(a - centre) @ (b - centre) for b in mu] for a in mu] / np.outer(norms, norms)
    )
    ideal = np.array([[1 if i == j else -1 / (c - 1) for j in range(c)] for i in range(c)])
    cosines = [gram[i, j] for i, j in combinations(range(c), 2)]
    p = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p = p / p.sum()
    return {
        "cdnv": np.mean(v_f),
        "cdnv_root": np.mean(v_s),
        "directional_cdnv": np.mean(v_dir),
        "etf_deviation": np.linalg.norm(gram - ideal) / np.linalg.norm(ideal),
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / c,
        "nc1_quotient": np.trace(within) / np.trace(between),
        "nc2_equinorm": np.std(norms) / np.mean(norms),
        "within_class_spread": np.trace(within) / np.trace(total),
        "nc2_std": np.std(cosines),
        "nc2_mean": np.mean([abs(g + 1 / (c - 1)) for g in cosines]),
        "effective_rank": math.exp(-sum(q * math.log(q) for q in p)),
    }


# Classes


@pytest.mark.parametrize("block", [1, 16, 10_000])
@pytest.mark.parametrize(("counts", "d"), [((40, 7, 1, 25, 12), 8), ((9, 30), 5), ((6,) * 9, 4)])
def test_measures_equal_the_formulas(counts, d, block, monkeypatch):
    rows_per_block(block, d, monkeypatch)
    x, y = clusters(counts, d)
    s = class_statistics(x, y)
    assert {k: f(s) for k, f in SCALARS.items()} == pytest.approx(by_loop(x, y), rel=1e-10)


def test_statistics_equal_numpy_and_scikit_learn():
    x, y = clusters((40, 7, 9, 25, 12))
    s = class_statistics(x.astype(np.float32), np.array(list("abcde"))[y])
    assert s.classes.tolist() == list("abcde")
    assert s.counts.tolist() == np.bincount(y).tolist()
    x = x.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(s.total, np.cov(x.T, bias=True), rtol=1e-10, atol=1e-12)
    peer = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(x, y)
    np.testing.assert_allclose(s.within, peer.covariance_, rtol=1e-10, atol=1e-12)
    means = NearestCentroid().fit(x, y).centroids_
    np.testing.assert_allclose(s.means, means - means.mean(0), rtol=1e-10, atol=1e-12)


def test_measures_ignore_rotation_offset_scale_and_order():
    x, y = clusters()
    expected = pytest.approx(measures(x, y), rel=1e-9)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(x))
    assert measures(x @ ortho_group.rvs(8, random_state=1), y) == expected
    assert measures(1e-3 * x, y) == expected
    assert measures(x[order], y[order]) == expected
    assert measures(x, rng.permutation(5)[y]) == expected
    assert measures(np.hstack([x, np.full((len(x), 3), 0.1)]), y) == expected
    assert measures(x + 2.0**20, y) == pytest.approx(measures(x, y), rel=1e-6)


def test_a_simplex_is_collapsed():
    x, y = etf()
    values = measures(x, y)
    assert values.pop("effective_rank") == pytest.approx(4)
    assert values == pytest.approx(dict.fromkeys(values, 0), abs=1e-12)
    s = class_statistics(x, y)
    assert nc3(s, 7 * s.means) == pytest.approx(0, abs=1e-12)
    assert nc4(x, y, y) == 0
    noisy = measures(*etf(spread=0.3))
    assert all(value > 1e-3 for value in noisy.values())


def test_two_classes_are_always_a_simplex():
    values = measures(*clusters((5, 9)))
    assert values["etf_deviation"] == pytest.approx(0, abs=1e-12)
    assert values["nc2_equinorm"] == pytest.approx(0, abs=1e-12)
    assert values["nc2_mean"] == pytest.approx(0, abs=1e-12)


def test_class_mean_cosines():
    x, y = clusters()
    cosines = class_mean_cosines(class_statistics(x, y))
    np.testing.assert_allclose(cosines, cosines.T)
    np.testing.assert_allclose(cosines.diagonal(), 1)
    # Four classes at the corners of a square, a fifth in the middle.
    square = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1], [0, 0]])
    s = class_statistics(square + 0.1, np.arange(5))
    cosines = class_mean_cosines(s)
    np.testing.assert_allclose(cosines[0, :4], [1, 0, -1, 0], atol=1e-12)
    assert np.isnan(cosines[4]).all()
    assert math.isnan(etf_deviation(s))
    assert math.isnan(nc2_equiangularity(s)[0])


def test_directional_cdnv_sees_only_the_line_between_the_means():
    y = np.repeat([0, 1], 2)
    across = np.array([[0, 3.0], [0, -3], [4, 3], [4, -3]])
    s = class_statistics(across, y)
    assert cdnv(s) == pytest.approx(9 / 16)
    assert directional_cdnv(s) == 0
    along = np.array([[1.0, 0], [-1, 0], [5, 0], [3, 0]])
    s = class_statistics(along, y)
    assert cdnv(s) == directional_cdnv(s) == pytest.approx(1 / 16)


def test_single_images_have_no_variance():
    x, _ = clusters()
    s = class_statistics(x[:4], np.arange(4))
    assert cdnv(s) == directional_cdnv(s) == cdnv_root(s) == 0
    assert nc1(s) == nc1_quotient(s) == within_class_spread(s) == 0


@pytest.mark.parametrize("offset", [0, 0.1, 1e6])
def test_coinciding_means_are_infinitely_variable(offset):
    x, y = clusters((6, 6, 6))
    x[y == 2] = x[y == 0][::-1]
    s = class_statistics(x + offset, y)
    assert cdnv(s) == directional_cdnv(s) == cdnv_root(s) == math.inf
    assert 0 < nc1(s) < math.inf  # the third class still lies elsewhere
    x[y == 1] = x[y == 0]
    s = class_statistics(x + offset, y)
    assert nc1(s) == nc1_quotient(s) == math.inf
    assert within_class_spread(s) == 1
    assert math.isnan(nc2_equinorm(s))
    assert math.isnan(nc3(s, np.ones((3, 8))))


def test_constant_features_are_undefined():
    s = class_statistics(np.full((6, 3), 0.1), [0, 0, 1, 1, 2, 2])
    for name in SCALARS:
        expected = math.inf if "cdnv" in name else math.nan
        assert SCALARS[name](s) == pytest.approx(expected, nan_ok=True), name


def test_statistics_refuse_what_does_not_fit():
    x, y = clusters()
    with pytest.raises(ValueError, match="not one for each of 85 images"):
        class_statistics(x, y[1:])
    with pytest.raises(ValueError, match="must be a real array"):
        class_statistics(x[:0], y[:0])
    with pytest.raises(ValueError, match="at least two"):
        class_statistics(x, 0 * y)
    for bad in (np.nan, np.inf, 1e200):
        broken = x.copy()
        broken[3, 2] = bad
        with pytest.raises(ValueError, match="NaN, infinity or numbers above"):
            class_statistics(broken, y)


def test_a_thousand_classes_need_little_memory(monkeypatch):
    rng = np.random.default_rng(0)
    y = np.arange(5000) % 1000
    x = rng.standard_normal((1000, 16))[y] + 0.1 * rng.standard_normal((5000, 16))
    rows_per_block(256, 16, monkeypatch)
    class_statistics(x[:9], y[:9])  # imports
    tracemalloc.start()
    s = class_statistics(x, y)
    values = cdnv(s), directional_cdnv(s)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # C×C×d would take 128 MB, N×C 40 MB
    assert 0 < values[1] < values[0] < 1


# Classifiers


def test_nc3_equals_the_formula():
    x, y = clusters()
    s = class_statistics(x, y)
    w = np.random.default_rng(0).standard_normal(s.means.shape)
    m = np.array([x[y == c].mean(0) for c in range(5)])
    m -= m.mean(0)
    expected = math.sqrt(((w / np.sqrt((w**2).sum()) - m / np.sqrt((m**2).sum())) ** 2).sum())
    assert nc3(s, w) == pytest.approx(expected, rel=1e-12)
    assert nc3(s, 0.01 * w) == pytest.approx(expected, rel=1e-12)
    assert nc3(s, -s.means) == pytest.approx(2)
    assert math.isnan(nc3(s, 0 * w))
    with pytest.raises(ValueError, match="weights"):
        nc3(s, w[1:])
    with pytest.raises(ValueError, match="finite"):
        nc3(s, np.nan * w)


def test_nc4_counts_disagreement():
    x, y = clusters()
    nearest = NearestCentroid().fit(x, y).predict(x)
    assert nc4(x, y, nearest) == 0
    other = nearest.copy()
    other[:17] += 1
    assert nc4(x, y, other) == pytest.approx(17 / len(x))


# The whole set


def test_effective_rank_of_known_spectra():
    turn = ortho_group.rvs(6, random_state=0)
    for k in (1, 3, 6):
        covariance = turn * (np.arange(6) < k) @ turn.T
        assert effective_rank(covariance) == pytest.approx(k)
        assert effective_rank(1e-9 * covariance) == pytest.approx(k)
    assert effective_rank(np.diag([9.0, 1.0])) == pytest.approx(4 / 27**0.25)  # p = 3/4, 1/4
    assert math.isnan(effective_rank(np.zeros((3, 3))))


def test_rank_refuses_what_is_no_covariance():
    with pytest.raises(ValueError, match=r"\(d, d\)"):
        effective_rank(np.ones((2, 3)))
    with pytest.raises(ValueError, match="NaN"):
        effective_rank(np.full((2, 2), np.nan))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_spreads_of_subsets_are_those_of_each_alone(monkeypatch, offset):
    """With a class that some subsets lack or have one image of, and one whose images coincide."""
    rng = np.random.default_rng(0)
    y = np.array(list("aaaaaabbbbbbbbcccdd"))
    x = rng.standard_normal((len(y), 5)) + offset
    x[y == "b"] = x[6] * [[1], [1], [1], [1], [1], [1], [1], [1 + (offset == 0)]]
    drawn = np.array([rng.permutation(len(y))[:9] for _ in range(40)])
    drawn = np.concatenate([drawn, [np.arange(6, 15), [0, 1, 2, 6, 7, 8, 14, 17, 18]]])
    monkeypatch.setattr(collapse, "BLOCK_BYTES", 8 * 4 * 5 * 7)  # seven subsets at a time
    found = list(spreads_of_subsets(torch.from_numpy(x), y, drawn))
    assert len(found) == len(drawn)
    accuracy = {"rtol": 1e-9, "atol": 1e-12 if offset == 0 else 1e-7}
    for places, s in zip(drawn, found, strict=True):
        alone = class_spread(x[places], y[places])
        assert list(s.classes) == list(alone.classes)
        for name in ("counts", "means", "variances", "distances", "along"):
            np.testing.assert_allclose(getattr(s, name), getattr(alone, name), **accuracy)
        assert list(s.variances == 0) == list(alone.variances == 0)


def test_no_spread_of_a_subset_within_one_class():
    x, y = torch.randn(6, 3, dtype=torch.float64), np.array([0, 0, 0, 1, 1, 1])
    one, two = spreads_of_subsets(x, y, np.array([[0, 1, 2], [1, 2, 3]]))
    assert one is None
    assert list(two.counts) == [2, 1]
