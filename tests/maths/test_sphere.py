"""Distance between views and uniformity, against loops straight from the formulas."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from test_probes import OnDisk

from cltools.maths import sphere
from cltools.maths.sphere import uniformity, view_distance
from cltools.measurements import view_rows


def random_views(k=3, n=20, d=6, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) + noise * rng.standard_normal((k, n, d)) + 0.5


def log_mean_potential(z, t=2.0):
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    return np.log(np.exp(-t * pdist(unit, "sqeuclidean")).mean())


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_view_distance_equals_the_formula(k, rows, monkeypatch):
    monkeypatch.setattr("cltools.maths.blocks.CACHE_BYTES", rows * k * 6 * 8)
    z = random_views(k)
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    same, different = [], []
    for (a, i), (b, j) in combinations(np.ndindex(k, 20), 2):
        (same if i == j else different).append(2 - 2 * unit[a, i] @ unit[b, j])
    expected = np.mean(same), np.mean(same) / np.mean(different)
    for views in (z, 5 * z[:, ::-1], torch.from_numpy(z), [OnDisk(view) for view in z]):
        assert view_distance(views) == pytest.approx(expected, rel=1e-12)


def test_view_distance_at_the_extremes():
    z = random_views(noise=0)
    assert view_distance(z) == pytest.approx((0, 0), abs=1e-24)
    z = random_views(noise=1e-9)
    assert 0 < view_distance(z)[0] < 1e-16  # 2 - 2 cos would be 0 or rounding
    noise = np.random.default_rng(0).standard_normal((2, 2000, 8))
    assert view_distance(noise) == pytest.approx((2, 1), rel=0.05)
    assert view_distance(np.stack([z[0], -z[0]]))[0] == pytest.approx(4)
    distance, relative = view_distance(z[:, :1])
    assert distance > 0
    assert math.isnan(relative)
    assert math.isnan(view_distance(np.ones((2, 5, 3)))[1])
    z[0, 0] = 0
    assert np.isnan(view_distance(z)).all()


@pytest.mark.parametrize("block", [1, 7, 256, None])
def test_uniformity_equals_wang_and_isola(block):
    z = random_views(1, 50)[0]
    for t in (2.0, 0.5):
        expected = log_mean_potential(z, t)
        for x in (3 * z, torch.from_numpy(z), OnDisk(z)):
            value, error = uniformity(x, t, block=block)
            assert value == pytest.approx(expected, rel=1e-12)
            assert error == 0


def test_features_in_float32_lose_nothing_more():
    """Products in float32 would be off by 1e-7, and more where rows nearly coincide."""
    z = random_views(1, 300, 64)[0].astype(np.float32)
    near = (1 + 1e-3 * z).astype(np.float32)
    for x in (z, near):
        expected = log_mean_potential(x.astype(np.float64))
        assert uniformity(x).value == pytest.approx(expected, rel=1e-9)


def test_uniformity_at_the_extremes():
    z = np.array([[1.0, 2.0], [-1, -2]])
    assert uniformity(z).value == pytest.approx(-8)
    assert uniformity(z[[0, 0, 0]]).value == pytest.approx(0, abs=1e-12)
    assert math.isnan(uniformity(z[:1]).value)
    assert math.isnan(uniformity(0 * z).value)


def test_uniformity_of_a_sample_is_within_its_standard_error():
    """The errors of many samples have the spread that each sample states."""
    z = random_views(1, 1500)[0]
    exact = uniformity(z).value
    found = [uniformity(z, most=300, seed=seed) for seed in range(60)]
    errors = np.array([one.value - exact for one in found])
    stated = np.mean([one.standard_error for one in found])
    assert 0.75 < errors.std() / stated < 1.3
    assert abs(errors.mean()) < stated
    assert uniformity(z, most=300) == uniformity(OnDisk(z), most=300)
    assert uniformity(z, most=1500) == uniformity(z)


def test_rows_of_a_sample_have_an_interval(monkeypatch):
    z = {"dcl": random_views(2, 40)}

    def of_uniformity():
        return next(row for row in view_rows(z) if row["metric"] == "uniformity")

    assert "ci_low" not in of_uniformity()
    monkeypatch.setattr(sphere, "MOST_IMAGES", 20)
    row = of_uniformity()
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_what_is_no_embedding_is_refused():
    z = random_views()
    with pytest.raises(ValueError, match="needs K ≥ 2 views"):
        view_distance(z[:1])
    with pytest.raises(ValueError, match="must be"):
        view_distance(z[0])
    with pytest.raises(ValueError, match="differ in shape"):
        view_distance([z[0], z[1, 1:]])
    with pytest.raises(ValueError, match="NaN"):
        view_distance(z * np.nan)
    with pytest.raises(ValueError, match="must be"):
        uniformity(z)
    with pytest.raises(ValueError, match="above 0"):
        uniformity(z[0], t=0)
    with pytest.raises(ValueError, match="NaN"):
        uniformity(z[0] * np.nan)
