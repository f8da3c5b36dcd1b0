"""Objectives against loops written from the formulas, other libraries and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from formulas import gap_at_initialization

from cltools.maths.bounds import gap_bound
from cltools.maths.objectives import (
    CONTRASTIVE,
    checked_contrastive_loss,
    contrastive_loss,
    cross_entropy,
    masked_logsumexp,
    pair_masks,
    similarity_logits,
)

LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 2, 0])
# How often the positive stands in the denominator.
IN_DENOMINATOR = {"nt_xent": 1, "nscl_with_positive": 1, "nt_xent_double_positive": 2}


@pytest.fixture(autouse=True)
def everything_there(device):
    """What tests make without naming a device is on the one of --device."""
    global LABELS
    LABELS = LABELS.to(device)
    with device:
        yield


def projections(views=2, images=8, dim=5, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(views, images, dim, generator=draw, dtype=dtype, device="cpu")
    return F.normalize(z, dim=2).to(LABELS.device)


def loop_reference(name, z, labels, tau):
    """Straight from the formulas, one exponential at a time."""
    views, images, _ = z.shape

    def e(view, image, other_view, other_image):
        return math.exp(float(z[view, image] @ z[other_view, other_image]) / tau)

    everywhere = [(view, image) for view in range(views) for image in range(images)]
    terms = []
    for view, i in everywhere:
        if name == "scl":
            others = [(v, j) for v, j in everywhere if (v, j) != (view, i)]
            denominator = sum(e(view, i, v, j) for v, j in others)
            positives = [(v, j) for v, j in others if labels[j] == labels[i]]
            terms.append(
                -sum(math.log(e(view, i, v, j) / denominator) for v, j in positives)
                / len(positives)
            )
            continue
        negatives = sum(
            e(view, i, v, j)
            for v, j in everywhere
            if (labels[j] != labels[i] if name.startswith("nscl") else j != i)
        )
        for other in range(views):
            if other != view:
                positive = e(view, i, other, i)
                times = IN_DENOMINATOR.get(name, 0)
                terms.append(-math.log(positive / (negatives + times * positive)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_equals_the_formula(name, views, tau):
    z = projections(views)
    value = checked_contrastive_loss(name, z, LABELS, tau)
    assert float(value) == pytest.approx(loop_reference(name, z, LABELS.tolist(), tau), abs=1e-12)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_equals_other_libraries(tau):
    from lightly.loss import DCLLoss, NTXentLoss
    from pytorch_metric_learning.losses import SupConLoss

    z = projections(images=8, dtype=torch.float32)
    ours = {name: float(checked_contrastive_loss(name, z, LABELS, tau)) for name in CONTRASTIVE}
    assert ours["dcl"] == pytest.approx(float(DCLLoss(temperature=tau)(z[0], z[1])), abs=1e-5)
    nt_xent = NTXentLoss(temperature=tau)(z[0], z[1])
    assert ours["nt_xent"] == pytest.approx(float(nt_xent), abs=1e-5)
    supcon = SupConLoss(temperature=tau)(z.flatten(0, 1), LABELS.repeat(2))
    assert ours["scl"] == pytest.approx(float(supcon), abs=1e-5)


def test_the_authors_losses_on_their_terms():
    """Theirs are cross entropies with the positive among the logits, once or twice."""
    z, tau = projections(), 0.5
    logits = (z.flatten(0, 1) @ z.flatten(0, 1).T) / tau
    count = len(logits)
    positive = logits[torch.arange(count), (torch.arange(count) + 8) % count]
    label = LABELS.repeat(2)
    other_image = torch.arange(8).repeat(2)[:, None] != torch.arange(8).repeat(2)
    for name, negatives in (
        ("nt_xent", other_image),
        ("nscl_with_positive", label[:, None] != label),
        # Their mask takes out the diagonal alone, and the positive comes in front once more.
        ("nt_xent_double_positive", ~torch.eye(count, dtype=torch.bool)),
    ):
        rows = [
            F.cross_entropy(torch.cat([positive[i : i + 1], logits[i][negatives[i]]])[None],
                            torch.tensor([0]))
            for i in range(count)
        ]  # fmt: skip
        value = checked_contrastive_loss(name, z, LABELS, tau)
        assert float(value) == pytest.approx(float(torch.stack(rows).mean()), abs=1e-12)


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize(("classes", "per_class"), [(2, 2), (2, 30), (10, 13), (64, 1)])
def test_gap_at_equal_similarities(classes, per_class, tau):
    """Every similarity equal: DCL - NSCL is log((N - 1) / (N - n)), near log(C / (C - 1))."""
    labels = torch.arange(classes).repeat(per_class)
    z = torch.ones(2, len(labels), 4, dtype=torch.float64) / 2
    gap = checked_contrastive_loss("dcl", z, labels, tau) - checked_contrastive_loss(
        "nscl", z, labels, tau
    )
    expected = gap_at_initialization(per_class, len(labels))
    assert float(gap) == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(math.log((len(labels) - 1) / (len(labels) - per_class)))


@pytest.mark.parametrize("seed", range(20))
def test_order_and_bound_under_any_labels(seed):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (12,), generator=draw, device="cpu").to(LABELS.device)
    labels[:2] = torch.tensor([0, 1])
    for spread in (0.05, 1.0):  # nearly collapsed, and not
        noise = torch.randn(2, 12, 5, generator=draw, device="cpu").double().to(LABELS.device)
        z = F.normalize(torch.ones(5) + spread * noise, dim=2)
        for tau in (0.1, 0.5, 1.0):
            dcl = float(checked_contrastive_loss("dcl", z, labels, tau))
            nscl = float(checked_contrastive_loss("nscl", z, labels, tau))
            n_max = int(torch.bincount(labels).max())
            assert nscl <= dcl <= nscl + gap_bound(n_max, 12, tau)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_invariances(name):
    """Rotating all projections, permuting images or swapping views changes nothing; tau does."""
    z = projections()
    value = float(checked_contrastive_loss(name, z, LABELS, 0.5))
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    order = torch.randperm(8)
    same = [(z @ rotation, LABELS), (z[:, order], LABELS[order]), (z.flip(0), LABELS)]
    for changed, labels in same:
        loss = checked_contrastive_loss(name, changed, labels, 0.5)
        assert float(loss) == pytest.approx(value, abs=1e-12)
    assert abs(float(checked_contrastive_loss(name, z, LABELS, 0.4)) - value) > 1e-3


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_gradients(name):
    z = projections(images=4, dim=3).requires_grad_()
    labels = torch.tensor([0, 1, 0, 1])
    assert torch.autograd.gradcheck(
        lambda x: checked_contrastive_loss(name, F.normalize(x, dim=2), labels, 0.5), z
    )


def test_labels_matter_only_to_supervised_objectives():
    z = projections()
    other = LABELS.roll(1)
    for name in CONTRASTIVE:
        same = torch.equal(
            checked_contrastive_loss(name, z, LABELS, 0.5),
            checked_contrastive_loss(name, z, other, 0.5),
        )
        assert same == (name in ("dcl", "nt_xent", "nt_xent_double_positive"))


def test_undefined_is_an_error():
    z, one_class = projections(images=4), torch.zeros(4, dtype=torch.long)
    for name in ("nscl", "nscl_with_positive"):
        with pytest.raises(ValueError, match="one class"):
            checked_contrastive_loss(name, z, one_class, 0.5)


def test_bad_arguments():
    z = projections()
    with pytest.raises(ValueError, match="temperature"):
        checked_contrastive_loss("dcl", z, LABELS, 0.0)
    with pytest.raises(ValueError, match="shape"):
        checked_contrastive_loss("dcl", z, LABELS[:-1], 0.5)
    with pytest.raises(ValueError, match="two views"):
        checked_contrastive_loss("dcl", z[:1], LABELS, 0.5)
    with pytest.raises(ValueError, match="no negatives"):
        checked_contrastive_loss("dcl", z[:, :1], LABELS[:1], 0.5)
    with pytest.raises(ValueError, match="unknown"):
        contrastive_loss("triplet", similarity_logits(z, 1.0), pair_masks(LABELS, 2))


def test_logits_stay_in_float32_under_autocast():
    z = projections(dtype=torch.float32)
    with torch.autocast(z.device.type, dtype=torch.bfloat16):
        logits = similarity_logits(z, 0.1)
        assert (z.flatten(0, 1) @ z.flatten(0, 1).T).dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert torch.equal(logits, similarity_logits(z, 0.1))


def test_masked_logsumexp_of_nothing():
    row = masked_logsumexp(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))
    assert row.tolist() == [-math.inf]


def test_cross_entropy_is_the_mean_over_views():
    logits = torch.randn(2, 8, 3, dtype=torch.float32)
    expected = (F.cross_entropy(logits[0], LABELS) + F.cross_entropy(logits[1], LABELS)) / 2
    assert torch.allclose(cross_entropy(logits, LABELS), expected)
