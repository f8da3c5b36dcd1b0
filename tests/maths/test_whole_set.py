"""DCL and NSCL of a whole set against loops written from the papers' formulas."""

import math

import pytest
import torch
from formulas import gap_at_initialization
from hypothesis import given, settings
from hypothesis import strategies as st
from test_probes import OnDisk

from cltools.maths.bounds import gap_bound
from cltools.maths.whole_set import WholeSetLosses, whole_set_losses
from cltools.measurements import labelling_rows, loss_rows

TAUS = (0.1, 0.5, 1.0)


@pytest.fixture(autouse=True)
def everything_there(device):
    """What tests make without naming a device is on the one of --device."""
    with device:
        yield


def random_set(views=2, n=30, d=5, classes=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(views, n, d, generator=generator, dtype=torch.float64, device="cpu")
    labels = torch.randint(classes, (n,), generator=generator, device="cpu")
    labels[:2] = torch.tensor([0, 1], device="cpu")  # at least two classes
    there = torch.get_default_device()
    return torch.nn.functional.normalize(z, dim=2).to(there, dtype), labels.to(there)


def loop_loss(z, labels, tau, other_class_only):
    """P1's and P2's formula, sum by sum."""
    z, labels = z.double().tolist(), labels.tolist()
    views, n = len(z), len(labels)

    def term(a, b):
        return math.exp(sum(p * q for p, q in zip(a, b, strict=True)) / tau)

    total, count = 0.0, 0
    for first in range(views):
        for i in range(n):
            denominator = sum(
                term(z[first][i], z[third][j])
                for third in range(views)
                for j in range(n)
                if (labels[j] != labels[i] if other_class_only else j != i)
            )
            for second in range(views):
                if first == second:
                    continue
                total -= math.log(term(z[first][i], z[second][i]) / denominator)
                count += 1
    return total / count


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("tile", [1, 8, 1024])
def test_equals_the_formula(views, tile):
    z, labels = random_set(views)
    for tau, losses in whole_set_losses(z, labels, TAUS, tile).items():
        assert losses.dcl == pytest.approx(loop_loss(z, labels, tau, False), abs=1e-10)
        assert losses.nscl == pytest.approx(loop_loss(z, labels, tau, True), abs=1e-10)


@pytest.mark.parametrize("tile", [2, 10, 16, 24, 1024])
@pytest.mark.parametrize("counts", [(30, 30), (1, 2, 50, 7), (1,) * 60])
def test_any_class_sizes_and_tiles(counts, tile):
    z, _ = random_set(n=60)
    labels = torch.repeat_interleave(torch.arange(60)[: len(counts)], torch.tensor(counts))
    labels = torch.cat([labels, labels.new_zeros(60 - len(labels))])
    labels = labels[
        torch.randperm(60, generator=torch.Generator().manual_seed(1), device="cpu").to(z.device)
    ]
    sim = torch.einsum("kid,ljd->iklj", z, z) / 0.5
    others = torch.eye(60, dtype=torch.bool)
    negatives = {"dcl": others, "nscl": labels[:, None] == labels}
    positive = torch.einsum("kid,lid->", z, z) - torch.einsum("kid,kid->", z, z)
    losses = whole_set_losses(z, labels, [0.5], tile=tile)[0.5]
    for name, excluded in negatives.items():
        log_sums = sim.masked_fill(excluded[:, None, None, :], -torch.inf).logsumexp(dim=(2, 3))
        expected = log_sums.mean() - positive / (60 * 2 * 0.5)
        assert getattr(losses, name) == pytest.approx(expected.item(), abs=1e-10)


def test_float32_agrees_with_float64():
    z, labels = random_set(n=300, d=16)
    exact = whole_set_losses(z, labels, TAUS, tile=64)
    for tau, losses in whole_set_losses(z.float(), labels, TAUS, tile=64).items():
        assert losses == pytest.approx(exact[tau], abs=2e-6)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("images", [1, 7, 29])
@pytest.mark.parametrize("tile", [4, 512])
def test_groups_that_are_read_from_a_file_change_nothing(views, images, tile, monkeypatch):
    z, labels = random_set(views)
    labels[10:20] = 3  # groups of one class, and classes that several groups have
    expected = whole_set_losses(z, labels, TAUS)
    monkeypatch.setattr("cltools.maths.whole_set.GROUP_BYTES", images * views * 5 * 8)
    found = whole_set_losses([OnDisk(view.numpy()) for view in z], labels, TAUS, tile)
    for tau in TAUS:
        assert found[tau] == pytest.approx(expected[tau], abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 8),
    tau=st.sampled_from([0.05, 0.1, 0.5, 1.0, 5.0]),
)
def test_the_bound_holds_for_any_labels(seed, classes, tau):
    z, labels = random_set(classes=classes, seed=seed)
    dcl, nscl = whole_set_losses(z, labels, [tau])[tau]
    bound = gap_bound(int(labels.bincount().max()), len(labels), tau)
    assert nscl <= dcl <= nscl + bound


def test_equal_similarities_give_the_gap_at_initialization():
    n, per_class = 60, 12
    z = torch.zeros(2, n, 4, dtype=torch.float64)
    z[..., 0] = 1
    labels = torch.arange(n) % (n // per_class)
    for dcl, nscl in whole_set_losses(z, labels, TAUS).values():
        assert dcl - nscl == pytest.approx(gap_at_initialization(per_class, n), abs=1e-12)
        assert dcl == pytest.approx(math.log(2 * (n - 1)), abs=1e-12)


def test_order_and_rotation_do_not_matter_but_labels_do():
    z, labels = random_set()
    base = whole_set_losses(z, labels, TAUS)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3), device="cpu")
    order = order.to(z.device)
    rotation = torch.linalg.qr(
        torch.randn(
            5, 5, dtype=z.dtype, generator=torch.Generator().manual_seed(4), device="cpu"
        ).to(z.device)
    )[0]
    same = whole_set_losses((z @ rotation)[:, order], labels[order] * 3 - 5, TAUS)
    other = whole_set_losses(z, labels.roll(1), TAUS)
    for tau in TAUS:
        assert same[tau] == pytest.approx(base[tau], abs=1e-12)
        assert other[tau].dcl == pytest.approx(base[tau].dcl, abs=1e-12)
        assert abs(other[tau].nscl - base[tau].nscl) > 1e-4


def test_small_temperatures_do_not_underflow():
    # Two opposite classes at τ = 0.01: e^-200 would be 0 in float32.
    z = torch.tensor([[1.0, 0.0]]).repeat(8, 1)
    z[4:] *= -1
    labels = torch.tensor([0] * 4 + [1] * 4)
    dcl, nscl = whole_set_losses(torch.stack([z, z]), labels, [0.01])[0.01]
    assert nscl == pytest.approx(math.log(8) - 200)
    assert dcl == pytest.approx(math.log(6))


def test_without_negatives_nothing_is_defined():
    z, labels = random_set()
    losses = whole_set_losses(z, torch.zeros_like(labels), [0.5])[0.5]
    assert math.isnan(losses.nscl)
    assert math.isfinite(losses.dcl)
    assert all(map(math.isnan, whole_set_losses(z[:, :1], labels[:1], [0.5])[0.5]))


def test_the_input_is_left_alone():
    z, labels = random_set()
    before = z.clone(), labels.clone()
    whole_set_losses(z, labels, TAUS)
    assert torch.equal(z, before[0])
    assert torch.equal(labels, before[1])


def test_what_does_not_fit_is_refused():
    z, labels = random_set()
    with pytest.raises(ValueError, match=r"\(K, N, d\)"):
        whole_set_losses(z, labels[1:], TAUS)
    with pytest.raises(ValueError, match="norm 1"):
        whole_set_losses(z * 1.1, labels, TAUS)
    with pytest.raises(ValueError, match="norm 1"):
        whole_set_losses(z * torch.nan, labels, TAUS)
    with pytest.raises(ValueError, match=r"at least 0\.003"):
        whole_set_losses(z, labels, [0.001])
    with pytest.raises(ValueError, match="needs K ≥ 2 views"):
        whole_set_losses(z[:1], labels, TAUS)


def test_the_stage_works_them_out_on_its_device(monkeypatch):
    """The device `meta` takes the place of a GPU; k-means and class sizes stay on the CPU."""
    found = []

    def on_device(z, labels, taus, device):
        found.append((device.type, labels.device.type))
        return dict.fromkeys(taus, WholeSetLosses(2.0, 1.0))

    monkeypatch.setattr("cltools.measurements.losses.whole_set_losses", on_device)
    z, labels = random_set()
    for rows in (loss_rows, labelling_rows):
        assert list(rows({"dcl": z.cpu().numpy()}, labels.cpu().numpy(), 0.5, torch.device("meta")))
    assert found == [("meta", "cpu")] * 4
