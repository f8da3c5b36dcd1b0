"""Losses of batches, and labels that have nothing to do with the data."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_probes import OnDisk

from cltools.maths.batch_losses import batch_losses
from cltools.maths.bounds import gap_bound
from cltools.maths.labellings import clustered_labels, shuffled_labels, unbalanced_labels
from cltools.maths.objectives import checked_contrastive_loss
from cltools.maths.whole_set import whole_set_losses

NAMES = ("dcl", "nscl", "nt_xent", "nscl_with_positive")


def embedded(n=50, classes=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(2, n, 6, generator=draw, dtype=torch.float64), dim=2)
    return z, torch.arange(n) % classes


@pytest.mark.parametrize("size", [10, 16, 49])
def test_mean_over_batches_with_a_smaller_last_one(size):
    z, labels = embedded()
    found = batch_losses(NAMES, z, labels, 0.5, size, seed=3)
    order = np.random.default_rng(3).permutation(50)
    batches = [order[start : start + size] for start in range(0, 50, size)]
    batches = [b for b in batches if len(b) > 1]
    for name in NAMES:
        each = [checked_contrastive_loss(name, z[:, b], labels[b], 0.5).item() for b in batches]
        assert found[name] == pytest.approx(np.mean(each), rel=1e-12)
    bounds = [gap_bound(int(torch.bincount(labels[b]).max()), len(b), 0.5) for b in batches]
    assert found["gap_bound"] == pytest.approx(np.mean(bounds))
    assert 0 <= found["dcl"] - found["nscl"] <= found["gap_bound"]


@pytest.mark.parametrize("rows", [1, 16, 40])
def test_views_in_a_file_read_for_some_batches_at_once(rows, monkeypatch):
    z, labels = embedded()
    expected = batch_losses(NAMES, z, labels, 0.5, 16)
    monkeypatch.setattr("cltools.maths.blocks.BLOCK_BYTES", rows * 2 * 6 * 8)
    found = batch_losses(NAMES, [OnDisk(view.numpy()) for view in z], labels, 0.5, 16)
    assert found == pytest.approx(expected, rel=1e-12)


def test_one_batch_is_the_whole_set():
    z, labels = embedded()
    found = batch_losses(("dcl", "nscl"), z, labels, 0.5, 50)
    whole = whole_set_losses(z, labels, [0.5])[0.5]
    assert (found["dcl"], found["nscl"]) == pytest.approx((whole.dcl, whole.nscl), rel=1e-12)


def test_batches_of_one_class_are_left_out():
    z, _ = embedded(8)
    labels = torch.zeros(8, dtype=torch.int64)
    assert np.isnan(list(batch_losses(NAMES, z, labels, 0.5, 4).values())).all()
    with pytest.raises(ValueError, match="two images"):
        batch_losses(NAMES, z, labels, 0.5, 1)


def test_labellings():
    _, labels = embedded(60, 5)
    y = labels.numpy()
    shuffled = shuffled_labels(y)
    assert sorted(shuffled) == sorted(y)
    assert (shuffled == y).mean() < 0.5
    counts = np.bincount(unbalanced_labels(61, 5))
    assert counts[0] == 30
    assert set(counts[1:]) == {7, 8}
    with pytest.raises(ValueError, match="classes"):
        unbalanced_labels(3, 4)
    centres = 10 * np.eye(5)[y]
    clusters = clustered_labels(centres + np.random.default_rng(0).standard_normal((60, 5)), 5)
    assert len({(a, b) for a, b in zip(y, clusters, strict=True)}) == 5  # the same partition


def test_clusters_of_a_sample_are_those_of_all_images(monkeypatch):
    """Where clusters lie far apart."""
    rng = np.random.default_rng(0)
    x = 10 * np.eye(5)[np.arange(300) % 5] + rng.standard_normal((300, 5))
    expected = clustered_labels(x, 5)
    monkeypatch.setattr("cltools.maths.labellings.CLUSTERED", 60)
    monkeypatch.setattr("cltools.maths.blocks.BLOCK_BYTES", 7 * 5 * 8)
    found = clustered_labels(OnDisk(x), 5)
    assert len({(a, b) for a, b in zip(expected, found, strict=True)}) == 5


def test_the_bound_holds_under_any_labels():
    z, labels = embedded(60, 5)
    collapsed = F.normalize(torch.eye(5, dtype=torch.float64)[labels] + 0.1 * z[:, :, :5], dim=2)
    for views in (z, collapsed):
        for others in (
            shuffled_labels(labels.numpy()),
            unbalanced_labels(60, 5),
            clustered_labels(views.mean(dim=0).numpy(), 5),
        ):
            for tau in (0.1, 1.0):
                loss = whole_set_losses(views, torch.from_numpy(others), [tau])[tau]
                bound = gap_bound(int(np.bincount(others).max()), 60, tau)
                assert 0 <= loss.dcl - loss.nscl <= bound
