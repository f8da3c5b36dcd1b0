"""MoCo (He et al. 2020): a second network computes keys, and a queue holds them.

The trained network embeds the first views of a batch; these embeddings are the queries. The second
network embeds the second views, without a gradient; these are the keys. Its weights are an
exponential moving average of the trained ones. The positive of a query is the key of the same
image. Its negatives are other keys of this batch and of earlier batches in the queue: those of
other images for DCL, those of other classes for NSCL.

The original queue holds earlier keys only. There the authors shuffle images between GPUs, so that
batch statistics do not reveal which key is the positive. Here, statistics are those of the whole
batch, and the other keys of the batch are negatives too, as in SimCLR and MoCo v3.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cltools.config.projectors import z_width
from cltools.maths.objectives import KeyMasks
from cltools.runtime.devices import to_device
from cltools.training.batches import Batches
from cltools.training.compiled import compiled
from cltools.training.momentum import MomentumNetwork
from cltools.training.networks import Network


class KeyQueue:
    """The keys of one objective: the network that computes them, and the queue (batches, B, d).

    `network` must have the initial weights of the trained network. The keys of step t are stored at
    index t mod batches.
    """

    def __init__(self, network: Network, cell: dict[str, Any]) -> None:
        self._averaged = MomentumNetwork(network)
        self._momentum: float = cell["key_momentum"]
        self._forward = compiled(network, cell)
        shape = (
            cell["queue_size"] // cell["batch_size"],
            cell["batch_size"],
            z_width(cell, network.encoder.features),
        )
        self.keys = next(network.parameters()).new_zeros(shape)

    @property
    def network(self) -> Network:
        """The network that computes the keys."""
        return self._averaged.network

    def follow(self, trained: Network) -> None:
        """Move the weights towards the trained ones. BatchNorm statistics are not changed."""
        self._averaged.follow(trained, self._momentum)

    def keys_of(self, views: Tensor) -> Tensor:
        """The keys (B, d) of views (B, c, H, W)."""
        return self._forward(views)[1]

    def put(self, step: int, keys: Tensor) -> None:
        """Store the keys (B, d) of `step` in place of the oldest ones."""
        self.keys[step % len(self.keys)] = keys

    def until(self, step: int) -> Tensor:
        """All keys (M, d) in the queue once those of `step` are stored.

        Their images are `queued_positions`, in this order.
        """
        return self.keys[: step + 1].flatten(0, 1)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of everything that a resumed run needs."""
        yield "queue", self.keys
        yield from self._averaged.state()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Set the tensors that `state` gave; raises KeyError or RuntimeError if they do not fit."""
        self.keys.copy_(tensors["queue"])
        self._averaged.restore(tensors)


def queued_positions(batches: Batches, step: int, length: int) -> Tensor:
    """Positions (M,) of the images whose keys a queue of `length` batches holds at `step`.

    The images of `step` itself are included. The order is that of `KeyQueue.until`.
    """
    places = range(min(step + 1, length))
    steps = [step - (step - place) % length for place in places]
    return batches.positions(steps).flatten()


def key_masks(
    queued: Tensor, own: int, size: int, labels: Tensor, device: torch.device
) -> KeyMasks:
    """Which keys are negatives of the queries of a batch, on the device.

    Args:
        queued: `queued_positions` (M,); those from index `own` to `own + size` are the batch.
        labels: of all images of the training set.
    """
    anchors = queued[own : own + size]
    ids = [to_device(positions, device) for positions in (anchors, queued)]
    classes = [to_device(labels[positions], device) for positions in (anchors, queued)]
    return KeyMasks(
        own=own,
        other_image=ids[0][:, None] != ids[1],
        other_class=classes[0][:, None] != classes[1],
    )
