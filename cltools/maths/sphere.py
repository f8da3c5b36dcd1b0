"""Embeddings on the unit sphere: how close the views of an image are, how evenly all are spread.

Everything is computed in float64, block by block and on any device. float32 would not do for
uniformity: the cosine of two unit vectors would be off by about 1e-7, and e to a multiple of it by
as much.

Wang & Isola is Wang & Isola 2020 (arXiv 2005.10242).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cltools.maths.blocks import (
    CPU,
    Features,
    RowSource,
    as_rows,
    blocks_of,
    is_float32,
    read,
    take,
    working_bytes,
)

# From more images, uniformity is that of a random sample of so many.
MOST_IMAGES = 65536
COINCIDE = 1e-24  # mean squared distance; a smaller one cannot be told from rounding errors

Views = ArrayLike | Tensor | Sequence[RowSource]  # (K, N, d), or K times (N, d)


def as_views(name: str, z: Views) -> list[RowSource]:
    """K ≥ 2 views of N images, from an array (K, N, d) or a list of K features (N, d).

    Raises:
        ValueError: fewer than two views, views that differ in shape, or as `as_rows`.
    """
    if isinstance(z, Tensor | np.ndarray) and z.ndim != 3:
        raise ValueError(f"{name} {tuple(z.shape)} must be (K, N, d)")
    views = [as_rows(name, view) for view in z]  # type: ignore[union-attr]
    shapes = {tuple(view.shape) for view in views}
    if len(shapes) > 1:
        raise ValueError(f"the views of {name} differ in shape: {sorted(shapes)}")
    if len(views) < 2:
        raise ValueError(f"{name} needs K ≥ 2 views of each image, (K, N, d)")
    return views


@torch.no_grad()
def view_distance(z: Views, device: torch.device = CPU) -> tuple[float, float]:
    """Mean squared distance 2 - 2 cos between the views of one image.

    The first number is the alignment of Wang & Isola (α = 2).

    Args:
        z: K ≥ 2 views of N images, (K, N, d) or K sources (N, d); rows are normalized here.
        device: where it is computed.

    Returns:
        The distance, in [0, 4], and the same divided by the mean distance between views of
        different images. Both are 0 when the views coincide. The second is about 1 when views of
        one image are no closer than views of different images. Both are NaN when a row has norm 0.
        The second is also NaN when N = 1 or when all images coincide.

    Raises:
        ValueError: not (K, N, d) with K ≥ 2, or not finite.
    """
    views = as_views("z", z)
    count, (images, d) = len(views), views[0].shape
    # Between n points, Σ_ij ‖a_i - a_j‖² = 2n Σ_i ‖a_i - ā‖²: exact when they nearly coincide.
    same = torch.zeros((), dtype=torch.float64, device=device)
    total = torch.zeros(d, dtype=torch.float64, device=device)
    for part in _parts(images, count * d, device):
        unit = _unit(views, part, device)
        same += (unit - unit.mean(0)).square().sum()
        total += unit.sum((0, 1))
    mean = total / (count * images)
    every = sum(
        (_unit(views, part, device) - mean).square().sum()
        for part in _parts(images, count * d, device)
    )
    within, between = 2 * count * same.item(), 2 * count * images * float(every)
    distance = within / (images * count * (count - 1))
    if images == 1:
        return distance, math.nan
    random = (between - within) / (images * (images - 1) * count**2)
    return distance, distance / random if random > COINCIDE else math.nan


class Uniformity(NamedTuple):
    """The value, and its standard error: 0 if all images were compared."""

    value: float
    standard_error: float


@torch.no_grad()
def uniformity(
    z: Features,
    t: float = 2.0,
    device: torch.device = CPU,
    block: int | None = None,
    most: int | None = None,
    seed: int = 0,
) -> Uniformity:
    """log of the mean over i ≠ j of exp(-t ‖z_i - z_j‖²) (Wang & Isola).

    Of more than `most` images, a random sample of so many is compared. The mean over its pairs is a
    U-statistic; its variance is estimated from the means g_i over the pairs of each image,
    4 Var(g) / n (Hoeffding 1948), times the share of images that are not in the sample.

    Args:
        z: (N, d), in memory or read from a file; rows are normalized here.
        t: above 0; the paper has 2.
        device: where it is computed.
        block: rows of one product of block × block; by default 512 on a CPU, so that a product
            stays in its cache, and 8192 on a GPU.
        most: images that are compared, at least 2; by default `MOST_IMAGES`.
        seed: draws the sample.

    Returns:
        In [-4t, 0]. Lower is more uniform, 0 means that all rows coincide. NaN when N = 1 or when
        a row has norm 0. The standard error is that of the logarithm.

    Raises:
        ValueError: not (N, d), or not finite, or t not above 0.
    """
    x = as_rows("z", z)
    if not t > 0:
        raise ValueError(f"t must be above 0, not {t}")
    images, most = x.shape[0], most or MOST_IMAGES
    if images > most:
        chosen = np.sort(np.random.default_rng(seed).choice(images, most, replace=False))
        x = take(x, chosen, device, torch.float32 if is_float32(x) else torch.float64)
    n = x.shape[0]
    if n == 1:
        return Uniformity(math.nan, math.nan)
    sums = _potentials(x, t, block or (512 if device.type == "cpu" else 8192), device)
    mean = sums.sum() / (n * (n - 1))
    spread = (sums / (n - 1)).std() / mean
    error = 2 * spread / math.sqrt(n) * math.sqrt(max(0.0, 1 - n / images))
    return Uniformity(float(mean.log()), float(error))


def _potentials(x: RowSource, t: float, block: int, device: torch.device) -> Tensor:
    """Sums (n,) over the other images of exp(-t ‖z_i - z_j‖²); each pair is computed once."""
    n = x.shape[0]
    parts = [slice(start, min(start + block, n)) for start in range(0, n, block)]
    norms = torch.cat([_finite(x, part, device).norm(dim=1) for part in parts])
    sums = torch.zeros(n, dtype=torch.float64, device=device)
    # exp(-t ‖a - b‖²) = 2^(s (cos - 1)). torch computes 2^x in 0.4 of the time of e^x, as exactly.
    s = 2 * t * math.log2(math.e)
    for i, rows in enumerate(parts):
        left = read(x, rows, device) * (s / norms[rows])[:, None]
        for columns in parts[i:]:
            right = read(x, columns, device) / norms[columns][:, None]
            terms = torch.addmm(left.new_tensor(-s), left, right.T).exp2_()
            if columns == rows:
                sums[rows] += terms.sum(1) - terms.diagonal()
            else:
                sums[rows] += terms.sum(1)
                sums[columns] += terms.sum(0)
    return sums


def _parts(images: int, width: int, device: torch.device) -> list[slice]:
    return blocks_of(images, width, working_bytes(device))


def _unit(views: Sequence[RowSource], part: slice, device: torch.device) -> Tensor:
    """These images (K, n, d) with rows divided by their norm; NaN where that is 0."""
    x = torch.stack([_finite(view, part, device) for view in views])
    norms: Tensor = x.norm(dim=2, keepdim=True)
    return x / norms


def _finite(x: RowSource, part: slice, device: torch.device) -> Tensor:
    rows = read(x, part, device)
    if not rows.sum().isfinite():
        raise ValueError("z holds NaN or infinity")
    return rows
