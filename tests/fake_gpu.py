"""A GPU of fake tensors: they have shapes and types, but no values, and need no GPU.

Within `FakeGpu`, tensors on "cuda" are fake and all others are real. What would make the host wait
for the GPU is collected, and so is what mixes devices; on a GPU the first is slow and the second
fails. The backward pass cannot run: it puts zeros into the gradients of all weights that the loss
depends on.
"""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cltools.training.optimizers import build_optimizer
from cltools.training.trainer import CoupledTrainer

GPU = torch.device("cuda")
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)


class FakeGpu:
    """A context in which tensors on "cuda" are fake; `troubles` are what it found, in words."""

    def __init__(self) -> None:
        self.troubles: list[str] = []
        self.operators = 0  # on the GPU
        self.pinned: list[Tensor] = []
        self._open = ExitStack()

    def __enter__(self) -> "FakeGpu":
        patch = self._open.enter_context(pytest.MonkeyPatch.context())
        # Autocast and optimizers ask these before they do anything on a GPU.
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(Tensor, "pin_memory", lambda tensor: self._pin(tensor))
        patch.setattr(torch.autograd, "backward", no_backward)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        for mode in (self.mode, _Watch(self), _FromNumbers(self)):
            self._open.enter_context(mode)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open.__exit__(*exception)

    def _pin(self, tensor: Tensor) -> Tensor:
        self.pinned.append(tensor.clone())
        return self.pinned[-1]

    def is_pinned(self, tensor: Tensor) -> bool:
        place = tensor.untyped_storage().data_ptr()
        return any(place == one.untyped_storage().data_ptr() for one in self.pinned)


class _Watch(TorchDispatchMode):
    """Runs operators without a tensor on the GPU for real, and looks at all others."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        to = kwargs.get("device")
        on_gpu = any(t.device.type == "cuda" for t in tensors)
        if not on_gpu and (to is None or torch.device(to).type != "cuda"):
            if any(isinstance(t, FakeTensor) for t in tensors):
                return function(*args, **kwargs)
            pin = kwargs.pop("pin_memory", False)
            with unset_fake_temporarily():
                out = function(*args, **kwargs)
            if pin:
                self.gpu.pinned.append(out)
            return out
        self.gpu.operators += 1
        if function.overloadpacket in COPIES:
            self._look_at_copy(function, tensors, args, kwargs)
        elif len({t.device for t in tensors if t.ndim}) > 1:
            self.gpu.troubles.append(f"{function} mixes devices")
        if function.overloadpacket is torch.ops.aten._fused_sgd_:
            return None  # torch has no fake form of it; it changes its arguments only
        try:
            return function(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self.gpu.troubles.append(f"{function} waits: its result decides what comes next")
            raise

    def _look_at_copy(self, function, tensors, args, kwargs) -> None:
        copies_into = function.overloadpacket is torch.ops.aten.copy_
        source = tensors[1 if copies_into else 0]
        to = tensors[0].device if copies_into else torch.device(kwargs.get("device", source.device))
        if source.device.type == to.type:
            return
        waits = not (kwargs.get("non_blocking") or (copies_into and True in args[2:]))
        if to.type != "cuda":
            self.gpu.troubles.append(f"{function} waits: it copies from the GPU")
        elif waits or not self.gpu.is_pinned(source):
            self.gpu.troubles.append(f"{function} waits: it copies to the GPU")


class _FromNumbers(TorchFunctionMode):
    """Finds tensors that are made from numbers on the GPU: a copy that no dispatcher sees."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor):
            to = kwargs.get("device")
            if to is not None and torch.device(to).type == "cuda":
                self.gpu.troubles.append(f"{function.__name__} waits: it copies numbers to the GPU")
        return function(*args, **kwargs)


def no_backward(end: Tensor, gradient: Tensor | None = None) -> None:
    """Zeros as gradients of the leaves that `end` depends on."""
    seen, left = set(), [end.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
        left += [following for following, _ in node.next_functions]


def move(trainer: CoupledTrainer) -> CoupledTrainer:
    """Put a trainer from the CPU onto the fake GPU; within `FakeGpu` only."""
    for name in ("images", "mean", "std"):
        value = getattr(trainer.data, name)
        if isinstance(value, Tensor):
            object.__setattr__(trainer.data, name, value.to(GPU))
    trainer.device = GPU
    for batches in trainer.batches.values():
        batches.device = GPU
    for queue in trainer.queues.values():
        queue.network.to(GPU)
        queue.keys = queue.keys.to(GPU)
    for objective, network in trainer.networks.items():
        trainer.optimizers[objective] = build_optimizer(trainer.cell, network.to(GPU))
    return trainer
