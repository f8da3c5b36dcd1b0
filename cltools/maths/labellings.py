"""Labels other than the data set's own, to test a bound that holds for any labels.

Theorem 1 of P1 (arXiv 2506.04411) assumes nothing about the labels. Its bound on the gap between
DCL (decoupled contrastive loss) and NSCL (negatives-only supervised contrastive loss) must hold for
random labels, and for the labels that are worst for an embedding.
"""

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray


def shuffled_labels(labels: ArrayLike, seed: int = 0) -> NDArray[np.generic]:
    """The labels (N,) in random order: class sizes stay the same, the rest is random."""
    return np.random.default_rng(seed).permutation(np.asarray(labels))


def unbalanced_labels(n: int, classes: int, seed: int = 0) -> NDArray[np.int64]:
    """Random labels (n,): about half are class 0, the rest is spread over the other classes.

    Raises:
        ValueError: fewer than two classes, or fewer images than classes.
    """
    if not 2 <= classes <= n:
        raise ValueError(f"need 2 to {n} classes for {n} images, not {classes}")
    rng = np.random.default_rng(seed)
    rest = np.arange(n - n // 2) % (classes - 1) + 1
    return rng.permutation(np.concatenate([np.zeros(n // 2, dtype=np.int64), rest]))


def clustered_labels(features: ArrayLike, classes: int, seed: int = 0) -> NDArray[np.int64]:
    """k-means clusters (n,) of features (n, d), so that the most similar images share a class.

    Negatives of the anchor's class are then very similar to it, which makes the gap between DCL and
    NSCL large. Clusters may differ a lot in size. There are fewer of them than classes where fewer
    features differ: a single one for constant features.

    Raises:
        ValueError: fewer images than classes.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than classes
        clusters = KMeans(classes, n_init=1, random_state=seed).fit_predict(features)
    return np.asarray(clusters, dtype=np.int64)
