"""Losses of a whole data set, with its labels and with other labels, and of batches."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch

from cltools.maths.batch_losses import batch_losses
from cltools.maths.bounds import gap_bound
from cltools.maths.labellings import (
    clustered_labels,
    dropped_pairs,
    shuffled_labels,
    unbalanced_labels,
)
from cltools.maths.objectives import CONTRASTIVE, NEED_TWO_CLASSES, loss_of
from cltools.maths.whole_set import whole_set_losses
from cltools.measurements.table import Features, Row, rows_of

CPU = torch.device("cpu")


def loss_rows(
    z_views: Features, labels: np.ndarray, tau: float, device: torch.device = CPU
) -> Iterator[Row]:
    """Whole-set DCL and NSCL losses, gap and bound of contrastive models; z_views (K, n, d)."""
    for objective, z in _contrastive(z_views):
        values = _whole_set(z.to(device), labels, tau)
        yield from rows_of(values, objective=objective, features="z")


def labelling_rows(
    z_views: Features, labels: np.ndarray, tau: float, device: torch.device = CPU
) -> Iterator[Row]:
    """Gap and bound with other labels than the data set's: the bound holds for any labels.

    `gap_shuffled_labels` uses the true labels in random order, `gap_unbalanced_labels` random
    labels with half of the images in one class, `gap_clustered_labels` k-means clusters of the
    model's own z.
    """
    classes = len(np.unique(labels))
    for objective, z in _contrastive(z_views):
        labellings = {
            "shuffled": shuffled_labels(labels),
            "unbalanced": unbalanced_labels(len(labels), classes),
            "clustered": clustered_labels(z.mean(dim=0).numpy(), classes),
        }
        on_device = z.to(device)
        values = {
            (f"{metric}_{kind}_labels", variant): value
            for kind, others in labellings.items()
            for (metric, variant), value in _whole_set(on_device, others, tau).items()
            if metric in ("gap", "gap_bound")
        }
        yield from rows_of(values, objective=objective, features="z")


def batch_loss_rows(
    z_views: Features, z: Features, labels: np.ndarray, tau: float, batch_size: int
) -> Iterator[Row]:
    """Losses averaged over batches: ours, and the authors' version (`authors_…`).

    In the authors' version the positive is in the denominator, τ is 1 whatever τ the training used,
    and the two views are an augmented image and the plain image.
    """
    y = torch.from_numpy(labels)
    for objective, views in _contrastive(z_views):
        ours = batch_losses(("dcl", "nscl"), views, y, tau, batch_size)
        plain = torch.from_numpy(z[objective]).float()
        names = ("nt_xent", "nscl_with_positive")
        theirs = batch_losses(names, torch.stack([views[0], plain]), y, 1.0, batch_size)
        values = {
            ("batch_dcl_loss", "training_tau"): ours["dcl"],
            ("batch_nscl_loss", "training_tau"): ours["nscl"],
            ("batch_gap", "training_tau"): ours["dcl"] - ours["nscl"],
            ("batch_gap_bound", "training_tau"): ours["gap_bound"],
            ("authors_dcl_loss", "tau_1"): theirs["nt_xent"],
            ("authors_nscl_loss", "tau_1"): theirs["nscl_with_positive"],
            ("authors_gap", "tau_1"): theirs["nt_xent"] - theirs["nscl_with_positive"],
        }
        yield from rows_of(values, objective=objective, features="z")


def dropped_rows(
    objectives: Iterable[str], labels: np.ndarray, own: Mapping[str, Mapping[str, float | None]]
) -> Iterator[Row]:
    """Which pairs of training images each objective drops from the negatives of DCL, as shares.

    labels (n,) of the training images. `own` holds the shares of objectives with labels of their
    own. SCL and CE have no rows: their losses differ from DCL in more than the negatives.
    """
    with_labels = dropped_pairs(labels, labels)._asdict()
    for objective in objectives:
        loss = loss_of(objective)
        if loss in CONTRASTIVE and loss != "scl":
            shares = own.get(objective, with_labels)
            dropped = shares if loss in NEED_TWO_CLASSES else dict.fromkeys(shares, 0.0)
            values = {
                ("dropped_negatives", variant): np.nan if value is None else value
                for variant, value in dropped.items()
            }
            yield from rows_of(values, objective=objective)


def _contrastive(z_views: Features) -> Iterator[tuple[str, torch.Tensor]]:
    for objective, views in z_views.items():
        if loss_of(objective) in CONTRASTIVE:
            yield objective, torch.from_numpy(views).float()


def _whole_set(z: torch.Tensor, labels: np.ndarray, tau: float) -> dict[tuple[str, str], float]:
    """Losses, gap and bound at the training temperature and at τ = 1."""
    losses = whole_set_losses(z, torch.from_numpy(labels), sorted({tau, 1.0}))
    values: dict[tuple[str, str], float] = {}
    for variant, t in (("training_tau", tau), ("tau_1", 1.0)):
        dcl, nscl = losses[t]
        values["dcl_loss", variant] = dcl
        values["nscl_loss", variant] = nscl
        values["gap", variant] = dcl - nscl
        values["gap_bound", variant] = gap_bound(int(np.bincount(labels).max()), len(labels), t)
    return values
