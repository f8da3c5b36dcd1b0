"""MoCo (He et al. 2020): keys from a network that follows the trained one, and a queue of them.

The trained network embeds the first view of a batch, the queries; a second one, whose weights are
an exponential mean of the first one's, embeds the second view without a gradient, the keys. A
query's positive is the key of its own image; its negatives are keys of this batch and of those
before it, as many as the queue holds: those of other images for DCL, of other classes for NSCL.

MoCo's queue holds past keys only, and its authors shuffle images between GPUs so that batch
statistics do not tell the positive from the rest. Here statistics are of the whole batch, and its
other keys, which share them, stand among the negatives, as they do in SimCLR and in MoCo v3.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cltools.maths.objectives import KeyMasks
from cltools.runtime.devices import to_device
from cltools.training.batches import Batches
from cltools.training.networks import Network


class KeyQueue:
    """The keys of one objective: the network that makes them, and the queue (batches, B, d).

    `network` starts as the trained one does; batch t is kept in place t mod batches.
    """

    def __init__(self, network: Network, cell: dict[str, Any]) -> None:
        self.network = network.requires_grad_(False).train()
        self._follow = get_ema_multi_avg_fn(cell["key_momentum"])  # type: ignore[no-untyped-call]
        shape = (
            cell["queue_size"] // cell["batch_size"],
            cell["batch_size"],
            cell["projector_dim"],
        )
        self.keys = next(network.parameters()).new_zeros(shape)

    def follow(self, trained: Network) -> None:
        """Move the weights towards the trained ones. Batch statistics are the network's own."""
        self._follow(list(self.network.parameters()), list(trained.parameters()), None)

    def put(self, step: int, keys: Tensor) -> None:
        """Keys (B, d) of `step`'s batch take the place of the oldest."""
        self.keys[step % len(self.keys)] = keys

    def until(self, step: int) -> Tensor:
        """(M, d) keys in the queue when those of `step` are there, of `queued_positions`."""
        return self.keys[: step + 1].flatten(0, 1)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors by name: all that a resumed run needs."""
        yield "queue", self.keys
        for name, tensor in self.network.state_dict().items():
            yield f"network/{name}", tensor

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` gave; raises KeyError or RuntimeError if it does not fit."""
        self.keys.copy_(tensors["queue"])
        weights = {k.removeprefix("network/"): v for k, v in tensors.items() if k != "queue"}
        self.network.load_state_dict(weights)


def queued_positions(batches: Batches, step: int, length: int) -> Tensor:
    """(M,) positions of the images whose keys a queue of `length` batches holds at `step`.

    Those of `step` itself are there; places are those of `KeyQueue`.
    """
    places = range(min(step + 1, length))
    steps = [step - (step - place) % length for place in places]
    return batches.positions(steps).flatten()


def key_masks(
    queued: Tensor, own: int, size: int, labels: Tensor, device: torch.device
) -> KeyMasks:
    """Which keys are negatives of the queries of a batch, on the device.

    queued: (M,) `queued_positions`; those of the batch are `size` from number `own` on. labels: of
    all images.
    """
    anchors = queued[own : own + size]
    ids = [to_device(positions, device) for positions in (anchors, queued)]
    classes = [to_device(labels[positions], device) for positions in (anchors, queued)]
    return KeyMasks(
        own=own,
        other_image=ids[0][:, None] != ids[1],
        other_class=classes[0][:, None] != classes[1],
    )
