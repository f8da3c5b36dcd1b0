"""Features in two dimensions: principal components, UMAP, and rotation of points onto others."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
UMAP_SEED = 123  # that of P1 (arXiv 2506.04411)


def principal_plane(features: ArrayLike) -> tuple[Array, float]:
    """The two principal components of features (n, d), and their share of the variance.

    Returns:
        Points (n, 2) with mean 0, and the share in [0, 1]. The second axis is 0 where d = 1. Signs
        are chosen so that the point furthest out along an axis is on its positive side. The share
        is NaN where all features coincide.

    Raises:
        ValueError: not (n, d), empty, or not finite.
    """
    x = _checked(features)
    centred = x - x.mean(axis=0)
    u, singular, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(x), 2))
    kept = min(2, len(singular))
    points[:, :kept] = u[:, :kept] * singular[:kept]
    furthest = points[np.abs(points).argmax(axis=0), (0, 1)]
    total = np.square(singular).sum()
    share = float(np.square(singular[:2]).sum() / total) if total > 0 else np.nan
    return points * np.where(furthest < 0, -1, 1), share


def umap_plane(features: ArrayLike) -> Array:
    """UMAP (McInnes et al. 2018) of standardized features (n, d) with P1's settings: points (n, 2).

    Raises:
        ModuleNotFoundError: umap-learn is not installed.
        ValueError: as `principal_plane`.
    """
    from umap import UMAP

    x = _checked(features)
    spread = x.std(axis=0)
    standard = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)
    umap = UMAP(n_components=2, random_state=UMAP_SEED, n_jobs=1)
    return np.asarray(umap.fit_transform(standard), dtype=np.float64)


def turned(points: Array, onto: Array | None = None) -> Array:
    """Points (n, 2) moved to mean 0, scaled to a root mean square radius of 1, and rotated.

    The rotation, which may include a reflection, brings them as near as possible to the points
    `onto` by least squares (orthogonal Procrustes). So only position, size and orientation change.
    Without `onto` nothing is rotated. Points that all coincide give zeros.
    """
    points = points - points.mean(axis=0)
    radius = np.sqrt(np.square(points).sum(axis=1).mean())
    points = points / radius if radius > 0 else points
    if onto is None:
        return points
    u, _, v = np.linalg.svd(points.T @ onto)
    nearest: Array = points @ (u @ v)
    return nearest


def _checked(features: ArrayLike) -> Array:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"features {x.shape} must be (n, d) and finite")
    return x
