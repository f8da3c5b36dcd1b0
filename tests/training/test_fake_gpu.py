"""The step on a GPU, without one: no device is mixed and nothing waits, in every kind of cell.

The forward pass, views, masks, losses and optimizers run on fake tensors of the device "cuda" (see
tests/fake_gpu.py). The backward pass does not: whole steps with it run on a fake CPU in
test_trace.py, on the device `meta` in test_step_speed.py and for real on the CPU elsewhere.
"""

from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from fake_gpu import FakeGpu, move
from PIL import Image
from small import colors_store, small_cell
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from cltools.data import image_set as images_module
from cltools.data import views as views_module
from cltools.data.image_set import image_set, open_store
from cltools.maths import objectives
from cltools.maths.objectives import OBJECTIVES
from cltools.stages import prepare
from cltools.training import trainer as trainer_module
from cltools.training.trainer import CoupledTrainer

CPU = torch.device("cpu")
STEPS = 2
cell = partial(
    small_cell,
    images_per_class=None,
    dataset="colors",
    recipe="cifar",
    horizon=5,
    batch_size=30,
    objectives=["dcl", "nscl", "scl", "ce"],
)
MOCO = {"framework": "moco", "queue_size": 60, "objectives": ["dcl", "nscl", "ce"]}
CELLS = {
    "every objective": {"objectives": list(OBJECTIVES)},
    "blur": {"recipe": "imagenet"},
    "stem of ImageNet": {"stem": "imagenet"},
    "ResNet-18": {"architecture": "resnet18", "objectives": ["dcl"]},
    "ResNet-50 of twice the width": {
        "architecture": "resnet50", "width": 2, "objectives": ["dcl"],
    },
    "ViT": {"architecture": "small_vit", "patch": 4},
    "ViT in bfloat16": {"architecture": "small_vit", "patch": 4, "precision": "bfloat16"},
    "MoCo": MOCO,
    "MoCo in bfloat16": {**MOCO, "precision": "bfloat16"},
    "MoCo with a ViT": {**MOCO, "architecture": "small_vit", "patch": 4},
    "bfloat16": {"precision": "bfloat16"},
    "SGD": {"optimizer": "sgd"},
    "LARS": {"optimizer": "lars"},
    "the authors' LARS": {"optimizer": "authors_lars"},
    "views apart": {"view_forward": "apart"},
    "three views": {"views": 3},
    "nothing shared": {"coupling": []},
    "a second DCL": {"objectives": ["dcl", "dcl_twin"]},
    "own views": {"coupling": ["init", "batches"]},
    "own labels": {
        "objectives": ["dcl", "nscl", "nscl:shuffled", "nscl:random2", "nscl:coarse2", "ce"]
    },
    "own batches and labels": {"coupling": ["init"], "objectives": ["dcl", "nscl:shuffled"]},
    "the authors' batches": {"sampler": "authors"},
    "one rate an epoch": {"lr_schedule": "per_epoch"},
}  # fmt: skip


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return colors_store(tmp_path_factory.mktemp("stores") / "colors", 32)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for number in range(10):
                pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")
    about = {"source": "folder", "path": str(root), "encoded": True, "size": 16, "resize": 20}
    prepare.run(name="photographs", definition=about, store=root / "store")
    return root / "store"


def steps(settings, store, count=STEPS):
    """Take steps on the fake GPU; returns it."""
    data = image_set(open_store(store, settings), settings, "train", CPU, workers=1)
    trainer = CoupledTrainer(settings, data, CPU)
    with FakeGpu() as gpu:
        move(trainer)
        gpu.troubles.clear()
        for _ in range(count):
            trainer.train_step()
    networks = [parameter for n in trainer.networks.values() for parameter in n.parameters()]
    assert all(p.device.type == "cuda" for p in networks)
    assert all(p.grad is not None for p in networks if p.requires_grad)
    return gpu


@pytest.mark.parametrize("settings", CELLS.values(), ids=CELLS)
def test_no_device_is_mixed_and_nothing_waits(colors, settings):
    gpu = steps(cell(**settings), colors)
    assert gpu.operators > 100 * STEPS
    assert not gpu.troubles


def test_photographs_are_decoded_into_pinned_memory(photographs):
    settings = cell(dataset="photographs", recipe="imagenet", batch_size=10)
    gpu = steps(settings, photographs)
    assert gpu.operators > 100 * STEPS
    assert not gpu.troubles


def test_the_precision_of_a_gpu_is_used(colors):
    """Autocast is on, so that the fake GPU sees the types that a real one would."""
    seen = set()
    network = trainer_module.build_network

    def watched(*arguments):
        made = network(*arguments)
        made.encoder.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "build_network", watched)
        steps(cell(precision="bfloat16"), colors, 1)
    assert seen == {torch.bfloat16}


def from_the_cpu(logits, mask):
    """A tensor that was forgotten on the CPU."""
    return logits + torch.zeros(logits.shape)


def an_item(logits, mask):
    return logits * (1.0 if logits.sum().item() > 0 else 2.0)


def a_condition(logits, mask):
    return logits if logits.isfinite().all() else -logits


def a_nonzero(logits, mask):
    return logits[mask.nonzero()[:, 0]]


def a_mask(logits, mask):
    return logits[mask]


def a_copy_back(logits, mask):
    return logits * logits.detach().cpu().mean().to(logits.device)


def an_index_on_the_cpu(logits, mask):
    return logits[torch.arange(len(logits))]


def numbers(logits, mask):
    return logits + torch.tensor([1.0], device=logits.device)


def a_copy_that_waits(logits, mask):
    return logits + torch.ones(1).to(logits.device)


def a_copy_from_memory_that_is_not_pinned(logits, mask):
    return logits + torch.ones(1).to(logits.device, non_blocking=True)


FAULTS = {
    from_the_cpu: "mixes devices",
    an_item: "waits: its result decides",
    a_condition: "waits: its result decides",
    a_nonzero: "waits: its result decides",
    a_mask: "waits: its result decides",
    a_copy_back: "waits: it copies from the GPU",
    an_index_on_the_cpu: "mixes devices",
    numbers: "waits: it copies numbers",
    a_copy_that_waits: "waits: it copies to the GPU",
    a_copy_from_memory_that_is_not_pinned: "waits: it copies to the GPU",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_faults_are_found(colors, monkeypatch, fault):
    """In a loss; what a step does wrong in views or labels is seen in the same way."""
    whole, found = objectives.masked_logsumexp, []

    def planted(gpu, logits, mask):
        before = len(gpu.troubles)
        # Some faults cannot go on with fake tensors.
        with suppress(RuntimeError, DataDependentOutputException, DynamicOutputShapeException):
            fault(logits, mask)
        found.extend(gpu.troubles[before:])
        return whole(logits, mask)

    enter = FakeGpu.__enter__

    def entered(gpu):
        monkeypatch.setattr(objectives, "masked_logsumexp", partial(planted, gpu))
        return enter(gpu)

    monkeypatch.setattr(FakeGpu, "__enter__", entered)
    gpu = steps(cell(objectives=["dcl"]), colors, 1)
    assert FAULTS[fault] in found[0]
    assert gpu.troubles == found


def test_a_copy_of_the_parameters_that_waits_is_found(colors, monkeypatch):
    """As `to_device` would be without pinned memory."""
    for module in (views_module, images_module, trainer_module):
        monkeypatch.setattr(module, "to_device", lambda t, device: t.to(device, non_blocking=True))
    gpu = steps(cell(), colors, 1)
    assert len(gpu.troubles) > 3
    assert all("copies to the GPU" in trouble for trouble in gpu.troubles)
