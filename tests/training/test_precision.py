"""In which precision each product of a step is computed."""

from functools import partial

import pytest
import torch
from small import small_cell
from torch.utils._python_dispatch import TorchDispatchMode

from cltools.config.cells import cell_id
from cltools.data.image_set import image_set, open_store
from cltools.runtime import devices
from cltools.training import gradients
from cltools.training.trainer import CoupledTrainer

CPU = torch.device("cpu")
PRODUCTS = {
    torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default,
    torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default,
}  # fmt: skip


def trainer(store, **settings):
    cell = small_cell(**settings)
    return CoupledTrainer(cell, image_set(open_store(store, cell), cell, "train", CPU), CPU)


class Products(TorchDispatchMode):
    """Collects the products of a step: part of the step, function, shapes, whether in TF32."""

    def __init__(self, made):
        super().__init__()
        self.found, self.begun = [], []
        made.lap = self.lap

    def lap(self, part):
        self.found += [(part, *product) for product in self.begun]
        self.begun = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            shapes = [tuple(x.shape) for x in args if isinstance(x, torch.Tensor)]
            allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            assert allowed[0] == allowed[1]
            self.begun.append((function, shapes, allowed[0]))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """TF32 is switched on and off as it would be on a GPU; the numbers are still of the CPU."""
    devices.choose_device("cpu")
    gpu = partial(devices.tf32, torch.device("cuda"))
    for module in (devices, gradients):
        monkeypatch.setattr(module, "tf32", lambda device, allowed: gpu(allowed))


@pytest.mark.parametrize("settings", [
    {"objectives": ["dcl"]},
    {"objectives": ["ce"]},
    {"objectives": ["dcl"], "view_forward": "apart"},
    {"objectives": ["dcl"], "framework": "moco", "queue_size": 48},
])  # fmt: skip
def test_networks_alone_are_in_tf32(digits, as_on_a_gpu, settings):
    """Their forward and backward pass; not views, losses, the head of CE, nor their gradients."""
    made = trainer(digits, precision="tf32", **settings)
    with Products(made) as products:
        made.train_step()
    parts = {part: [p for p in products.found if p[0] == part] for part, *_ in products.found}
    assert {"views", "forward", "losses", "backward"} <= parts.keys()
    assert not any(allowed for part in ("views", "losses") for *_, allowed in parts[part])
    assert all(allowed for *_, allowed in parts["forward"])
    # The backward pass begins with the products of the losses, with as many rows as there are
    # projections, or of the head.
    ends = [allowed for *_, allowed in parts["backward"]]
    own = ends.index(True)
    assert 0 < own < 4
    assert all(ends[own:])
    assert not torch.backends.cuda.matmul.allow_tf32


def test_float32_has_no_product_in_tf32(digits, as_on_a_gpu):
    made = trainer(digits, objectives=["dcl", "ce"])
    with Products(made) as products:
        made.train_step()
    assert len(products.found) > 20
    assert not any(allowed for *_, allowed in products.found)


def test_tf32_is_another_cell_with_the_same_bytes_on_a_cpu(digits):
    plain, tf32 = (
        trainer(digits, objectives=["nscl", "ce"], precision=p) for p in ("float32", "tf32")
    )
    assert cell_id(plain.cell) != cell_id(tf32.cell)
    for made in (plain, tf32):
        made.train_step()
        made.train_step()
    torch.testing.assert_close(plain.state()[0], tf32.state()[0], rtol=0, atol=0, equal_nan=True)
