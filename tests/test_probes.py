"""Probes on frozen features, the bounds on the loss gap, and the distance between weights."""

import math

import numpy as np
import pytest
from formulas import gap_at_initialisation
from sklearn.neighbors import NearestCentroid

from cltools.maths.bounds import gap_bound
from cltools.maths.probes import FALLBACK, INVERSE_PENALTIES, linear_probe, nccc
from cltools.maths.weights import weight_distance, weight_gap


def clusters(n=600, d=8, classes=5, spread=1.0, seed=0):
    """Train and test features and labels of overlapping Gaussian classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    x = 1.5 * np.eye(classes, d)[labels] + spread * rng.standard_normal((n, d)) + 4
    return x[: n // 2], labels[: n // 2], x[n // 2 :], labels[n // 2 :]


# Nearest class centre


def test_nccc_equals_scikit_learn():
    train, y, test, test_y = clusters()
    peer = NearestCentroid().fit(train, y)
    assert nccc(train, y, test, test_y) == (peer.score(train, y), peer.score(test, test_y))


def test_nccc_is_unharmed_by_a_large_offset_and_by_label_names():
    train, y, test, test_y = clusters()
    names = np.array(["cat", "dog", "eel", "fox", "gnu"])
    moved = nccc(train + 2.0**20, names[y], test + 2.0**20, names[test_y])
    assert moved == nccc(train, y, test, test_y)


def test_nccc_counts_unseen_classes_as_errors():
    x, y = np.array([[0.0], [1.0]]), np.array([0, 1])
    assert nccc(x, y, np.array([[0.1], [0.9]]), np.array([0, 7])) == (1.0, 0.5)


# Linear probe


def test_linear_probe_is_repeatable_and_good():
    train, y, test, test_y = clusters(spread=0.4)
    first = linear_probe(train, y, test, test_y)
    assert first == linear_probe(train, y, test, test_y)
    assert first[0] > 0.95
    assert first[1] > 0.9
    assert first[2] in INVERSE_PENALTIES


def test_linear_probe_reads_what_centres_cannot():
    # Two classes along a weak direction, drowned by noise in a strong one.
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    x = np.stack([2.0 * y + rng.normal(0, 0.3, 400), rng.normal(0, 100, 400)], axis=1)
    half = slice(0, 200), slice(200, 400)
    arguments = x[half[0]], y[half[0]], x[half[1]], y[half[1]]
    assert linear_probe(*arguments)[1] > 0.95
    assert nccc(*arguments)[1] < 0.7


def test_linear_probe_never_looks_at_the_test_set_to_choose():
    train, y, test, test_y = clusters()
    _, _, chosen = linear_probe(train, y, test, test_y)
    train_accuracy, _, same = linear_probe(train, y, test[::-1], test_y)
    assert (train_accuracy, same) == (linear_probe(train, y, test, test_y)[0], chosen)


def test_linear_probe_ignores_scale_offset_and_constant_features():
    train, y, test, test_y = clusters()
    base = linear_probe(train, y, test, test_y)
    scaled = [np.hstack([64.0 * x - 32.0, np.full((len(x), 1), 0.1)]) for x in (train, test)]
    assert linear_probe(scaled[0], y, scaled[1], test_y) == pytest.approx(base, abs=0.01)


def test_linear_probe_on_three_images_per_class():
    train, y, test, test_y = clusters()
    few = np.concatenate([np.flatnonzero(y == c)[:3] for c in range(5)])
    _, accuracy, chosen = linear_probe(train[few], y[few], test, test_y)
    assert chosen == FALLBACK
    assert accuracy > 0.3


@pytest.mark.parametrize("probe", [nccc, linear_probe])
def test_probes_refuse_what_does_not_fit(probe):
    train, y, test, test_y = clusters()
    with pytest.raises(ValueError, match=r"train features .* labels"):
        probe(train, y[1:], test, test_y)
    with pytest.raises(ValueError, match="differ in features"):
        probe(train, y, test[:, 1:], test_y)
    with pytest.raises(ValueError, match="test features hold NaN"):
        probe(train, y, test * np.nan, test_y)


def test_linear_probe_needs_two_classes():
    train, y, test, test_y = clusters()
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(train, 0 * y, test, test_y)


# Bounds


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


def test_gap_at_initialisation():
    assert gap_at_initialisation(144, 1440) == pytest.approx(math.log(1439 / 1296), rel=1e-14)
    assert gap_at_initialisation(5000, 50_000) == pytest.approx(math.log(10 / 9), abs=3e-5)
    assert gap_at_initialisation(1, 100) == 0


def test_bounds_refuse_impossible_counts():
    for count in (0, 6):
        with pytest.raises(ValueError, match="does not fit"):
            gap_bound(count, 5, 1.0)
    with pytest.raises(ValueError, match="tau"):
        gap_bound(1, 5, 0.0)


# Weights


def test_weight_gap_of_known_layers():
    a = {
        "encoder.equal.weight": np.array([3.0, 4.0]),
        "encoder.opposite.weight": np.array([1.0, 0.0]),
        "encoder.orthogonal.weight": np.eye(2)[0],
        "encoder.zero.weight": np.zeros(3),
        "encoder.equal.bias": np.ones(2),
        "head.weight": np.ones(2),
    }
    b = a | {
        "encoder.opposite.weight": np.array([-1.0, 0.0]),
        "encoder.orthogonal.weight": np.eye(2)[1],
        "encoder.equal.bias": np.zeros(2),
    }
    del b["head.weight"]  # heads may differ
    mean, layers = weight_gap(a, b)
    expected = {"equal": 0, "opposite": 2, "orthogonal": math.sqrt(2), "zero": 0}
    assert layers == pytest.approx({f"encoder.{k}.weight": v for k, v in expected.items()})
    assert mean == pytest.approx((2 + math.sqrt(2)) / 4)
    assert weight_gap(b, a)[0] == mean


def test_weight_gap_sums_half_precision_in_float64():
    a = {"encoder.a.weight": np.full(10**5, 0.1, dtype=np.float16)}
    b = {"encoder.a.weight": np.full(10**5, 0.3, dtype=np.float16)}
    assert weight_gap(a, b)[0] == pytest.approx(1.0, rel=1e-3)


def test_weight_gap_refuses_different_encoders():
    a = {"encoder.a.weight": np.ones(2)}
    with pytest.raises(ValueError, match="differ in their layers"):
        weight_gap(a, {"encoder.b.weight": np.ones(2)})
    with pytest.raises(ValueError, match="differ in their layers"):
        weight_gap(a, {"encoder.a.weight": np.ones(3)})
    with pytest.raises(ValueError, match="no tensor"):
        weight_gap({"head.weight": np.ones(2)}, {"head.weight": np.ones(2)})


def test_weight_distance_is_over_what_is_trained_in_encoder_and_projector():
    a = {
        "encoder.conv.weight": np.zeros((2, 2)),
        "encoder.bn.bias": np.zeros(2),
        "encoder.bn.running_mean": np.zeros(2),
        "projector.0.weight": np.zeros(1),
    }
    b = {name: value + 1 for name, value in a.items()} | {"head.weight": np.ones(9)}
    assert weight_distance(a, b) == pytest.approx(math.sqrt(4 + 2 + 1))
    with pytest.raises(ValueError, match="differ"):
        weight_distance(a, {**b, "projector.0.weight": np.ones(2)})


def test_given_penalty_is_used():
    rng = np.random.default_rng(0)
    sets = rng.standard_normal((40, 3)), np.arange(40) % 2, rng.standard_normal((9, 3)), np.ones(9)
    assert linear_probe(*sets, inverse_penalty=0.5)[2] == 0.5
    with pytest.raises(ValueError, match="inverse_penalty"):
        linear_probe(*sets, inverse_penalty=0.0)
