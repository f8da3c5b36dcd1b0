"""Sums over a sample of images against the same images taken out by hand."""

import numpy as np
import pytest
from test_alignment import related

from cltools.maths.alignment import alignment, mantel_test, within_class_null
from cltools.maths.alignment import samples as module
from cltools.maths.alignment.measures import RSA, measure_of
from cltools.maths.alignment.moments import moments_of
from cltools.maths.alignment.samples import sample_of, sampled_images
from cltools.maths.intervals import alignment_intervals, subsets

PAIR = ("x", "y")


def features(n=60, **options):
    return dict(zip(PAIR, related(n, **options), strict=True))


def test_few_images_are_all_taken_and_of_many_a_sample():
    assert (sampled_images(4096) == np.arange(4096)).all()
    images = sampled_images(5000)
    assert len(images) == 4096
    assert (np.diff(images) > 0).all()
    assert 0 <= images[0] < images[-1] < 5000
    assert (images == sampled_images(5000)).all()
    assert (images != sampled_images(5000, seed=1)).any()


@pytest.mark.parametrize("products", [0, 10**6], ids=["inner products", "products of features"])
@pytest.mark.parametrize("cosine", [False, True])
def test_permuted_moments_equal_a_loop(cosine, products, monkeypatch):
    monkeypatch.setattr(module, "DIMENSIONS_PER_IMAGE", products)
    monkeypatch.setattr(module, "ROWS", 7)
    given = features(n=30)
    sample = sample_of(given, np.arange(30), cosine)
    order = np.random.default_rng(0).permutation(30)
    scaled = [x / np.linalg.norm(x, axis=1, keepdims=True) if cosine else x for x in given.values()]
    k, other = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in scaled)
    expected = sum(
        k[i, j] * other[order[i], order[j]] for i in range(30) for j in range(30)
    )  # fmt: skip
    assert sample.moment(PAIR, order) == pytest.approx(expected, rel=1e-12)
    assert sample.moment(PAIR) == pytest.approx((k * other).sum(), rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("cosine", [False, True])
def test_subsets_have_the_moments_of_their_images(cosine, offset):
    given = features(offset=offset)
    given["x"][:3] = 0
    sample = sample_of(given, np.arange(60), cosine)
    drawn = subsets(60, draws=5)
    for images, table in zip(drawn, sample.subsets([PAIR], drawn), strict=True):
        alone = {name: x[images] for name, x in given.items()}
        expected = moments_of(alone, [PAIR], np.zeros(30, dtype=int), cosine).whole
        for pair, norm in table.norms.items():
            assert norm == pytest.approx(expected.norms[pair], rel=1e-9)
        for name, rows in table.rows.items():
            np.testing.assert_array_equal(rows.square, expected.rows[name].square)
            largest = expected.rows[name].spread.max()
            np.testing.assert_allclose(
                rows.spread, expected.rows[name].spread, rtol=1e-9, atol=1e-9 * largest
            )


def test_subsets_of_equal_images_are_constant():
    x = np.repeat(np.random.default_rng(0).standard_normal((2, 5)), 10, axis=0)
    sample = sample_of({"x": x, "y": x}, np.arange(20), cosine=True)
    drawn = np.array([range(10), range(5, 15)])
    values = [measure_of(("cka", "cosine_biased"), PAIR, t) for t in sample.subsets([PAIR], drawn)]
    assert np.isnan(values[0])
    assert values[1] == pytest.approx(1)


def test_tests_and_intervals_of_many_images_are_those_of_a_sample(monkeypatch):
    monkeypatch.setattr(module, "SAMPLED_IMAGES", 50)
    given = features(n=80)
    x, y = given.values()
    images, labels = sampled_images(80), np.arange(80) % 3
    found = within_class_null(x, y, labels, 9)
    chance = mantel_test(x, y, 9)
    intervals = alignment_intervals(given, draws=20)[PAIR]
    monkeypatch.setattr(module, "SAMPLED_IMAGES", 80)
    few = {name: values[images] for name, values in given.items()}
    alone = within_class_null(*few.values(), labels[images], 9)
    for measure, test in found.items():
        assert test.value == pytest.approx(alignment(few)[PAIR][measure], abs=1e-12)
        np.testing.assert_allclose(test.null, alone[measure].null, atol=1e-12)
    np.testing.assert_allclose(chance.null, mantel_test(*few.values(), 9).null, atol=1e-12)
    assert chance.value == pytest.approx(found[RSA].value, abs=1e-12)
    for measure, interval in alignment_intervals(few, draws=20)[PAIR].items():
        value, low, high = intervals[measure]
        assert value == alignment(given)[PAIR][measure]
        # The same draws, scaled to 80 images.
        scale = np.sqrt(50 / 80)
        assert value - low == pytest.approx(scale * (interval.value - interval.low), abs=1e-12)
        assert high - value == pytest.approx(scale * (interval.high - interval.value), abs=1e-12)
