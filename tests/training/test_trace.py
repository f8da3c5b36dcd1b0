"""Steps on fake tensors: what they count against what is known of small networks."""

from collections import Counter

import pytest
import torch
from small import small_cell

from cltools.cluster.roofline import gpu_of, step_on
from cltools.training.trace import Extent, Kernel, graphs_of_step, stand_ins, trace_step

SHAPE = (16, 16, 3)
CPU = torch.device("cpu")


def cell(**settings):
    given = {"dataset": "any", "recipe": "cifar", "batch_size": 64, "objectives": ["dcl"]}
    return small_cell(**{**given, "images_per_class": None, **settings})


def trace(encoded=False, shape=SHAPE, **settings):
    return trace_step(cell(**settings), Extent(shape, 10, encoded))


def total(found, what, parts=("forward", "backward")):
    return sum(k.times * getattr(k, what) for k in found.kernels if k.part in parts)


def layers(shape, batch):
    """Arithmetic of the forward pass of `small_resnet` by hand: multiplications, twice."""
    side, images = shape[0], 2 * batch
    blocks = [(3, 8, side, 3)]
    for inputs, outputs, size in ((8, 8, side), (8, 16, side // 2), (16, 32, side // 4)):
        blocks += [(inputs, outputs, size, 3), (outputs, outputs, size, 3)]
        if inputs != outputs:
            blocks.append((inputs, outputs, size, 1))
    convolutions = sum(i * o * k * k * s * s for i, o, s, k in blocks)
    return 2 * images * (convolutions + 32 * 16 + 16 * 8)


def test_arithmetic_is_that_of_the_layers():
    found = trace()
    assert total(found, "flops", ["forward"]) == layers(SHAPE, 64)
    # Backward: twice as much, but for the images, whose gradient nothing needs; and the losses.
    first = 2 * 128 * 3 * 8 * 9 * 16 * 16
    losses = 2 * 2 * 128 * 128 * 8
    assert total(found, "flops", ["backward"]) == 2 * layers(SHAPE, 64) - first + losses
    assert total(found, "flops", ["losses"]) == losses / 2


def test_larger_batches_move_more_and_launch_as_much():
    once, twice = (trace(batch_size=size) for size in (64, 128))
    assert total(twice, "flops", ["forward"]) == 2 * total(once, "flops", ["forward"])
    assert total(twice, "launches") == total(once, "launches")
    assert total(twice, "moved") / total(once, "moved") == pytest.approx(2, abs=0.1)
    assert 1.8 < twice.peak / once.peak < 2.2
    assert twice.held == once.held


def test_bfloat16_halves_what_is_moved_and_kept():
    full, half = (trace(precision=p, batch_size=256) for p in ("float32", "bfloat16"))
    assert total(half, "moved") / total(full, "moved") == pytest.approx(0.5, abs=0.06)
    assert 0.4 < half.peak / full.peak < 0.7  # the views stay in float32
    assert total(half, "flops") == total(full, "flops")
    types = Counter(k.dtype for k in half.kernels if k.flops and k.part == "forward")
    assert set(types) == {"bfloat16"}
    assert {k.dtype for k in half.kernels if k.flops and k.part == "losses"} == {"float32"}
    assert half.weights == full.weights


def test_layer_norm_of_gpus_is_in_float32():
    found = trace(architecture="small_vit", patch=4, precision="bfloat16")
    by_type = Counter(k.dtype for k in found.kernels if k.part == "forward" and k.launches == 2)
    assert by_type["float32"] >= 2 * 4  # two LayerNorms in each of four layers


def test_compiled_networks_fuse_what_follows_convolutions():
    plain, fused = (trace(compile=value) for value in (False, True))
    assert total(fused, "flops") == total(plain, "flops")
    assert total(fused, "launches") < 0.95 * total(plain, "launches")
    assert 0.6 < total(fused, "moved") / total(plain, "moved") < 0.95
    others = ("views", "losses", "optimizer", "logging")
    for what in ("moved", "launches"):
        assert total(fused, what, others) == total(plain, what, others)
    assert fused.peak == plain.peak


def test_cuda_graphs_are_one_launch_for_each_pass():
    fused, recorded = (trace(compile=value) for value in (True, "cuda_graphs"))
    assert fused == recorded
    settings = cell(compile="cuda_graphs")
    assert graphs_of_step(cell(compile=True)) == {}
    graphs = graphs_of_step(settings)
    assert graphs == dict.fromkeys(("forward", "backward"), len(settings["objectives"]))
    launches = [step_on(gpu_of("h100"), fused.kernels, recorded=r).launches for r in ({}, graphs)]
    passes = total(fused, "launches", ("forward", "backward"))
    assert launches[0] - launches[1] == passes - sum(graphs.values())
    assert passes > 20 * sum(graphs.values())


def test_the_peak_is_what_the_backward_pass_keeps():
    """Against the tensors that autograd keeps in a real forward pass."""
    from cltools.data.image_set import ImageSet
    from cltools.training.trainer import CoupledTrainer

    settings = cell(batch_size=256)
    images = torch.zeros(256, *SHAPE, dtype=torch.uint8)
    data = ImageSet(images, torch.arange(256) % 10, torch.arange(256), 256, 10,
                    torch.zeros(3), torch.ones(3))  # fmt: skip
    trainer = CoupledTrainer(settings, data, CPU)
    weights = {p.untyped_storage().data_ptr() for p in trainer.networks["dcl"].parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    views = torch.rand(512, 3, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.networks["dcl"].train()(views)
    assert trace(batch_size=256).peak == pytest.approx(sum(kept.values()), rel=0.25)


def test_objectives_that_cost_the_same_are_traced_once():
    objectives = ["dcl", "nscl", "scl", "ce", "dcl_twin"]
    assert stand_ins(cell(objectives=objectives)) == {"dcl": 3, "ce": 1, "dcl_twin": 1}
    one, two = trace(), trace(objectives=["dcl", "nscl"])
    assert total(two, "flops") == 2 * total(one, "flops")
    assert total(two, "moved", ["views"]) == total(one, "moved", ["views"])
    assert (two.weights, two.held) == (2 * one.weights, 2 * one.held)
    assert two.peak == one.peak
    apart = trace(objectives=["dcl", "nscl"], coupling=[])
    assert total(apart, "launches", ["views"]) > total(two, "launches", ["views"])


@pytest.mark.parametrize(
    "settings",
    [
        {"framework": "moco", "queue_size": 128, "objectives": ["dcl", "nscl", "ce"]},
        {"optimizer": "authors_lars", "view_forward": "apart"},
        {"optimizer": "sgd", "sampler": "authors"},
        {"recipe": "imagenet", "stem": "imagenet"},
        {"objectives": ["dcl", "nscl:shuffled", "nscl:coarse2", "nscl:clusters3", "dcl_twin"]},
        {"architecture": "small_vit", "patch": 4},
        {"architecture": "timm:test_resnet"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_whole_steps_of_other_cells(settings):
    """Views, forward and backward pass and optimizer of every kind of cell run on fake tensors."""
    found = trace(**settings)
    parts = {"views", "forward", "losses", "backward", "optimizer", "logging"}
    assert {kernel.part for kernel in found.kernels} == parts
    assert total(found, "flops", ["backward"]) > total(found, "flops", ["forward"]) * 0.9
    assert found.held > 2 * found.weights


def test_photographs_are_cropped_by_the_processor():
    plain, encoded = (trace(encoded=e, recipe="imagenet") for e in (False, True))
    assert total(encoded, "flops", ["views"]) < total(plain, "flops", ["views"])
    assert total(encoded, "flops") == total(plain, "flops")


def test_nothing_is_computed():
    """Gigabytes of views are neither made nor held."""
    found = trace(shape=(224, 224, 3), batch_size=4096, stem="imagenet")
    assert found.peak > 10e9
    assert all(isinstance(kernel, Kernel) for kernel in found.kernels)
