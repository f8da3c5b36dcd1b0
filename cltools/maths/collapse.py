"""How far features have collapsed: toward their class means, and these toward a simplex.

P1, Theorem 2 says where contrastive training ends. At the minimum of NSCL, all views of an image
coincide, all images of a class coincide, and the class means form a simplex equiangular tight frame
(ETF). The functions here measure the distance from that state, and compute the variances that P1's
few-shot bound needs (Proposition 1).

All functions about classes take `ClassSpread`, or `ClassStatistics`, which also has the covariance.
These are computed in passes over the features, in O(N d (d + C)) time, with no array larger than
d×d, C×d, C×C or one block of rows.

P1 is arXiv 2506.04411. Papyan is Papyan, Han & Donoho 2020 (PNAS 117, "neural collapse", NC1-4).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cltools.maths.alignment.features import chunks_of, class_index
from cltools.maths.alignment.moments import Means, means_of, moments_of
from cltools.maths.blocks import BLOCK_BYTES, CPU, Features, RowSource, as_rows
from cltools.maths.probes import nccc

Array = NDArray[np.float64]

# Relative to the squares of the features: smaller squares cannot be told from rounding errors.
ROUNDING = 1e-24


# Classes


@dataclass(frozen=True)
class ClassSpread:
    """Means and variances of C classes of features. Variances are divided by n, not n - 1.

    Means, variances and distances that cannot be told from rounding errors are exactly 0.
    """

    classes: NDArray[np.generic]  # (C,) labels, sorted; all other arrays have this order
    counts: NDArray[np.int64]  # (C,) images
    means: Array  # (C, d) μ_i minus the average of all μ_i
    variances: Array  # (C,) v_i = E‖x - μ_i‖² of class i; 0 for a single image
    distances: Array  # (C, C) ‖μ_i - μ_j‖²
    along: Array  # (C, C) [i, j]: E[((x - μ_i)·(μ_j - μ_i))²] over class i


@dataclass(frozen=True)
class ClassStatistics(ClassSpread):
    """The same, and the covariance of features within classes."""

    within: Array  # (d, d) Σ_W, the covariance of x - μ_y over all images

    @property
    def total(self) -> Array:
        """(d, d) covariance of all images, about their common mean."""
        share = self.counts / self.counts.sum()
        between = self.means - share @ self.means
        covariance: Array = self.within + (between * share[:, None]).T @ between
        return covariance


def class_statistics(
    features: Features,
    labels: ArrayLike,
    device: torch.device = CPU,
    within: Array | None = None,
) -> ClassStatistics:
    """The statistics that all measures of class collapse are computed from, in float64.

    Args:
        features: (N, d), of any real type, in memory or in a file (`cltools.maths.blocks`).
        labels: (N,) class labels of any kind, of at least two classes.
        device: where products are made.
        within: N Σ_W (d, d), if it is already known: `Moments.within`. It takes most of the time.

    Raises:
        ValueError: shapes that do not fit together, an empty set, fewer than two classes, or
            features that hold NaN, infinity or numbers whose squares overflow.
    """
    x = as_rows("x", features)
    spread = class_spread(x, labels, device)
    if within is None:
        index, _ = class_index(labels, x.shape[0])
        within = moments_of({"x": x}, [], index, False, device, within=["x"]).within["x"]
    return ClassStatistics(**vars(spread), within=within * (spread.variances.any() / x.shape[0]))


def class_spread(features: Features, labels: ArrayLike, device: torch.device = CPU) -> ClassSpread:
    """The part of `class_statistics` that needs no d×d matrix; arguments and errors as there."""
    x = as_rows("x", features)
    index, counts = class_index(labels, x.shape[0])
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError("collapse is measured between classes: at least two are needed")
    own, number = (torch.from_numpy(a).to(device) for a in (index, counts))
    found = means_of("", x, own, number, False, device)
    square = float(found.square.mean())  # the mean over images of ‖x‖²
    sums = _sums_by_class(x, found, own)
    variances, along = sums[0] / counts, sums[1] / counts[:, None]

    means = found.classes.cpu().numpy()
    return _spread(classes, counts, means, variances, along, ROUNDING * square)


def spreads_of_subsets(
    x: Tensor, labels: ArrayLike, drawn: NDArray[np.intp]
) -> Iterator[ClassSpread | None]:
    """`class_spread` of subsets of the images; None for a subset with images of one class only.

    All draws of a class are one product. Each alone takes several times as long, most of which
    goes to the calls.

    Args:
        x: (m, d) features in float64.
        labels: (m,) class labels of any kind.
        drawn: (draws, b), the places of each subset's images, without duplicates.
    """
    index, counts = class_index(labels, len(x))
    classes = np.unique(labels)
    own, number = (torch.from_numpy(a).to(x.device) for a in (index, counts))
    found = means_of("", x, own, number, False, x.device)
    residuals = x - found.whole - found.classes[own]
    at_once = max(1, BLOCK_BYTES // (8 * len(classes) * x.shape[1]))
    for start in range(0, len(drawn), at_once):
        some = drawn[start : start + at_once]
        member = torch.zeros(len(some), len(x), dtype=x.dtype, device=x.device)
        member.scatter_(1, torch.from_numpy(some).to(x.device), 1)
        sums = _sums_of_subsets(residuals, found.classes, index, member)
        squares = (member @ found.square / some.shape[1]).tolist()
        for count, means, variances, along, square in zip(*sums, squares, strict=True):
            there = count > 0
            yield None if there.sum() < 2 else _spread(
                classes[there], count[there].astype(np.int64), means[there], variances[there],
                along[there][:, there], ROUNDING * square,
            )  # fmt: skip


def _sums_of_subsets(
    residuals: Tensor, centers: Tensor, index: NDArray[np.intp], member: Tensor
) -> list[Array]:
    """Counts (R, C), means (R, C, d), variances (R, C) and `along` (R, C, C) of R subsets.

    residuals (m, d) are the features minus the mean of their class, centers (C, d) these means,
    member (R, m) is 1 for the images of a subset. Classes without images have means of no sense.
    """
    # With δ the mean of the residuals of a class in the subset, sums over its n images there:
    #   Σ ‖x - μ‖² = Σ ‖r‖² - n ‖δ‖²,   Σ ((x - μ)·u)² = Σ (r·u)² - n (δ·u)².
    draws, classes = len(member), len(centers)
    counts, variances = member.new_zeros(2, draws, classes)
    shifts = member.new_zeros(draws, classes, residuals.shape[1])
    along = member.new_zeros(draws, classes, classes)
    squares = torch.linalg.vecdot(residuals, residuals)
    images = [torch.from_numpy(np.flatnonzero(index == c)).to(member.device)
              for c in range(classes)]  # fmt: skip
    for c, own in enumerate(images):
        counts[:, c] = member[:, own].sum(1)
        shifts[:, c] = member[:, own] @ residuals[own]
        variances[:, c] = member[:, own] @ squares[own]
    number = counts.clamp(min=1)
    shifts /= number[..., None]
    means = centers + shifts
    variances = variances / number - torch.linalg.vecdot(shifts, shifts)
    # What is left where images coincide, while others of their class do not, or of one image.
    variances[variances <= 1e-14 * squares.mean()] = 0
    for c, own in enumerate(images):
        ways = means - means[:, c, None]
        onto = (residuals[own] @ ways.flatten(0, 1).T).view(len(own), draws, classes)
        along[:, c] = torch.einsum("rn,nrk->rk", member[:, own], onto.square_())
        along[:, c] /= number[:, c, None]
        along[:, c] -= (shifts[:, c, None] @ ways.mT)[:, 0].square()
    return [found.numpy(force=True) for found in (counts, means, variances, along.clamp(min=0))]


def _spread(
    classes: NDArray[np.generic],
    counts: NDArray[np.int64],
    means: Array,
    variances: Array,
    along: Array,
    rounding: float,
) -> ClassSpread:
    """What is not larger than `rounding` becomes 0."""
    from scipy.spatial.distance import pdist, squareform

    # Not from the Gram matrix: rounding would put a distance between means that coincide.
    distances = squareform(pdist(means, "sqeuclidean"))
    means = means - means.mean(axis=0)
    means[np.einsum("ij,ij->i", means, means) <= rounding] = 0
    distances[distances <= rounding] = 0
    variances[variances <= rounding] = 0
    along[variances == 0] = 0
    return ClassSpread(classes, counts, means, variances, distances, along)


def _sums_by_class(x: RowSource, means: Means, index: Tensor) -> tuple[Array, Array]:
    """Sums over the images of each class: ‖x - μ_i‖² (C,), ((x - μ_i)·(μ_j - μ_i))² (C, C)."""
    classes = len(means.classes)
    squares, along = means.whole.new_zeros(classes), means.whole.new_zeros(classes, classes)
    for part in chunks_of(*x.shape):
        own = index[part]
        residuals = means.centred(x, part) - means.classes[own]
        squares.index_add_(0, own, torch.linalg.vecdot(residuals, residuals))
        projections = residuals @ means.classes.T
        projections -= projections.gather(1, own[:, None])
        along.index_add_(0, own, projections.square_())
    return squares.cpu().numpy(), along.cpu().numpy()


# Variance over distance


def cdnv(s: ClassSpread) -> float:
    """Class-distance normalized variance V_f: mean over pairs of (v_i + v_j) / (2 ‖μ_i - μ_j‖²).

    Galanti et al. 2021 (arXiv 2112.15121); P1, Proposition 1. This equals the mean of
    v_i / ‖μ_i - μ_j‖² over ordered pairs.

    Returns:
        0 (collapsed) or above; infinity where two class means coincide, even if v is 0.
    """
    return _mean_over_pairs(_over_distance(s, s.variances[:, None]))


def directional_cdnv(s: ClassSpread) -> float:
    """V~_f: CDNV with the variance along the line between the two means alone.

    P1, Proposition 1: mean over ordered pairs of E_{x~i}[((x - μ_i)·u_ij)²] / ‖μ_i - μ_j‖² with the
    unit vector u_ij = (μ_i - μ_j) / ‖μ_i - μ_j‖. (P1's project page has the square of the norm in
    u_ij. The authors' code has the norm, as here.)

    Returns:
        Between 0 and `cdnv`; infinity where two class means coincide.
    """
    return _mean_over_pairs(_over_distance(s, _over_distance(s, s.along)))


def cdnv_root(s: ClassSpread) -> float:
    """V_f^s: mean over ordered pairs of sqrt(v_i) / ‖μ_i - μ_j‖ (P1, Proposition 1).

    One line of P1 calls it an average of variances. The proof takes the roots, as here.

    Returns:
        0 or above; infinity where two class means coincide.
    """
    return _mean_over_pairs(np.sqrt(_over_distance(s, s.variances[:, None])))


def _over_distance(s: ClassSpread, values: Array) -> Array:
    """(C, C) values divided by ‖μ_i - μ_j‖², infinity where that is 0."""
    ratios = np.full_like(s.distances, np.inf)
    return np.divide(values, s.distances, out=ratios, where=s.distances > 0)


def _mean_over_pairs(values: Array) -> float:
    return float(_off_diagonal(values).mean())


def _off_diagonal(values: Array) -> Array:
    return values[~np.eye(len(values), dtype=bool)]


def within_class_spread(s: ClassSpread) -> float:
    """Share of the variance of all images that lies within classes: tr Σ_W / tr Σ_T.

    That is the mean of ‖x - μ_y‖² over images, divided by the mean of ‖x - μ‖² where μ is the mean
    of all images.

    Returns:
        In [0, 1], 0 when the images of each class coincide; NaN for constant features.
    """
    share = s.counts / s.counts.sum()
    within = share @ s.variances
    between = share @ np.square(s.means - share @ s.means).sum(axis=1)
    return float(within / (within + between)) if within + between > 0 else math.nan


# Neural collapse


def nc1(s: ClassStatistics) -> float:
    """NC1, variability collapse: tr(Σ_W Σ_B⁺) / C (Papyan).

    Σ_W is a mean over images. Σ_B is the mean over classes of (μ_c - μ)(μ_c - μ)ᵀ, where μ is the
    mean of the class means, so that all classes count equally even in unbalanced data. Variance in
    directions in which no class means differ is ignored.

    Returns:
        0 (collapsed) or above; the value of `nc1_quotient` when all class means coincide.
    """
    if not s.means.any():
        return nc1_quotient(s)
    # Σ_B⁺ = C V S⁻² Vᵀ from the singular values of the means.
    _, singular, v = np.linalg.svd(s.means, full_matrices=False)
    rank = np.count_nonzero(singular > max(s.means.shape) * np.finfo(float).eps * singular[0])
    directions = v[:rank] / singular[:rank, None]
    return float(np.einsum("ij,ij->", directions @ s.within, directions))


def nc1_quotient(s: ClassSpread) -> float:
    """A simpler form of NC1, tr Σ_W / tr Σ_B, with Σ_W and Σ_B as in `nc1`.

    Returns:
        0 (collapsed) or above; infinity when all class means coincide, NaN for constant features.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        within = s.counts @ s.variances / s.counts.sum()
        return float(within / np.square(s.means).sum(axis=1).mean())


def nc2_equinorm(s: ClassSpread) -> float:
    """NC2, equal norms: standard deviation over mean of ‖μ_c - μ‖ (Papyan, fig. 2).

    Returns:
        0 (collapsed) or above; NaN when all class means coincide.
    """
    norms = np.linalg.norm(s.means, axis=1)
    return float(norms.std() / norms.mean()) if norms.any() else math.nan


def nc2_equiangularity(s: ClassSpread) -> tuple[float, float]:
    """NC2: are the angles between class means equal, and as large as possible? (Papyan, figs. 3, 4)

    Returns:
        (standard deviation of the cosines, mean |cos + 1/(C - 1)|) over pairs of classes, both
        0 (collapsed) or above; NaN when `class_mean_cosines` holds NaN.
    """
    cosines = _off_diagonal(class_mean_cosines(s))
    return float(cosines.std()), float(np.abs(cosines + 1 / (len(s.counts) - 1)).mean())


def class_mean_cosines(s: ClassSpread) -> Array:
    """(C, C) cosines between the class means, after their average is subtracted.

    In [-1, 1]; NaN in the row and column of a class whose mean is the average.
    """
    with np.errstate(invalid="ignore"):
        directions = s.means / np.linalg.norm(s.means, axis=1, keepdims=True)
    cosines: Array = np.clip(directions @ directions.T, -1, 1)
    return cosines


def etf_deviation(s: ClassSpread) -> float:
    """Distance of the class means from a simplex ETF: ‖G - G_etf‖_F / ‖G_etf‖_F.

    G is `class_mean_cosines`. G_etf has 1 on the diagonal and -1/(C - 1) elsewhere. This is the
    condition of P1, Theorem 2, as the RepX library measures it.

    Returns:
        0 (an ETF) or above; NaN when `class_mean_cosines` holds NaN.
    """
    c = len(s.counts)
    etf = (c * np.eye(c) - 1) / (c - 1)
    return float(np.linalg.norm(class_mean_cosines(s) - etf) / np.linalg.norm(etf))


def nc3(s: ClassSpread, weights: ArrayLike) -> float:
    """NC3, self-duality: ‖W/‖W‖_F - M/‖M‖_F‖_F, M the centered class means (Papyan, fig. 5).

    Args:
        s: statistics of the features that the classifier is applied to.
        weights: (C, d) of a linear classifier, rows in the order of `s.classes`.

    Returns:
        In [0, 2], 0 when W and M are parallel; NaN when either is 0.

    Raises:
        ValueError: weights of another shape, or not finite.
    """
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != s.means.shape or not np.isfinite(w).all():
        raise ValueError(f"weights {w.shape} must be finite and of shape {s.means.shape}")
    if not w.any() or not s.means.any():
        return math.nan
    return float(np.linalg.norm(w / np.linalg.norm(w) - s.means / np.linalg.norm(s.means)))


def nc4(
    features: Features, labels: ArrayLike, predictions: ArrayLike, device: torch.device = CPU
) -> float:
    """NC4: how often a classifier disagrees with the nearest class center (Papyan, fig. 7).

    Args:
        features: (N, d).
        labels: (N,) classes of the images; the centers are their means.
        predictions: (N,) classes that the classifier predicts.
        device: where products are made.

    Returns:
        Share of images, in [0, 1], 0 when collapsed.

    Raises:
        ValueError: as `nccc`.
    """
    _, agreement = nccc(features, labels, features, predictions, device)
    return 1 - agreement


# All images together


def effective_rank(covariance: ArrayLike) -> float:
    """exp of the entropy of the normalized singular values of the centered features.

    Roy & Vetterli 2007. The singular values are the roots of the covariance's eigenvalues. Those
    that cannot be told from rounding errors count as 0.

    Args:
        covariance: (d, d), for instance `ClassStatistics.total` or `.within`, of any scale.

    Returns:
        In [1, rank]; NaN for constant features.

    Raises:
        ValueError: not a square matrix, or not finite.
    """
    covariance = np.asarray(covariance, dtype=np.float64)
    if covariance.ndim != 2 or len(set(covariance.shape)) != 1 or covariance.size == 0:
        raise ValueError(f"a covariance is (d, d), not {covariance.shape}")
    if not np.isfinite(covariance).all():
        raise ValueError("covariance holds NaN or infinity")
    eigenvalues = np.linalg.eigvalsh(covariance)
    tolerance = len(covariance) * np.finfo(float).eps * eigenvalues[-1]
    singular = np.sqrt(eigenvalues[eigenvalues > max(tolerance, 0)])
    if not singular.size:
        return math.nan
    p = singular / singular.sum()
    return float(np.exp(-(p * np.log(p)).sum()))
