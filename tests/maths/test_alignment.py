"""CKA and RSA from moments against N×N matrices written straight from the definitions."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import rows_per_block
from scipy import stats

from cltools.maths.alignment import MEASURES, alignment, zero_norm_rows

COSINE_BIASED, COSINE_DEBIASED, RAW_BIASED, RAW_DEBIASED, RSA = MEASURES


def related(n=60, d=12, other_d=7, seed=0, offset=0.0):
    """Two representations that share half of their variance, with means away from zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    y = x @ rng.standard_normal((d, other_d)) / d**0.5 + rng.standard_normal((n, other_d))
    return x + offset + 0.5, y + offset - 0.3


def between(x, y, **options):
    return alignment({"x": x, "y": y}, **options)["x", "y"]


# References: float of any precision in, the same precision out.


def cosines(x):
    norm = np.sqrt((x * x).sum(axis=1, keepdims=True))
    x = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    return x @ x.T


def biased_cka(k, l):  # noqa: E741
    n = len(k)
    h = np.eye(n, dtype=k.dtype) - np.ones((n, n), dtype=k.dtype) / n
    k, l = h @ k @ h, h @ l @ h  # noqa: E741
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


def hsic_1(k, l):  # noqa: E741
    """Song et al. 2012, eq. 5."""
    n = len(k)
    k, l = k.copy(), l.copy()  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n, dtype=k.dtype)
    trace = np.trace(k @ l)
    product = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (trace + product - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def debiased_cka(k, l):  # noqa: E741
    return hsic_1(k, l) / np.sqrt(hsic_1(k, k) * hsic_1(l, l))


def rdm_pearson(k, l):  # noqa: E741
    lower = np.tril_indices(len(k), -1)
    a, b = 1 - k[lower], 1 - l[lower]
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def reference(x, y):
    raw, cosine = (x @ x.T, y @ y.T), (cosines(x), cosines(y))
    return {
        COSINE_BIASED: biased_cka(*cosine),
        COSINE_DEBIASED: debiased_cka(*cosine),
        RAW_BIASED: biased_cka(*raw),
        RAW_DEBIASED: debiased_cka(*raw),
        RSA: rdm_pearson(*cosine),
    }


def assert_close(values, expected, atol=1e-10):
    assert values.keys() == expected.keys()
    for measure, value in values.items():
        assert value == pytest.approx(float(expected[measure]), rel=0, abs=atol), measure


@pytest.mark.parametrize("shape", [(4, 3, 5), (5, 40, 2), (60, 12, 7), (200, 33, 64)])
@pytest.mark.parametrize("block", [1, 7, 2048])
def test_equals_the_definitions(shape, block, monkeypatch):
    rows_per_block(block, max(shape[1:]), monkeypatch)
    x, y = related(*shape)
    assert_close(between(x, y), reference(x, y))


def test_rsa_equals_scipy_and_rsatoolbox():
    x, y = related()
    lower = np.tril_indices(len(x), -1)
    scipy_r = stats.pearsonr(1 - cosines(x)[lower], 1 - cosines(y)[lower]).statistic
    assert between(x, y)[RSA] == pytest.approx(scipy_r, abs=1e-12)

    # rsatoolbox has no cosine RDM: its own Pearson on RDMs made here.
    rsatoolbox_rdm = pytest.importorskip("rsatoolbox.rdm")
    rdms = [rsatoolbox_rdm.RDMs(1 - cosines(a)[None, ...]) for a in (x, y)]
    assert between(x, y)[RSA] == pytest.approx(rsatoolbox_rdm.compare_correlation(*rdms).item())


def test_many_representations_give_what_each_pair_gives():
    x, y = related()
    features = {"a": x, "b": y, "c": x[:, :3] ** 2}
    table = alignment(features)
    assert list(table) == [("a", "b"), ("a", "c"), ("b", "c")]
    for (first, second), values in table.items():
        assert_close(values, between(features[first], features[second]), atol=1e-14)


def test_pairs_measures_and_order_are_those_asked_for():
    x, y = related()
    table = alignment({"x": x, "y": y}, pairs=[("y", "x"), ("x", "x")], measures=[RSA, RAW_BIASED])
    assert list(table) == [("y", "x"), ("x", "x")]
    assert list(table["y", "x"]) == [RSA, RAW_BIASED]
    assert_close(table["y", "x"], between(x, y, measures=[RSA, RAW_BIASED]), atol=1e-14)
    assert_close(table["x", "x"], {RSA: 1, RAW_BIASED: 1}, atol=1e-14)
    assert alignment({"x": x}) == {}


# What must leave each measure alone, and what must not.


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_rotation_scaling_and_image_order_change_nothing(seed, scale):
    x, y = related(seed=seed)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((y.shape[1], y.shape[1])))[0]
    order = rng.permutation(len(x))
    assert_close(between(x[order], scale * (y @ rotation)[order]), between(x, y))


def test_a_shift_changes_cosines_but_not_raw_cka():
    x, y = related()
    before, after = between(x, y), between(x, y + 2)
    for measure in (RAW_BIASED, RAW_DEBIASED):
        assert after[measure] == pytest.approx(before[measure], abs=1e-12)
    for measure in (COSINE_BIASED, COSINE_DEBIASED, RSA):
        assert abs(after[measure] - before[measure]) > 1e-3


def test_row_scales_change_raw_cka_but_not_cosines():
    x, y = related()
    scales = np.random.default_rng(1).uniform(0.1, 10, (len(y), 1))
    before, after = between(x, y), between(x, y * scales)
    for measure in (COSINE_BIASED, COSINE_DEBIASED, RSA):
        assert after[measure] == pytest.approx(before[measure], abs=1e-12)
    for measure in (RAW_BIASED, RAW_DEBIASED):
        assert abs(after[measure] - before[measure]) > 1e-3


def test_an_anisotropic_map_or_broken_pairing_changes_everything():
    x, y = related()
    before = between(x, y)
    stretched = between(x, y * np.geomspace(1, 30, y.shape[1]))
    unpaired = between(x, y[::-1])
    for measure in MEASURES:
        assert abs(stretched[measure] - before[measure]) > 1e-3
        assert abs(unpaired[measure] - before[measure]) > 1e-2


def test_independent_features_are_near_zero_only_when_debiased():
    rng = np.random.default_rng(0)
    n, d = 400, 200
    values = between(rng.standard_normal((n, d)), rng.standard_normal((n, d)))
    assert values[RAW_BIASED] == pytest.approx(d / (n + d), abs=0.02)
    assert values[COSINE_BIASED] == pytest.approx(d / (n + d), abs=0.02)
    for measure in (RAW_DEBIASED, COSINE_DEBIASED, RSA):
        assert abs(values[measure]) < 0.01


# Numerically hard and degenerate input.


@pytest.mark.parametrize("offset", [10.0, 1e3, 1e6])
def test_collapsed_features_keep_their_digits(offset):
    x, y = related(offset=offset)
    # 64 bits of mantissa and centering first: the N×N way in float64 would lose what is tested.
    exact = {}
    for cosine in (True, False):
        grams = []
        for a in (x, y):
            a = a.astype(np.longdouble)
            if cosine:
                a = a / np.sqrt((a * a).sum(axis=1, keepdims=True))
            squares = ((a[:, None] - a[None]) ** 2).sum(axis=2)
            grams.append(-squares / 2)  # equals the Gram matrix up to terms that centering removes
        if cosine:
            exact |= {COSINE_BIASED: biased_cka(*grams), COSINE_DEBIASED: debiased_cka(*grams)}
            exact[RSA] = rdm_pearson(*grams)  # cos = 1 - squared distance / 2
        else:
            exact |= {RAW_BIASED: biased_cka(*grams), RAW_DEBIASED: debiased_cka(*grams)}
    assert_close(between(x, y), {m: exact[m] for m in MEASURES}, atol=1e-15 * max(offset, 1e4))


def test_half_precision_features_are_read_as_they_are():
    x, y = (a.astype(np.float16) for a in related())
    assert_close(between(x, y), between(x.astype(float), y.astype(float)), atol=1e-14)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e4 / 3])
def test_constant_features_are_undefined(constant):
    x, _ = related(n=3000)
    assert all(np.isnan(value) for value in between(x, np.full((3000, 5), constant)).values())


def test_one_direction_has_no_cosine_structure_but_raw_structure():
    x, _ = related()
    y = np.abs(x[:, :1]) * np.arange(1, 6)
    values = between(x, y)
    assert all(np.isnan(values[m]) for m in (COSINE_BIASED, COSINE_DEBIASED, RSA))
    assert all(np.isfinite(values[m]) for m in (RAW_BIASED, RAW_DEBIASED))


def test_equal_similarities_have_no_correlation():
    # The centered Gram matrix of a simplex is not zero: only biased CKA is defined.
    values = between(np.eye(12), related(n=12)[0])
    assert np.isfinite([values[RAW_BIASED], values[COSINE_BIASED]]).all()
    assert np.isnan([values[RAW_DEBIASED], values[COSINE_DEBIASED], values[RSA]]).all()


def test_duplicated_rows():
    x, y = (np.repeat(a, 2, axis=0) for a in related(n=20))
    assert_close(between(x, y), reference(x, y))


def test_rows_without_norm_have_cosine_zero_and_are_counted():
    x, y = related()
    x[[3, 17]] = 0
    y[17] = 0
    assert_close(between(x, y), reference(x, y))
    assert zero_norm_rows({"x": x, "y": y}) == {"x": 2, "y": 1}


@pytest.mark.parametrize(
    ("n", "defined"),
    [
        (1, set()),
        (2, {COSINE_BIASED, RAW_BIASED}),
        (3, {COSINE_BIASED, RAW_BIASED, RSA}),
        (4, set(MEASURES)),
    ],
)
def test_few_images(n, defined):
    x, y = related(n=n)
    values = between(x, y)
    assert {measure for measure, value in values.items() if not np.isnan(value)} == defined
    if n == 3:
        expected = {m: v for m, v in reference_of_three(x, y).items() if m in defined}
        assert_close({m: values[m] for m in expected}, expected)


def reference_of_three(x, y):
    cosine = cosines(x), cosines(y)
    return {
        COSINE_BIASED: biased_cka(*cosine),
        RAW_BIASED: biased_cka(x @ x.T, y @ y.T),
        RSA: rdm_pearson(*cosine),
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_numbers_that_cannot_be_squared_are_refused(bad):
    x, y = related()
    y[5, 2] = bad
    with pytest.raises(ValueError, match="'y' hold NaN"):
        between(x, y)


def test_what_does_not_fit_is_refused():
    x, y = related()
    with pytest.raises(ValueError, match="number of images"):
        between(x, y[:-1])
    with pytest.raises(ValueError, match=r"real array \(images, features\)"):
        between(x, y[:, 0])
    with pytest.raises(ValueError, match="at least one"):
        between(x, y[:, :0])
    with pytest.raises(ValueError, match="only"):
        alignment({"x": x}, pairs=[("x", "z")])
    with pytest.raises(ValueError, match="unknown measures"):
        between(x, y, measures=[("cka", "spearman")])


def test_importing_is_light():
    heavy = "{'scipy', 'sklearn', 'pandas'} & set(sys.modules)"
    modules = "alignment, bounds, probes, weights"
    code = f"import sys; from cltools.maths import {modules}; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
