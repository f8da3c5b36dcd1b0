"""Spread and dimensions of unit vectors, from arrangements where they are known."""

import math

import pytest
import torch
import torch.nn.functional as F

from cltools.maths.spread import spread


def test_known_arrangements():
    corners = torch.cat([torch.eye(5), -torch.eye(5)]).double()
    assert [float(x) for x in spread(corners)] == pytest.approx([1, 5])
    line = torch.tensor([[0.6, 0.8], [-0.6, -0.8]]).double()
    assert float(spread(line)[1]) == pytest.approx(1)
    std, rank = spread(torch.tensor([[0.6, 0.8]] * 4).double())
    assert (float(std), math.isnan(rank)) == (0, True)


def test_participation_of_eigenvalues():
    z = F.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(z.T, correction=0))
    assert float(spread(z)[1]) == pytest.approx(
        float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    )
