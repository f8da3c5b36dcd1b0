"""The two angles of P2's Figure 1 (arXiv 2510.08852): between weights, and between representations.

P2 draws both angles but does not publish how it defines them. The definitions here are ours.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike

from cltools.maths.alignment.features import chunks_of, inverse_norms, squares
from cltools.maths.blocks import CPU, Features, as_rows, read
from cltools.maths.weights import common_layers


def weight_angle(
    a: Mapping[str, ArrayLike],
    b: Mapping[str, ArrayLike],
    origin: Mapping[str, ArrayLike] | None = None,
) -> float:
    """Angle in degrees between the weights of two encoders.

    The layers that `weight_gap` compares are joined into one vector. With `origin`, the weights
    that both started from, it is the angle between the two paths w - w_0. Shared initial weights
    then do not make the angle smaller.

    Args:
        a, b, origin: the weights of models, name -> array.

    Returns:
        In [0, 180]; NaN when a vector is 0, as before the first step.

    Raises:
        ValueError: as `weight_gap`.
    """
    layers = common_layers(a, b)
    if origin is not None:
        common_layers(a, origin)
    dot = squares = other = 0.0
    for name in layers:
        w, v = (np.asarray(x[name], dtype=np.float64).ravel() for x in (a, b))
        if origin is not None:
            start = np.asarray(origin[name], dtype=np.float64).ravel()
            w, v = w - start, v - start
        dot, squares, other = dot + float(w @ v), squares + float(w @ w), other + float(v @ v)
    if squares == 0 or other == 0:
        return float("nan")
    return float(np.degrees(np.arccos(np.clip(dot / np.sqrt(squares * other), -1, 1))))


def similarity_angle(cka: float) -> float:
    """Angle in degrees between two centered matrices of cosine similarities, from their CKA.

    The cosine of this angle is the papers' CKA (centered kernel alignment: biased, on cosines).
    Rotating either representation does not change it. In [0, 90]; NaN where CKA is NaN.
    """
    return float(np.degrees(np.arccos(np.clip(cka, -1, 1))))


def feature_angle(a: Features, b: Features, device: torch.device = CPU) -> float:
    """Mean over images of the angle between their two feature vectors, in degrees.

    Unlike `similarity_angle`, it also grows when one representation rotates. It is only
    meaningful for networks that share their initial weights.

    Args:
        a, b: (N, d) and (N, d').
        device: where cosines are computed, in float64.

    Returns:
        In [0, 180], over images whose features have a norm above 0 in both. NaN if there are no
        such images, or if d and d' differ.

    Raises:
        ValueError: the numbers of images differ, or the features cannot be squared.
    """
    rows, other = (as_rows(name, x) for name, x in (("a", a), ("b", b)))
    if rows.shape[0] != other.shape[0]:
        raise ValueError(f"features {rows.shape} and {other.shape} are of different images")
    if rows.shape != other.shape:
        return float("nan")
    scales = [inverse_norms(squares(name, x, device)) for name, x in (("a", rows), ("b", other))]
    total, images = 0.0, 0
    for part in chunks_of(*rows.shape):
        both = (scales[0][part] > 0) & (scales[1][part] > 0)
        unit = [
            read(x, part, device)[both] * scale[part][both, None]
            for x, scale in zip((rows, other), scales, strict=True)
        ]
        angles = torch.linalg.vecdot(*unit).clamp(-1, 1).arccos()
        total, images = total + float(angles.sum()), images + len(angles)
    return float(np.degrees(total / images)) if images else float("nan")
