"""Losses that are not of the papers, against loops from their formulas and against lightly."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, VICRegLoss

from cltools.maths.objectives import pair_masks
from cltools.objectives import Outputs, built_in, find

LABELS = torch.tensor([0, 1, 2, 0, 1, 0])
TAU = 0.5
OTHERS = sorted(set(built_in()) - {"dcl", "dcl_twin", "nscl", "scl", "ce", "nt_xent",
                                   "nscl_with_positive", "nt_xent_double_positive"})  # fmt: skip


def loss_of(name):
    """The loss at the defaults of its settings."""
    found = find(name)
    settings = {key: one.default for key, one in found.settings.items() if key != "momentum"}
    return partial(found.loss, **settings)


def outputs(views=2, seed=0, **changed):
    """Projections, predictions and targets that are independent; all need a gradient."""
    draw = torch.Generator().manual_seed(seed)
    found = {
        name: torch.randn(views, len(LABELS), 4, generator=draw, dtype=torch.float64) * 2 + 1
        for name in ("projections", "predictions", "targets")
    }
    found = {name: x.requires_grad_() for name, x in {**found, **changed}.items()}
    z = F.normalize(found["projections"], dim=2)
    return Outputs(z, LABELS, TAU, pair_masks(LABELS, views), **found)


def value_and_gradients(loss, of):
    inputs = [of.projections, of.predictions, of.targets]
    value = loss(of)
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    return value.detach(), [torch.zeros_like(x) if g is None else g
                            for x, g in zip(inputs, found, strict=True)]  # fmt: skip


def mean(values):
    return sum(values) / len(values)


def dimensions(x):
    """The columns of (B, d), each as a list of scalars."""
    return [[row[k] for row in x] for k in range(x.shape[1])]


def covariance(a, b, divisor):
    first, second = mean(a), mean(b)
    return sum((u - first) * (v - second) for u, v in zip(a, b, strict=True)) / divisor


def loop_vicreg(a, b):
    count, d = a.shape
    total = 25 * mean([(a[i, k] - b[i, k]) ** 2 for i in range(count) for k in range(d)])
    for x in map(dimensions, (a, b)):
        for k in range(d):
            std = (covariance(x[k], x[k], count - 1) + 1e-4).sqrt()
            total = total + 25 * torch.clamp(1 - std, min=0) / d / 2
            total = (
                total + sum(covariance(x[k], x[j], count - 1) ** 2 for j in range(d) if j != k) / d
            )
    return total


def loop_barlow_twins(a, b):
    count, d = a.shape
    a, b = dimensions(a), dimensions(b)
    total = 0
    for k in range(d):
        for j in range(d):
            scale = (covariance(a[k], a[k], count) + 1e-5) * (covariance(b[j], b[j], count) + 1e-5)
            correlation = covariance(a[k], b[j], count) / scale.sqrt()
            total = total + ((1 - correlation) ** 2 if j == k else 5e-3 * correlation**2)
    return total


def cosine(x, y):
    return (x @ y) / ((x @ x) * (y @ y)).sqrt()


def across(views, one):
    return mean([one(k, j) for k in range(views) for j in range(views) if k != j])


def loop_reference(name, of):
    views, count = len(of.z), len(LABELS)
    p, q, t = of.projections, of.predictions, of.targets
    images = range(count)
    if name in ("vicreg", "barlow_twins"):
        loss = {"vicreg": loop_vicreg, "barlow_twins": loop_barlow_twins}[name]
        return mean([loss(p[k], p[j]) for k in range(views) for j in range(k)])
    if name == "simsiam":
        stopped = p.detach()
        return -across(views, lambda k, j: mean([cosine(q[k, i], stopped[j, i]) for i in images]))
    if name == "byol":
        unit = [F.normalize(x, dim=2) for x in (q, t)]
        return 2 * across(
            views,
            lambda k, j: mean([((unit[0][k, i] - unit[1][j, i]) ** 2).sum() for i in images]),
        )
    z, y = of.z.flatten(0, 1), LABELS.repeat(views)
    terms = []
    for anchor in range(len(z)):
        e = [(z[anchor] @ other / TAU).exp() for other in z]
        others = [j for j in range(len(z)) if j != anchor]
        positives = mean([e[j] for j in others if y[j] == y[anchor]])
        terms.append(-(positives / sum(e[j] for j in others)).log())
    return mean(terms)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_against_a_loop(name, views):
    ours, ours_gradients = value_and_gradients(loss_of(name), outputs(views))
    loop, gradients = value_and_gradients(lambda of: loop_reference(name, of), outputs(views))
    torch.testing.assert_close(ours, loop, rtol=1e-10, atol=1e-10)
    for one, other in zip(ours_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert any(one.any() for one in ours_gradients)


def lightly_negative_cosine(first, second):
    loss = NegativeCosineSimilarity()
    return (loss(first[0], second[1]) + loss(first[1], second[0])) / 2


LIGHTLY = {
    "vicreg": lambda of: VICRegLoss()(*of.projections),
    "barlow_twins": lambda of: BarlowTwinsLoss()(*of.projections),
    "simsiam": lambda of: lightly_negative_cosine(of.predictions, of.projections.detach()),
    "byol": lambda of: 4 + 4 * lightly_negative_cosine(of.predictions, of.targets),
}


@pytest.mark.parametrize("name", LIGHTLY)
def test_against_lightly(name):
    ours, ours_gradients = value_and_gradients(loss_of(name), outputs())
    theirs, gradients = value_and_gradients(LIGHTLY[name], outputs())
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for one, other in zip(ours_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_no_gradient_reaches_the_projections_of_simsiam():
    _, (projections, predictions, _) = value_and_gradients(loss_of("simsiam"), outputs())
    assert not projections.any()
    assert predictions.any()


@pytest.mark.parametrize("name", OTHERS)
def test_equal_projections_have_finite_gradients(name):
    """As of a collapsed network."""
    same = torch.ones(2, len(LABELS), 4, dtype=torch.float64)
    of = outputs(projections=same, predictions=same.clone(), targets=same.clone())
    value, gradients = value_and_gradients(loss_of(name), of)
    assert math.isfinite(value)
    assert all(one.isfinite().all() for one in gradients)


def test_one_in_the_numerator_is_the_other_l_of_khosla():
    """With one positive for each anchor, L_in is L_out."""
    labels = torch.arange(6)
    z = F.normalize(torch.randn(2, 6, 4, dtype=torch.float64), dim=2)
    of = Outputs(z, labels, TAU, pair_masks(labels, 2))
    torch.testing.assert_close(find("supcon_in").loss(of), find("scl").loss(of))
