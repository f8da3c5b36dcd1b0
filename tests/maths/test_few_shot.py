"""Few-shot accuracy against one probe per draw, nearest neighbors against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from test_probes import OnDisk, clusters

from cltools.maths import few_shot as module
from cltools.maths.bounds import few_shot_bound
from cltools.maths.collapse import cdnv, cdnv_root, class_statistics, directional_cdnv
from cltools.maths.few_shot import TEMPERATURE, draws, few_shot, few_shot_one_split, few_shots, knn
from cltools.maths.probes import linear_probe, nccc

SHOTS = [1, 2, 5, 20]


@pytest.mark.parametrize("ways", [None, 2, 3])
def test_few_shot_equals_a_loop_over_nccc(ways):
    train, y, test, test_y = clusters()
    found = few_shot(train, y, test, test_y, SHOTS, repeats=6, ways=ways, seed=4)
    for repeat, (classes, support) in enumerate(draws(y, test_y, 20, 6, ways, 4)):
        query = np.isin(test_y, classes)
        assert len(classes) == (ways or 5)
        for row, shots in enumerate(SHOTS):
            images = support[:, :shots].ravel()
            expected = nccc(train[images], y[images], test[query], test_y[query])[1]
            assert found.accuracies[row, repeat] == expected
    np.testing.assert_array_equal(found.mean, found.accuracies.mean(axis=1))
    np.testing.assert_array_equal(found.sd, found.accuracies.std(axis=1, ddof=1))


def test_draws_are_of_their_class_without_copies_and_differ_each_time():
    _, y, _, test_y = clusters()
    supports, pairs = [], set()
    for classes, support in draws(y, test_y, 20, 50, 2, 0):
        assert classes[0] != classes[1]
        for c, images in zip(classes, support, strict=True):
            assert (y[images] == c).all()
            assert len(set(images)) == 20
        supports.append(tuple(support.ravel()))
        pairs.add(frozenset(classes.tolist()))
    assert len(set(supports)) == 50
    assert len(pairs) == 10  # all pairs of 5 classes turn up


def test_linear_probe_on_the_samedraws():
    train, y, test, test_y = clusters(spread=0.5)
    found = few_shot(train, y, test, test_y, [1, 10], repeats=2, ways=2, probe="linear")
    _, support = next(draws(y, test_y, 10, 2, 2, 0))
    images = support.ravel()
    query = np.isin(test_y, y[images])
    expected = linear_probe(train[images], y[images], test[query], test_y[query])[1]
    assert found.accuracies[1, 0] == pytest.approx(expected, abs=0.01)
    assert found.mean[1] > 0.8


def test_the_penalty_of_the_first_draw_serves_the_others():
    train, y, test, test_y = clusters(spread=3.0)
    found = few_shot(train, y, test, test_y, [10], repeats=3, probe="linear")
    drawn = [support for _, support in draws(y, test_y, 10, 3, None, 0)]
    shift = train.mean(axis=0)
    sets = [(train[d.ravel()] - shift, y[d.ravel()], test - shift, test_y) for d in drawn]
    chosen = linear_probe(*sets[0])[2]
    expected = [linear_probe(*one, inverse_penalty=chosen)[1] for one in sets]
    # Within one image: with few shots, the solver stops earlier.
    assert found.accuracies[0].tolist() == pytest.approx(expected, abs=1.01 / 300)


def test_more_shots_and_fewer_ways_are_easier_and_all_shots_give_nccc():
    train, y, test, test_y = clusters()
    train, y = (np.concatenate([v[y == c][:40] for c in range(5)]) for v in (train, y))
    found = few_shot(train, y, test, test_y, [1, 5, 40])
    assert (np.diff(found.mean) > 0).all()
    assert found.accuracies[2] == pytest.approx(nccc(train, y, test, test_y)[1])
    assert found.sd[2] == pytest.approx(0, abs=1e-12)
    assert (few_shot(train, y, test, test_y, [1, 5, 40], ways=2).mean > found.mean).all()


def test_shots_in_any_order_and_beyond_the_smallest_class():
    train, y, test, test_y = clusters()
    smallest = np.bincount(y).min()
    up = few_shot(train, y, test, test_y, [1, smallest])
    found = few_shot(train, y, test, test_y, [smallest, smallest + 1, 1, 1])
    np.testing.assert_array_equal(found.accuracies[[2, 3, 0]], up.accuracies[[0, 0, 1]])
    for part in found:
        assert np.isnan(part[1]).all()
    assert np.isnan(few_shot(train, y, test, test_y, [1000]).mean).all()


def test_seeds_repeat_and_one_repeat_has_no_sd():
    train, y, test, test_y = clusters()
    first, again, other = (few_shot(train, y, test, test_y, SHOTS, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.accuracies, again.accuracies)
    assert (first.accuracies != other.accuracies).any()
    once = few_shot(train, y, test, test_y, SHOTS, repeats=1)
    assert np.isfinite(once.mean).all()
    assert np.isnan(once.sd).all()


def test_label_names_offsets_and_unseen_classes():
    train, y, test, test_y = clusters()
    base = few_shot(train, y, test, test_y, SHOTS)
    names = np.array(["cat", "dog", "eel", "fox", "gnu"])
    moved = few_shot(train + 2.0**20, names[y], test + 2.0**20, names[test_y], SHOTS)
    np.testing.assert_array_equal(moved.accuracies, base.accuracies)
    strange = np.where(test_y == 0, 9, test_y)
    assert (few_shot(train, y, test, strange, SHOTS).mean < base.mean).all()
    for classes, _ in draws(y, strange, 1, 20, 2, 0):
        assert not {0, 9} & set(classes)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"shots": []}, "shots must be"),
        ({"shots": [0, 1]}, "shots must be"),
        ({"shots": [1.5]}, "shots must be"),
        ({"repeats": 0}, "repeats must be"),
        ({"ways": 1}, "ways must be 2 to 5"),
        ({"ways": 6}, "ways must be 2 to 5"),
        ({"probe": "svm"}, "nccc or linear"),
    ],
)
def test_few_shot_ranges(bad, message):
    with pytest.raises(ValueError, match=message):
        few_shot(*clusters(), **({"shots": [1]} | bad))


@pytest.mark.parametrize("probe", ["nccc", "linear"])
@pytest.mark.parametrize("ways", [None, 2])
def test_few_shot_of_a_file_and_with_little_memory(probe, ways, monkeypatch):
    train, y, test, test_y = clusters(spread=0.5)
    arguments = {"shots": [1, 3, 20], "repeats": 3, "ways": ways, "probe": probe}
    expected = few_shot(train, y, test, test_y, **arguments).accuracies
    monkeypatch.setattr("cltools.maths.blocks.BLOCK_BYTES", 50 * 8 * 8)
    monkeypatch.setattr("cltools.maths.blocks.CACHE_BYTES", 7 * 8 * 8)
    for name in ("CHUNK_ENTRIES", "CENTERS_BYTES"):
        monkeypatch.setattr(module, name, 1)
    found = few_shot(OnDisk(train), y, OnDisk(test), test_y, **arguments).accuracies
    np.testing.assert_allclose(found, expected, atol=0 if probe == "nccc" else 2 / 300)
    # Labeled images in another order: others are held out, so another penalty may be chosen.
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    found = few_shot(OnDisk(train), y, OnDisk(test), test_y, **arguments).accuracies
    np.testing.assert_allclose(found, expected, atol=0 if probe == "nccc" else 0.1)


def test_several_features_with_the_same_draws():
    train, y, test, test_y = clusters(spread=1.5)
    features = {"a": (train, test), "b": (train[:, :5], test[:, :5]), "c": (train**2, test**2)}
    x, test_x = ({name: each[i] for name, each in features.items()} for i in (0, 1))
    for probe in ("nccc", "linear"):
        arguments = {"shots": [1, 10], "repeats": 4, "ways": 2, "probe": probe}
        found = few_shots(x, y, test_x, test_y, **arguments)
        assert list(found) == ["a", "b", "c"]
        for name, (one, other) in features.items():
            alone = few_shot(one, y, other, test_y, **arguments)
            np.testing.assert_allclose(found[name].accuracies, alone.accuracies, atol=2 / 100)


def test_linear_few_shot_equals_scikit_learn():
    """With the penalties that were chosen; a probe of another solver differs in few test images."""
    train, y, test, test_y = clusters(2000, 16, 5, spread=2.0)
    found = few_shot(train, y, test, test_y, [30], repeats=3, probe="linear")
    drawn = [support[:, :30].ravel() for _, support in draws(y, test_y, 30, 3, None, 0)]
    chosen = linear_probe(train[drawn[0]], y[drawn[0]], test, test_y)[2]
    for repeat, rows in enumerate(drawn):
        x, mean, deviation = train[rows], train[rows].mean(axis=0), train[rows].std(axis=0)
        peer = LogisticRegression(C=chosen, tol=1e-10, max_iter=10_000)
        score = peer.fit((x - mean) / deviation, y[rows]).score((test - mean) / deviation, test_y)
        assert found.accuracies[0, repeat] == pytest.approx(score, abs=2 / 1000)


# Labeled images and those to classify from one set


@pytest.mark.parametrize("ways", [None, 2, 3])
def test_one_split_equals_a_loop_over_nccc_without_the_labeled_images(ways):
    x, y, *_ = clusters()
    found = few_shot_one_split(x, y, SHOTS, repeats=6, ways=ways, seed=4)
    for repeat, (classes, support) in enumerate(draws(y, y, 20, 6, ways, 4)):
        for row, shots in enumerate(SHOTS):
            images = support[:, :shots].ravel()
            rest = np.setdiff1d(np.flatnonzero(np.isin(y, classes)), images)
            expected = np.mean([
                nccc(x[images], y[images], x[rest[y[rest] == c]], y[rest[y[rest] == c]])[1]
                for c in classes
            ])  # fmt: skip
            assert found.accuracies[row, repeat] == pytest.approx(expected)
    np.testing.assert_array_equal(found.mean, found.accuracies.mean(axis=1))


def test_one_split_leaves_two_images_of_a_class():
    x, y, *_ = clusters()
    smallest = np.bincount(y).min()
    found = few_shot_one_split(x, y, [smallest - 1, smallest - 2, 1], repeats=3)
    assert np.isnan(found.mean).tolist() == [True, False, False]
    three = np.repeat([0, 1], 3)
    assert np.isnan(few_shot_one_split(x[:6], three, [1, 2]).mean).tolist() == [False, True]
    assert np.isnan(few_shot_one_split(x[:4], three[1:5], [1, 2]).mean).all()
    with pytest.raises(ValueError, match="shots must be"):
        few_shot_one_split(x, y, [0])
    with pytest.raises(ValueError, match="ways must be 2 to 5"):
        few_shot_one_split(x, y, [1], ways=6)


def test_labeled_images_are_not_classified():
    """Labels at random: only images that were labeled can be classified better than by chance."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 300)), np.arange(400) % 2
    found = few_shot_one_split(x, y, [50], repeats=20)
    assert found.mean[0] == pytest.approx(0.5, abs=0.05)
    assert few_shot(x, y, x, y, [50]).mean[0] > 0.6


def test_the_bound_is_about_one_split():
    """Training images whose clusters lie elsewhere break the bound, test images keep it."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    test = rng.normal(size=(400, 2)) * 0.05 + np.where(y, 1.0, -1.0)[:, None] * [1.0, 0.0]
    train = test + np.array([3.0, 0.0])
    s = class_statistics(test, y)
    bound = few_shot_bound(directional_cdnv(s), cdnv(s), cdnv_root(s), 100, 2)
    assert bound < 0.1
    assert 1 - few_shot(train, y, test, y, [100]).mean[0] > 0.4
    assert 1 - few_shot_one_split(test, y, [100]).mean[0] < bound


# Nearest neighbors


@pytest.mark.parametrize("k", [1, 5, 20, 300])
@pytest.mark.parametrize("chunk_entries", [1, 2000, 1 << 23])
def test_knn_equals_scikit_learn(k, chunk_entries, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ENTRIES", chunk_entries)
    train, y, test, test_y = clusters(spread=1.5)
    train, test = train - 4, test - 4
    peer = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", weights=lambda d: np.exp((1 - d) / TEMPERATURE)
    )
    assert knn(train, y, test, test_y, k) == peer.fit(train, y).score(test, test_y)


def test_knn_of_a_file(monkeypatch):
    train, y, test, test_y = clusters(spread=1.5)
    expected = knn(train - 4, y, test - 4, test_y)
    monkeypatch.setattr("cltools.maths.blocks.BLOCK_BYTES", 7 * 8 * 8)
    assert knn(OnDisk(train - 4), y, OnDisk(test - 4), test_y) == expected


def test_knn_with_few_images_label_names_scales_and_unseen_classes():
    train, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array(["a", "b"])
    test, test_y = np.array([[5.0, 1.0], [0.1, 0.2], [1.0, 3.0]]), np.array(["a", "b", "c"])
    assert knn(train, y, test, test_y, k=20) == pytest.approx(2 / 3)
    assert knn(train * 7, y, test, test_y, k=1) == pytest.approx(2 / 3)
    assert 0 <= knn(np.vstack([train, [[0, 0]]]), [*y, "c"], test, test_y, k=3) <= 1


def test_knn_refuses_what_does_not_fit():
    train, y, test, test_y = clusters()
    with pytest.raises(ValueError, match="k must be above 0"):
        knn(train, y, test, test_y, 0)
    with pytest.raises(ValueError, match=r"train features .* labels"):
        knn(train, y[1:], test, test_y)
