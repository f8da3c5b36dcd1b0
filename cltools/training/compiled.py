"""Networks compiled by torch. Steps are faster, and equal to plain ones up to rounding."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cltools.runtime.errors import InputError


def compiled(network: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The network's forward pass, compiled when it is first called. It uses the network's weights.

    Kernels are not chosen by timing them, so that every run computes the same bytes. A call raises
    InputError if the machine cannot compile.
    """
    # Imported here because it takes a second, and most cells are not compiled.
    from torch._dynamo.exc import TorchDynamoException

    forward = torch.compile(network, fullgraph=True, dynamic=False, options={"deterministic": True})

    def call(images: Tensor) -> tuple[Tensor, Tensor]:
        try:
            features: tuple[Tensor, Tensor] = forward(images)
            return features
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"config key compile is true, but this machine cannot compile ({reason}): install "
                "a C++ compiler or set it to false"
            ) from None

    return call
