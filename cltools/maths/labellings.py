"""Labels other than the data set's own: to test bounds that hold for any, and to train with.

Theorem 1 of P1 (arXiv 2506.04411) assumes nothing about the labels. Its bound on the gap between
DCL (decoupled contrastive loss) and NSCL (negatives-only supervised contrastive loss) must hold for
random labels, and for the labels that are worst for an embedding.

A network trained with labels that mean nothing is a control. It shows how much of a network's
likeness to DCL comes from the meaning of the labels, and how much from which share of the negatives
is dropped.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cltools.maths.blocks import CPU, RowSource, as_rows, each_block, is_float32, take

CLUSTERED = 65536  # images that k-means clusters; of more, it clusters a sample


def shuffled_labels(labels: ArrayLike, seed: int = 0) -> NDArray[np.generic]:
    """The labels (N,) in random order: class sizes stay the same, the rest is random."""
    return np.random.default_rng(seed).permutation(np.asarray(labels))


def random_labels(n: int, classes: int, seed: int = 0) -> NDArray[np.int64]:
    """Random labels (n,) of classes of equal size, to within one image.

    Raises:
        ValueError: fewer than two classes, or fewer images than classes.
    """
    if not 2 <= classes <= n:
        raise ValueError(f"need 2 to {n} classes for {n} images, not {classes}")
    return np.random.default_rng(seed).permutation(np.arange(n) % classes)


def coarse_labels(labels: ArrayLike, groups: int, seed: int = 0) -> NDArray[np.int64]:
    """Groups (N,) of whole classes: the classes of `labels` (N,) are put into groups at random.

    All groups have the same number of classes, to within one.

    Raises:
        ValueError: fewer than two groups, or not fewer groups than classes.
    """
    present, found = np.unique(labels, return_inverse=True)
    if not 2 <= groups < len(present):
        raise ValueError(f"need 2 to {len(present) - 1} groups of {len(present)} classes")
    group = np.random.default_rng(seed).permutation(np.arange(len(present)) % groups)
    return np.asarray(group[found], dtype=np.int64)


def noisy_labels(labels: ArrayLike, share: float, seed: int = 0) -> NDArray[np.int64]:
    """The labels (N,), with those of a random share of the images shuffled among these images.

    So class sizes stay the same, and some of the shuffled images keep their label by chance.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"need a share from 0 to 1, not {share}")
    found = np.array(labels, dtype=np.int64)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(found))[: round(share * len(found))]
    found[chosen] = found[rng.permutation(chosen)]
    return found


class DroppedPairs(NamedTuple):
    """Shares, in [0, 1], of the pairs of images that are no negatives of each other.

    Of all pairs, of the pairs of one class, and of the pairs of two classes; None without such
    pairs.
    """

    share: float | None
    same_class: float | None
    other_class: float | None


def dropped_pairs(labels: ArrayLike, true: ArrayLike) -> DroppedPairs:
    """The pairs that NSCL with `labels` (N,) drops from the negatives of DCL.

    Classes are those of `true` (N,).

    >>> dropped_pairs([0, 0, 1, 1], [0, 1, 2, 2])
    DroppedPairs(share=0.3333333333333333, same_class=1.0, other_class=0.2)
    """
    labels, true = (np.unique(one, return_inverse=True)[1] for one in (labels, true))
    table = np.zeros((labels.max() + 1, true.max() + 1), dtype=np.int64)
    np.add.at(table, (labels, true), 1)

    def pairs(counts: NDArray[np.int64]) -> int:
        return int((counts * (counts - 1)).sum()) // 2

    of_all, of_one_class = pairs(np.array([len(true)])), pairs(table.sum(axis=0))
    dropped, right = pairs(table.sum(axis=1)), pairs(table)
    shares = ((dropped, of_all), (right, of_one_class), (dropped - right, of_all - of_one_class))
    return DroppedPairs(*(part / whole if whole else None for part, whole in shares))


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


def clustered_labels(
    features: ArrayLike | Tensor | RowSource,
    classes: int,
    seed: int = 0,
    device: torch.device = CPU,
) -> NDArray[np.int64]:
    """k-means clusters (n,) of features (n, d), so that the most similar images share a class.

    Negatives of the anchor's class are then very similar to it, which makes the gap between DCL and
    NSCL large. Clusters may differ a lot in size. There are fewer of them than classes where fewer
    features differ: a single one for constant features.

    Of more than `CLUSTERED` images, a random sample of so many is clustered, on the CPU. Each image
    then gets the cluster whose center is nearest; this is computed on `device`.

    Raises:
        ValueError: fewer images than classes.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    x = as_rows("features", features)
    n = x.shape[0]
    rows = np.arange(n)
    if n > CLUSTERED:
        rows = np.sort(np.random.default_rng(seed).choice(n, CLUSTERED, replace=False))
    sample = take(x, rows, dtype=torch.float32 if is_float32(x) else torch.float64).numpy()
    # Several threads add up their parts in the order in which they end, which differs.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than classes
        clusters = KMeans(classes, n_init=1, random_state=seed).fit(sample)
    if n <= CLUSTERED:
        return np.asarray(clusters.labels_, dtype=np.int64)
    centers = torch.from_numpy(clusters.cluster_centers_).to(device, torch.float64)
    half_norms = centers.square().sum(1) / 2
    labels = torch.empty(n, dtype=torch.int64)
    for part, block in each_block(x, device):
        labels[part] = (block @ centers.T - half_norms).argmax(1)
    return np.asarray(labels.numpy())
