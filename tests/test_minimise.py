"""Free embeddings under each objective end where P1's Theorem 2 says, or where it says nothing."""

import pytest
import torch
import torch.nn.functional as F

from cltools.maths.minimise import minimise, nscl_minimum
from cltools.maths.whole_set import whole_set_losses


def balanced(classes, per_class=5):
    return torch.arange(classes * per_class) % classes


def simplex(classes):
    """(C, C) unit rows with all cosines -1/(C - 1)."""
    return F.normalize(torch.eye(classes, dtype=torch.float64) - 1 / classes)


@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 4, 10])
def test_nscl_ends_in_an_etf(classes, tau):
    found = minimise("nscl", balanced(classes), classes, tau, seed=0)
    assert found.etf_deviation[-1] < 1e-3
    assert found.within_class_spread[-1] < 1e-6
    assert found.view_distance[-1] < 1e-6
    assert found.loss[-1] == pytest.approx(nscl_minimum(5, classes, tau), abs=1e-9)
    # It started elsewhere, and the trajectory ends in what is returned.
    assert found.within_class_spread[0] > 0.5
    assert len({len(column) for column in found[1:]}) == 1
    whole = whole_set_losses(found.z, balanced(classes), [tau])[tau]
    assert whole.nscl == pytest.approx(found.loss[-1], abs=1e-12)


@pytest.mark.parametrize("objective", ["scl", "ce"])
@pytest.mark.parametrize("classes", [2, 4])
def test_scl_and_ce_share_that_optimum(objective, classes):
    found = minimise(objective, balanced(classes), classes, 0.5, seed=0)
    assert found.etf_deviation[-1] < 1e-3
    assert found.within_class_spread[-1] < 1e-6


def test_cl_collapses_views_but_not_classes():
    found = minimise("dcl", balanced(4), 4, 0.5, seed=0)
    assert found.view_distance[-1] < 1e-6
    assert found.within_class_spread[-1] > 0.5


def test_no_point_is_below_the_minimum():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(2, 20, 4, generator=generator, dtype=torch.float64)
        z = F.normalize(simplex(4)[balanced(4)] + 10.0 ** (-seed / 4) * noise, dim=2)
        loss = whole_set_losses(z, balanced(4), [0.5])[0.5].nscl
        assert loss >= nscl_minimum(5, 4, 0.5) - 1e-12


def test_equal_seeds_give_equal_results():
    short = {"descent_steps": 3, "newton_calls": 1}
    runs = [minimise("nscl", balanced(3), 3, 0.5, seed, **short) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].z, runs[1].z)
    assert not torch.equal(runs[0].z, runs[2].z)
    assert len(runs[0].loss) <= 1 + 3 + 1


def test_on_two_points_nothing_moves():
    found = minimise("nscl", balanced(2), 1, 0.5, seed=0)
    assert found.loss[-1] == pytest.approx(found.loss[0])


def test_what_does_not_fit_is_refused():
    labels = balanced(3)
    with pytest.raises(ValueError, match="unknown objective"):
        minimise("cl", labels, 3, 0.5, seed=0)
    with pytest.raises(ValueError, match="dimension"):
        minimise("nscl", labels, 0, 0.5, seed=0)
    with pytest.raises(ValueError, match="temperature"):
        minimise("nscl", labels, 3, 0.0, seed=0)
    with pytest.raises(ValueError, match="two classes"):
        minimise("nscl", labels + 1, 3, 0.5, seed=0)
    with pytest.raises(ValueError, match="classes ≥ 2"):
        nscl_minimum(5, 1, 0.5)
