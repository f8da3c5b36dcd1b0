"""Labels that have nothing to do with the data set's, for a bound that holds under any labels.

P1's Theorem 1 (arXiv 2506.04411) asks nothing of the labels: the gap between DCL and NSCL obeys
its bound for labels drawn at random, and for the ones that are worst for an embedding.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def shuffled_labels(labels: ArrayLike, seed: int = 0) -> NDArray:
    """The labels (N,) in random order: class sizes stay, everything else is chance."""
    return np.random.default_rng(seed).permutation(np.asarray(labels))


def unbalanced_labels(n: int, classes: int, seed: int = 0) -> NDArray[np.int64]:
    """Random labels (n,) of which about half are class 0 and the rest spread over the others.

    Raises:
        ValueError: fewer than two classes, or images than classes.
    """
    if not 2 <= classes <= n:
        raise ValueError(f"need 2 to {n} classes for {n} images, not {classes}")
    rng = np.random.default_rng(seed)
    rest = np.arange(n - n // 2) % (classes - 1) + 1
    return rng.permutation(np.concatenate([np.zeros(n // 2, dtype=np.int64), rest]))


def clustered_labels(features: ArrayLike, classes: int, seed: int = 0) -> NDArray[np.int64]:
    """k-means clusters (n,) of features (n, d): the images most alike share a class.

    Same-class negatives are then as similar to their anchor as they can be, which makes the gap
    between DCL and NSCL large. Clusters may be of very different sizes.

    Raises:
        ValueError: fewer images than classes.
    """
    from sklearn.cluster import KMeans

    return KMeans(classes, n_init=1, random_state=seed).fit_predict(features).astype(np.int64)
