"""How similar two representations are within classes: alignment of features minus class means.

When features form class clusters, CKA and RSA are high for any two representations that separate
the classes, however they differ within a class. There are two controls for this: alignment after
the class means are subtracted (`residual_alignment`), and alignment after the images of one
representation are shuffled within their classes (`permutations.within_class_null`).
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cltools.maths.alignment.features import class_index, same_images, unit_rows
from cltools.maths.alignment.measures import RSA, Measure, measure_of, pairs_of
from cltools.maths.alignment.moments import Moments, Pair, moments_of
from cltools.maths.blocks import CPU, Features

# Measure of `residual_alignment` -> measure with the same inner product. Residuals are not scaled.
_RESIDUAL: dict[Measure, Measure] = {
    ("cka", "residual_biased"): ("cka", "raw_biased"),
    ("cka", "residual_debiased"): ("cka", "raw_debiased"),
    ("rsa", "residual_pearson"): RSA,
}
RESIDUAL_MEASURES: tuple[Measure, ...] = tuple(_RESIDUAL)


def residual(features: Features, labels: ArrayLike) -> NDArray[np.float64]:
    """Rows of norm 1 minus the mean of their class.

    With P the projection onto class means and K the cosine similarity matrix, the inner products of
    the result are (I-P) K (I-P).

    Args:
        features: (N, d).
        labels: (N,) class labels of any kind.

    Returns:
        (N, d) with mean 0 in every class. The row of an image that is alone in its class, or equals
        its class mean up to rounding errors, is exactly 0.

    Raises:
        ValueError: as `unit_rows`, or labels that are not one per image.
    """
    x = unit_rows(features)
    index, counts = class_index(labels, len(x))
    order = np.argsort(index, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    x -= (np.add.reduceat(x[order], starts) / counts[:, None])[index]
    # Without this, collapsed classes would be compared by their rounding errors.
    x[np.linalg.norm(x, axis=1) <= 1e-12] = 0
    return x


def residual_alignment(
    features: Mapping[str, Features],
    labels: ArrayLike,
    pairs: Iterable[Pair] | None = None,
    device: torch.device = CPU,
) -> dict[Pair, dict[Measure, float]]:
    """Alignment within classes: CKA and RSA of (I-P) K (I-P) instead of K, see `residual`.

    The residuals are not scaled. So there are no cosine variants as in `alignment`: scaling each
    residual to norm 1 would give images near their class mean the same weight as all others, and
    would shift the class means away from 0, so that there would be class clusters again.

    Args:
        features: name -> (N, d); row i is the same image everywhere, d may differ.
        labels: (N,) class labels of any kind.
        pairs: the pairs of names to compare; default every unordered pair, in order of `features`.
        device: where the products are made, in float64.

    Returns:
        pair -> measure -> value. NaN where undefined, as in `alignment`, for instance when one of
        the two has collapsed to its class means.
        ("cka", "residual_biased")    in [0, 1]; about d/(N-C+d) for unrelated residuals
        ("cka", "residual_debiased")  in [-1, 1]. Residuals of C classes have N-C degrees of
                                      freedom, but the estimator assumes N-1. So about (C-1)/N of
                                      the bias of "residual_biased" is left. `within_class_null`
                                      has no such bias: use it for tests.
        ("rsa", "residual_pearson")   Pearson correlation of the off-diagonal entries, in [-1, 1]

    Raises:
        ValueError: as `residual`, or an unknown name in a pair.
    """
    sources = same_images(features)
    pairs = pairs_of(sources, pairs)
    if not pairs:
        return {}
    index, _ = class_index(labels, sources[pairs[0][0]].shape[0])
    moments = moments_of(sources, pairs, index, True, device)
    return {pair: residual_measures(pair, moments) for pair in pairs}


def residual_measures(pair: Pair, cosine: Moments) -> dict[Measure, float]:
    """What `residual_alignment` returns for a pair, from the moments of cosines."""
    return {m: measure_of(like, pair, cosine.residual) for m, like in _RESIDUAL.items()}
