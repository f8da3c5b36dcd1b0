"""What every layer of a network puts out, one vector for each image.

The layers are the stem, the blocks of the encoder, its features h, the hidden layer of the
projector, and z. A layer of a residual network puts out a map of h' x w' pixels, of which the mean
over pixels is taken, as h is the mean of the last block's. A layer of a vision transformer puts out
tokens, of which the mean is taken too; its h is the class token alone.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from cltools.models.outputs import pooled
from cltools.training.networks import Network


def layers_of(network: Network) -> list[str]:
    """The names of a network's layers, from the images on.

    >>> from cltools.config.cells import resolve_cell
    >>> from cltools.training.networks import build_network
    >>> cell = resolve_cell({"dataset": "d", "recipe": "digits", "architecture": "small_resnet",
    ...                      "horizon": 1})
    >>> layers_of(build_network(cell, (8, 8, 1), 10, "dcl"))
    ['stem', 'layer1.0', 'layer2.0', 'h', 'projector', 'z']
    """
    return [*network.encoder.layers(), "h", *network.projector.layers(), "z"]


class Taps:
    """Lets a network say what its layers put out, within a `with` block.

    network: in evaluation mode, if layers are to be those of single images.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._found: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        parts = {**self._network.encoder.layers(), **self._network.projector.layers()}
        for name, module in parts.items():
            self._handles.append(module.register_forward_hook(self._keep(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def of(self, images: Tensor) -> dict[str, Tensor]:
        """Layer -> (n, d) float32 for images (n, c, h, w), in the order of `layers_of`."""
        h, z = self._network(images)
        found = {**self._found, "h": h, "z": z}
        self._found = {}
        return {name: found[name].float() for name in layers_of(self._network)}

    def _keep(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, given: object, out: Tensor) -> None:
            self._found[name] = pooled(out)

        return hook
