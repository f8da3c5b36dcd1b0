"""The coupled trainer: several objectives from the same initial weights, on the same batches.

Each objective has its own network and optimizer. A step makes the views of its batch once, for all
objectives. The cell's `coupling` can give objectives initial weights, batches or views of their
own. Random numbers are not drawn here (see `cltools.maths.randomness`), so that objectives do not
influence each other. A step does not wait for the device.

An objective may have labels of its own (see `labels`). Its row of the log then holds the losses,
the bound and the composition of batches that these labels give.

What an objective needs beside encoder and projector is in its declaration (`cltools.objectives`): a
head, a predictor, a momentum network, a queue. The step passes its batch through what is there and
hands all outputs to the loss. It knows no objective by name.

Several ranks (see `distributed`) can train one run together. Either each trains some of the
objectives, and holds the networks of these alone. Or each passes its part of the batch through its
copies of all networks; losses, masks and labels are those of the whole batch on every rank.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cltools.config.durations import Duration
from cltools.data.image_set import ImageSet
from cltools.maths.objectives import (
    KeyMasks,
    PairMasks,
    loss_of,
    pair_masks,
)
from cltools.maths.randomness import initialize
from cltools.maths.spread import spread
from cltools.objectives import Outputs, find, names, settings_of
from cltools.objectives.declared import MOMENTUM
from cltools.runtime.devices import computing_in, to_device
from cltools.runtime.errors import InputError
from cltools.training.batches import Batches, batches_of_models, owner
from cltools.training.compiled import compiled
from cltools.training.distributed import Ranks
from cltools.training.gradients import backward, gradient_norm
from cltools.training.labels import Labels, labels_of_models
from cltools.training.moco import KeyQueue, key_masks, queued_positions
from cltools.training.momentum import MomentumNetwork, target_momentum
from cltools.training.networks import OWN_PARTS, Network, build_network, on_device
from cltools.training.optimizers import (
    build_optimizer,
    lr_at,
    lr_by_epoch,
    lr_constant,
    peak_lr,
    set_lr,
)

# Rows of the log are copied from the device once in this many steps, since a copy has to wait.
FLUSH_STEPS = 50
# Logged for every contrastive model, whatever it is trained with. This takes almost no time.
ALWAYS_LOGGED = ("dcl", "nscl", "scl")
# Logged for models whose objective is `watched`, see `maths.spread`.
SPREAD = ("z_std", "z_rank")


# From images to their features and projections, which are normalized unless the objective needs
# those that are not.
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Batch:
    """One step's batch of models that share batches and labels: views (K*B, c, H, W), labels (B,).

    `largest_class` is the size of the largest class, and `classes` the number of classes, among the
    images from which negatives are taken. These are the batch or, with a queue, all images whose
    keys it holds. Where ranks split the batch, the views are those of this rank's part. Everything
    else is of the whole batch.
    """

    views: Tensor
    labels: Tensor
    masks: PairMasks | KeyMasks
    largest_class: int
    classes: int


def _no_lap(part: str) -> None:
    """Default of `CoupledTrainer.lap`, which does nothing."""


class CoupledTrainer:
    """The state of a coupled run, and its training step.

    After each part of a step, it calls its attribute `lap` with the name of that part, for timing.
    Whenever rows of the log have come to the CPU, it calls each of its `observers` with them, a
    tensor of (steps, models of this rank, `columns`).

    Raises InputError when the batch is larger than the training set, or when the number of ranks
    that split it does not divide it.
    """

    def __init__(
        self,
        cell: dict[str, Any],
        data: ImageSet,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        self.cell, self.data, self.device = cell, data, device
        self.ranks = ranks or Ranks()
        self.labels = labels_of_models(cell, data)
        self.batches = batches_of_models(cell, data, device, self.ranks)
        self.steps_per_epoch = next(iter(self.batches.values())).steps_per_epoch
        self.horizon = self.in_steps(cell["horizon"])
        self.warmup = self.in_steps(cell["warmup"])
        self.peak_lr = peak_lr(cell["lr_rule"], cell["lr"], cell["batch_size"], cell["base_batch"])
        self.queued: int = cell["queue_size"] // cell["batch_size"]  # batches; 0 without a queue
        own = {loss_of(objective) for objective in cell["objectives"]}
        contrastive = {loss for loss in own if find(loss).contrastive}.union(ALWAYS_LOGGED)
        self.logged = [name for name in names() if name in contrastive]
        others = [name for name in names() if name in own - contrastive - {"ce"}]
        watched = any(find(loss).watched for loss in own)
        self.columns = ["grad_norm", *self.logged, "ce", *others, *(SPREAD if watched else ())]

        self.models: list[str] = cell["objectives"]
        own_models = self.ranks.objectives({o: work_of_step(cell, o) for o in self.models})
        self.networks = {o: self._network(o) for o in own_models}
        # Whether some model, of this rank or another, has one: what all log depends on it.
        self.with_queue = any(has_queue(cell, o) for o in self.models)
        self.queues = {
            o: KeyQueue(self._network(o), cell) for o in own_models if has_queue(cell, o)
        }
        self.targets = {
            o: MomentumNetwork(self._network(o, shared_parts=True))
            for o in own_models
            if find(o).target
        }
        self.optimizers = {o: build_optimizer(cell, n) for o, n in self.networks.items()}
        self.forward = {o: self._forward(o, n) for o, n in self.networks.items()}
        self.forward_target = {o: self._forward(o, t.network) for o, t in self.targets.items()}

        self.step = 0
        # First step -> number of parts that batches are split into from there on.
        self.trained_by = {"0": self.ranks.parts}
        self.digests = {"init": self._init_digest(), "batches": "", "views": ""}
        self.lap: Callable[[str], None] = _no_lap
        self.observers: list[Callable[[Tensor], None]] = []
        self._pending: list[Tensor] = []
        self._pending_composition: list[list[list[int]]] = []
        # Rows of all models. Those of other ranks are filled in by `merge_logs`.
        self._places = [self.models.index(objective) for objective in self.networks]
        self._measured = torch.empty(0, len(self.models), len(self.columns))
        self._composition = torch.empty(0, len(self.models), 2, dtype=torch.int64)

    def _network(self, objective: str, shared_parts: bool = False) -> Network:
        """The network of an objective with its initial weights; see `build_network`."""
        classes = self.labels[objective].classes
        shape = self.data.image_shape
        network = build_network(self.cell, shape, classes, objective, shared_parts)
        initialize(network, self.cell["seed"], owner(self.cell, objective, "init"))
        self.ranks.couple(network)
        return on_device(network, self.device)

    def _forward(self, objective: str, network: Network) -> Forward:
        forward = network.project if find(objective).unnormalized else network
        return compiled(forward, self.cell)

    def in_steps(self, duration: str) -> int:
        return Duration.parse(duration).in_steps(self.steps_per_epoch)

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, by the cell's schedule."""
        schedule = self.cell["lr_schedule"]
        if schedule == "constant":
            return lr_constant(step, self.peak_lr, self.warmup)
        if schedule == "per_epoch":
            return lr_by_epoch(step, self.peak_lr, self.warmup, self.horizon, self.steps_per_epoch)
        return lr_at(step, self.peak_lr, self.warmup, self.horizon)

    def _init_digest(self) -> str:
        """Hash of the initial weights that all objectives share (encoder and projector).

        Where objectives have initial weights of their own, it is that of the first.
        """
        digest = hashlib.sha256()
        for name, tensor in next(iter(self.networks.values())).state_dict().items():
            if not name.startswith(OWN_PARTS):
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def train_step(self) -> None:
        """One step of every objective of this rank on one batch."""
        made = self._batches_of_models()
        lr = self.lr_at(self.step)
        rows, composition = [], []
        for objective, network in self.networks.items():
            batch = made[objective]
            composition.append([batch.largest_class, batch.classes])
            if objective in self.queues:
                self._renew_keys(objective, batch)
            if find(objective).two_classes and batch.classes < 2:
                # No anchor of this batch has a negative, so that the model takes no step. The
                # manifest counts these steps.
                rows.append(batch.views.new_full((len(self.columns),), torch.nan))
                continue
            rows.append(self._update(objective, network, batch, lr))
        self._pending.append(torch.stack(rows))
        self._pending_composition.append(composition)
        self.step += 1
        if len(self._pending) >= FLUSH_STEPS:
            self.flush()
        self.lap("logging")

    def _batches_of_models(self) -> dict[str, _Batch]:
        """Objective -> this step's batch. What models share is made once."""
        drawn: dict[int, tuple[Tensor, Tensor]] = {}
        made: dict[tuple[int, int], _Batch] = {}
        found = {}
        for objective in self.networks:
            batches, labels = self.batches[objective], self.labels[objective]
            if id(batches) not in drawn:
                drawn[id(batches)] = self._draw(batches)
            key = id(batches), id(labels)
            if key not in made:
                made[key] = self._make(batches, labels, *drawn[id(batches)])
            found[objective] = made[key]
        return found

    def _draw(self, batches: Batches) -> tuple[Tensor, Tensor]:
        """This step's views and positions. At the start of an epoch, digests are updated too."""
        if self.step % self.steps_per_epoch == 0:
            self.digests = batches.chain_digests(self.step, self.digests)
            self.lap("epoch")
        return batches.at(self.step)

    def _make(self, batches: Batches, labels: Labels, views: Tensor, positions: Tensor) -> _Batch:
        here = to_device(labels.values[positions], self.device)
        among = positions
        masks: PairMasks | KeyMasks
        if self.with_queue:
            among = queued_positions(batches, self.step, self.queued)
            own = self.step % self.queued * len(positions)
            masks = key_masks(among, own, len(positions), labels.values, self.device)
        else:
            masks = pair_masks(here, self.cell["views"])
        counts = torch.bincount(labels.values[among])
        self.lap("views")
        return _Batch(views, here, masks, int(counts.max()), int((counts > 0).sum()))

    def images_among(self, step: int) -> int:
        """The number of images from which negatives are taken: the batch, or those in the queue."""
        images: int = self.cell["batch_size"] * max(1, min(step + 1, self.queued))
        return images

    def close(self) -> None:
        """Drop the batches that were started in advance."""
        for batches in self.batches.values():
            batches.close()

    def _update(self, objective: str, network: Network, batch: _Batch, lr: float) -> Tensor:
        """Forward pass, backward pass and step of one objective; returns its row of the log."""
        optimizer = self.optimizers[objective]
        set_lr(optimizer, lr)
        optimizer.zero_grad(set_to_none=True)
        network.train()
        views, passed = batch.views, self.cell["views"]
        if objective in self.queues:
            views, passed = views.chunk(passed)[0], 1
        with computing_in(self.cell["precision"], self.device):
            projected = self._project(self.forward[objective], views)
        self.lap("forward")
        ends = projected.detach().requires_grad_()  # where `backward` changes the precision
        outputs = self._outputs(objective, network, torch.unflatten(ends, 0, (passed, -1)), batch)
        loss, logged = self._losses(objective, outputs, batch)
        self.lap("losses")
        backward(loss, ends, projected, self.cell["precision"])
        self.ranks.sum_gradients(network)
        self.lap("backward")
        grad_norm = gradient_norm(network)
        self.lap("logging")
        optimizer.step()
        if objective in self.targets:
            base = settings_of(self.cell, objective)[MOMENTUM]
            momentum = target_momentum(base, self.step, self.horizon)
            self.targets[objective].follow(network, momentum)
        self.lap("optimizer")
        undefined = loss.new_full((), torch.nan)
        return torch.stack([grad_norm, *(logged.get(name, undefined) for name in self.columns[1:])])

    def _outputs(
        self, objective: str, network: Network, projections: Tensor, batch: _Batch
    ) -> Outputs:
        """What the loss is computed from, given projections (K, B, d) of this rank's part.

        What has weights of its own is applied before ranks gather it. Its gradient on a rank then
        comes from its own images only, as for all other weights, so that summing over ranks is
        correct.
        """
        needs, gather = find(objective), self.ranks.gather
        z, more = projections, dict[str, Tensor]()
        if needs.predictor is not None:
            more["predictions"] = gather(self._apart(network.predict, projections))
        if needs.unnormalized:
            more["projections"] = gather(projections)
            z = F.normalize(more["projections"], dim=-1)
        elif needs.classifier:
            more["class_logits"] = gather(network.class_logits(z))
        else:
            z = gather(z)
        if objective in self.targets:
            with torch.no_grad(), computing_in(self.cell["precision"], self.device):
                computed = self._project(self.forward_target[objective], batch.views)
            more["targets"] = gather(torch.unflatten(computed, 0, (len(projections), -1)))
        if objective in self.queues:
            more["keys"] = self.queues[objective].until(self.step)
        return Outputs(z, batch.labels, self.cell["tau"], batch.masks, **more)

    def _losses(
        self, objective: str, outputs: Outputs, batch: _Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimize, and what is logged of this batch, by column."""
        with_queue = objective in self.queues

        def value(name: str) -> Tensor | None:
            loss = find(name).queue if with_queue else find(name).loss
            settings = settings_of(self.cell, name)
            if find(name).target:
                del settings[MOMENTUM]
            return None if loss is None else loss(outputs, **settings)

        own = loss_of(objective)
        loss = value(own)
        assert loss is not None  # see `_check_framework` of the cell
        logged = {own: loss.detach()}
        with torch.no_grad():
            if find(objective).contrastive:
                others = [name for name in self.logged if name != own]
                for name in others:
                    defined = batch.classes > 1 or not find(name).two_classes
                    if defined and (found := value(name)) is not None:
                        logged[name] = found
            if find(objective).watched:
                logged |= zip(SPREAD, spread(outputs.z.flatten(0, 1)), strict=True)
        return loss, logged

    def _renew_keys(self, objective: str, batch: _Batch) -> None:
        """Update the key network, and put its keys of the batch's second views into the queue."""
        queue = self.queues[objective]
        queue.follow(self.networks[objective])
        with torch.no_grad(), computing_in(self.cell["precision"], self.device):
            keys = queue.keys_of(batch.views.chunk(self.cell["views"])[1])
        queue.put(self.step, self.ranks.gather(keys[None])[0])
        self.lap("forward")

    def _project(self, network: Forward, views: Tensor) -> Tensor:
        """z (K*B, d) of the views, or projections that are not normalized.

        They pass through the network together, or each separately with its own batch statistics.
        """
        if self.cell["view_forward"] == "together":
            return network(views)[1]
        return torch.cat([network(view)[1] for view in views.chunk(self.cell["views"])])

    def _apart(self, part: Callable[[Tensor], Tensor], projections: Tensor) -> Tensor:
        """(K, B, d) to the same shape; batch statistics are those that `_project` takes."""
        if self.cell["view_forward"] == "together":
            return part(projections.flatten(0, 1)).view_as(projections)
        return torch.stack([part(view) for view in projections])

    def flush(self) -> None:
        """Copy the rows of the log to the CPU.

        Raises InputError with step and objective when a loss is not finite.
        """
        if not self._pending:
            return
        first = self.step - len(self._pending)
        rows = torch.stack(self._pending).cpu()
        composition = torch.tensor(self._pending_composition)
        self._measured = torch.cat([self._measured, self._among_all(rows)])
        self._composition = torch.cat([self._composition, self._among_all(composition)])
        self._pending, self._pending_composition = [], []
        for observe in self.observers:  # before the check, so that they see how a loss grew
            observe(rows)
        for number, objective in enumerate(self.networks):
            own = rows[:, number, self.columns.index(loss_of(objective))]
            bad = ~own.isfinite()
            if find(objective).two_classes:
                bad &= composition[:, number, 1] > 1
            if bad.any():
                raise InputError(
                    f"the {objective} loss is not finite at step {first + int(bad.nonzero()[0])}: "
                    "lower lr or lengthen warmup"
                )

    def _among_all(self, own: Tensor) -> Tensor:
        """Rows (steps, models, ...) of all models from those of this rank's; the others are 0."""
        rows = own.new_zeros(len(own), len(self.models), own.shape[2])
        rows[:, self._places] = own
        return rows

    def merge_logs(self) -> None:
        """Give the first rank the rows of the log and the digests that other ranks have made.

        All ranks must call it at the same step. Raises InputError as `flush` does.
        """
        self.flush()
        rows = self._measured[:, self._places], self._composition[:, self._places]
        measured, composition = self._measured.clone(), self._composition.clone()
        for places, (values, counts), digests in self.ranks.collect(
            (self._places, rows, self.own_digests())
        ):
            measured[:, places], composition[:, places] = values, counts
            self.digests.update(digests)
        self._measured, self._composition = measured, composition

    def own_digests(self) -> dict[str, str]:
        """The digests of the randomness of this rank's objectives; other ranks make the others."""
        names = {name for o in self.networks for name in self.batches[o].digest_names}
        if self.models[0] in self.networks:
            names.add("init")
        return {name: digest for name, digest in self.digests.items() if name in names}

    def skipped_steps(self, until: int) -> dict[str, int]:
        """Objective -> steps before `until` that it skipped because the batch was of one class.

        Of several ranks, the first knows it after `merge_logs`.
        """
        self.flush()
        one_class = (self._composition[:until, :, 1] == 1).sum(dim=0).tolist()
        found = dict(zip(self.models, one_class, strict=True))
        return {o: count for o, count in found.items() if find(o).two_classes}

    def log(self, until: int) -> dict[str, np.ndarray]:
        """Columns of the training log, with one row per model and step before `until`.

        Of several ranks, the first has those of all models after `merge_logs`.
        """
        self.flush()
        models = len(self.models)
        steps = np.arange(until)
        rates = np.array([self.lr_at(step) for step in range(until)])
        per_step = {
            "step": steps,
            "epoch": steps / self.steps_per_epoch,
            "lr": rates,
            "sum_lr": np.cumsum(rates),
        }
        log = {name: np.repeat(values, models) for name, values in per_step.items()}
        composition = self._composition[:until].flatten(0, 1).numpy()
        log |= {"n_max": composition[:, 0], "batch_classes": composition[:, 1]}
        log["model"] = np.tile(self.models, until)
        values = self._measured[:until].flatten(0, 1).numpy()
        for number, column in enumerate(self.columns):
            log[column] = values[:, number].astype(np.float64)
        return log

    def check_replicas(self) -> None:
        """Raises InputError when ranks are at different steps or hold different weights."""
        steps = self.ranks.exchange(self.step)
        if len(set(steps)) > 1:
            raise InputError(
                f"the {self.ranks.size} ranks are at different steps ({min(steps)} and "
                f"{max(steps)}): start again to resume from the last saved state; if this happens "
                "again, use ranks on one machine only"
            )
        step = torch.tensor([self.step], device=self.device)
        for objective, network in self.networks.items():
            if not self.ranks.identical([step, *network.state_dict().values()]):
                raise InputError(
                    f"the {self.ranks.size} ranks hold different weights of {objective} at step "
                    f"{self.step}: start again to resume from the last saved state; if this "
                    "happens again, use ranks on one machine only"
                )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resumed run needs: tensors by name, and a mapping that is written as JSON.

        The tensors are copies on the CPU, which further steps do not change. All ranks with
        objectives of their own must call it at the same step; the first gets the whole state.
        """
        self.merge_logs()
        tensors = {"log/measured": self._measured, "log/composition": self._composition}
        own = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._own_state()}
        for part in self.ranks.collect(own):
            tensors |= part
        about = {
            "step": self.step,
            "digests": dict(self.digests),
            "trained_by": dict(self.trained_by),
        }
        return tensors, about

    def _own_state(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of this rank's networks, optimizers, queues and momentum networks."""
        for objective, network in self.networks.items():
            for name, tensor in network.state_dict().items():
                yield f"network/{objective}/{name}", tensor
            names: dict[Tensor, str] = {p: name for name, p in network.named_parameters()}
            for parameter, slots in self.optimizers[objective].state.items():
                for slot, value in slots.items():
                    if isinstance(value, Tensor):
                        yield f"optimizer/{objective}/{slot}/{names[parameter]}", value
        for objective, queue in self.queues.items():
            for name, tensor in queue.state():
                yield f"keys/{objective}/{name}", tensor
        for objective, target in self.targets.items():
            for name, tensor in target.state():
                yield f"target/{objective}/{name}", tensor

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Set a state that `state` gave; raises KeyError or RuntimeError if it does not fit."""
        self.step, self.digests = about["step"], dict(about["digests"])
        before = about.get("trained_by", {"0": 1})
        self.trained_by = {s: n for s, n in before.items() if int(s) < self.step}
        if self.trained_by.get(max(self.trained_by, key=int, default="")) != self.ranks.parts:
            self.trained_by[str(self.step)] = self.ranks.parts
        self._measured = tensors["log/measured"]
        composition = tensors["log/composition"]
        if composition.ndim == 2:  # states of versions where all models shared their batches
            composition = composition[:, None].expand(-1, len(self.models), -1)
        self._composition = composition
        for objective, network in self.networks.items():
            network.load_state_dict(_below(f"network/{objective}/", tensors))
            if objective in self.queues:
                self.queues[objective].restore(_below(f"keys/{objective}/", tensors))
            if objective in self.targets:
                self.targets[objective].restore(_below(f"target/{objective}/", tensors))
            parameters = dict(network.named_parameters())
            optimizer = self.optimizers[objective]
            for key, value in _below(f"optimizer/{objective}/", tensors).items():
                slot, name = key.split("/")
                parameter = parameters[name]
                optimizer.state[parameter][slot] = torch.empty_like(parameter).copy_(value)


def has_queue(cell: Mapping[str, Any], objective: str) -> bool:
    """Whether an objective of the cell is trained with a queue of keys."""
    return cell["framework"] == "moco" and find(objective).contrastive


def work_of_step(cell: Mapping[str, Any], objective: str) -> int:
    """The work of an objective's step, in passes of the batch's images forward through a network.

    A backward pass counts as two. With a queue, one view passes forward and backward and the other
    forward through the key network; otherwise all views pass forward and backward, and forward
    through the momentum network where there is one.
    """
    views: int = cell["views"]
    return 3 + 1 if has_queue(cell, objective) else (3 + find(objective).target) * views


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, which is removed from the names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
