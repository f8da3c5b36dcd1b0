"""How far apart two trained encoders lie in weight space (P2, arXiv 2510.08852, Figs. 1 and 6)."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike


def weight_gap(
    a: Mapping[str, ArrayLike], b: Mapping[str, ArrayLike]
) -> tuple[float, dict[str, float]]:
    """Mean over layers of ‖w - w'‖_F / ((‖w‖_F + ‖w'‖_F) / 2), as in the authors' code.

    The layers are the tensors named "encoder.*.weight": kernels and scales of normalization layers,
    but no biases and no heads. The gap of a layer lies in [0, 2]: 0 for equal weights, even if all
    are 0; 2 for opposite ones; sqrt(2) for orthogonal ones of equal norm.

    Args:
        a, b: the weights of two models, name -> array.

    Returns:
        The mean, and layer -> gap.

    Raises:
        ValueError: the encoders differ in layers or shapes, or there is no layer.
    """
    gaps = {name: _layer_gap(a[name], b[name]) for name in common_layers(a, b)}
    return float(np.mean(list(gaps.values()))), gaps


def weight_distance(a: Mapping[str, ArrayLike], b: Mapping[str, ArrayLike]) -> float:
    """‖w - w'‖₂ over all trained weights of the encoder and projector, as in P2's Theorem 2.

    Running statistics of BatchNorm are not trained and left out, as is the head that only CE has.

    Raises:
        ValueError: the models differ in names or shapes.
    """
    names = _trained(a)
    if {n: np.shape(a[n]) for n in names} != {n: np.shape(b[n]) for n in _trained(b)}:
        raise ValueError("the two models differ in names or shapes of their weights")
    squares = (np.square(np.subtract(a[n], b[n], dtype=np.float64)).sum() for n in names)
    return float(np.sqrt(sum(squares)))


def _trained(weights: Mapping[str, ArrayLike]) -> list[str]:
    parts = ("encoder.", "projector.")
    statistics = (".running_mean", ".running_var", ".num_batches_tracked")
    return sorted(n for n in weights if n.startswith(parts) and not n.endswith(statistics))


def common_layers(a: Mapping[str, ArrayLike], b: Mapping[str, ArrayLike]) -> list[str]:
    """Names of the layers that `weight_gap` compares.

    Raises:
        ValueError: as `weight_gap`.
    """
    layers = _encoder_layers(a)
    if layers != _encoder_layers(b):
        odd = sorted(set(layers.items()) ^ set(_encoder_layers(b).items()))
        raise ValueError(f"the two encoders differ in their layers: {odd[:4]}")
    if not layers:
        raise ValueError("no tensor is named 'encoder.*.weight'")
    return list(layers)


def _encoder_layers(weights: Mapping[str, ArrayLike]) -> dict[str, tuple[int, ...]]:
    return {
        name: np.shape(w)
        for name, w in weights.items()
        if name.startswith("encoder.") and name.endswith(".weight")
    }


def _layer_gap(w: ArrayLike, other: ArrayLike) -> float:
    w, other = np.asarray(w, dtype=np.float64), np.asarray(other, dtype=np.float64)
    mean_norm = (np.linalg.norm(w) + np.linalg.norm(other)) / 2
    return float(np.linalg.norm(w - other) / mean_norm) if mean_norm > 0 else 0.0
