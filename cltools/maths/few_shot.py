"""Accuracy on frozen features with few labels, and accuracy of nearest neighbors.

P1 is arXiv 2506.04411. Its few-shot figures show the nearest class center classifier (NCCC) and a
linear probe, both trained on n images per class.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cltools.maths.alignment import unit_rows
from cltools.maths.probes import Labels, checked_sets, linear_probe

FEWEST_QUERIES = 2  # images of a class that must remain to be classified, in `few_shot_one_split`
TEMPERATURE = 0.07  # in the neighbors' weights, Wu et al. 2018 (arXiv 1805.01978)
CHUNK_ENTRIES = 1 << 23  # cosines held at once by `knn`


class FewShot(NamedTuple):
    """Accuracy at each number of shots (S,), over repeats; NaN where a class is too small."""

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    accuracies: NDArray[np.float64]  # (S, repeats)


def few_shot(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    shots: Sequence[int],
    repeats: int = 20,
    ways: int | None = None,
    seed: int = 0,
    probe: Literal["nccc", "linear"] = "nccc",
) -> FewShot:
    """Test accuracy when only n training images per class are labeled (P1, few-shot figures).

    Each repeat draws its own images, and with `ways` its own classes. Within a repeat, a larger
    number of shots adds images to those of a smaller one, so that the curve over shots is smooth.

    Args:
        train_features, test_features: (N, d) and (M, d). Images are drawn from the training set.
            All test images of the drawn classes are classified.
        train_labels, test_labels: (N,) and (M,) class labels of any kind.
        shots: S numbers of labeled images per class, each above 0, in any order.
        repeats: draws, above 0.
        ways: classes per repeat, e.g. 2, drawn from the classes that both sets have. Default all
            classes of the training set; then test images of other classes count as errors.
        seed: draws classes and images.
        probe: "nccc" (nearest class center, Euclidean) or "linear" (`probes.linear_probe`). The
            penalty of the linear probe is chosen in the first repeat, once for each number of
            shots, on images held out of that draw.

    Returns:
        (mean, sd, accuracies) of shapes (S,), (S,) and (S, repeats), all in [0, 1]. The sd has
        repeats - 1 in the denominator and is NaN for a single repeat. More shots than images in
        the smallest training class give NaN.

    Raises:
        ValueError: as `nccc`; shots, repeats or probe outside these ranges; ways below 2 or above
            the number of classes.
    """
    train, y, test, test_y = checked_sets(train_features, train_labels, test_features, test_labels)
    each = _checked_shots(shots, repeats)
    if probe not in ("nccc", "linear"):
        raise ValueError(f"probe must be nccc or linear, not {probe!r}")

    smallest = np.unique(y, return_counts=True)[1].min()
    feasible, where = np.unique(each[each <= smallest], return_inverse=True)
    accuracies = np.full((len(each), repeats), np.nan)
    shift = train.mean(axis=0)  # leaves distances as they are, and makes rounding errors smaller
    train, test = train - shift, test - shift
    most = int(feasible[-1]) if len(feasible) else 0
    penalties: dict[int, float] = {}
    for repeat, (classes, support) in enumerate(draws(y, test_y, most, repeats, ways, seed)):
        if not most:
            continue
        query = np.isin(test_y, classes) if ways else np.ones(len(test_y), dtype=bool)
        if probe == "nccc":
            sets = test[query], test_y[query]
            found = _right(train, support, feasible, classes, *sets).mean(axis=1)
        else:
            scores = []
            for s in feasible:
                support_set = train[support[:, :s].ravel()], np.repeat(classes, s)
                _, score, penalties[s] = linear_probe(
                    *support_set, test[query], test_y[query], seed, penalties.get(s)
                )
                scores.append(score)
            found = np.asarray(scores)
        accuracies[each <= smallest, repeat] = found[where]
    return _over_repeats(accuracies)


def few_shot_one_split(
    features: ArrayLike,
    labels: ArrayLike,
    shots: Sequence[int],
    repeats: int = 20,
    ways: int | None = None,
    seed: int = 0,
) -> FewShot:
    """Accuracy of the nearest class center, where all images are of one set (P1, Proposition 1).

    The proposition draws labeled images and those to classify from one distribution. Here each
    repeat draws n labeled images per class, as `few_shot` does, and classifies all others of these
    classes. Every class has the same weight in the accuracy, whatever its number of images.

    Args:
        features: (N, d).
        labels: (N,) class labels of any kind.
        shots, repeats, ways, seed: as for `few_shot`.

    Returns:
        As `few_shot`. Shots that leave fewer than two images of the smallest class give NaN.

    Raises:
        ValueError: as `few_shot`.
    """
    x, y, *_ = checked_sets(features, labels, features, labels)
    each = _checked_shots(shots, repeats)
    most = np.unique(y, return_counts=True)[1].min() - FEWEST_QUERIES
    feasible, where = np.unique(each[each <= most], return_inverse=True)
    accuracies = np.full((len(each), repeats), np.nan)
    if not len(feasible):
        return _over_repeats(accuracies)
    x = x - x.mean(axis=0)
    for repeat, (classes, support) in enumerate(draws(y, y, feasible[-1], repeats, ways, seed)):
        images = np.flatnonzero(np.isin(y, classes))
        right = _right(x, support, feasible, classes, x[images], y[images])
        found = np.empty(len(feasible))
        for row, s in enumerate(feasible):
            others = ~np.isin(images, support[:, :s])
            of_class = np.unique(y[images[others]], return_inverse=True)[1]
            hits = np.bincount(of_class, right[row, others])
            found[row] = (hits / np.bincount(of_class)).mean()
        accuracies[each <= most, repeat] = found[where]
    return _over_repeats(accuracies)


def knn(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    k: int = 20,
) -> float:
    """Accuracy of the k nearest training images by cosine, with votes exp(cos / 0.07).

    The weighted vote of Wu et al. 2018 (arXiv 1805.01978), as lightly and DINO compute it.

    Args:
        train_features, test_features: (N, d) and (M, d). A row of norm 0 has cosine 0 with all.
        train_labels, test_labels: (N,) and (M,) class labels of any kind. Test images of a class
            without training images count as errors.
        k: neighbors, above 0; all training images when there are fewer.

    Returns:
        Test accuracy in [0, 1].

    Raises:
        ValueError: as `nccc`, numbers whose squares overflow, or k below 1.
    """
    train, y, test, test_y = checked_sets(train_features, train_labels, test_features, test_labels)
    if k < 1:
        raise ValueError(f"k must be above 0, not {k}")
    k = min(k, len(train))
    train, test = unit_rows(train), unit_rows(test)
    classes, index = np.unique(y, return_inverse=True)
    chunk = max(1, CHUNK_ENTRIES // len(train))
    hits = 0
    for start in range(0, len(test), chunk):
        part = slice(start, start + chunk)
        cosines = test[part] @ train.T
        near = np.argpartition(cosines, -k, axis=1)[:, -k:]
        weights = np.exp(np.take_along_axis(cosines, near, axis=1) / TEMPERATURE)
        cell = np.arange(len(near))[:, None] * len(classes) + index[near]
        votes = np.bincount(cell.ravel(), weights.ravel(), len(near) * len(classes))
        best = votes.reshape(len(near), len(classes)).argmax(axis=1)
        hits += int(np.count_nonzero(classes[best] == test_y[part]))
    return hits / len(test)


def draws(
    y: Labels, test_y: Labels, most: int, repeats: int, ways: int | None, seed: int
) -> Iterator[tuple[Labels, NDArray[np.intp]]]:
    """For each repeat, its classes (W,) and the row numbers (W, most) of the images drawn of them.

    The first s columns are the images of s shots.

    Raises:
        ValueError: ways below 2 or above the number of classes.
    """
    classes = np.unique(y)
    if ways is not None:
        classes = np.intersect1d(classes, test_y)
        if not 2 <= ways <= len(classes):
            raise ValueError(f"ways must be 2 to {len(classes)} classes, not {ways}")
    members = {c: np.flatnonzero(y == c) for c in classes}
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        drawn = classes if ways is None else rng.choice(classes, ways, replace=False)
        yield drawn, np.stack([rng.permutation(members[c])[:most] for c in drawn])


def _checked_shots(shots: Sequence[int], repeats: int) -> NDArray[np.integer]:
    each = np.asarray(shots)
    if each.ndim != 1 or each.size == 0 or each.dtype.kind not in "iu" or each.min() < 1:
        raise ValueError(f"shots must be whole numbers above 0, not {each}")
    if repeats < 1:
        raise ValueError(f"repeats must be above 0, not {repeats}")
    return each


def _over_repeats(accuracies: NDArray[np.float64]) -> FewShot:
    shots, repeats = accuracies.shape
    sd = accuracies.std(axis=1, ddof=1) if repeats > 1 else np.full(shots, np.nan)
    return FewShot(accuracies.mean(axis=1), sd, accuracies)


def _right(
    train: NDArray[np.float64],
    support: NDArray[np.intp],
    shots: NDArray[np.integer],
    classes: Labels,
    test: NDArray[np.float64],
    test_y: Labels,
) -> NDArray[np.bool_]:
    """Which test images (S, M) the centers of the first s columns of support classify rightly.

    Shots are ascending. The same as `probes.nccc`, but the sums over images are computed once for
    all numbers of shots.
    """
    starts = np.concatenate([[0], shots[:-1]])
    sums = np.stack([np.add.reduceat(train[images], starts) for images in support], axis=1)
    centres = np.cumsum(sums, axis=0) / shots[:, None, None]  # (S, W, d)
    half_norms = (centres**2).sum(axis=2) / 2
    nearest = [(test @ c.T - h).argmax(axis=1) for c, h in zip(centres, half_norms, strict=True)]
    right: NDArray[np.bool_] = classes[np.stack(nearest)] == test_y
    return right
