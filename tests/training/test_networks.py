"""Networks, optimizers and schedules."""

import math
from functools import partial

import pytest
import torch
import torchvision
from small import small_cell

from cltools.data.image_set import ImageSet
from cltools.maths.randomness import generator, initialize
from cltools.maths.weights import weight_distance
from cltools.runtime.errors import InputError
from cltools.training.curvature import largest_curvature
from cltools.training.networks import (
    ARCHITECTURES,
    TRANSFORMERS,
    ResNet,
    VisionTransformer,
    build_network,
    patch_side,
)
from cltools.training.optimizers import build_optimizer, lr_at, peak_lr, set_lr
from cltools.training.recalibration import recalibrate
from cltools.training.regularity import SimilarityMap
from cltools.training.trainer import CoupledTrainer

cell = partial(
    small_cell,
    images_per_class=None,
    dataset="x",
    recipe="cifar",
    horizon=10,
    batch_size=128,
)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvisions_resnet(name):
    theirs = getattr(torchvision.models, name)().eval()
    ours = ResNet(ARCHITECTURES[name], "imagenet", 1, 3).eval()
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(weights)
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_width_and_stem():
    assert ResNet(ARCHITECTURES["resnet50"], "cifar", 2, 3).features == 4096
    small = ResNet(ARCHITECTURES["small_resnet"], "cifar", 1, 1)
    assert small.conv1.weight.shape == (8, 1, 3, 3)
    feature_map = small.layer1(small.bn1(small.conv1(torch.randn(1, 1, 8, 8))))
    assert feature_map.shape[2:] == (8, 8)  # a CIFAR stem keeps the resolution


def from_torchvision(weights):
    """torchvision's ViT weights under timm's names."""
    names = {
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj.": "patch_embed.proj.",
        "encoder.layers.encoder_layer_": "blocks.",
        "encoder.ln.": "norm.",
        ".ln_": ".norm",
        ".self_attention.in_proj_": ".attn.qkv.",
        ".self_attention.out_proj.": ".attn.proj.",
        ".mlp.0.": ".mlp.fc1.",
        ".mlp.3.": ".mlp.fc2.",
    }
    renamed = {}
    for name, tensor in weights.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        renamed[f"vit.{name}"] = tensor
    return renamed


def torchvision_vit(side, patch, transformer):
    theirs = torchvision.models.VisionTransformer(
        side, patch, transformer.layers, transformer.heads, transformer.features,
        4 * transformer.features,
    )  # fmt: skip
    theirs.heads = torch.nn.Identity()
    return theirs.eval()


@pytest.mark.parametrize(("name", "side"), [("small_vit", 32), ("vit_small", 64)])
def test_equals_torchvisions_vision_transformer(name, side):
    transformer, patch = TRANSFORMERS[name], patch_side(None, (side, side, 3))
    theirs = torchvision_vit(side, patch, transformer)
    torch.nn.init.normal_(theirs.class_token)
    for parameter in theirs.parameters():
        if parameter.ndim == 1:  # shifts that are not 0 and gains that are not 1
            torch.nn.init.normal_(parameter)
    ours = VisionTransformer(transformer, patch, (side, side, 3)).eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    x = torch.randn(2, 3, side, side)
    assert ours(x).shape == (2, transformer.features)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_initial_vit_is_drawn_like_torchvisions():
    """Tensor by tensor the same shape, mean and deviation."""
    torch.manual_seed(0)
    theirs = from_torchvision(torchvision_vit(32, 4, TRANSFORMERS["vit_small"]).state_dict())
    ours = VisionTransformer(TRANSFORMERS["vit_small"], 4, (32, 32, 3))
    initialize(ours, 0)
    assert theirs.keys() == ours.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert tensor.shape == theirs[name].shape
        mean, spread = float(theirs[name].mean()), float(theirs[name].std())
        error = 10 / tensor.numel() ** 0.5
        assert float(tensor.mean()) == pytest.approx(mean, abs=error * spread)
        assert float(tensor.std()) == pytest.approx(spread, rel=error)
    again = VisionTransformer(TRANSFORMERS["vit_small"], 4, (32, 32, 3))
    initialize(again, 0)
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize(("side", "patch"), [(8, 2), (28, 4), (32, 4), (64, 8), (224, 16)])
def test_patches_are_the_papers(side, patch):
    assert patch_side(None, (side, side, 3)) == patch
    assert patch_side(1, (side, side, 3)) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"architecture": "vit_small", "width": 2}, r"cell\.width is 2, but vit_small is a ViT"),
        ({"architecture": "small_vit", "stem": "imagenet"}, r"cell\.stem is 'imagenet'.*no stem"),
        (
            {"patch": 4},
            r"cell\.patch is 4, but small_resnet is a ResNet, which has no patch",
        ),
    ],
)
def test_keys_of_the_other_kind_of_encoder(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        cell(**settings)


def test_patches_that_do_not_fit():
    sentence = r"8 × 12 pixels cannot be cut.* 3 × 3: set config key patch to one of 1, 2, 4$"
    with pytest.raises(InputError, match=sentence):
        build_network(cell(architecture="small_vit", patch=3), (8, 12, 1), 10, "dcl")
    rectangular = build_network(cell(architecture="small_vit"), (8, 12, 1), 10, "dcl")
    initialize(rectangular, 0)
    assert rectangular(torch.randn(3, 1, 8, 12))[0].shape == (3, 64)


def images(side, count, channels=3):
    """Random images of two classes."""
    shape = (count, side, side, channels)
    return ImageSet(
        images=torch.randint(256, shape, dtype=torch.uint8, generator=generator("images")),
        labels=torch.arange(count) % 2,
        samples=torch.arange(count),
        split_size=count,
        classes=2,
        mean=torch.full((channels,), 0.5),
        std=torch.full((channels,), 0.25),
    )


@pytest.mark.parametrize(
    ("side", "settings"),
    [
        (32, {"architecture": "resnet50"}),
        (32, {"architecture": "resnet50", "width": 2, "projector_dim": 64}),
        (32, {"architecture": "resnet50", "framework": "moco", "queue_size": 4}),
        (64, {"architecture": "resnet50", "stem": "imagenet"}),
        (224, {"architecture": "resnet50", "stem": "imagenet"}),
        (32, {"architecture": "vit_small"}),
        (64, {"architecture": "vit_small"}),
        (224, {"architecture": "vit_base"}),
        (64, {"architecture": "small_resnet", "batch_size": 64}),
    ],
)
def test_a_step_of_the_papers_cells(side, settings):
    """The loss is finite, and all but the projector's last shift, which is fixed, moves."""
    recipe = {"projector_hidden": 2048, "projector_dim": 128, "objectives": ["nscl"]}
    recipe |= {"lr_rule": "constant", "batch_size": 2, "optimizer": "lars", **settings}
    trainer = CoupledTrainer(
        cell(**recipe), images(side, recipe["batch_size"]), torch.device("cpu")
    )
    network = trainer.networks["nscl"]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trainer.train_step()
    trainer.flush()  # raises for a loss that is not finite
    still = {name for name, p in network.named_parameters() if torch.equal(p, before[name])}
    assert still == {"projector.4.bias"}
    assert trainer.log(1)["grad_norm"][0] > 0


@pytest.fixture
def small_vit():
    network = build_network(cell(architecture="small_vit"), (8, 8, 1), 10, "dcl")
    initialize(network, 0)
    return network


def test_a_vit_has_recalibrated_statistics_curvature_and_a_jacobian(small_vit):
    """What needs BatchNorm layers, second derivatives or forward ones, works on a ViT as well."""
    recalibrate(small_vit, images(8, 12, channels=1))
    assert small_vit.projector[1].num_batches_tracked == 1
    x = torch.randn(6, 1, 8, 8, generator=generator("x"))
    weights = [p for p in small_vit.parameters() if p.requires_grad]
    assert largest_curvature(lambda: (small_vit(x)[1] ** 3).sum(), weights, 2) > 0
    similarities = SimilarityMap(small_vit, x.view(2, 3, 1, 8, 8))
    point = similarities.at(similarities.weights(small_vit))
    direction = torch.randn(
        point.weights.shape, dtype=torch.float64, generator=generator("direction")
    )
    small = 1e-6 * direction
    difference = similarities(point.weights + small) - similarities(point.weights - small)
    torch.testing.assert_close(point.jvp(direction), difference / 2e-6, atol=1e-5, rtol=1e-4)


def test_weight_distance_covers_all_that_a_vit_trains(small_vit):
    weights = {name: tensor.numpy() for name, tensor in small_vit.state_dict().items()}
    moved = {**weights, "encoder.vit.pos_embed": weights["encoder.vit.pos_embed"] + 1}
    count = weights["encoder.vit.pos_embed"].size
    assert weight_distance(weights, moved) == pytest.approx(count**0.5)


def test_network_outputs():
    network = build_network(cell(), (16, 16, 3), 10, "dcl")
    h, z = network(torch.randn(5, 3, 16, 16))
    assert h.shape == (5, 32)
    assert z.shape == (5, 8)
    assert torch.allclose(z.norm(dim=1), torch.ones(5), atol=1e-6)
    assert not hasattr(network, "head")
    ce = build_network(cell(), (16, 16, 3), 10, "ce")
    assert ce.class_logits(z).shape == (5, 10)


def test_last_projector_shift_stays_zero():
    network = build_network(cell(optimizer="sgd"), (8, 8, 3), 10, "dcl")
    initialize(network, 0)
    optimizer = build_optimizer(cell(optimizer="sgd"), network)
    set_lr(optimizer, 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (network(torch.randn(8, 3, 8, 8))[1] ** 3).sum().backward()
        optimizer.step()
    assert (network.projector[4].bias == 0).all()
    assert (network.projector[1].bias != 0).any()


def test_lars_neither_adapts_nor_freezes_shifts():
    """The authors' LARS gives zero-initialized shifts a trust ratio of 0 and never moves them."""
    network = build_network(cell(optimizer="lars"), (8, 8, 3), 10, "dcl")
    initialize(network, 0)
    optimizer = build_optimizer(cell(optimizer="lars"), network)
    set_lr(optimizer, 0.1)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    (network(torch.randn(8, 3, 8, 8))[1] ** 3).sum().backward()
    optimizer.step()
    shift = dict(network.named_parameters())["encoder.bn1.bias"]
    # Momentum's first step is plain gradient descent.
    assert torch.allclose(before["encoder.bn1.bias"] - shift, 0.1 * shift.grad, atol=1e-7)
    kernel = dict(network.named_parameters())["encoder.conv1.weight"]
    old = before["encoder.conv1.weight"]
    gradient = kernel.grad + 1e-6 * old
    trust = 0.001 * old.norm() / (kernel.grad.norm() + 1e-6 * old.norm())
    assert torch.allclose(old - kernel, 0.1 * trust * gradient, atol=1e-7)


def test_learning_rate_rules():
    def rate(rule):
        return peak_lr(rule, 0.3, 1024, 256)

    assert rate("linear") == pytest.approx(1.2)
    assert rate("sqrt") == pytest.approx(0.6)
    assert rate("fourth_root") == pytest.approx(0.3 * math.sqrt(2))
    assert rate("constant") == pytest.approx(0.3)
    # P2's script: 32 and 181 times below the linear rule
    assert rate("authors_sqrt") == pytest.approx(0.0375)
    assert rate("authors_fourth_root") == pytest.approx(0.0066, abs=1e-4)


def test_schedule():
    rates = [lr_at(step, 2.0, 10, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 0.99)))
    assert lr_at(0, 2.0, 0, 10) == 2.0
