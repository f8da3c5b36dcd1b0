"""Networks compiled by torch. Steps are faster, and equal to plain ones up to rounding."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cltools.runtime.errors import InputError

CUDA_GRAPHS = "cuda_graphs"  # a value of the config key `compile`


Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def compiled(network: Forward, cell: Mapping[str, Any]) -> Forward:
    """The forward pass of a network, as the cell's key `compile` says. It uses its weights.

    - `false`: the network itself.
    - `true`: compiled when it is first called. Kernels are not chosen by timing them, so that every
      run computes the same bytes.
    - `cuda_graphs`: on a GPU, the kernels of the forward and the backward pass are also recorded at
      the first calls, and then launched all at once. What a call returns is copied out of the
      memory of the recording, which the next call overwrites. On a CPU nothing is recorded.

    A call raises InputError if the machine cannot compile.
    """
    if not cell["compile"]:
        return network
    # Imported here because it takes a second, and most cells are not compiled.
    from torch._dynamo.exc import TorchDynamoException

    recorded = cell["compile"] == CUDA_GRAPHS
    options: dict[str, Any] = {"deterministic": True}
    if recorded:
        options["triton.cudagraphs"] = True
    forward = torch.compile(network, fullgraph=True, dynamic=False, options=options)

    def call(images: Tensor) -> tuple[Tensor, Tensor]:
        if recorded:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            features, projected = forward(images)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"config key compile is {str(cell['compile']).lower()}, but this machine cannot "
                f"compile ({reason}): install a C++ compiler or set it to false"
            ) from None
        return (features.clone(), projected.clone()) if recorded else (features, projected)

    return call
