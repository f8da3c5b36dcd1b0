"""The largest curvature of a loss against Hessians written out."""

import pytest
import torch
from torch import nn

from cltools.training.curvature import largest_curvature


@pytest.mark.parametrize("eigenvalues", [[3.0, 1.0, 0.5], [-4.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
def test_quadratic(eigenvalues, device):
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    matrix = (rotation @ torch.diag(torch.tensor(eigenvalues)) @ rotation.T).to(device)
    x = torch.ones(3, requires_grad=True, device=device)
    found = largest_curvature(lambda: x @ matrix @ x / 2, [x], iterations=60)
    assert found == pytest.approx(max(map(abs, eigenvalues)), rel=1e-4)


def test_small_network(device):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().to(device)
    x, y = torch.randn(20, 4).double().to(device), torch.randint(3, (20,)).to(device)
    parameters = list(network.parameters())
    sizes = [p.numel() for p in parameters]

    def loss_of(flat):
        parts = [v.view_as(p) for v, p in zip(flat.split(sizes), parameters, strict=True)]
        named = dict(zip(dict(network.named_parameters()), parts, strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(network, named, x), y)

    flat = torch.cat([p.detach().flatten() for p in parameters])
    hessian = torch.autograd.functional.hessian(loss_of, flat)
    expected = torch.linalg.eigvalsh(hessian).abs().max().item()

    def loss():
        return nn.functional.cross_entropy(network(x), y)

    found = largest_curvature(loss, parameters, iterations=200)
    assert found == pytest.approx(expected, rel=1e-3)
    assert largest_curvature(loss, parameters, iterations=3) <= expected * (1 + 1e-9)
    assert found == largest_curvature(loss, parameters, iterations=200)
    with pytest.raises(ValueError, match="1 step"):
        largest_curvature(loss, parameters, iterations=0)
