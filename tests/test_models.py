"""Networks, optimisers and schedules."""

import math

import pytest
import torch
import torchvision

from cltools.cells import resolve_cell
from cltools.engine.models import ARCHITECTURES, ResNet, build_network
from cltools.engine.optim import build_optimizer, lr_at, peak_lr, set_lr
from cltools.engine.randomness import initialise


def cell(**settings):
    small = {"projector_hidden": 16, "projector_dim": 8}
    return resolve_cell({"dataset": "x", "recipe": "cifar", "horizon": 10, **small, **settings})


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


def test_network_outputs():
    network = build_network(cell(), 3, 10, "dcl")
    h, z = network(torch.randn(5, 3, 16, 16))
    assert h.shape == (5, 32)
    assert z.shape == (5, 8)
    assert torch.allclose(z.norm(dim=1), torch.ones(5), atol=1e-6)
    assert not hasattr(network, "head")
    ce = build_network(cell(), 3, 10, "ce")
    assert ce.class_logits(z).shape == (5, 10)


def test_last_projector_shift_stays_zero():
    network = build_network(cell(optimizer="sgd"), 3, 10, "dcl")
    initialise(network, 0)
    optimizer = build_optimizer(cell(optimizer="sgd"), network)
    set_lr(optimizer, 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (network(torch.randn(8, 3, 8, 8))[1] ** 3).sum().backward()
        optimizer.step()
    assert (network.projector[4].bias == 0).all()
    assert (network.projector[1].bias != 0).any()


def test_lars_neither_adapts_nor_freezes_shifts():
    """The authors' LARS gives zero-initialised shifts a trust ratio of 0 and never moves them."""
    network = build_network(cell(optimizer="lars"), 3, 10, "dcl")
    initialise(network, 0)
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
