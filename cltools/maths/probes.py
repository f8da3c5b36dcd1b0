"""What a classifier can read from frozen features: nearest class center and linear probe."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.generic]  # of any kind that can be compared: numbers, strings

INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
FALLBACK = 0.1  # inverse penalty where there are too few images to hold any out
HELD_OUT = 0.2  # of each class, to choose the penalty


def nccc(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
) -> tuple[float, float]:
    """Accuracy of the nearest class center: P2's NCCC (arXiv 2510.08852, Table 1).

    The centers are the class means of all training features, distances are Euclidean.

    Args:
        train_features, test_features: (N, d) and (M, d).
        train_labels, test_labels: (N,) and (M,) class labels of any kind. Test images of a class
            without training images count as errors.

    Returns:
        (train accuracy, test accuracy), each in [0, 1].

    Raises:
        ValueError: shapes that do not fit together, an empty set, or features that are not finite.
    """
    train, y, test, test_y = checked_sets(train_features, train_labels, test_features, test_labels)
    classes, index = np.unique(y, return_inverse=True)
    shift = train.mean(axis=0)  # leaves distances as they are, and makes rounding errors smaller
    train, test = train - shift, test - shift
    member = np.eye(len(classes))[index]
    centres = member.T @ train / member.sum(axis=0)[:, None]
    half_norms = (centres**2).sum(axis=1) / 2

    def accuracy(x: Array, labels: Labels) -> float:
        # argmin ‖x - μ‖² = argmax x·μ - ‖μ‖²/2
        return float((classes[(x @ centres.T - half_norms).argmax(axis=1)] == labels).mean())

    return accuracy(train, y), accuracy(test, test_y)


def linear_probe(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    seed: int = 0,
    inverse_penalty: float | None = None,
) -> tuple[float, float, float]:
    """Accuracy of L2-penalized multinomial logistic regression on standardized features.

    The penalty 1/C is chosen on a fifth of each class of the training set; of equally good
    penalties the strongest is taken. The probe is then fitted again on the whole training set.
    Test images are used once, at the end. Standardization uses training statistics only.

    Args:
        train_features, test_features: (N, d) and (M, d).
        train_labels, test_labels: (N,) and (M,) class labels.
        seed: draws the held-out images.
        inverse_penalty: C, above 0; by default it is chosen as described above.

    Returns:
        (train accuracy, test accuracy, chosen C), accuracies in [0, 1]. When every class has fewer
        than five images, none can be held out and C is `FALLBACK`.

    Raises:
        ValueError: as `nccc`, a training set of one class, or C not above 0.
    """
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression

    train, y, test, test_y = checked_sets(train_features, train_labels, test_features, test_labels)
    classes, index = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError("a linear probe needs training images of at least two classes")
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    # A constant feature says nothing. Rounding may give it a deviation just above 0.
    constant = deviation <= 1e-12 * np.abs(train).max(axis=0)
    factor = np.where(constant, 0.0, 1 / np.where(constant, 1.0, deviation))
    train, test = (train - mean) * factor, (test - mean) * factor

    if inverse_penalty is not None and not inverse_penalty > 0:
        raise ValueError(f"inverse_penalty must be above 0, not {inverse_penalty}")

    def accuracy(x: Array, labels: Labels) -> float:
        return float((probe.predict(x) == labels).mean())

    # The input was checked above. Few-shot probes are so small that scikit-learn's own checks would
    # take longer than the fit.
    with config_context(assume_finite=True, skip_parameter_validation=True):
        chosen = FALLBACK if inverse_penalty is None else inverse_penalty
        held_out = _held_out(index, seed) if inverse_penalty is None else np.array([False])
        if held_out.any():
            probe = LogisticRegression(warm_start=True, max_iter=200, tol=1e-3)
            scores = []
            for c in INVERSE_PENALTIES:
                probe.set_params(C=c).fit(train[~held_out], y[~held_out])
                scores.append(accuracy(train[held_out], y[held_out]))
            chosen = INVERSE_PENALTIES[int(np.argmax(scores))]
        probe = LogisticRegression(C=chosen, max_iter=500).fit(train, y)
        return accuracy(train, y), accuracy(test, test_y), chosen


def _held_out(index: NDArray[np.intp], seed: int) -> NDArray[np.bool_]:
    """Mask (N,) of a random fifth of each class, rounded down."""
    order = np.random.default_rng(seed).permutation(len(index))
    held_out = np.zeros(len(index), dtype=bool)
    for c in range(index.max() + 1):
        members = order[index[order] == c]
        held_out[members[: int(HELD_OUT * len(members))]] = True
    return held_out


def checked_sets(
    train: ArrayLike, train_labels: ArrayLike, test: ArrayLike, test_labels: ArrayLike
) -> tuple[Array, Labels, Array, Labels]:
    """Features and labels of the training set, then of the test set, as arrays.

    Raises:
        ValueError: as `nccc`.
    """
    x, y = _checked_set("train", train, train_labels)
    test_x, test_y = _checked_set("test", test, test_labels)
    if x.shape[1] != test_x.shape[1]:
        raise ValueError(f"train and test differ in features: {x.shape}, {test_x.shape}")
    return x, y, test_x, test_y


def _checked_set(which: str, features: ArrayLike, labels: ArrayLike) -> tuple[Array, Labels]:
    x, y = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if x.ndim != 2 or x.size == 0 or y.shape != (len(x),):
        raise ValueError(f"{which} features {x.shape} and labels {y.shape} must be (N, d) and (N,)")
    if not np.isfinite(x).all():
        raise ValueError(f"{which} features hold NaN or infinity")
    return x, y
