"""What networks and their layers put out, as one vector for each image."""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cltools.runtime.errors import InputError

POOLING = "mean over positions"  # of maps and tokens, in what files say of features


class Outputs:
    """The features of a network, or what some of its modules put out.

    A call maps images (n, c, h, w) to arrays (n, d) by layer; the layer is "" where the features of
    the network as a whole are meant. Maps (n, c, h, w) and tokens (n, t, c) are averaged over
    positions. Of a module that a pass calls several times, this is the last output.

    Args:
        network: in eval mode.
        layers: names of modules, as `named_modules` has them; none for the features.
        channels_last: whether maps are (n, h, w, c).
        before: the name of a module whose input is the features; None if they are the output.

    Raises InputError for a name that no module has.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str] = (),
        channels_last: bool = False,
        before: str | None = None,
    ) -> None:
        self.network, self.layers = network, list(layers) or [""]
        self.shapes: dict[str, list[int]] = {}  # layer -> shape of what it put out for an image
        self._found: dict[str, Tensor] = {}
        keep = partial(self._keep, channels_last=channels_last)
        if layers:
            for layer in layers:
                _module(network, layer).register_forward_hook(_of_output(partial(keep, layer)))
        elif before is not None:
            _module(network, before).register_forward_pre_hook(_of_input(partial(keep, "")))
        else:
            network.register_forward_hook(_of_output(partial(keep, "")))

    def _keep(self, layer: str, output: Any, channels_last: bool) -> None:
        self._found[layer], self.shapes[layer] = _pooled(layer, output, channels_last)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features (n, d) by layer. Raises InputError for what is no map, tokens or vector."""
        self._found = {}
        self.network(images)
        if unused := [layer for layer in self.layers if layer not in self._found]:
            raise InputError(
                f"--layers {unused[0]} takes no part in the features: choose another layer"
            )
        return {layer: self._found[layer] for layer in self.layers}


def _of_output(keep: Callable[[Any], None]) -> Callable[..., None]:
    return lambda module, inputs, output: keep(output)


def _of_input(keep: Callable[[Any], None]) -> Callable[..., None]:
    return lambda module, inputs: keep(inputs)


def _module(network: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(network.named_modules())
    if not name or name not in modules:
        close = difflib.get_close_matches(name, list(modules), n=1)
        children = ", ".join(child for child, _ in network.named_children())
        near = f"did you mean {close[0]}?" if close else f"it has {children}"
        raise InputError(f"--layers {name!r} is no layer of the model: {near}")
    return modules[name]


def _pooled(layer: str, output: Any, channels_last: bool) -> tuple[Tensor, list[int]]:
    """(n, d) of an output, and its shape for one image.

    It is copied where it is not averaged, since later layers may write into it.
    """
    found = next((leaf for leaf in tree_leaves(_plain(output)) if isinstance(leaf, Tensor)), None)
    if found is None or found.ndim not in (2, 3, 4):
        shape = "nothing" if found is None else f"an array of {found.ndim} dimensions"
        what = f"--layers {layer}" if layer else "the model"
        raise InputError(
            f"{what} puts out {shape}, not a vector, tokens or a map for each image: choose "
            f"{'another layer' if layer else 'a layer with --layers'}"
        )
    mean = pooled(found.float(), channels_last)
    return mean.clone() if found.ndim == 2 else mean, list(found.shape[1:])


def pooled(out: Tensor, channels_last: bool = False) -> Tensor:
    """One vector (n, d) for each image: the mean over the pixels of maps (n, d, h, w), or of maps
    (n, h, w, d), or over the tokens (n, t, d); vectors stay as they are.

    Raises ValueError for another number of dimensions.
    """
    if out.ndim == 4:
        return out.mean(dim=(1, 2) if channels_last else (2, 3))
    if out.ndim == 3:
        return out.mean(dim=1)
    if out.ndim == 2:
        return out
    raise ValueError(f"a layer puts out {tuple(out.shape)}: neither vectors nor tokens nor maps")


def _plain(output: Any) -> Any:
    """The main output of a model of transformers, anything else as it is."""
    for name in ("pooler_output", "last_hidden_state"):
        if isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)
    return output


def linear_layers(network: nn.Module) -> list[str]:
    """The names of the linear layers, in their order: of a classifier, the last is its head."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
