"""Probes on frozen features."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from cltools.maths.probes import FALLBACK, INVERSE_PENALTIES, linear_probe, nccc


def clusters(n=600, d=8, classes=5, spread=1.0, seed=0):
    """Train and test features and labels of overlapping Gaussian classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    x = 1.5 * np.eye(classes, d)[labels] + spread * rng.standard_normal((n, d)) + 4
    return x[: n // 2], labels[: n // 2], x[n // 2 :], labels[n // 2 :]


class OnDisk:
    """Rows (n, d) that are read slice by slice."""

    def __init__(self, x):
        self.shape, self.dtype, self._x = x.shape, x.dtype, x

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return self._x[rows].copy()


# Nearest class center


def test_nccc_equals_scikit_learn():
    train, y, test, test_y = clusters()
    peer = NearestCentroid().fit(train, y)
    assert nccc(train, y, test, test_y) == (peer.score(train, y), peer.score(test, test_y))


def test_nccc_is_unharmed_by_a_large_offset_and_by_label_names():
    train, y, test, test_y = clusters()
    names = np.array(["cat", "dog", "eel", "fox", "gnu"])
    moved = nccc(train + 2.0**20, names[y], test + 2.0**20, names[test_y])
    assert moved == nccc(train, y, test, test_y)


def test_nccc_of_a_file_is_that_of_an_array(monkeypatch):
    train, y, test, test_y = clusters()
    expected = nccc(train, y, test, test_y)
    monkeypatch.setattr("cltools.maths.blocks.BLOCK_BYTES", 7 * 8 * 8)
    assert nccc(OnDisk(train), y, OnDisk(test), test_y) == expected
    assert nccc(torch.from_numpy(train), y, torch.from_numpy(test), test_y) == expected


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


def test_among_equally_accurate_penalties_the_lowest_cross_entropy_decides():
    train, y, test, test_y = clusters(spread=0.01)  # every penalty is right about every image
    assert linear_probe(train, y, test, test_y) == (1, 1, max(INVERSE_PENALTIES))
    train, y, test, test_y = clusters(spread=3.0)
    y = np.random.default_rng(0).integers(5, size=len(y))  # nothing to learn
    assert linear_probe(train, y, test, test_y).inverse_penalty < 1


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


def test_given_penalty_is_used():
    rng = np.random.default_rng(0)
    sets = rng.standard_normal((40, 3)), np.arange(40) % 2, rng.standard_normal((9, 3)), np.ones(9)
    assert linear_probe(*sets, inverse_penalty=0.5)[2] == 0.5
    with pytest.raises(ValueError, match="inverse_penalty"):
        linear_probe(*sets, inverse_penalty=0.0)
