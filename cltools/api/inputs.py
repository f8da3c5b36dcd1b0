"""What callers hand in (lists, arrays, tensors, anything NumPy understands) as tensors and arrays.

All errors are ValueErrors of one sentence.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Numbers = ArrayLike | Tensor | Sequence[Tensor]
Labels = ArrayLike | Tensor | Sequence[Any]  # of classes: numbers or text


def stored(name: str, values: Numbers) -> Tensor | NDArray[Any]:
    """The values as a tensor or array, without a copy where they are one; (N, d) or of any shape.

    Raises ValueError for what holds no real numbers.
    """
    values = _joined(name, values)
    if isinstance(values, Tensor):
        if values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f"{name} must hold real numbers, not {values.dtype}")
        return values
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"the rows of {name} must be of one length") from None
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must hold real numbers, not {array.dtype}")
    return array


def _joined(name: str, values: Any) -> Any:
    """A list of tensors as one tensor; everything else as it is."""
    if not isinstance(values, list | tuple) or not any(isinstance(x, Tensor) for x in values):
        return values
    try:
        return torch.stack(list(values))
    except (RuntimeError, TypeError):
        raise ValueError(
            f"the rows of {name} must be tensors of one length, on one device"
        ) from None


def precise(name: str, values: Numbers) -> Tensor:
    """The values as a tensor of float32, or of float64 where they are; it keeps a gradient.

    Whole numbers of an array become float64. Raises ValueError as `stored`.
    """
    found = stored(name, values)
    if isinstance(found, Tensor):
        return found if found.dtype == torch.float64 else found.float()
    single = np.result_type(found.dtype, np.float32) == np.float32
    # A copy: torch takes no read-only, reversed or byte-swapped arrays.
    return torch.from_numpy(np.array(found, dtype=np.float32 if single else np.float64, order="C"))


def features(name: str, values: Numbers) -> Tensor | NDArray[Any]:
    """The values for `cltools.maths`, which reads rows from it: no gradient, on a CPU or with CUDA.

    Only these have the float64 that measures are computed in. Raises ValueError as `stored`.
    """
    found = stored(name, values)
    if isinstance(found, Tensor):
        found = found.detach()
        return found if found.device.type in ("cpu", "cuda") else found.cpu()
    return found


def device_of(*arrays: Tensor | NDArray[Any]) -> torch.device:
    """Where to measure: the GPU that one of the arrays is on, else the CPU."""
    found = (x.device for x in arrays if isinstance(x, Tensor) and x.device.type == "cuda")
    return next(found, torch.device("cpu"))


def class_labels(labels: Labels | None) -> NDArray[Any]:
    """The labels as numbers or text; raises ValueError where some or all are missing."""
    if labels is None:
        raise ValueError("labels are missing: give the class of each image")
    labels = _joined("labels", labels)
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = (labels.double() if labels.is_floating_point() else labels).numpy()
    found = np.asarray(labels)
    if found.dtype.kind == "f":
        absent = bool(np.isnan(found).any())
    else:
        absent = found.dtype.kind == "O" and any(map(_is_absent, found.ravel()))
    if absent:
        raise ValueError("labels are missing for some images (NaN or None): leave these images out")
    return found.astype(np.str_) if found.dtype.kind == "O" else found


def _is_absent(value: object) -> bool:
    try:
        return value is None or bool(value != value)  # NaN
    except TypeError:  # pandas' NA is neither equal to itself nor not
        return True
