"""What a training step launches, moves and computes on a GPU, counted on any machine.

The trainer takes a step with fake tensors of torch. These have shapes and types but no values, so
that a step of a large cell takes a second and no memory. They are on the CPU, because the backward
pass on a GPU needs one. What a GPU does otherwise is counted as there:

- LayerNorm runs in float32 within autocast.
- The norms of many tensors are one kernel.
- The backward pass of a convolution is two kernels, and both read the gradient.
- BatchNorm and LayerNorm read their inputs twice, in two kernels: statistics come first.
- A write to chosen rows is 18 kernels, because repeatable ones sort the rows first.
- A compiled network (`compile: true`) runs each chain of elementwise operators as one kernel. It
  reads what comes from outside of the chain and writes what is used after it. BatchNorm and
  LayerNorm belong to chains, and their statistics are a kernel and a reading more. This is what
  torch's compiler does; it is counted here without compiling.

Copies of parameters to the GPU and the drawing of random numbers on the CPU are not counted.
Objectives whose steps cost the same are traced once.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from cltools.data.image_set import EncodedImageSet, ImageSet
from cltools.data.views import Recipe, ViewParameters
from cltools.objectives import find
from cltools.training.batches import owner
from cltools.training.compiled import CUDA_GRAPHS
from cltools.training.optimizers import build_optimizer
from cltools.training.trainer import CoupledTrainer

aten = torch.ops.aten
CPU = torch.device("cpu")
PHOTOGRAPH = (375, 500)  # height and width of images that stay encoded: the median of ImageNet
COMPILED = ("forward", "backward")  # the parts of a step that `compile: true` compiles
NORMS = (
    aten.native_batch_norm, aten.native_layer_norm,
    aten.native_batch_norm_backward, aten.native_layer_norm_backward,
)  # fmt: skip
LAUNCHES = {aten.convolution_backward: 2, aten.index_put_: 18}
WRITES_ONLY = (aten.copy_, aten.fill_, aten.zero_)


class Extent(NamedTuple):
    """The images of a data set: shape (h, w, c) of a view, classes, whether they stay encoded."""

    shape: tuple[int, int, int]
    classes: int
    encoded: bool = False


class Kernel(NamedTuple):
    """One or more launches that do one thing.

    part: of a step, as `CoupledTrainer.lap` names it.
    moved: bytes read and written.
    flops: of products and convolutions, in numbers of type `dtype`, e.g. "bfloat16".
    launches: how many kernels.
    times: how often a step does this: once for each objective that it stands for.
    """

    part: str
    moved: int
    flops: int
    dtype: str
    launches: int
    times: int = 1


class Trace(NamedTuple):
    """A training step: its kernels, and bytes of GPU memory.

    weights: of all networks, with their buffers.
    held: of the weights, gradients, optimizers, keys and momentum networks.
    peak: the most that a step needs beyond that, which is mostly what the backward pass needs.
    features: of h.
    """

    kernels: list[Kernel]
    weights: int
    held: int
    peak: int
    features: int


def trace_step(cell: dict[str, Any], extent: Extent) -> Trace:
    """Count a step of a resolved cell, once the queue is full (if it has one).

    Raises InputError for settings that do not fit each other, as `CoupledTrainer` does.
    """
    alike = stand_ins(cell)
    traced = {**cell, "objectives": list(alike), "compile": False}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    trainer = CoupledTrainer(traced, fake_images(cell, extent, mode), CPU)
    for network in trainer.networks.values():
        fake_network(network, mode)
    for queue in trainer.queues.values():
        fake_network(queue.network, mode)
        queue.keys = mode.from_tensor(queue.keys)
    for target in trainer.targets.values():
        fake_network(target.network, mode)
    for objective, network in trainer.networks.items():
        trainer.optimizers[objective] = build_optimizer(cell, network)
    trainer.step = trainer.queued
    recorder = _Recorder(list(alike.values()), _batches(cell) / _batches(traced))
    trainer.lap = recorder.lap
    with recorder, _LikeOnGpu(mode):
        trainer.train_step()  # the first step makes the buffers of the optimizers
        before = recorder.start()
        trainer.train_step()
    weights = held = 0
    for objective, times in alike.items():
        own, more = _bytes_of(trainer, objective)
        weights, held = weights + own * times, held + (own + more) * times
    kernels = list(_kernels(recorder.operators, COMPILED if cell["compile"] else ()))
    features = next(iter(trainer.networks.values())).encoder.features
    return Trace(kernels, weights, held, recorder.peak - before, features)


def graphs_of_step(cell: Mapping[str, Any]) -> dict[str, int]:
    """Part of a cell's step -> how many CUDA graphs its kernels were recorded as, one a network.

    The backward pass of the losses, some dozens of kernels, is counted with that of the networks.
    """
    recorded = COMPILED if cell["compile"] == CUDA_GRAPHS else ()
    graphs = dict.fromkeys(recorded, len(cell["objectives"]))
    if recorded:
        graphs["forward"] += sum(find(objective).target for objective in cell["objectives"])
    return graphs


def stand_ins(cell: Mapping[str, Any]) -> dict[str, int]:
    """Objectives of a cell whose steps differ in cost -> how many of the cell's each stands for."""
    kinds: dict[tuple[str, bool], list[str]] = {}
    for objective in cell["objectives"]:
        loss = find(objective)
        kind = "contrastive" if loss.contrastive else loss.name, _is_private(cell, objective)
        kinds.setdefault(kind, []).append(objective)
    return {same[0]: len(same) for same in kinds.values()}


def _is_private(cell: Mapping[str, Any], objective: str) -> bool:
    return any(owner(dict(cell), objective, source) for source in ("batches", "views"))


def _batches(cell: Mapping[str, Any]) -> int:
    """How many batches a step makes the views of."""
    private = sum(_is_private(cell, objective) for objective in cell["objectives"])
    return private + (private < len(cell["objectives"]))


def _bytes_of(trainer: CoupledTrainer, objective: str) -> tuple[int, int]:
    """Bytes of an objective's network, and of its gradients, optimizer and keys."""
    network, slots = trainer.networks[objective], trainer.optimizers[objective].state.values()
    weights = [*network.parameters(), *network.buffers()]
    more = [p.grad for p in network.parameters() if p.grad is not None]
    more += [value for found in slots for value in found.values() if isinstance(value, Tensor)]
    if objective in trainer.queues:
        queue = trainer.queues[objective]
        more += [queue.keys, *queue.network.parameters(), *queue.network.buffers()]
    if objective in trainer.targets:
        target = trainer.targets[objective].network
        more += [*target.parameters(), *target.buffers()]
    return sum(t.nbytes for t in weights), sum(t.nbytes for t in more)


def fake_network(network: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by fake ones of the same shape and type."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = nn.Parameter(mode.from_tensor(parameter.detach()), parameter.requires_grad)
            module.register_parameter(name, fake)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, mode.from_tensor(buffer))


def fake_images(cell: dict[str, Any], extent: Extent, mode: FakeTensorMode) -> ImageSet:
    """A training set of as few images as a batch of the cell needs, all fake."""
    (height, width, channels), classes, encoded = extent
    count = max(cell["batch_size"], classes)
    with mode:
        pixels = torch.empty(count, height, width, channels, dtype=torch.uint8)
        mean, std = torch.zeros(channels), torch.ones(channels)
    about = {
        "labels": torch.arange(count) % classes,
        "samples": torch.arange(count),
        "split_size": count,
        "classes": classes,
        "mean": mean,
        "std": std,
    }
    if encoded:
        files = SimpleNamespace(sizes=np.tile(np.array(PHOTOGRAPH), (count, 1)))
        return _Photographs(files, size=height, resize=None, decoded=pixels, **about)  # type: ignore[arg-type]
    return _Images(pixels, **about)


@dataclass(frozen=True)
class _Images(ImageSet):
    """Fake images. Where their pixels are needed (to cluster them) they are black."""

    def plain(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        height, width, channels = self.image_shape
        return (torch.zeros(len(block), channels, height, width) for block in blocks)


@dataclass(frozen=True)
class _Photographs(EncodedImageSet):
    """Encoded images that are not decoded: `decoded` (n, size, size, c) stands for the crops."""

    decoded: Tensor = field(kw_only=True)

    plain = _Images.plain

    def views(
        self, positions: Tensor, parameters: ViewParameters, recipe: Recipe
    ) -> Callable[[], Tensor]:
        of_views = len(parameters.top) // len(positions)
        crops = self.decoded[: len(positions)].repeat(of_views, 1, 1, 1)
        return lambda: self._finished(crops, parameters, recipe)


class _LikeOnGpu(TorchFunctionMode):
    """What is copied to the device becomes fake; LayerNorm is in float32 within autocast.

    On CPUs, LayerNorm would stay in bfloat16. Copies to the device are those that do not wait.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.to and kwargs.get("non_blocking"):
            return self.mode.from_tensor(args[0])
        if function is F.layer_norm and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return function(*args, **kwargs)


@dataclass
class _Operator:
    """One call of torch. `reads` and `writes` are (storage, bytes); storages are numbered."""

    function: Any
    reads: list[tuple[int, int]]
    writes: list[tuple[int, int]]
    flops: int
    dtype: str
    part: str = ""
    times: int = 1

    @property
    def is_norm(self) -> bool:
        return self.function.overloadpacket in NORMS

    @property
    def is_elementwise(self) -> bool:
        return torch.Tag.pointwise in self.function.tags


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the operators on fake tensors that do something, and the bytes that are alive."""

    def __init__(self, times: list[int], batches: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[_Operator] = []
        self._times, self._batches = times, round(batches)
        self.live = self.peak = self._objective = 0
        self._numbers = WeakIdKeyDictionary()  # storage -> its number
        self._made = 0

    def start(self) -> int:
        """Forget the operators so far; returns the bytes that are alive."""
        self.operators, self._objective, self.peak = [], 0, self.live
        return self.live

    def lap(self, part: str) -> None:
        """All operators since the last call belong to this part of the step."""
        times = self._times[min(self._objective, len(self._times) - 1)]
        if part == "views":
            times = self._batches
        for operator in reversed(self.operators):
            if operator.part:
                break
            operator.part, operator.times = part, times
        self._objective += part == "optimizer"

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if any(isinstance(x, FakeTensor) for x in (*given, *made)):
            inputs = {self._number(x): x for x in given}
            outputs = {self._number(x): x for x in made}
            changes = function._schema.is_mutable
            if (changes or outputs.keys() - inputs.keys()) and function not in _NO_WORK:
                packet = function.overloadpacket
                count = flop_registry.get(packet)
                self.operators.append(
                    _Operator(
                        function,
                        list(_read(packet, args, inputs, outputs)),
                        list(_written(packet, args, outputs or (inputs if changes else {}))),
                        count(*args, **kwargs, out_val=out) if count else 0,
                        str((made or given)[0].dtype).removeprefix("torch."),
                    )
                )
        return out

    def _number(self, tensor: Tensor) -> int:
        """The number of a tensor's storage, which counts as alive from now on if it is new."""
        storage = tensor.untyped_storage()
        if storage not in self._numbers:
            self._made += 1
            self._numbers[storage] = self._made
            if isinstance(tensor, FakeTensor):
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, storage.nbytes())
        number: int = self._numbers[storage]
        return number

    def _freed(self, size: int) -> None:
        self.live -= size


_NO_WORK = (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default)


def _size(tensor: Tensor) -> int:
    """Bytes that are read or written of a tensor; expanded ones are smaller than their shape."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def _read(
    packet: Any, args: Sequence[Any], inputs: dict[int, Tensor], outputs: dict[int, Tensor]
) -> Iterator[tuple[int, int]]:
    """What an operator reads. Of what is indexed, this is as much as comes out."""
    for position, (number, tensor) in enumerate(inputs.items()):
        size = _size(tensor)
        if position == 0 and packet in WRITES_ONLY:
            continue
        if position == 0 and packet in (aten.index, aten.gather):
            size = min(size, sum(map(_size, outputs.values())))
        if position == 0 and packet is aten.index_put_:
            size = _size(args[2])
        twice = packet in NORMS or (packet is aten.convolution_backward and position == 0)
        yield number, 2 * size if twice else size


def _written(
    packet: Any, args: Sequence[Any], outputs: dict[int, Tensor]
) -> Iterator[tuple[int, int]]:
    for number, tensor in outputs.items():
        yield number, _size(args[2]) if packet is aten.index_put_ else _size(tensor)


def _kernels(operators: list[_Operator], compiled: Sequence[str]) -> Iterator[Kernel]:
    """The kernels of the operators; elementwise ones of the parts in `compiled` are fused."""
    last_use: dict[int, int] = {}
    for place, operator in enumerate(operators):
        last_use |= dict.fromkeys((number for number, _ in operator.reads), place)
    chain: list[_Operator] = []
    norms_before = False
    for place, operator in enumerate(operators):
        fits = operator.part in compiled and (operator.is_elementwise or operator.is_norm)
        made = {number for one in chain for number, _ in one.writes}
        if chain and not (fits and made & {number for number, _ in operator.reads}):
            yield _fused(chain, last_use, place)
            chain = []
        if fits:
            chain.append(operator)
            continue
        # On GPUs, torch takes the norms of many tensors in one kernel.
        norms = operator.function is aten.linalg_vector_norm.default
        yield _alone(operator, launches=0 if norms and norms_before else _launches(operator))
        norms_before = norms
    if chain:
        yield _fused(chain, last_use, len(operators))


def _launches(operator: _Operator) -> int:
    packet = operator.function.overloadpacket
    return 2 if packet in NORMS else LAUNCHES.get(packet, 1)


def _alone(operator: _Operator, launches: int) -> Kernel:
    moved = sum(size for _, size in (*operator.reads, *operator.writes))
    return Kernel(operator.part, moved, operator.flops, operator.dtype, launches, operator.times)


def _fused(chain: list[_Operator], last_use: dict[int, int], after: int) -> Kernel:
    """The kernels of a chain that ends before place `after`; see the top of this file."""
    made: set[int] = set()
    moved = statistics = 0
    outside: dict[int, int] = {}
    for operator in chain:
        for number, size in operator.reads:
            if number not in made:
                once = size // 2 if operator.is_norm else size
                outside[number] = max(outside.get(number, 0), once)
        if operator.is_norm:
            statistics += 1
            moved += sum(outside.values())
        made |= {number for number, _ in operator.writes}
    written = {number: size for one in chain for number, size in one.writes}
    kept = [size for number, size in written.items() if last_use.get(number, after) >= after]
    moved += sum(outside.values()) + sum(kept)
    first = chain[0]
    return Kernel(first.part, moved, 0, first.dtype, 1 + statistics, first.times)
