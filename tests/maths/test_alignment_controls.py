"""Class clusters, chance and distance, against N×N matrices and loops over images."""

import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
from numerics import rows_per_block
from scipy import stats
from test_alignment import COSINE_BIASED, RSA, biased_cka, cosines, debiased_cka, rdm_pearson
from test_alignment import reference as full_reference

from cltools.maths.alignment import (
    MEASURES,
    RESIDUAL_MEASURES,
    alignment,
    frobenius_gap,
    mantel_test,
    residual,
    residual_alignment,
    spearman_rsa,
    within_class_null,
)
from cltools.maths.alignment.moments import moments_of
from cltools.maths.alignment.permutations import null_mean, within_class_orders
from cltools.maths.alignment.ranks import pair_cosines
from cltools.maths.bounds import cka_lower_bound, cosine_lower_bound, rsa_lower_bound

RESIDUAL_BIASED, RESIDUAL_DEBIASED, RESIDUAL_RSA = RESIDUAL_MEASURES


def clusters(n=60, d=8, other_d=5, classes=3, shared=1.0, seed=0):
    """Two representations of the same classes; `shared` is the part of images in common."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    own = rng.standard_normal((n, d))
    other = shared * own @ rng.standard_normal((d, other_d)) / d**0.5
    a = 3 * np.eye(classes, d)[y] + own
    b = 3 * rng.standard_normal((classes, other_d))[y] + other + rng.standard_normal((n, other_d))
    return a, b, y


# Residuals


def projected(x, y):
    """(I-P) K (I-P) for the cosine matrix K."""
    member = (y[:, None] == np.unique(y)).astype(float)
    rest = np.eye(len(y)) - member @ np.linalg.pinv(member)
    return rest @ cosines(x) @ rest


def test_residuals_have_the_projected_cosine_matrix():
    a, _, y = clusters()
    rest = residual(a, y)
    np.testing.assert_allclose(rest @ rest.T, projected(a, y), atol=1e-13)
    for c in range(3):
        np.testing.assert_allclose(rest[y == c].mean(axis=0), 0, atol=1e-15)


def test_residuals_know_no_label_names_and_no_row_scales():
    a, _, y = clusters()
    scales = np.geomspace(0.1, 10, len(a))[:, None]
    names = np.array(["cat", "dog", "eel"])
    np.testing.assert_allclose(residual(a * scales, names[y]), residual(a, y), atol=1e-15)


def test_residual_alignment_equals_the_definitions():
    a, b, y = clusters()
    values = residual_alignment({"a": a, "b": b}, y)["a", "b"]
    grams = projected(a, y), projected(b, y)
    assert values == pytest.approx(
        {
            RESIDUAL_BIASED: biased_cka(*grams),
            RESIDUAL_DEBIASED: debiased_cka(*grams),
            RESIDUAL_RSA: rdm_pearson(*grams),
        },
        abs=1e-12,
    )


def test_residual_alignment_sees_no_class_clusters():
    a, b, y = clusters(n=900, shared=0.0)
    whole = alignment({"a": a, "b": b})["a", "b"]
    rest = residual_alignment({"a": a, "b": b}, y)["a", "b"]
    assert whole[RSA] > 0.3
    assert abs(rest[RESIDUAL_RSA]) < 0.01
    assert abs(rest[RESIDUAL_DEBIASED]) < 0.01


def test_what_debiasing_leaves_is_the_stated_part_of_the_bias():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 12  # C / N = 0.2
    values = [
        residual_alignment({k: rng.standard_normal((60, 20)) for k in "ab"}, y)["a", "b"]
        for _ in range(200)
    ]
    biased, debiased = (
        np.mean([v[m] for v in values]) for m in (RESIDUAL_BIASED, RESIDUAL_DEBIASED)
    )
    assert biased == pytest.approx(20 / (60 - 12 + 20), abs=0.02)
    assert 0.5 * 11 / 60 < debiased / biased < 2 * 11 / 60


def test_residual_alignment_of_pairs_asked_for():
    a, b, y = clusters()
    table = residual_alignment({"a": a, "b": b, "c": a[:, :3]}, y)
    assert list(table) == [("a", "b"), ("a", "c"), ("b", "c")]
    swapped = residual_alignment({"a": a, "b": b}, y, [("b", "a"), ("a", "a")])
    assert swapped["b", "a"] == pytest.approx(table["a", "b"], abs=1e-14)
    assert swapped["a", "a"] == pytest.approx(dict.fromkeys(RESIDUAL_MEASURES, 1.0))
    assert residual_alignment({"a": a}, y) == {}


def test_collapsed_classes_have_no_residual_alignment():
    a, b, y = clusters()
    collapsed = np.random.default_rng(1).standard_normal((3, 7))[y]
    assert (residual(collapsed, y) == 0).all()
    assert np.isnan(list(residual_alignment({"a": a, "c": collapsed}, y)["a", "c"].values())).all()
    assert (residual(b, np.arange(len(b))) == 0).all()


def test_residual_alignment_keeps_its_digits_when_classes_nearly_collapse():
    a, b, y = clusters()
    nearly = {}
    for name, x in (("a", a), ("b", b)):
        centres = np.array([x[y == c].mean(0) for c in range(3)])[y]
        nearly[name] = centres + 1e-6 * (x - centres)
    values = residual_alignment(nearly, y)["a", "b"]
    rest = [residual(x, y) * 1e6 for x in nearly.values()]
    grams = [x @ x.T for x in rest]
    assert values[RESIDUAL_BIASED] == pytest.approx(biased_cka(*grams), abs=1e-9)
    assert values[RESIDUAL_RSA] == pytest.approx(rdm_pearson(*grams), abs=1e-9)


# Permutations


def test_null_values_equal_those_of_features_shuffled_by_hand():
    a, b, y = clusters(n=30)
    tests = within_class_null(a, b, y, draws=5, seed=3)
    assert list(tests) == list(MEASURES)
    for draw, order in enumerate(within_class_orders(y, 5, np.random.default_rng(3))):
        assert (y[order] == y).all()
        assert sorted(order) == list(range(30))
        for measure, value in full_reference(a, b[order]).items():
            got = tests[measure].value if draw == 0 else tests[measure].null[draw - 1]
            assert got == pytest.approx(value, abs=1e-12), (draw, measure)


def test_every_within_class_permutation_is_as_likely():
    y = np.array([0, 1, 0, 1, 0])
    orders = list(within_class_orders(y, 6000, np.random.default_rng(0)))[1:]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 12
    assert stats.chisquare(counts).pvalue > 0.001


def test_mean_under_the_null_of_residuals_has_a_closed_form():
    # E ‖RᵀΠR'‖² = Σ_c tr(K_cc) tr(L_cc) / (n_c - 1): each class block has rows that sum to 0.
    a, b, y = clusters(n=40)
    a, b = residual(a, y), residual(b, y)
    test = within_class_null(a, b, y, 2000, measures=[("cka", "raw_biased")])["cka", "raw_biased"]
    traces = [[np.square(x[y == c]).sum() for c in range(3)] for x in (a, b)]
    expected = sum(s * t / ((y == c).sum() - 1) for c, (s, t) in enumerate(zip(*traces, strict=1)))
    expected /= np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    error = test.null.std() / len(test.null) ** 0.5
    assert test.mean == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("cosine", [True, False])
def test_the_mean_over_all_permutations_has_a_closed_form(cosine):
    a, b, _ = clusters(n=7)
    a[2] = b[4] = 0
    y = np.array([0, 1, 0, 2, 1, 0, 1])  # 3! · 3! permutations
    measures = [m for m in MEASURES if m[1].startswith("raw") != cosine]
    every = [
        within_class_null(a, b[order], y, 1, measures=measures)
        for order in map(list, permutations(range(7)))
        if (y[order] == y).all()
    ]
    assert len(every) == 36
    moments = moments_of({"a": a, "b": b}, [("a", "b")], y, cosine)
    for measure, mean in null_mean(("a", "b"), moments, y, measures).items():
        assert mean == pytest.approx(np.mean([test[measure].value for test in every]), abs=1e-12)


def test_class_means_alone_explain_clusters_but_not_images():
    a, b, y = clusters(n=300, shared=0.0)
    unrelated = within_class_null(a, b, y, 99)[RSA]
    assert unrelated.value > 0.3
    assert unrelated.mean == pytest.approx(unrelated.value, abs=0.05)
    assert unrelated.p > 0.01
    assert within_class_null(a, a, y, 99)[RSA].p == 0.01
    assert mantel_test(a, b, 99).p == 0.01  # shared classes are more than chance


def test_p_values_of_independent_features_are_uniform():
    rng = np.random.default_rng(0)
    y = np.arange(30) % 2
    p = []
    for seed in range(100):
        a, b = rng.standard_normal((2, 30, 4)) + 2 * y[None, :, None]
        within = within_class_null(a, b, y, 39, seed, [COSINE_BIASED, RSA])
        mantel = mantel_test(a - 2 * y[:, None], b - 2 * y[:, None], 39, seed)
        p.append([within[COSINE_BIASED].p, within[RSA].p, mantel.p])
    for column in np.array(p).T:
        assert stats.kstest(column - rng.uniform(0, 1 / 40, 100), "uniform").pvalue > 0.01


def test_permutations_repeat_with_their_seed():
    a, b, y = clusters()
    first, again, other = (mantel_test(a, b, 20, seed) for seed in (1, 1, 2))
    assert (first.null == again.null).all()
    assert (first.null != other.null).any()
    alone = within_class_null(a, b, y, 20, 1, [RSA])[RSA]
    assert (alone.null == within_class_null(a, b, y, 20, 1)[RSA].null).all()


def test_permutations_that_change_nothing_give_p_one():
    a, b, y = clusters()
    # Features that are their class means see no shuffle, but their sums have another order.
    for first, labels in (
        (a, np.arange(len(a))),
        (np.linspace(-1, 2, 24).reshape(3, 8)[y] ** 2, y),
    ):
        for test in within_class_null(first, b, labels, 19, measures=[RSA, COSINE_BIASED]).values():
            assert test.p == 1
            assert test.mean == pytest.approx(test.value)


def test_undefined_values_have_no_p():
    a, _, y = clusters()
    for test in within_class_null(a, np.ones((60, 3)), y, 5).values():
        assert np.isnan([test.value, test.mean, test.p]).all()


# Spearman


@pytest.mark.parametrize("n", [3, 4, 7, 40])
def test_pair_numbers_name_every_pair_once(n):
    x = np.random.default_rng(n).standard_normal((n, 6))
    found = pair_cosines("x", x, np.arange(n * (n - 1) // 2))
    np.testing.assert_allclose(np.sort(found), np.sort(cosines(x)[np.tril_indices(n, -1)]))


def all_distances(*arrays):
    lower = np.tril_indices(len(arrays[0]), -1)
    return [(1 - cosines(x)[lower]).round(12) for x in arrays]


@pytest.mark.parametrize("repeated", [1, 3])
def test_spearman_over_all_pairs_equals_scipy(repeated):
    a, b, _ = clusters(n=40)
    a, b = (np.repeat(x, repeated, axis=0) for x in (a, b))
    found = spearman_rsa(a, b)
    assert found.value == pytest.approx(stats.spearmanr(*all_distances(a, b)).statistic, abs=1e-12)
    assert found[1:] == (0.0, len(a) * (len(a) - 1) // 2)


def test_spearman_standard_error_covers_the_value_of_all_pairs():
    a, b, _ = clusters(n=300)
    exact = spearman_rsa(a, b).value
    for pairs, repeats in ((2000, 150), (30_000, 60)):  # 4 % and 67 % of all
        found = np.array([spearman_rsa(a, b, pairs, seed)[:2] for seed in range(repeats)])
        covered = np.abs(found[:, 0] - exact) < stats.t.ppf(0.95, 19) * found[:, 1]
        assert 0.82 < covered.mean() < 0.98  # 90 % asked for
        assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.25)


def test_spearman_draws_by_seed():
    a, b, _ = clusters()
    assert spearman_rsa(a, b, 500, 1) == spearman_rsa(a, b, 500, 1)
    assert spearman_rsa(a, b, 500, 1) != spearman_rsa(a, b, 500, 2)
    assert spearman_rsa(a, b, 500).pairs == 500


def test_spearman_of_equal_distances_is_undefined():
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))[0]
    assert np.isnan(spearman_rsa(rotation, clusters(n=12)[0])[:2]).all()
    assert np.isnan(spearman_rsa(np.eye(2), np.eye(2)).value)


# Frobenius gap


def gap_reference(a, b):
    sims = [cosines(x.astype(np.longdouble)) for x in (a, b)]
    n = len(a)
    h = np.eye(n, dtype=np.longdouble) - np.longdouble(1) / n
    k, k_other = (h @ s @ h for s in sims)
    lower = np.tril_indices(n, -1)
    rdm, other = (1 - s[lower] for s in sims)

    def norm(x):
        return np.sqrt(np.square(x).sum())

    return [
        norm(sims[0] - sims[1]),
        norm(k - k_other) / norm(k),
        norm(other - rdm) / (np.sqrt(np.longdouble(len(rdm))) * rdm.std()),
        norm(k),
        np.sqrt(np.longdouble(len(rdm))) * rdm.std(),
    ]


def fields(found):
    return [found.gap, found.rho, found.r, found.centred_norm, found.scatter]


@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-5, 1e-9])
def test_frobenius_gap_keeps_its_digits(noise):
    a, _, _ = clusters()
    b = a + noise * np.random.default_rng(1).standard_normal(a.shape)
    expected = np.array(gap_reference(a, b), dtype=float)
    assert fields(frobenius_gap(a, b)) == pytest.approx(expected, rel=max(1e-9, 1e-14 / noise))


@pytest.mark.parametrize("block", [1, 16, 17])
def test_frobenius_gap_over_several_blocks_and_widths(block, monkeypatch):
    for shape in ((60, 8, 5), (12, 20, 30)):
        rows_per_block(block, max(shape[1:]), monkeypatch)
        a, b, _ = clusters(*shape)
        expected = np.array(gap_reference(a, b), dtype=float)
        assert fields(frobenius_gap(a, b)) == pytest.approx(expected, rel=1e-10)


def test_equal_features_have_no_gap():
    a, _, _ = clusters()
    assert fields(frobenius_gap(a, a.copy()))[:3] == [0, 0, 0]


def test_rotated_features_have_no_gap():
    a, _, _ = clusters()
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    found = frobenius_gap(a, 3 * a @ rotation)
    assert fields(found)[:3] == pytest.approx([0, 0, 0], abs=1e-13)


@pytest.mark.parametrize(("noise", "claimed"), [(0.02, True), (0.1, True), (0.3, True), (5, False)])
def test_alignment_keeps_the_bounds(noise, claimed):
    a, _, _ = clusters()
    b = a + noise * np.random.default_rng(1).standard_normal(a.shape)
    found, values = frobenius_gap(a, b), alignment({"a": a, "b": b})["a", "b"]
    for distance, papers, measure in (
        (found.rho, cka_lower_bound, COSINE_BIASED),
        (found.r, rsa_lower_bound, RSA),
    ):
        assert (distance < 1) == claimed
        if claimed:
            assert papers(distance) <= cosine_lower_bound(distance) <= values[measure]


def test_frobenius_gap_of_rows_without_norm_or_structure():
    a, b, _ = clusters()
    a[3] = 0
    assert fields(frobenius_gap(a, b)) == pytest.approx(np.array(gap_reference(a, b), dtype=float))
    one_direction = frobenius_gap(np.ones((60, 2)), b)
    assert np.isfinite(one_direction.gap)
    assert np.isnan([one_direction.rho, one_direction.r]).all()
    simplex = frobenius_gap(np.eye(12), clusters(n=12)[1])
    assert np.isfinite(simplex.rho)
    assert np.isnan(simplex.r)


# What does not fit


def test_what_does_not_fit_is_refused():
    a, b, y = clusters()
    for function in (mantel_test, spearman_rsa, frobenius_gap):
        with pytest.raises(ValueError, match="number of images"):
            function(a, b[1:])
        with pytest.raises(ValueError, match="hold NaN"):
            function(a, b * np.nan)
    with pytest.raises(ValueError, match="not one for each of 60"):
        residual(a, y[1:])
    with pytest.raises(ValueError, match="not one for each of 60"):
        within_class_null(a, b, y[1:])
    with pytest.raises(ValueError, match="unknown measures"):
        within_class_null(a, b, y, measures=[("cka", "spearman")])
    with pytest.raises(ValueError, match="at least one draw"):
        mantel_test(a, b, 0)
    with pytest.raises(ValueError, match="60 pairs are needed"):
        spearman_rsa(a, b, 10)
    with pytest.raises(ValueError, match="only"):
        residual_alignment({"a": a}, y, [("a", "z")])


def test_importing_is_light():
    heavy = "{'scipy', 'sklearn', 'pandas'} & set(sys.modules)"
    modules = "alignment, intervals, few_shot"
    code = f"import sys; from cltools.maths import {modules}; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
