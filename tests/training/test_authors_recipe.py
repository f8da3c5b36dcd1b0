"""The pieces of the authors' recipe: LARS, schedule, batches, one forward pass for each view."""

import math
from functools import partial

import pytest
import torch
from small import small_cell
from torch import nn

from cltools.data.image_set import image_set, open_store
from cltools.maths.randomness import balanced_order, generator, initialize
from cltools.training.networks import build_network
from cltools.training.optimizers import AuthorsLars, build_optimizer, lr_by_epoch, set_lr
from cltools.training.trainer import CoupledTrainer

CPU = torch.device("cpu")


cell = partial(
    small_cell,
    warmup=2,
    lr_rule="constant",
)


def trainer_of(store, **settings):
    settings = cell(**settings)
    return CoupledTrainer(
        settings, image_set(open_store(store, settings), settings, "train", CPU), CPU
    )


def authors_lars(weights, gradients, momenta, lr, momentum, weight_decay, eeta):
    """Tensor by tensor as their code does it; the new weights and momenta."""
    total = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    results = []
    for w, g, v in zip(weights, gradients, momenta, strict=True):
        g = g * min(1.0, 1 / (total + 1e-6)) + weight_decay * w
        trust = eeta * float(w.norm()) / float(g.norm())
        v = momentum * v + lr * trust * g
        results.append((w - v, v))
    return [list(column) for column in zip(*results, strict=True)]


@pytest.mark.parametrize("size", [0.01, 10.0])  # gradients below and above the clipping norm
def test_lars_is_that_of_the_authors(size):
    draw = generator("lars")
    shapes = [(4, 3, 3, 3), (4,), (5, 4), (1, 1, 6)]
    weights = [torch.randn(shape, generator=draw) for shape in shapes]
    weights[1].zero_()
    ours = [nn.Parameter(w.clone()) for w in weights]
    optimizer = AuthorsLars(ours, momentum=0.9, weight_decay=0.1, trust_coefficient=0.02)
    momenta = [torch.zeros_like(w) for w in weights]
    for step in range(5):
        gradients = [size * torch.randn(w.shape, generator=draw) for w in weights]
        for parameter, gradient in zip(ours, gradients, strict=True):
            parameter.grad = gradient.clone()
        set_lr(optimizer, 0.5 + step)
        optimizer.step()
        weights, momenta = authors_lars(weights, gradients, momenta, 0.5 + step, 0.9, 0.1, 0.02)
        for parameter, weight in zip(ours, weights, strict=True):
            torch.testing.assert_close(parameter.data, weight)


def test_lars_leaves_a_tensor_without_gradient():
    """Theirs divides by the gradient's norm, and would make it infinite or not a number."""
    weights = [
        nn.Parameter(torch.ones(3)),
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.ones(1)),
    ]
    optimizer = AuthorsLars(weights, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001)
    set_lr(optimizer, 1.0)
    weights[0].grad, weights[1].grad = torch.zeros(3), torch.zeros(2)
    optimizer.step()
    assert [w.tolist() for w in weights] == [[1, 1, 1], [0, 0], [1]]


@pytest.mark.parametrize("architecture", ["small_resnet", "small_vit"])
@pytest.mark.parametrize("optimizer", ["lars", "authors_lars"])
def test_what_starts_at_zero_stays_there_under_the_authors_lars(digits, architecture, optimizer):
    trainer = trainer_of(digits, architecture=architecture, optimizer=optimizer)
    network = trainer.networks["dcl"]
    zero = {name for name, p in network.named_parameters() if p.requires_grad and not p.any()}
    assert len(zero) == {"small_resnet": 10, "small_vit": 20}[architecture]
    for _ in range(5):
        trainer.train_step()
    after = dict(network.named_parameters())
    assert {name for name in zero if not after[name].any()} == (
        zero if optimizer == "authors_lars" else set()
    )
    fixed = {"projector.4.bias"} | (zero if optimizer == "authors_lars" else set())
    start = build_network(trainer.cell, trainer.data.image_shape, 10, "dcl")
    initialize(start, trainer.cell["seed"])
    still = {n for n, p in start.named_parameters() if torch.equal(p, after[n])}
    assert still == fixed


def test_schedule_by_epoch():
    """lr(e) = peak min(1, (e + 1) / 10) (1 + cos(pi e / T)) / 2, in every step of the epoch."""
    rates = [lr_by_epoch(step, 1.2, 10 * 48, 1201 * 48, 48) for step in range(1201 * 48)]
    epochs = [set(rates[first : first + 48]) for first in range(0, len(rates), 48)]
    for epoch in (0, 1, 8, 9, 10, 600, 1200):
        expected = 1.2 * min(1, (epoch + 1) / 10) * 0.5 * (1 + math.cos(math.pi * epoch / 1201))
        (rate,) = epochs[epoch]
        assert rate == pytest.approx(expected, rel=1e-12)
    assert rates[0] == pytest.approx(0.12)
    assert lr_by_epoch(0, 1.2, 0, 10, 5) == 1.2


def test_the_trainer_takes_the_schedule(digits):
    trainer = trainer_of(digits, lr_schedule="per_epoch", optimizer="sgd")
    while trainer.step < 20:
        trainer.train_step()
    rates = trainer.log(20)["lr"][::4].reshape(4, 5)
    assert (rates == rates[:, :1]).all()
    expected = [0.3 * min(1, (e + 1) / 2) * 0.5 * (1 + math.cos(math.pi * e / 4)) for e in range(4)]
    assert rates[:, 0].tolist() == pytest.approx(expected)


def test_balanced_batches_of_balanced_classes():
    """An epoch is no pass: 1 - (1 - B/N)^(N/B), nearly 1 - 1/e, of the images are in it."""
    labels = torch.arange(20000) % 10
    order = balanced_order(0, 0, labels, 200)
    assert order.shape == (100, 200)
    assert all(len(row.unique()) == 200 for row in order)
    share = len(order.unique()) / 20000
    assert share == pytest.approx(1 - 0.99**100, abs=0.01)
    assert share == pytest.approx(1 - 1 / math.e, abs=0.015)
    assert torch.equal(order, balanced_order(0, 0, labels, 200))
    for other in ((1, 0), (0, 1)):
        assert not torch.equal(order, balanced_order(*other, labels, 200))


def test_balanced_batches_of_unbalanced_classes():
    labels = torch.tensor([0] * 9000 + [3] * 900 + [7] * 300)[torch.randperm(10200)]
    order = balanced_order(0, 0, labels, 50)
    drawn = labels[order].flatten()
    for label in (0, 3, 7):
        # 10,200 draws; without replacement the smallest class comes a little less often.
        assert (drawn == label).double().mean() == pytest.approx(1 / 3, abs=0.03)
    assert all(len(row.unique()) == 50 for row in order)


def test_drawing_without_replacement_has_the_right_probabilities():
    """Two of three images, weights 1/2, 1/4, 1/4: the first is left out with probability 1/6."""
    labels = torch.tensor([0, 1, 1])
    rows = torch.cat([balanced_order(0, epoch, labels, 2) for epoch in range(3000)])
    missing = 3 - rows.sum(dim=1)
    share = [(missing == image).double().mean().item() for image in range(3)]
    # P(0 missing) = P(1 then 2 or 2 then 1) = 2 · 1/4 · (1/4) / (3/4)
    assert share == pytest.approx([1 / 6, 5 / 12, 5 / 12], abs=0.03)


def test_a_batch_of_all_images():
    labels = torch.tensor([0] * 60 + [1] * 3)
    assert balanced_order(0, 0, labels, 63).sort().values.tolist() == [list(range(63))]


def test_the_trainer_takes_balanced_batches(digits):
    shuffled, balanced = trainer_of(digits), trainer_of(digits, sampler="authors")
    assert shuffled.batches["dcl"].labels(5).flatten().bincount().tolist() == [12] * 10
    assert balanced.batches["dcl"].labels(5).flatten().bincount().tolist() != [12] * 10
    images = balanced.batches["dcl"].at(8)[1]
    assert torch.equal(balanced.data.labels[images], balanced.batches["dcl"].labels(10)[8])


def test_views_apart_have_batch_statistics_of_their_own(digits):
    together, apart = trainer_of(digits), trainer_of(digits, view_forward="apart")
    views, _ = together.batches["dcl"].at(0)
    network = apart.networks["dcl"].train()
    one, other = network(views[:24])[1], network(views[24:])[1]
    assert torch.equal(apart._project(network, views), torch.cat([one, other]))
    assert not torch.allclose(network(views)[1][:24], one, atol=1e-3)
    for trainer, passes in ((together, 1), (trainer_of(digits, view_forward="apart"), 2)):
        trainer.train_step()
        assert trainer.networks["dcl"].projector[1].num_batches_tracked == passes


def test_existing_cells_keep_their_identity():
    """Keys at their default are left out: a cell from before they existed has the same id."""
    from cltools.config.cells import canonical_cell
    from cltools.config.schema import cell_keys

    new = {"patch", "sampler", "view_forward", "lr_schedule"}
    assert new < cell_keys().keys()
    assert not any(f'"{key}"' in canonical_cell(cell()) for key in new)


def test_both_optimizers_train_the_same():
    network = build_network(cell(architecture="small_vit"), (8, 8, 1), 10, "dcl")
    groups = build_optimizer(cell(), network).param_groups
    decayed, rest = ({id(p) for p in group["params"]} for group in groups)
    assert id(network.encoder.vit.cls_token) in rest
    assert id(network.encoder.vit.pos_embed) in decayed
    (group,) = build_optimizer(cell(optimizer="authors_lars"), network).param_groups
    assert {id(p) for p in group["params"]} == decayed | rest
