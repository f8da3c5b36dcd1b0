"""Logistic regressions against scikit-learn, which solves the same problem one at a time."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_probes import OnDisk, clusters

from cltools.maths import probes
from cltools.maths.logistic import fit, hits, in_memory, losses
from cltools.maths.probes import INVERSE_PENALTIES, linear_probe, linear_probes


def standardized(n=300, d=8, classes=5, seed=0):
    x, y, *_ = clusters(2 * n, d, classes, seed=seed)
    return (x - x.mean(axis=0)) / x.std(axis=0), y


def peer(x, y, c):
    """Weights (C, d + 1) of scikit-learn; of two classes, it has the difference only."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x, y)
    v = np.hstack([found.coef_, found.intercept_[:, None]])
    return np.vstack([-v / 2, v / 2]) if len(v) == 1 else v


def objective(v, x, y, c):
    scores = x @ v[:, :-1].T + v[:, -1]
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y]
    ridge = (2 if len(v) == 2 else 1) * np.square(v[:, :-1]).sum() / 2
    return c * losses.sum() + ridge


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("block_rows", [None, 7])
def test_all_penalties_at_once_equal_scikit_learn(classes, block_rows):
    x, y = standardized(classes=classes)
    images = in_memory(torch.from_numpy(x)[None], torch.from_numpy(y), classes, block_rows)
    v = fit(images, torch.tensor([INVERSE_PENALTIES]), 1e-8)[0].numpy()
    for found, c in zip(v, INVERSE_PENALTIES, strict=True):
        expected = peer(x, y, c)
        least = objective(expected, x, y, c)
        assert objective(found, x, y, c) == pytest.approx(least, rel=1e-9)
        np.testing.assert_allclose(found[:, :-1], expected[:, :-1], atol=1e-4)
        right = (x @ expected[:, :-1].T + expected[:, -1]).argmax(axis=1) == y
        assert hits(images, torch.from_numpy(found)[None, None]).item() == right.sum()


@pytest.mark.parametrize("n", [20, 60])
def test_more_features_than_images(n):
    x, y = standardized(n, 200, 3)
    x = np.where(np.isnan(x), 0, x)
    images = in_memory(torch.from_numpy(x)[None], torch.from_numpy(y), 3)
    found = fit(images, torch.tensor([[0.1, 10.0]]), 1e-8)[0].numpy()
    for v, c in zip(found, (0.1, 10.0), strict=True):
        assert objective(v, x, y, c) == pytest.approx(objective(peer(x, y, c), x, y, c), rel=1e-7)


def test_sets_side_by_side_are_as_one_by_one():
    sets = [standardized(seed=seed)[0] for seed in range(3)]
    y = torch.from_numpy(standardized()[1])
    penalties = torch.tensor([[0.1, 1.0], [10.0, 0.001], [1.0, 1.0]])
    x = torch.from_numpy(np.stack(sets))
    together = fit(in_memory(x, y, 5), penalties, 1e-8)
    for i in range(3):
        alone = fit(in_memory(x[i : i + 1], y, 5), penalties[i : i + 1], 1e-8)
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-5)


def test_images_left_out_do_not_matter():
    x, y = standardized()
    out = np.random.default_rng(0).random(len(y)) < 0.3
    tensors = torch.from_numpy(x)[None], torch.from_numpy(y)
    penalties = torch.tensor([[1.0]])
    found = fit(in_memory(*tensors, 5), penalties, 1e-9, left_out=torch.from_numpy(out))
    rest = fit(in_memory(tensors[0][:, ~out], tensors[1][~out], 5), penalties, 1e-9)
    torch.testing.assert_close(found, rest, atol=1e-6, rtol=1e-6)


def test_separable_classes_and_constant_features_have_a_solution():
    y = torch.arange(40) % 4
    x = 100 * torch.eye(4, dtype=torch.float64)[y][None]
    found = fit(in_memory(x, y, 4), torch.tensor([[10.0]]), 1e-6)
    assert found.isfinite().all()
    assert hits(in_memory(x, y, 4), found).item() == 40
    nothing = fit(
        in_memory(0 * x, torch.tensor([0, 0, 1, 2, 3] * 8), 4), torch.tensor([[1.0]]), 1e-6
    )
    assert (nothing[..., :-1] == 0).all()
    assert nothing[0, 0, :, -1].argmax() == 0  # the most frequent class


def test_losses_are_the_cross_entropy():
    x, y = standardized()
    v = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 2, 5, x.shape[1] + 1)))
    among = torch.arange(len(y)) % 3 == 0
    images = in_memory(torch.from_numpy(x)[None], torch.from_numpy(y), 5, block_rows=7)
    for part in (None, among):
        chosen = torch.ones_like(among) if part is None else part
        expected = [
            torch.nn.functional.cross_entropy(
                torch.from_numpy(x) @ w[:, :-1].T + w[:, -1], images.index, reduction="none"
            )[chosen].sum()
            for w in v[0]
        ]
        torch.testing.assert_close(losses(images, v, part)[0], torch.stack(expected))


def by_scikit_learn(train, y, test, test_y, c):
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    found = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit((train - mean) / deviation, y)
    return found.score((train - mean) / deviation, y), found.score(
        (test - mean) / deviation, test_y
    )


@pytest.mark.parametrize("c", INVERSE_PENALTIES)
@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_probes_differ_from_scikit_learn_by_two_images_at_most(c, kept_bytes, monkeypatch):
    monkeypatch.setattr(probes, "KEPT_BYTES", kept_bytes)
    sets = clusters(2000, 16, 5, spread=1.5)
    expected = by_scikit_learn(*sets, c)
    found = linear_probe(*sets, inverse_penalty=c)
    assert np.abs(np.subtract(found[:2], expected)).max() <= 2 / 1000


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_probes_of_a_file_are_those_of_an_array(kept_bytes, monkeypatch):
    monkeypatch.setattr(probes, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr("cltools.maths.blocks.CACHE_BYTES", 7 * 8 * 8)
    train, y, test, test_y = clusters()
    names = np.array(["cat", "dog", "eel", "fox", "gnu"])
    found = linear_probe(OnDisk(train), names[y], OnDisk(test), names[test_y])
    monkeypatch.undo()
    assert found == pytest.approx(linear_probe(train, y, test, test_y), abs=1 / 300)


def test_several_features_at_once_are_as_one_by_one():
    train, y, test, test_y = clusters()
    features = {"a": (train, test), "b": (train[:, :5], test[:, :5]), "c": (train**2, test**2)}
    x, test_x = ({name: each[i] for name, each in features.items()} for i in (0, 1))
    found = linear_probes(x, y, test_x, test_y)
    assert list(found) == ["a", "b", "c"]
    for name, (one, other) in features.items():
        alone = linear_probe(one, y, other, test_y)
        assert found[name] == pytest.approx(alone, abs=1 / 300)


def test_the_same_bytes_every_time():
    x, y = standardized()
    images = in_memory(torch.from_numpy(x).float()[None], torch.from_numpy(y), 5)
    first, again = (fit(images, torch.tensor([[1.0]]), 1e-5, torch.float32) for _ in range(2))
    assert torch.equal(first, again)


def test_many_features_are_reduced_without_changing_the_probe():
    """With n coordinates for n images instead of d features."""
    rng = np.random.default_rng(0)
    sources = [rng.standard_normal((30, 200)) + 2.0**10 for _ in range(2)]
    y = np.arange(30) % 3
    given = np.array([0.1, 1.0])
    found = probes.fit_probes(sources, torch.from_numpy(y), 3, 0, given, 1e-6)
    for x, v, c in zip(sources, found.v[:, 0].double().numpy(), given, strict=True):
        standard = (x - x.mean(axis=0)) / x.std(axis=0)
        expected = peer(standard, y, c)
        np.testing.assert_allclose(v[:, :-1], expected[:, :-1], atol=1e-4)
        least = objective(expected, standard, y, c)
        assert objective(v, standard, y, c) == pytest.approx(least, rel=1e-5)
