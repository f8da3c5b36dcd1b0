"""The batches of a training run: the images of each step, and their views.

Both depend on the cell and the step only (see `cltools.maths.randomness`). The cell's `coupling`
says whether all models share the batches and the views. What they do not share is drawn separately
for each model.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cltools.data.image_set import ImageSet
from cltools.data.views import EpochViews, Recipe, epoch_views
from cltools.maths.objectives import REFERENCE, TWIN
from cltools.maths.randomness import balanced_order, batch_order
from cltools.runtime.errors import InputError
from cltools.training.distributed import Ranks

SOURCES = {"init", "batches", "views"}


def owner(cell: dict[str, Any], model: str, source: str) -> str | None:
    """The name that seeds a model's draws of a source (init, batches or views).

    None stands for the shared draws. DCL, the reference model, always takes these. In a cell that
    shares everything, the second DCL model shares the initial weights only: it would be the first.
    """
    shared = set(cell["coupling"])
    if model == TWIN and shared == SOURCES:
        shared = {"init"}
    return None if model == REFERENCE or source in shared else model


def batches_of_models(
    cell: dict[str, Any], data: ImageSet, device: torch.device, ranks: Ranks
) -> dict[str, "Batches"]:
    """Objective -> its batches; one object for all objectives that share batches and views."""
    shared = Batches(cell, data, device, ranks=ranks)
    found = {}
    for model in cell["objectives"]:
        private = any(owner(cell, model, source) for source in ("batches", "views"))
        found[model] = Batches(cell, data, device, model, ranks) if private else shared
    return found


class Batches:
    """The batches of one cell, by step.

    `model` matters only where a model does not share everything with DCL. Where ranks split the
    batch, each makes the views of its part.

    Raises InputError when the batch is larger than the training set, or when the number of ranks
    that split it does not divide it.
    """

    def __init__(
        self,
        cell: dict[str, Any],
        data: ImageSet,
        device: torch.device,
        model: str = REFERENCE,
        ranks: Ranks | None = None,
    ) -> None:
        if cell["batch_size"] > len(data.labels):
            raise InputError(
                f"config key batch_size is {cell['batch_size']}, but the training set of this cell "
                f"has {len(data.labels)} images: lower batch_size"
            )
        self.ranks = ranks or Ranks()
        if cell["batch_size"] % self.ranks.parts:
            raise InputError(
                f"config key batch_size is {cell['batch_size']}, which {self.ranks.parts} ranks "
                f"cannot share evenly: make it a multiple of {self.ranks.parts}, or start another "
                "number of ranks"
            )
        self.cell, self.data, self.device, self.model = cell, data, device, model
        self.owners = {source: owner(cell, model, source) for source in ("batches", "views")}
        self.recipe = Recipe.from_settings(cell["recipe"])
        self.steps_per_epoch = len(data.labels) // cell["batch_size"]
        self._epochs: dict[int, tuple[Tensor, EpochViews]] = {}
        self._begun: dict[int, tuple[Tensor, Callable[[], Tensor]]] = {}
        self._orders: dict[int, Tensor] = {}

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Views of `step`, and the images they are of.

        Returns:
            views (K*B, c, H, W), standardized, first all first views, then all second ones; only
            those of this rank's part of the batch; on the device.
            positions (B,) in the training set of the images of the whole batch, on the CPU.
        """
        wanted = range(step, step + 1 + self.data.ahead)
        epochs = {later // self.steps_per_epoch for later in wanted}
        self._epochs = {e: drawn for e, drawn in self._epochs.items() if e in epochs}
        self._begun = {later: self._begun.get(later) or self._begin(later) for later in wanted}
        positions, views = self._begun.pop(step)
        return self.data.normalize(views()), positions

    def close(self) -> None:
        """Drop the batches that were started in advance."""
        self._begun.clear()

    def _begin(self, step: int) -> tuple[Tensor, Callable[[], Tensor]]:
        """Positions (B,) of the images of `step`, and a function that waits for their views."""
        order, views = self.epoch_of(step)
        positions = order[step % self.steps_per_epoch]
        own = self.ranks.share(positions)
        parameters = views.rows(slice(None), own)
        return positions, self.data.views(own, parameters, self.recipe)

    def positions(self, steps: Sequence[int]) -> Tensor:
        """Positions (steps, B) of the images of any steps, without their views."""
        places = [divmod(step, self.steps_per_epoch) for step in steps]
        epochs, known = {epoch for epoch, _ in places}, self._orders
        self._orders = {e: known[e] if e in known else self._order_of(e) for e in epochs}
        return torch.stack([self._orders[epoch][place] for epoch, place in places])

    def labels(self, steps: int) -> Tensor:
        """Classes (steps, B) of the images of the first steps, without their views."""
        epochs = -(-steps // self.steps_per_epoch)
        orders = [self._order_of(epoch) for epoch in range(epochs)]
        return self.data.labels[torch.cat(orders)[:steps]]

    def chain_digests(self, step: int, digests: dict[str, str]) -> dict[str, str]:
        """The digests of batches and views, updated by the epoch of `step`."""
        order, drawn = self.epoch_of(step)
        of_batches, of_views = self.digest_names
        batches = hashlib.sha256(digests.get(of_batches, "").encode())
        batches.update(self.data.samples[order].numpy().tobytes())
        views = hashlib.sha256(digests.get(of_views, "").encode())
        drawn.update_digest(views)
        return {**digests, of_batches: batches.hexdigest(), of_views: views.hexdigest()}

    @property
    def digest_names(self) -> tuple[str, str]:
        """The names of the two digests that `chain_digests` updates."""
        of = "" if not any(self.owners.values()) else f"/{self.model}"
        return f"batches{of}", f"views{of}"

    def _order_of(self, epoch: int) -> Tensor:
        seed, size, owner = self.cell["seed"], self.cell["batch_size"], self.owners["batches"]
        if self.cell["sampler"] == "authors":
            return balanced_order(seed, epoch, self.data.labels, size, owner)
        return batch_order(seed, epoch, len(self.data.labels), size, owner)

    def epoch_of(self, step: int) -> tuple[Tensor, EpochViews]:
        """Positions (steps per epoch, B) and views of all images in the epoch of `step`."""
        epoch = step // self.steps_per_epoch
        if epoch not in self._epochs:
            data = self.data
            views = epoch_views(
                self.cell["seed"], epoch, self.cell["views"], data.split_size, data.samples,
                self.recipe, *data.extent, self.owners["views"],
            )  # fmt: skip
            self._epochs[epoch] = (self._order_of(epoch), views)
        return self._epochs[epoch]
