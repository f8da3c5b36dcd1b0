"""Intervals by subsampling: closed forms for means, coverage for CKA and RSA."""

import numpy as np
import pytest
from scipy import stats

from cltools.maths.alignment import MEASURES, alignment, samples
from cltools.maths.intervals import accuracy_interval, alignment_intervals, interval_of, subsets

DEBIASED, RSA = ("cka", "cosine_debiased"), ("rsa", "pearson_cosine")


def subsampling_interval(statistic, n, level=0.9, draws=200, fraction=0.5, seed=0, whole=None):
    """`interval_of` a function of image numbers; `whole` has the value of N images, and N."""
    drawn = subsets(n, draws, fraction, seed)
    value, images = (statistic(np.arange(n)), n) if whole is None else whole
    table = [statistic(each) for each in drawn]
    return interval_of(value, table, drawn.shape[1], n, images, level)


def related(rng, n):
    """Four classes of which both representations know, with half of the noise in common."""
    y = rng.integers(4, size=n)
    shared = 3 * np.eye(4, 16)[y] + rng.standard_normal((n, 16)) * np.geomspace(2, 0.5, 16)
    return {name: shared + rng.standard_normal((n, 16)) for name in "xy"}


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_interval_of_a_mean_is_the_usual_one_whatever_the_fraction(fraction):
    x = np.random.default_rng(0).standard_normal(500)
    value, low, high = subsampling_interval(
        lambda i: x[i].mean(), 500, draws=3000, fraction=fraction
    )
    half = stats.norm.ppf(0.95) * x.std(ddof=1) / 500**0.5
    assert value == x.mean()
    assert (value - low, high - value) == pytest.approx((half, half), rel=0.08)


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_the_interval_of_a_mean_from_a_sample_is_that_of_all_images(fraction):
    x = np.random.default_rng(0).standard_normal(4000)
    sample = x[:500]
    value, low, high = subsampling_interval(
        lambda i: sample[i].mean(), 500, draws=3000, fraction=fraction, whole=(x.mean(), 4000)
    )
    half = stats.norm.ppf(0.95) * sample.std(ddof=1) / 4000**0.5
    assert value == x.mean()
    assert (value - low, high - value) == pytest.approx((half, half), rel=0.08)


def test_subsamples_have_their_size_and_no_copies():
    seen = []
    subsampling_interval(lambda i: seen.append(i) or 0.0, 41, draws=50, fraction=0.3)
    assert len(seen[0]) == 41
    for images in seen[1:]:
        assert len(images) == 12
        assert (np.diff(images) > 0).all()
    assert len({tuple(images) for images in seen}) == 51
    assert set(np.concatenate(seen[1:])) == set(range(41))


def test_arrays_of_statistics_share_their_subsamples():
    x = np.random.default_rng(0).standard_normal((100, 3))
    together = subsampling_interval(lambda i: x[i].mean(axis=0), 100, seed=4)
    for column in range(3):
        alone = subsampling_interval(lambda i, c=column: x[i, c].mean(), 100, seed=4)
        assert [part[column] for part in together] == pytest.approx(list(alone))


def test_seeds_repeat_and_levels_nest():
    x = np.random.default_rng(0).standard_normal(100)
    first, again, other = (
        subsampling_interval(lambda i: np.median(x[i]), 100, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    wide = subsampling_interval(lambda i: np.median(x[i]), 100, level=0.99, seed=1)
    assert wide.low < first.low < first.high < wide.high


def test_undefined_statistics_have_no_interval():
    assert np.isnan(subsampling_interval(lambda i: np.nan if 0 in i else 1.0, 20)).all()
    constant = subsampling_interval(lambda i: 2.0, 20)
    assert constant == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    "bad", [{"n": 3}, {"draws": 1}, {"level": 1.0}, {"level": 0}, {"fraction": 1}, {"fraction": 0}]
)
def test_ranges(bad):
    with pytest.raises(ValueError, match="needed"):
        subsampling_interval(lambda i: 0.0, **({"n": 10} | bad))


def test_alignment_intervals_are_those_of_each_measure():
    features = related(np.random.default_rng(0), 80)
    features["z"] = features["x"][:, :4] ** 2
    table = alignment_intervals(features, draws=20, seed=1)
    assert list(table) == [("x", "y"), ("x", "z"), ("y", "z")]
    values = alignment(features)
    for pair, intervals in table.items():
        assert list(intervals) == list(MEASURES)
        for measure, interval in intervals.items():
            assert interval.value == values[pair][measure]
            assert interval.low < interval.value < interval.high

    def rsa(i):
        return alignment({"x": features["x"][i], "y": features["y"][i]})["x", "y"][RSA]

    assert table["x", "y"][RSA] == pytest.approx(subsampling_interval(rsa, 80, draws=20, seed=1))


def test_alignment_intervals_refuse_what_alignment_refuses():
    features = related(np.random.default_rng(0), 20)
    with pytest.raises(ValueError, match="number of images"):
        alignment_intervals(features | {"y": features["y"][1:]})
    with pytest.raises(ValueError, match="only"):
        alignment_intervals(features, [("x", "z")])
    with pytest.raises(ValueError, match="unknown measures"):
        alignment_intervals(features, measures=[("cka", "spearman")])
    assert alignment_intervals({"x": features["x"]}) == {}


@pytest.mark.parametrize(
    ("images", "sampled"),
    [
        # 200 repeats with 100 draws, by hand: 0.900 (debiased CKA) and 0.895 (RSA). Here 60 repeats
        # with 40 draws, whose quantiles are a little too narrow.
        (400, 4096),
        # Without the scaling to 1,600 images, all would be covered.
        (1600, 400),
    ],
)
def test_ninety_percent_intervals_cover(images, sampled, monkeypatch):
    monkeypatch.setattr(samples, "SAMPLED_IMAGES", sampled)
    rng = np.random.default_rng(0)
    measures = [DEBIASED, RSA]
    truth = alignment(related(rng, 50_000), measures=measures)["x", "y"]
    covered = []
    for seed in range(60):
        features = related(rng, images)
        found = alignment_intervals(features, measures=measures, draws=40, seed=seed)["x", "y"]
        covered.append([found[m].low <= truth[m] <= found[m].high for m in measures])
    assert (np.mean(covered, axis=0) > 0.8).all()
    assert (np.mean(covered, axis=0) < 0.99).all()


def test_on_unrelated_features_debiased_cka_is_zero_and_biased_is_not():
    """n = 64 images of d = 512 dimensions: the biased CKA of nothing in common is near 0.9."""
    biased = ("cka", "cosine_biased")
    debiased_values, inside = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        features = {name: rng.standard_normal((64, 512)) for name in "xy"}
        found = alignment_intervals(
            features, measures=[DEBIASED, biased], draws=60, seed=seed
        )["x", "y"]  # fmt: skip
        inside.append(found[DEBIASED].low <= 0 <= found[DEBIASED].high)
        debiased_values.append(found[DEBIASED].value)
        assert found[biased].value > 0.8
        assert found[biased].low > 0.5
    assert np.mean(inside) > 0.9
    error = np.std(debiased_values, ddof=1) / 40**0.5
    assert abs(np.mean(debiased_values)) < 3 * error


def test_unrelated_features_get_intervals_that_are_too_wide():
    rng = np.random.default_rng(0)
    values, widths = [], []
    for seed in range(40):
        features = {name: rng.standard_normal((60, 8)) for name in "xy"}
        found = alignment_intervals(features, measures=[RSA], draws=60, seed=seed)["x", "y"][RSA]
        values.append(found.value)
        widths.append(found.high - found.low)
    width = np.quantile(values, 0.95) - np.quantile(values, 0.05)
    assert 1.2 < np.mean(widths) / width < 2.5


def test_accuracy_interval_is_wilsons():
    p, n, z = 0.9, 50, 1.6448536269514722
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert accuracy_interval(p, n) == pytest.approx((centre - half, centre + half))
    assert accuracy_interval(1.0, 10)[1] == 1.0
    assert np.isnan(accuracy_interval(float("nan"), 10)).all()
