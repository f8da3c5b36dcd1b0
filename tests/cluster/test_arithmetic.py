"""The size of networks, against what torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cltools.cluster.arithmetic import network_size
from cltools.config.cells import resolve_cell
from cltools.training.networks import build_network


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"architecture": "small_resnet"}, 8),
        ({"architecture": "small_resnet", "width": 2}, 32),
        ({"architecture": "resnet18", "stem": "imagenet"}, 64),
        ({"architecture": "resnet50"}, 32),
        ({"architecture": "resnet50", "stem": "imagenet"}, 224),
        ({"architecture": "small_vit"}, 32),
        ({"projector_layers": 0}, 8),
        ({"projector_layers": 1, "projector_norm": "none"}, 8),
        ({"projector_layers": 3}, 8),
        ({"architecture": "vit_base"}, 224),
    ],
)
def test_as_torch_counts(settings, side):
    cell = resolve_cell({"dataset": "x", "recipe": "cifar", "horizon": 1, **settings})
    found = network_size(cell, side)
    with torch.device("meta"):
        network = build_network(cell, (side, side, 3), 10, "dcl").eval()
        with FlopCounterMode(display=False) as counted:
            h, _ = network(torch.empty(1, 3, side, side))
    assert found.features == h.shape[1]
    assert found.flops == pytest.approx(counted.get_total_flops(), rel=0.02)
    parameters = sum(p.numel() for p in network.parameters())
    assert found.parameters == pytest.approx(parameters, rel=0.02)
