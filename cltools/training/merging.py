"""Networks between two networks: weights on the line from one to the other."""

from collections.abc import Mapping

import torch
from torch import Tensor


def interpolate(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], weight: float
) -> dict[str, Tensor]:
    """(1 - weight)·a + weight·b of every floating tensor; the others are those of `a`.

    Exactly `a` at weight 0 and exactly `b` at weight 1; what is equal in both stays exactly so.

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
