"""Measures of arrays of features: alignment of two of them, and what they say of classes.

Features are (N, d): one row for each of N images, of any real type, as an array, tensor or list.
Everything is computed in float64 (the linear probe in float32), on the GPU if a tensor is there.
The formulas are in `cltools.maths`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from cltools import measurements
from cltools.api.inputs import Labels, Numbers, class_labels, device_of, features
from cltools.maths import alignment as similarity
from cltools.maths import bounds, collapse, probes
from cltools.maths.alignment.features import class_index, same_images
from cltools.maths.alignment.measures import RSA
from cltools.maths.probes import Probe

# The columns of `alignment`: those of `measures.parquet` that arrays alone can fill.
COLUMNS = ("objective", "reference", "metric", "variant", "value", "ci_low", "ci_high", "n")


class Accuracies(NamedTuple):
    """Shares of right answers, in [0, 1]."""

    train: float
    test: float


def cka(a: Numbers, b: Numbers, *, debiased: bool = True, cosine: bool = True) -> float:
    """Linear CKA (centered kernel alignment) of two representations of the same images.

    The default is debiased, on cosines. The biased value grows with dimensions / images: for
    unrelated features of 512 dimensions it is 0.3 with 1,000 images. So cite the debiased one, and
    give the biased one where you compare with a paper that has it.

    Args:
        a, b: (N, d) and (N, d') features; row i is the same image in both.
        debiased: by HSIC_1 of Song et al. 2012, as in Kornblith et al. 2019. False: the plain
            estimator, `cosine_biased` in tables, which is arXiv 2510.08852, Corollary 1.
        cosine: of rows divided by their norms, as that paper defines it. False: of features as they
            are, as most other libraries and the authors' code compute it.

    Returns:
        In [0, 1] if biased; debiased in [-1, 1], around 0 for unrelated features. NaN where it is
        undefined: constant features, fewer than 2 (biased) or 4 images.

    Raises:
        ValueError: not two real (N, d) of equal N, or NaN or infinity among them.

    >>> import numpy as np, cltools
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.standard_normal((2, 200, 100))  # unrelated
    >>> print(f"{cltools.cka(a, b, debiased=False):.1f}, {cltools.cka(a, b):.1f}")
    0.3, 0.0
    """
    bias = "debiased" if debiased else "biased"
    return _similarity(a, b, ("cka", f"{'cosine' if cosine else 'raw'}_{bias}"))


def rsa(a: Numbers, b: Numbers, *, ranks: bool = False) -> float:
    """RSA (representational similarity analysis) of two representations of the same images.

    That is the correlation of their N(N-1)/2 distances between images, 1 - cosine.

    Args:
        a, b: as for `cka`.
        ranks: Spearman's correlation, of ranks. Of more than 1,414 images it takes a million
            pairs of images, always the same ones. By default Pearson's, of all distances:
            `pearson_cosine` in tables, arXiv 2510.08852, Corollary 2.

    Returns:
        In [-1, 1]. NaN where it is undefined: fewer than 3 images, or equal distances.

    Raises:
        ValueError: as `cka`.

    >>> import numpy as np, cltools
    >>> a = np.random.default_rng(0).standard_normal((50, 8))
    >>> rotated = a @ np.linalg.qr(a[:8])[0]
    >>> print(f"{cltools.rsa(a, rotated):.4f}, {cltools.rsa(a, 2 * a, ranks=True):.4f}")
    1.0000, 1.0000
    """
    if not ranks:
        return _similarity(a, b, RSA)
    x, y = features("a", a), features("b", b)
    return similarity.spearman_rsa(x, y, device=device_of(x, y)).value


def _similarity(a: Numbers, b: Numbers, measure: similarity.Measure) -> float:
    both = {"a": features("a", a), "b": features("b", b)}
    found = similarity.alignment(both, measures=[measure], device=device_of(*both.values()))
    return found["a", "b"][measure]


def alignment(
    a: Numbers | Mapping[str, Numbers], b: Numbers | None = None, *, labels: Labels | None = None
) -> pl.DataFrame:
    """CKA and RSA of every two representations of the same images, as `cltools measure` has them.

    Every pair has intervals. The first representation is the reference: pairs with it have controls
    too. Both take some hundred subsamples and shuffles; for one number, `cka` and `rsa` are much
    faster.

    Args:
        a: (N, d) features, or a mapping from names to features.
        b: (N, d') features, unless `a` is a mapping. The two are named "a" and "b".
        labels: (N,) classes of the images. With labels there are also rows of alignment within
            classes: after class means are removed (variants `residual_…`), and after images are
            shuffled within their classes (`cka_null`, `rsa_null`, and p-values `…_null_p`).
            Clusters of classes alone make CKA and RSA high; these rows say how high.

    Returns:
        One row per pair and measure, with the columns of `measures.parquet`: objective, reference,
        metric, variant (`cosine_debiased`, …), value, ci_low and ci_high, n. The limits are of a
        90 % interval over images, by subsamples without replacement, and null for measures that
        have none or for fewer than four images. It says how the value would vary with other images,
        not with other seeds of training. `rsa_error` is the sampling error of Spearman's RSA, and
        `rsa_mantel_p` the p-value of Pearson's when all images are shuffled.

    Raises:
        ValueError: as `cka`; fewer than two representations, labels that do not fit.

    >>> import numpy as np, polars as pl, cltools
    >>> rng = np.random.default_rng(0)
    >>> a, noise = rng.standard_normal((2, 100, 16))
    >>> table = cltools.alignment({"clean": a, "noisy": a + 0.5 * noise})
    >>> found = table.row(by_predicate=pl.col("variant") == "cosine_debiased", named=True)
    >>> found["objective"], found["reference"], found["n"]
    ('noisy', 'clean', 100)
    >>> found["ci_low"] < found["value"] < found["ci_high"]
    True
    """
    if isinstance(a, Mapping) and b is None:
        given = a
    elif not isinstance(a, Mapping) and b is not None:
        given = {"a": a, "b": b}
    else:
        raise ValueError("give two arrays, or one mapping from names to arrays")
    arrays = {str(name): features(str(name), x) for name, x in given.items()}
    if len(arrays) < 2:
        raise ValueError(f"alignment is between two representations, not {len(arrays)}")
    sources = same_images(arrays)
    first = next(iter(sources))
    n = sources[first].shape[0]
    classes = None if labels is None else class_labels(labels)
    of = measurements.Representations(
        sources, classes, reference=first, device=device_of(*arrays.values())
    )
    with np.errstate(invalid="ignore", divide="ignore"):  # of what is NaN, as said above
        rows = [
            *measurements.alignment_rows(of),
            *measurements.rank_rows(of),
            *measurements.null_rows(of),
        ]
        measurements.add_intervals(rows, of, of.pairs)
    return measurements.tidy({"n": n, **row} for row in rows).select(COLUMNS)


def nccc(train: Numbers, train_labels: Labels, test: Numbers, test_labels: Labels) -> Accuracies:
    """Accuracy of the nearest class center (NCCC, arXiv 2510.08852, Table 1).

    The centers are the means of the training features of each class, distances are Euclidean.

    Args:
        train, test: (N, d) and (M, d) features.
        train_labels, test_labels: (N,) and (M,) classes, numbers or text. Test images of a class
            without training images count as errors.

    Returns:
        Accuracies on the training and on the test images, each in [0, 1].

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, missing labels.

    >>> import cltools
    >>> cltools.nccc([[0], [2], [9]], ["near", "near", "far"], [[3], [8]], ["near", "far"])
    Accuracies(train=1.0, test=1.0)
    """
    x, test_x = features("train", train), features("test", test)
    y, test_y = class_labels(train_labels), class_labels(test_labels)
    return Accuracies(*probes.nccc(x, y, test_x, test_y, device_of(x, test_x)))


def linear_probe(
    train: Numbers,
    train_labels: Labels,
    test: Numbers,
    test_labels: Labels,
    *,
    inverse_penalty: float | None = None,
    seed: int = 0,
) -> Probe:
    """Accuracy of logistic regression on standardized features, L2-penalized, as in scikit-learn.

    The penalty is chosen on a fifth of each class of the training images; test images are used
    once, at the end.

    Args:
        train, train_labels, test, test_labels: as for `nccc`.
        inverse_penalty: C of scikit-learn, above 0, if it is not to be chosen.
        seed: draws the fifth.

    Returns:
        Accuracies `train` and `test`, in [0, 1], and the `inverse_penalty`.

    Raises:
        ValueError: as `nccc`; training images of one class only.

    >>> import numpy as np, cltools
    >>> labels = np.arange(60) % 3
    >>> x = np.eye(3)[labels] + 0.1 * np.random.default_rng(0).standard_normal((60, 3))
    >>> cltools.linear_probe(x[:30], labels[:30], x[30:], labels[30:]).test
    1.0
    """
    x, test_x = features("train", train), features("test", test)
    y, test_y = class_labels(train_labels), class_labels(test_labels)
    device = device_of(x, test_x)
    return probes.linear_probe(x, y, test_x, test_y, seed, inverse_penalty, device)


def cdnv(x: Numbers, labels: Labels, *, directional: bool = False) -> float:
    """Class-distance normalized variance: how far features are from collapsed to class means.

    The mean over pairs of classes of (v_i + v_j) / (2 ‖μ_i - μ_j‖²), with v the variance of a class
    around its mean μ (arXiv 2112.15121; 2506.04411, Proposition 1).

    Args:
        x: (N, d) features.
        labels: (N,) classes, at least two.
        directional: take the variance along the line between the two means alone.

    Returns:
        0 (collapsed) or above; infinity where the means of two classes coincide.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, NaN or infinity.

    >>> import cltools
    >>> x, labels = [[0, 1], [0, -1], [2, 1], [2, -1]], ["a", "a", "b", "b"]
    >>> cltools.cdnv(x, labels), cltools.cdnv(x, labels, directional=True)
    (0.25, 0.0)
    """
    found = features("x", x)
    spread = collapse.class_spread(found, class_labels(labels), device_of(found))
    return collapse.directional_cdnv(spread) if directional else collapse.cdnv(spread)


def gap_bound(labels: Labels, tau: float) -> float:
    """The largest possible `dcl_loss` - `nscl_loss` for these labels, in nats.

    log(1 + n_max e^(2/τ) / (N - n_max)) with N labels and n_max of the largest class. It holds for
    any network, on a batch and on a whole data set (arXiv 2506.04411, Theorem 1, extended from
    τ = 1). At τ = 0.1 it is so large that it says nothing.

    Args:
        labels: (N,) classes of the images, at least two. One label per class gives the bound of
            balanced classes.
        tau: temperature τ, above 0.

    Raises:
        ValueError: missing labels, fewer than two classes, τ not above 0.

    >>> import cltools
    >>> round(cltools.gap_bound(range(10), tau=1), 3)  # ten balanced classes
    0.599
    """
    given = class_labels(labels)
    _, counts = class_index(given, given.size)
    if len(counts) < 2:
        raise ValueError("the bound needs labels of at least two classes")
    return bounds.gap_bound(int(counts.max()), given.size, tau)
