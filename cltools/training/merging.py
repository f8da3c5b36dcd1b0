"""Interpolation between the weights of two networks."""

from collections.abc import Mapping

import torch
from torch import Tensor


def interpolate(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], weight: float
) -> dict[str, Tensor]:
    """(1 - weight)·a + weight·b for floating-point tensors; all other tensors are those of `a`.

    The result is exactly `a` at weight 0 and exactly `b` at weight 1. Values that are equal in both
    do not change.

    Raises:
        ValueError: `a` and `b` differ in names or shapes.
    """
    odd = sorted(a.keys() ^ b.keys() or {name for name in a if a[name].shape != b[name].shape})
    if odd:
        raise ValueError(f"the two networks differ in their tensors: {odd[:4]}")
    return {
        name: torch.lerp(tensor, b[name], weight) if tensor.is_floating_point() else tensor
        for name, tensor in a.items()
    }
