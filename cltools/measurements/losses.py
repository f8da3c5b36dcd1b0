"""Losses of a whole data set, with its labels and with other labels, and of batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from cltools.maths.batch_losses import batch_losses
from cltools.maths.blocks import CPU, RowSource, read
from cltools.maths.bounds import gap_bound
from cltools.maths.labellings import (
    clustered_labels,
    dropped_pairs,
    shuffled_labels,
    unbalanced_labels,
)
from cltools.maths.objectives import CONTRASTIVE, NEED_TWO_CLASSES, loss_of
from cltools.maths.sphere import as_views
from cltools.maths.whole_set import whole_set_losses
from cltools.measurements.table import Row, Sources, ViewSources, rows_of
from cltools.objectives import find


def loss_rows(
    z_views: ViewSources, labels: np.ndarray, tau: float, device: torch.device = CPU
) -> Iterator[Row]:
    """Whole-set DCL and NSCL losses, gap and bound of contrastive models; z_views (K, n, d)."""
    for objective, z in _contrastive(z_views):
        values = _whole_set(z, labels, tau, device)
        yield from rows_of(values, objective=objective, features="z")


def labelling_rows(
    z_views: ViewSources, labels: np.ndarray, tau: float, device: torch.device = CPU
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
            "clustered": clustered_labels(_MeanOfViews(z), classes, device=device),
        }
        values = {
            (f"{metric}_{kind}_labels", variant): value
            for kind, others in labellings.items()
            for (metric, variant), value in _whole_set(z, others, tau, device).items()
            if metric in ("gap", "gap_bound")
        }
        yield from rows_of(values, objective=objective, features="z")


def batch_loss_rows(
    z_views: ViewSources,
    z: Sources,
    labels: np.ndarray,
    tau: float,
    batch_size: int,
    device: torch.device = CPU,
) -> Iterator[Row]:
    """Losses averaged over batches: ours, and the authors' version (`authors_…`).

    In the authors' version the positive is in the denominator, τ is 1 whatever τ the training used,
    and the two views are an augmented image and the plain image.
    """
    y = torch.from_numpy(labels)
    for objective, views in _contrastive(z_views):
        ours = batch_losses(("dcl", "nscl"), views, y, tau, batch_size, device=device)
        names, pair = ("nt_xent", "nscl_with_positive"), [views[0], z[objective]]
        theirs = batch_losses(names, pair, y, 1.0, batch_size, device=device)
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


def _contrastive(z_views: ViewSources) -> Iterator[tuple[str, list[RowSource]]]:
    for objective, views in z_views.items():
        if find(objective).contrastive:
            yield objective, as_views(objective, views)


class _MeanOfViews:
    """Rows (n, d), the means over the views of an image, in float32."""

    def __init__(self, views: Sequence[RowSource]) -> None:
        self.shape, self.dtype = views[0].shape, torch.float32
        self._views = views

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return torch.stack([read(view, rows, CPU, self.dtype) for view in self._views]).mean(0)


def _whole_set(
    z: Sequence[RowSource], labels: np.ndarray, tau: float, device: torch.device
) -> dict[tuple[str, str], float]:
    """Losses, gap and bound at the training temperature and at τ = 1."""
    taus = sorted({tau, 1.0})
    losses = whole_set_losses(z, torch.from_numpy(labels), taus, device=device)
    values: dict[tuple[str, str], float] = {}
    for variant, t in (("training_tau", tau), ("tau_1", 1.0)):
        dcl, nscl = losses[t]
        values["dcl_loss", variant] = dcl
        values["nscl_loss", variant] = nscl
        values["gap", variant] = dcl - nscl
        values["gap_bound", variant] = gap_bound(int(np.bincount(labels).max()), len(labels), t)
    return values
