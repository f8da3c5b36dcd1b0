"""Coupled training of a caller's own networks, data and objectives, without a config.

The pipeline trains cells of a config with `cltools.training.trainer`. The formulas of the
objectives and the backward pass are the same here.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cltools.maths import alignment
from cltools.maths.objectives import (
    CONTRASTIVE,
    NEED_LABELS,
    NEED_TWO_CLASSES,
    OBJECTIVES,
    PairMasks,
    contrastive_loss,
    cross_entropy,
    pair_masks,
    similarity_logits,
)
from cltools.runtime.devices import (
    computing_in,
    find_device,
    repeating,
    talk_of_precision,
    to_device,
)
from cltools.training.gradients import backward, gradient_norm
from cltools.training.own_batches import OwnBatches, Stream, ViewLoader, to_views
from cltools.training.trainer import ALWAYS_LOGGED, FLUSH_STEPS

__all__ = ["CoupledTrainer", "ViewLoader"]

PRECISIONS = ("float32", "tf32", "bfloat16")
VIEW_FORWARD = ("together", "apart")
STATEFUL = ("networks", "optimizers", "schedulers")  # attributes, each by objective
BLOCK = 256  # images whose features are computed at once, where they come as one array

Loss = Callable[..., Tensor]
Networks = Callable[[], nn.Module] | nn.Module | Mapping[str, nn.Module]


@dataclass(frozen=True)
class _Batch:
    """Views (K*B, ...), labels (B,) if there are any, masks, and whether they are of two classes.

    Without labels the masks of classes are those of images.
    """

    views: Tensor
    count: int  # K
    labels: Tensor | None
    masks: PairMasks
    two_classes: bool


class CoupledTrainer:
    """Trains one network for each objective, all from equal weights, on the same batches and views.

    A step reads one batch and updates every network on it. Objectives do not influence each other:
    trained together or alone, an objective's weights are the same, byte for byte. So are those of
    a run that was stopped and continued from its `state_dict`.

    What is shared, and what you must not do:

    - *Initial weights.* A function or module given as `networks` is used once and copied for each
      objective. With a mapping, the weights of the first objective's module are copied into the
      others (alone, each of these would keep its own), unless `same_init` is False.
    - *Batches and views.* Each batch is made once. What data draw from torch's generators depends
      on (seed, epoch) and, for a DataLoader with a generator of its own, on that one's seed. Its
      workers may draw from NumPy and `random` too, since torch seeds these there. All other draws
      are shared by the objectives, but differ from run to run unless you seed them.
    - *Dropout and other random layers.* What a module draws from torch's generators depends on
      (seed, step) alone, so that all objectives get the same numbers. A module or loss must not
      draw from NumPy or `random`, nor keep anything from call to call except in its buffers: that
      would differ between objectives, and between one run and another.

    Losses are copied from the device once in 50 steps, and no step waits for it otherwise. The
    number of threads changes the last digits, as always in torch.

    Args:
        networks: a function without arguments that makes a module, or a module, or a mapping from
            names of objectives to modules, which are then trained themselves. A module maps
            (n, ...) inputs to projections z (n, d), or to features and projections (h, z). z need
            not be normalized: losses get it divided by its norm, in float32 (or float64).
        objectives: names from `dcl`, `nscl`, `scl`, `nt_xent`, `nscl_with_positive`,
            `nt_xent_double_positive` and `ce` (see `cltools.maths.objectives`), own functions
            (z1, z2, labels) -> loss, or a mapping from names to these. With K views, functions get
            (z1, ..., zK, labels); labels is None where the data have none. For `ce`, a module needs
            a method `class_logits` from normalized z (K, B, d) to (K, B, classes).
        data: an iterable of batches, one pass an epoch: a DataLoader, a `ViewLoader` of own images
            and an own transform, or any other that can be passed through again. Batches are
            (view1, view2, labels), (view1, view2), or (views, labels) with views (K, B, ...); each
            view is (B, ...), labels are (B,) integers. Labels on a GPU make every step wait for it.
        optimizer: a function from a list of parameters to a torch optimizer; called once for each
            objective, with the parameters that require a gradient.
        scheduler: a function from an optimizer to a torch scheduler, stepped after every step.
        tau: temperature of the named objectives and of logged losses, above 0.
        same_init: whether modules of a mapping get the weights of the first.
        view_forward: "together" passes all views through the network at once, "apart" each by
            itself, with batch statistics of its own.
        precision: of the networks, "float32", "tf32" or "bfloat16" (autocast).
        device: "auto" (a GPU where there is one), "cpu", "cuda" or a numbered one.
        deterministic: within steps, let torch use only what repeats bit by bit, and TF32 only if
            `precision` asks for it. Set it to False for a network with operations that have no such
            version on a GPU (torch's error names them).
        seed: of everything that is drawn.

    Attributes: `networks`, `optimizers` and `schedulers` by name of objective; `step`, the number
    of steps so far.

    Raises:
        ValueError: arguments that do not fit; while training, batches that do not fit, an objective
            that needs labels or two classes where there are none, a loss that is not finite.
        InputError: a device that this machine does not have.

    >>> import torch
    >>> from cltools import CoupledTrainer
    >>> network = lambda: torch.nn.Linear(4, 3)
    >>> x, y = torch.rand(16, 4), torch.arange(16) % 2
    >>> trainer = CoupledTrainer(
    ...     network, ["dcl", "nscl"], [(x, x + 0.1 * torch.rand(16, 4), y)],
    ...     optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), device="cpu",
    ... )
    >>> trainer.train(steps=2)
    >>> trainer.log.select("step", "model").rows()
    [(0, 'dcl'), (0, 'nscl'), (1, 'dcl'), (1, 'nscl')]
    """

    def __init__(
        self,
        networks: Networks,
        objectives: Sequence[str | Loss] | Mapping[str, str | Loss],
        data: Iterable[Any],
        *,
        optimizer: Callable[[list[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        tau: float = 0.5,
        same_init: bool = True,
        view_forward: str = "together",
        precision: str = "float32",
        device: str | torch.device = "auto",
        deterministic: bool = True,
        seed: int = 0,
    ) -> None:
        if not tau > 0:
            raise ValueError(f"the temperature must be positive, got {tau}")
        _one_of("precision", precision, PRECISIONS)
        _one_of("view_forward", view_forward, VIEW_FORWARD)
        self.objectives = _named(objectives)
        self.tau, self.view_forward, self.precision = tau, view_forward, precision
        self.seed, self.deterministic, self.device = seed, deterministic, find_device(str(device))
        talk_of_precision(precision, self.device)
        self._data = OwnBatches(data, seed, self.device)
        with Stream(self.device, "own networks", seed):
            self.networks = _networks(networks, list(self.objectives), same_init)
        self.optimizers: dict[str, Optimizer] = {}
        for name, network in self.networks.items():
            network.to(self.device)
            if self.objectives[name] == "ce":
                _class_logits(name, network)  # fail now, not in the first step
            self.optimizers[name] = _optimizer(optimizer, _parameters(name, network))
        self.schedulers = (
            {} if scheduler is None else {o: scheduler(one) for o, one in self.optimizers.items()}
        )
        self.step = 0
        own = list(self.objectives.values())
        self._logged = [c for c in CONTRASTIVE if c in ALWAYS_LOGGED or c in own]
        self._pending: list[Tensor] = []
        self._measured = torch.empty(0, len(self.networks), len(self._logged) + 2)
        self._broken = ""  # why there is nothing to go on from

    def train(self, *, steps: int | None = None, epochs: int | None = None) -> None:
        """Train until so many steps or epochs have been made, counted from the start of the run.

        So a run that was continued stops where it would have stopped.
        """
        for _ in self.iterate(steps=steps, epochs=epochs):
            pass

    def iterate(self, *, steps: int | None = None, epochs: int | None = None) -> Iterator[int]:
        """As `train`, as an iterator: it yields the number of steps so far after each step.

        One may stop at any step, and go on later.
        """
        if (steps is None) == (epochs is None):
            raise ValueError("say until when to train: give either steps or epochs")
        return self._iterate(steps, epochs)

    def _iterate(self, steps: int | None, epochs: int | None) -> Iterator[int]:
        while (steps is None or self.step < steps) and (
            epochs is None or self._data.epoch < epochs
        ):
            self._check_whole()
            found = self._data.next()
            if found is None:  # the end of an epoch
                continue
            with self._repeating():
                self._train_step(self._batch(*found))
            self._data.take()
            self.step += 1
            if len(self._pending) >= FLUSH_STEPS:
                self._flush()
                self._check_whole()
            yield self.step
        self._flush()
        self._check_whole()

    def _repeating(self) -> AbstractContextManager[None]:
        return repeating() if self.deterministic else nullcontext()

    def _batch(self, views: list[Tensor], labels: Tensor | None) -> _Batch:
        """The batch on the device; raises ValueError where an objective is undefined on it."""
        names = [name for name, loss in self.objectives.items() if loss in NEED_LABELS]
        if labels is None and names:
            raise ValueError(
                f"{names[0]} needs labels, but the batch of step {self.step} has none: let data "
                "give (view1, view2, labels)"
            )
        two_classes = labels is not None and bool((labels != labels[0]).any())
        if labels is not None and not two_classes:
            for name, loss in self.objectives.items():
                if loss in NEED_TWO_CLASSES:
                    raise ValueError(
                        f"{name} is undefined at step {self.step}, whose batch is of one class: "
                        "shuffle the data, or use larger batches"
                    )
        here = None if labels is None else to_device(labels, self.device)
        images = torch.arange(len(views[0]), device=self.device) if here is None else here
        masks = pair_masks(images, len(views))
        return _Batch(to_views(views, self.device), len(views), here, masks, two_classes)

    def _train_step(self, batch: _Batch) -> None:
        """One step of every objective; after an error in it there is nothing to go on from."""
        rows = []
        self._broken = (
            f"step {self.step} was interrupted, so that objectives may have made different numbers "
            "of steps: load a state that was saved before"
        )
        for name, network in self.networks.items():
            with Stream(self.device, "own step", self.seed, self.step):
                rows.append(self._update(name, network, batch))
        self._pending.append(torch.stack(rows))
        self._broken = ""

    def _update(self, name: str, network: nn.Module, batch: _Batch) -> Tensor:
        """Forward pass, backward pass and step of one objective; returns its row of the log."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        network.train()
        parts = batch.views.chunk(1 if self.view_forward == "together" else batch.count)
        with computing_in(self.precision, self.device):
            projected = torch.cat([_unit(_outputs(name, network, part)[1]) for part in parts])
        ends = projected.detach().requires_grad_()
        z = torch.unflatten(ends, 0, (batch.count, -1))
        loss, others = self._losses(name, network, z, batch)
        backward(loss, ends, projected, self.precision)
        grad_norm = gradient_norm(network)
        optimizer.step()
        if name in self.schedulers:
            self.schedulers[name].step()
        undefined = loss.new_full((), torch.nan)
        logged = [others.get(loss_name, undefined) for loss_name in self._logged]
        return torch.stack([one.detach().float() for one in (loss, *logged, grad_norm)])

    def _losses(
        self, name: str, network: nn.Module, z: Tensor, batch: _Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that trains the network, and the losses to log by name; z is (K, B, d)."""
        own = self.objectives[name]
        if own == "ce":
            assert batch.labels is not None
            return cross_entropy(_class_logits(name, network)(z), batch.labels), {}
        logits = similarity_logits(z, self.tau)
        if isinstance(own, str):
            loss = contrastive_loss(own, logits, batch.masks)
        else:
            loss = own(*z, batch.labels)
            if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
                raise ValueError(
                    f"objective {name} must give a tensor with one number, computed from its z"
                )
        undefined = NEED_LABELS if batch.labels is None else NEED_TWO_CLASSES
        others: dict[Any, Tensor] = {own: loss}
        with torch.no_grad():
            for other in self._logged:
                if other != own and (batch.two_classes or other not in undefined):
                    others[other] = contrastive_loss(other, logits, batch.masks)
        return loss, others

    def _flush(self) -> None:
        """Copy the rows of the log to the CPU, and note whether a loss is not finite."""
        if not self._pending:
            return
        rows = torch.stack(self._pending).cpu()
        first, self._pending = len(self._measured), []
        self._measured = torch.cat([self._measured, rows])
        bad = (~rows[:, :, 0].isfinite()).nonzero()  # in order of steps
        if len(bad):
            step, place = bad[0].tolist()
            self._broken = (
                f"the {list(self.networks)[place]} loss is not finite at step {first + step}: "
                "lower the learning rate or lengthen its warm-up"
            )

    def _check_whole(self) -> None:
        """Raises ValueError where there is nothing to go on from."""
        if self._broken:
            raise ValueError(self._broken)

    @property
    def log(self) -> pl.DataFrame:
        """One row for each step and objective so far.

        Columns: `step`, from 0; `model`, the name of the objective; `loss`, its own loss; `dcl`,
        `nscl`, `scl` and further named objectives that are trained, each on this model's
        projections of the batch; `gap`, which is dcl - nscl; `grad_norm`. All are of the weights
        before the step, losses in nats. NaN where undefined: losses that need labels without them,
        NSCL on a batch of one class, and contrastive losses of `ce`.
        """
        self._flush()
        steps, models, _ = self._measured.shape
        values = self._measured.flatten(0, 1).double().numpy()
        columns = {
            name: values[:, number]
            for number, name in enumerate(["loss", *self._logged, "grad_norm"])
        }
        columns["gap"] = columns["dcl"] - columns["nscl"]
        return pl.DataFrame(
            {
                "step": np.repeat(np.arange(steps), models),
                "model": np.tile(np.array(list(self.networks), dtype=object), steps).tolist(),
                **{c: columns[c] for c in ("loss", *self._logged, "gap", "grad_norm")},
            },
            schema_overrides={"model": pl.String},
        )

    @torch.no_grad()
    def features(
        self, data: Iterable[Any] | Tensor | np.ndarray, kind: str | None = None
    ) -> dict[str, np.ndarray]:
        """Features of images by objective, computed in float32 (or float64) in evaluation mode.

        Args:
            data: images (N, ...), or an iterable of batches of them (n, ...), alone or as the first
                of a tuple. An iterable that shuffles gives rows in its order, the same for all
                objectives.
            kind: "h", "z" (of unit norm), or None: h where the modules give it, else z as it is.

        Returns:
            name of objective -> (N, d).

        Raises:
            ValueError: no images, or "h" of modules that give none.
        """
        if kind is not None:
            _one_of("kind", kind, ("h", "z"))
        if isinstance(data, Tensor | np.ndarray):
            data = torch.split(torch.as_tensor(data), BLOCK)
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.networks}
        modes = {name: network.training for name, network in self.networks.items()}
        try:
            for batch in data:
                first = batch[0] if isinstance(batch, list | tuple) else batch
                images = to_device(torch.as_tensor(first), self.device)
                for name, network in self.networks.items():
                    with self._repeating():
                        h, z = _outputs(name, network.eval(), images)
                        one = _chosen(name, h, z, kind)
                    found[name].append(one.cpu().numpy())
        finally:
            for name, network in self.networks.items():
                network.train(modes[name])
        if not all(found.values()):
            raise ValueError("there are no images in the data whose features are wanted")
        return {name: np.concatenate(blocks) for name, blocks in found.items()}

    def alignment(
        self, data: Iterable[Any] | Tensor | np.ndarray, kind: str | None = None
    ) -> dict[alignment.Pair, dict[alignment.Measure, float]]:
        """CKA and RSA between the features of objectives on these images, pair by pair.

        `data` and `kind` are those of `features`, the result is that of
        `cltools.maths.alignment.alignment`. Raises ValueError as both do.
        """
        return alignment.alignment(self.features(data, kind), device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on: copies, for `torch.save`, readable with `weights_only`.

        To continue in the middle of an epoch, its batches before are read once more. Raises
        ValueError where the run cannot be continued: after a loss that is not finite, in a step
        that was interrupted, and for a DataLoader with persistent workers.
        """
        self._flush()
        self._check_whole()
        state = {
            part: {name: one.state_dict() for name, one in getattr(self, part).items()}
            for part in STATEFUL
        }
        about = {"settings": self._settings(), "step": self.step, "data": self._data.state()}
        return copy.deepcopy({**about, "log": self._measured, **state})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where a trainer that was made in the same way gave this `state_dict`.

        Raises ValueError for a state of other settings, and for data that give other batches than
        they gave before. Other networks or optimizers are refused by torch.
        """
        if "settings" not in state:
            raise ValueError("this is not the state_dict of a CoupledTrainer")
        for key, value in self._settings().items():
            before = state["settings"][key]
            if before != value:
                raise ValueError(f"the state is of a run with {key} {before}, not {value}")
        self._data.restore(state["data"])
        self._broken = "the state could not be loaded: load one that fits"
        for part in STATEFUL:
            found = getattr(self, part)
            if set(found) != set(state[part]):
                raise ValueError(f"the state is of a run with other {part} than this one")
            for name, one in found.items():
                one.load_state_dict(copy.deepcopy(state[part][name]))
        self.step, self._measured = state["step"], state["log"].clone()
        self._pending, self._broken = [], ""

    def _settings(self) -> dict[str, Any]:
        """What a state must have in common with the trainer that it is loaded into."""
        losses = [loss if isinstance(loss, str) else "own" for loss in self.objectives.values()]
        return {
            "objectives": list(zip(self.objectives, losses, strict=True)),
            "seed": self.seed,
            "tau": self.tau,
            "view_forward": self.view_forward,
            "precision": self.precision,
        }


def _named(objectives: Any) -> dict[str, str | Loss]:
    """Name -> name of a loss, or function; raises ValueError for unknown ones and doubled names."""
    if not isinstance(objectives, Mapping):
        alone = isinstance(objectives, str) or callable(objectives)
        given = [objectives] if alone else list(objectives)
        names = [_name_of(objective) for objective in given]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"two objectives are called {doubled.pop()}: give a mapping from names of your own"
            )
        objectives = dict(zip(names, given, strict=True))
    if not objectives:
        raise ValueError("there are no objectives to train")
    for name, loss in objectives.items():
        if not callable(loss):
            _one_of(f"objective {name}", loss, OBJECTIVES)
    return dict(objectives)


def _name_of(objective: str | Loss) -> str:
    if isinstance(objective, str):
        return objective
    name = getattr(objective, "__name__", type(objective).__name__)
    if isinstance(objective, type) or not name.isidentifier() or name == "partial":
        raise ValueError(
            f"objective {objective} has no name: give a mapping from names of your own"
        )
    return str(name)


def _one_of(what: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{what} is {value!r}: use one of {', '.join(known)}")


def _networks(networks: Networks, names: list[str], same_init: bool) -> dict[str, nn.Module]:
    """Objective -> its network, with equal weights unless they are not to be.

    Raises ValueError where they cannot be, and where networks share weights.
    """
    if isinstance(networks, Mapping | nn.ModuleDict):
        return _given(dict(networks.items()), names, same_init)
    template = networks if isinstance(networks, nn.Module) else networks()
    if not isinstance(template, nn.Module):
        raise ValueError(f"networks must give a torch module, not {type(template).__name__}")
    return {name: copy.deepcopy(template) for name in names}


def _given(found: dict[str, nn.Module], names: list[str], same_init: bool) -> dict[str, nn.Module]:
    if set(found) != set(names):
        raise ValueError(f"there are networks for {sorted(found)}, but objectives {sorted(names)}")
    seen: dict[int, str] = {}
    for name in names:
        for weight in found[name].parameters():
            if (other := seen.setdefault(id(weight), name)) != name:
                raise ValueError(
                    f"the networks of {other} and {name} share weights: give each its own module"
                )
    start = found[names[0]].state_dict()
    for name in names[1:] if same_init else ():
        try:
            found[name].load_state_dict(start)
        except RuntimeError as error:
            reason = " ".join(str(error).split("\n", 2)[1].split())
            raise ValueError(
                f"the networks of {names[0]} and {name} cannot have the same weights ({reason}): "
                "make them alike, or set same_init=False"
            ) from None
    return {name: found[name] for name in names}


def _parameters(name: str, network: nn.Module) -> list[nn.Parameter]:
    """The parameters to train; raises ValueError where there are none yet."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    if any(nn.parameter.is_lazy(weight) for weight in trained):
        raise ValueError(f"the network of {name} has no weights yet: pass an input through it")
    if not trained:
        raise ValueError(f"the network of {name} has no weights that require a gradient")
    return trained


def _optimizer(
    make: Callable[[list[nn.Parameter]], Optimizer], parameters: list[nn.Parameter]
) -> Optimizer:
    found = make(parameters) if callable(make) else make
    if not isinstance(found, Optimizer) or not callable(make):
        raise ValueError(
            "optimizer must be a function from parameters to a torch optimizer, such as "
            "functools.partial(torch.optim.SGD, lr=0.1)"
        )
    return found


def _class_logits(name: str, network: nn.Module) -> Callable[[Tensor], Tensor]:
    found: Callable[[Tensor], Tensor] | None = getattr(network, "class_logits", None)
    if found is None:
        raise ValueError(
            f"the network of {name} has no method class_logits, from normalized z (K, B, d) to "
            "(K, B, classes): add it, or leave out ce"
        )
    return found


def _outputs(name: str, network: nn.Module, images: Tensor) -> tuple[Tensor | None, Tensor]:
    """h, if there is any, and z of (n, ...) images; raises ValueError for other outputs."""
    out = network(images)
    h, z = out if isinstance(out, list | tuple) and len(out) == 2 else (None, out)
    for one in (z,) if h is None else (h, z):
        if not isinstance(one, Tensor) or len(one) != len(images):
            raise ValueError(
                f"the network of {name} must give z of shape ({len(images)}, d), or (h, z), for "
                f"inputs {tuple(images.shape)}"
            )
    if z.ndim != 2:
        raise ValueError(f"the network of {name} gives z {tuple(z.shape)}, which must be (n, d)")
    return h, z


def _unit(z: Tensor) -> Tensor:
    """z divided by its norm, in float32, or in float64 where it is."""
    return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)


def _chosen(name: str, h: Tensor | None, z: Tensor, kind: str | None) -> Tensor:
    if kind == "z":
        return _unit(z)
    if kind == "h" and h is None:
        raise ValueError(f"the network of {name} gives no h: let it return (h, z)")
    return z if h is None else h.flatten(1)
