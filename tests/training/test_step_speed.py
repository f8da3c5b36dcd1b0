"""What keeps a step fast: nothing waits for the device, views are made once, compiling is wired."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from small import colors_store, small_cell
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cltools.config.cells import canonical_cell, cell_id
from cltools.data.image_set import image_set, open_store
from cltools.runtime.devices import choose_device
from cltools.runtime.errors import InputError
from cltools.training.batches import Batches
from cltools.training.optimizers import build_optimizer
from cltools.training.trainer import CoupledTrainer

OBJECTIVES = ["dcl", "nscl", "scl", "ce", "nt_xent", "nscl_with_positive"]
CPU = torch.device("cpu")


cell = partial(
    small_cell,
    images_per_class=None,
    dataset="colors",
    recipe="imagenet",
    horizon=5,
    objectives=OBJECTIVES,
)


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """Random RGB images: the recipe `imagenet` on them has every change that a view may have."""
    return colors_store(tmp_path_factory.mktemp("stores") / "colors", 12)


def trainer(settings, store):
    return CoupledTrainer(settings, image_set(open_store(store, settings), settings, "train", CPU),
                          CPU)  # fmt: skip


class Transfers(TorchDispatchMode):
    """Counts copies between devices, and collects those that are waited for."""

    def __init__(self):
        super().__init__()
        self.count, self.waited_for = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        if len({x.device for x in tensors}) > 1:
            self.count += 1
            if not (kwargs or {}).get("non_blocking"):
                self.waited_for.append(function)
        return out


def test_nothing_waits_for_the_device(colors, monkeypatch):
    """The step runs on the device `meta`, which computes nothing, so nothing can be read there.

    With LARS: torch's fused SGD does not know that device.
    """
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    settings = cell(optimizer="lars", batch_size=60)
    made = trainer(settings, colors)
    meta = torch.device("meta")
    for name in ("images", "mean", "std"):
        object.__setattr__(made.data, name, getattr(made.data, name).to(meta))
    made.device = meta
    for batches in made.batches.values():
        batches.device = meta
    for objective, network in made.networks.items():
        made.optimizers[objective] = build_optimizer(settings, network.to(meta))
    from_numbers = torch.tensor

    def on_cpu_only(*args, device=CPU, **options):  # the dispatcher does not see this one
        assert device == CPU
        return from_numbers(*args, **options)

    monkeypatch.setattr(torch, "tensor", on_cpu_only)
    with Transfers() as transfers:
        for _ in range(3):
            made.train_step()
    assert transfers.count >= 3 * 5
    assert not transfers.waited_for


def test_shared_views_are_made_once(colors, monkeypatch):
    made, calls, at = trainer(cell(), colors), [], Batches.at
    monkeypatch.setattr(Batches, "at", lambda self, step: calls.append(step) or at(self, step))
    made.train_step()
    made.train_step()
    assert calls == [0, 1]


def test_new_memory_is_not_filled():
    choose_device("cpu")
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_compiling_is_another_cell_with_the_same_state(colors, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = (cell(compile=c, objectives=["dcl", "ce"]) for c in (False, True))
    assert "compile" not in canonical_cell(plain)
    assert cell_id(plain) != cell_id(compiled)
    trainers = [trainer(settings, colors) for settings in (plain, compiled)]
    for made in trainers:
        for _ in range(3):
            made.train_step()
    states = [made.state()[0] for made in trainers]
    # The backend of this test computes what the plain network does.
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)


def test_cuda_graphs_are_asked_of_the_compiler(colors, monkeypatch):
    """Their outputs are copies: on a GPU, the next call overwrites what they are copied from."""
    compile_with, asked, marks = torch.compile, [], []

    def tracing(network, *, options, **how):
        asked.append(options)
        return compile_with(network, backend="eager", **how)

    monkeypatch.setattr(torch, "compile", tracing)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    found = {}
    for value in (True, "cuda_graphs"):
        made = trainer(cell(compile=value, objectives=["dcl", "ce"]), colors)
        for _ in range(2):
            made.train_step()
        found[value] = made.state()[0]
    torch.testing.assert_close(*found.values(), rtol=0, atol=0, equal_nan=True)
    plain, graphs = {"deterministic": True}, {"deterministic": True, "triton.cudagraphs": True}
    assert asked == [plain, plain, graphs, graphs]
    assert len(marks) == 2 * 2
    assert cell_id(cell(compile=True)) != cell_id(cell(compile="cuda_graphs"))


def test_a_machine_that_cannot_compile(colors, monkeypatch, tmp_path):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/no/such/compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    made = trainer(cell(compile=True, objectives=["dcl"]), colors)
    with pytest.raises(InputError, match=r"config key compile is true, but .* cannot compile"):
        made.train_step()
