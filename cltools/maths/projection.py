"""Features in the plane: principal components, UMAP, and pictures turned onto one another."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
UMAP_SEED = 123  # P1's


def principal_plane(features: ArrayLike) -> tuple[Array, float]:
    """The two principal components of features (n, d), and their share of the variance.

    Returns:
        Points (n, 2), centered; the second axis is 0 where d = 1. The point furthest out along each
        axis is on its positive side. The share is in [0, 1], NaN where all features coincide.

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
    """UMAP (McInnes et al. 2018) of standardized features (n, d), as P1 draws it: points (n, 2).

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
    """Points (n, 2) centered, scaled to a root mean square radius of 1, and turned onto others.

    The turn, which may mirror, brings them nearest to `onto` in the least squares (orthogonal
    Procrustes): nothing but their position, size and orientation changes. Points that all coincide
    come out as zeros.
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
