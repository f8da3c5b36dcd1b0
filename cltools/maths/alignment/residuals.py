"""What is left of each image beyond its class, and how alike two representations are in it.

When features form class clusters, CKA and RSA are high for any two representations that separate
the classes, whatever they do inside a class. Two controls tell this apart: alignment of what is
left once the class means are removed (`residual_alignment`), and alignment after the images of
one representation are shuffled inside their classes (`permutations.within_class_null`).
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cltools.maths.alignment.features import BLOCK, class_index, unit_rows
from cltools.maths.alignment.measures import RSA, Measure, measure_of
from cltools.maths.alignment.moments import Pair, moments_of

# measure of `residual_alignment` -> measure whose inner product it takes, on residuals as they are
_RESIDUAL: dict[Measure, Measure] = {
    ("cka", "residual_biased"): ("cka", "raw_biased"),
    ("cka", "residual_debiased"): ("cka", "raw_debiased"),
    ("rsa", "residual_pearson"): RSA,
}
RESIDUAL_MEASURES: tuple[Measure, ...] = tuple(_RESIDUAL)


def residual(features: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """What is left of each image beyond its class: unit rows minus the mean of their class.

    With P the projection onto class means, inner products of the result are (I-P) K (I-P) for
    the cosine similarity matrix K.

    Args:
        features: (N, d).
        labels: (N,) class labels of any kind.

    Returns:
        (N, d), zero mean in every class. An image that is alone in its class, or equals its class
        mean up to rounding, is exactly 0.

    Raises:
        ValueError: as `unit_rows`, or labels that are not one per image.
    """
    x = unit_rows(features)
    index, counts = class_index(labels, len(x))
    order = np.argsort(index, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    x -= (np.add.reduceat(x[order], starts) / counts[:, None])[index]
    # Otherwise collapsed classes would be compared by their rounding errors.
    x[np.linalg.norm(x, axis=1) <= 1e-12] = 0
    return x


def residual_alignment(
    features: Mapping[str, ArrayLike], labels: ArrayLike, pairs: Iterable[Pair] | None = None
) -> dict[Pair, dict[Measure, float]]:
    """Alignment beyond class clusters: CKA and RSA of (I-P) K (I-P) in the place of K.

    The residuals enter as they are. The cosine variants of `alignment` are not offered, as they
    would scale each residual to norm 1: that weighs images at their class mean like all others,
    and gives the classes new means, so that class clusters would come back.

    Args:
        features: name -> (N, d) array; row i is the same image everywhere, d may differ.
        labels: (N,) class labels of any kind.
        pairs: the pairs of names to compare; default every unordered pair, in order of `features`.

    Returns:
        pair -> measure -> value, NaN where it is undefined (as in `alignment`; for instance when
        one of the two has collapsed to its class means):
        ("cka", "residual_biased")    in [0, 1]; of unrelated residuals about d/(N-C+d)
        ("cka", "residual_debiased")  in [-1, 1]. Residuals of C classes have N-C degrees of
                                      freedom where the estimator counts N-1, which leaves about
                                      (C-1)/N of the bias of the former; `within_class_null` has
                                      no such bias and is the test.
        ("rsa", "residual_pearson")   Pearson correlation of the off-diagonal entries, in [-1, 1]

    Raises:
        ValueError: as `residual`, or a pair that names no features.
    """
    residuals = {name: residual(x, labels) for name, x in features.items()}
    names = list(residuals)
    if pairs is None:
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    pairs = [(a, b) for a, b in pairs]
    if unknown := {name for pair in pairs for name in pair} - set(names):
        raise ValueError(f"pairs name {sorted(unknown)}, but there are only {sorted(names)}")
    if not pairs:
        return {}
    # Residuals have mean 0 already: centering changes nothing.
    table = moments_of(residuals, pairs, False, BLOCK, np.dtype(np.float64))
    return {
        pair: {
            m: measure_of(like, pair, *table, np.dtype(np.float64)) for m, like in _RESIDUAL.items()
        }
        for pair in pairs
    }
