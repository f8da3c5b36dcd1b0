"""Stage `theory`: the papers' bounds beside the measured values of a cell, one row per inequality.

P1 is arXiv 2506.04411, P2 arXiv 2510.08852. Most rows are computed from the tables of `cltools
measure`. The lemmas of P2 and the curvature of the loss need the networks and a batch of the run.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from cltools.config.schema import with_defaults
from cltools.data.store import ImageStore
from cltools.layout import VERSIONS, CellFolder, theory_table, whose
from cltools.maths import bounds
from cltools.maths.objectives import REFERENCE, contrastive_loss, pair_masks, similarity_logits
from cltools.measurements.inequalities import (
    SCHEMA,
    Key,
    Row,
    Where,
    corollary_rows,
    few_shot_rows,
    gap_rows,
    groups,
    inequality,
    lemma_rows,
    value_of,
)
from cltools.runtime.devices import choose_device
from cltools.runtime.errors import InputError
from cltools.runtime.progress import track
from cltools.runtime.sealed import read_json, read_table, usable_table, write_json, write_table
from cltools.training.batches import Batches
from cltools.training.curvature import largest_curvature
from cltools.training.manifests import read_manifest, saved_weights
from cltools.training.networks import Network
from cltools.training.trained import load_network, trained_images, training_log, with_stores

PAIR = (REFERENCE, "nscl")


def run(
    *,
    manifests: list[Path],
    measured: Path,
    stores: list[Path],
    done: Path,
    settings: Mapping[str, Any],
    device: str = "auto",
    threads: int = 1,
) -> None:
    """Evaluate the bounds for several measured cells and write the list of tables to `done`.

    `measured` is the list that `cltools measure` wrote. Raises InputError for wrong settings, when
    `measured` lacks a cell, when there is no store of a cell's data set, and as `theory_of_cell`
    does.
    """
    torch.set_num_threads(threads)
    settings = with_defaults(settings, "theory")
    chosen = choose_device(device)
    measures = read_json(measured, made_by="cltools measure", keys=["tables"])["tables"]
    tables = {}
    for path, store in with_stores(manifests, stores):
        if str(path) not in measures:
            raise InputError(f"{measured} lacks the cell of {path}: run `cltools measure` on it")
        table = theory_of_cell(path, Path(measures[str(path)]), store, chosen, settings)
        tables[str(path)] = str(table)
    write_json(done, {"stage": "theory", "tables": tables, "version": VERSIONS["theory"]})


def theory_of_cell(
    manifest_path: Path,
    measures: Path,
    store: ImageStore,
    device: torch.device,
    settings: Mapping[str, Any],
) -> Path:
    """Make the table of one cell and return its path, a parquet file.

    The file is made once, see `theory_table`. If the cell lacks DCL or NSCL, it holds only the rows
    that follow from the measures alone. Raises InputError when weights are not those of the
    manifest, or the measures do not exist.
    """
    manifest = read_manifest(manifest_path)
    path = theory_table(manifest_path, measures, settings)
    if usable_table(path, whose(path, manifest_path)):
        return path
    rows: list[Row] = []
    cell, training = manifest["cell"], None
    if set(PAIR) <= set(cell["objectives"]):
        training = _Training(manifest, manifest_path, store, device, settings)
    remedy = f"run `cltools measure` on {manifest_path} again"
    measured = read_table(measures, remedy, whose(measures, manifest_path))
    saved = saved_weights(manifest)
    for step, hashes in track(saved, len(saved), "working out bounds", "checkpoint"):
        values = _values(measured, step)
        found = [
            *gap_rows(values, cell["views"], cell["batch_size"]),
            *corollary_rows(values),
            *few_shot_rows(values, len(manifest["class_ids"])),
        ]
        if training is not None:
            found += training.rows(step, hashes, values)
        at = {"step": step, "epoch": step / manifest["steps_per_epoch"]}
        rows += [{**at, **row} for row in found]
    table = pl.DataFrame([{name: row.get(name) for name in SCHEMA} for row in rows], schema=SCHEMA)
    text = [name for name, dtype in SCHEMA.items() if dtype == pl.String]
    store.check()
    whole = table.with_columns(pl.col(text).fill_null(""))
    write_table(path, whole, whose(path, manifest_path))
    return path


class _Training:
    """Rows that need the run itself: its batches (those of DCL), learning rates and networks."""

    def __init__(
        self,
        manifest: Mapping[str, Any],
        manifest_path: Path,
        store: ImageStore,
        device: torch.device,
        settings: Mapping[str, Any],
    ) -> None:
        self.cell, self.settings = manifest["cell"], settings
        self.run = CellFolder.of(manifest_path).run
        self.data = trained_images(store, manifest, manifest_path, device)["train"]
        self.device, self.classes = device, self.data.classes
        self.batches = Batches(self.cell, self.data, device)
        table = training_log(manifest_path, manifest)
        self.log = table.filter(pl.col("model").is_in(PAIR))
        self.drawn = self.batches.labels(manifest["steps"]).numpy()
        self.fractions = np.bincount(self.data.labels.numpy()) / len(self.data.labels)
        self.curved_at = {0, manifest["steps"]} if settings["curvature_at"] == "ends" else None
        self.smoothness = 0.0

    def rows(
        self, step: int, hashes: Mapping[str, str], values: Mapping[Key, float]
    ) -> Iterator[Row]:
        """The rows of one checkpoint."""
        networks = {
            objective: load_network(
                self.run.weights(objective, step), hashes[objective], self.cell, self.data,
                objective, self.device,
            ).train()
            for objective in PAIR
        }  # fmt: skip
        # At the end of training this is the batch that would have come next.
        views, positions = self.batches.at(step)
        labels = self.data.labels[positions]
        self.batches.close()  # the next checkpoint is not the next step
        with torch.no_grad():
            z = {o: self._embed(n, views).cpu().double().numpy() for o, n in networks.items()}
        yield from lemma_rows(z, labels.numpy(), self.cell["tau"])
        if self.curved_at is None or step in self.curved_at:
            # Only a part of the batch: curvature keeps its graph twice, in float32, and a training
            # step of 1,024 images already fills a GPU with autocast.
            count = self.settings["curvature_images"]
            by_view = torch.unflatten(views, 0, (self.cell["views"], -1))
            few = by_view[:, :count].flatten(0, 1)
            for objective, network in networks.items():
                curvature = self._curvature(objective, network, few, labels[:count])
                self.smoothness = max(self.smoothness, curvature)
                yield inequality(
                    "P2 Theorem 2", "smoothness", "largest_eigenvalue", math.nan, curvature,
                    kind="estimate", objective=objective,
                )  # fmt: skip
        if step:
            yield from self._drift_rows(step, values)
            yield from self._weight_rows(step, values)

    def _drift_rows(self, step: int, values: Mapping[Key, float]) -> Iterator[Row]:
        """Theorem 1 and Corollary 3 of P2, and its Corollaries 1 and 2 with Theorem 1's bound."""
        tau, size, delta = self.cell["tau"], self.cell["batch_size"], self.settings["delta"]
        eps = bounds.epsilon(step, size, delta)
        taken = self.drawn[:step]
        deviation = bounds.batch_composition_deviation(taken, self.fractions)
        yield inequality("P2 Corollary 3", "batch_composition", "largest", eps, deviation,
                         vacuous_orders=math.log10(eps))  # fmt: skip
        counts = bounds.batch_class_counts(taken, len(self.fractions))
        largest = counts.max() / taken.shape[1]
        stated = bounds.delta_pi(tau, self.fractions.max(), eps)
        sum_lr = self._largest("sum_lr", step)
        realised = bounds.delta_pi(tau, largest)
        drifts = {
            "stated": bounds.drift_bound(tau, size, sum_lr, stated),
            "realised": bounds.drift_bound(tau, size, sum_lr, realised),
        }
        for variant, drift in drifts.items():
            yield from _corollaries_of_drift(variant, drift, values)
        if momentum := self.cell["momentum"]:
            effective = sum_lr / (1 - momentum)
            drifts["effective_step"] = bounds.drift_bound(tau, size, effective, stated)
        for variant, drift in drifts.items():
            yield from _drift_of_similarities(variant, drift, values, _is_plain_sgd(self.cell))

    def _weight_rows(self, step: int, values: Mapping[Key, float]) -> Iterator[Row]:
        """The form of P2's Theorem 2, with constants estimated from the run."""
        largest, sum_lr = self._largest("grad_norm", step), self._largest("sum_lr", step)
        yield inequality("P2 Theorem 2", "gradient_norm", "largest", math.nan, largest,
                         kind="estimate")  # fmt: skip
        if not (self.smoothness > 0 and largest > 0):
            return
        form = bounds.weight_bound(largest, self.smoothness, self.cell["tau"], self.classes, sum_lr)
        yield inequality(
            "P2 Theorem 2", "weight_distance", "form",
            float(form.value), values["", "nscl", "", "weight_distance", "euclidean"],
            kind="estimate", log10_bound=float(form.log10), objective="nscl",
        )  # fmt: skip

    def _largest(self, column: str, step: int) -> float:
        """The largest value of a column of the training log before a step."""
        until = self.log.filter(pl.col("step") < step)
        return float(until.select(pl.col(column).max()).item())

    def _embed(self, network: Network, views: torch.Tensor) -> torch.Tensor:
        """z (K, B, d) in float32, with batch statistics of all views of this batch together."""
        z: torch.Tensor = network(views)[1]
        return z.view(self.cell["views"], -1, z.shape[1])

    def _curvature(
        self, objective: str, network: Network, views: torch.Tensor, labels: torch.Tensor
    ) -> float:
        """Largest curvature of the objective's loss on these images, in all trained weights.

        0 for NSCL on images of one class, where it has no negatives.
        """
        if objective == "nscl" and len(torch.unique(labels)) < 2:
            return 0.0
        masks = pair_masks(labels.to(self.device), self.cell["views"])

        def loss() -> torch.Tensor:
            logits = similarity_logits(self._embed(network, views), self.cell["tau"])
            return contrastive_loss(objective, logits, masks)

        trained = [p for p in network.parameters() if p.requires_grad]
        return largest_curvature(loss, trained, self.settings["power_iterations"])


def _drift_of_similarities(
    variant: str, drift: bounds.Bound, values: Mapping[Key, float], plain_sgd: bool
) -> Iterator[Row]:
    """The distance of DCL's and NSCL's similarities beside the number of P2's Theorem 1.

    The theorem is about the similarities of the loss: those of z, of images that batches use, under
    steps of the learning rate's length. Rows of z, training images and plain SGD are called
    `drift`, all others `drift_not_comparable`. Even there, all pairs of images are measured, most
    of which no batch has used, and without augmentations; stage `regularity` compares like with
    like. Momentum makes steps up to 1/(1 - momentum) times as long; variant `effective_step` is the
    number for steps of that length.
    """
    for about, value in _of_nscl(values):
        comparable = plain_sgd and about["features"] == "z" and about["split"] == "train"
        images = round(value("images", "count"))
        yield inequality(
            "P2 Theorem 1", "drift" if comparable else "drift_not_comparable", variant,
            float(drift.value), value("similarity_gap", "frobenius"),
            kind="network" if comparable else "not_comparable",
            log10_bound=float(drift.log10),
            vacuous_orders=float(bounds.vacuous_orders(drift.log10, images**2)), **about,
        )  # fmt: skip


def _corollaries_of_drift(
    variant: str, drift: bounds.Bound, values: Mapping[Key, float]
) -> Iterator[Row]:
    """P2's Corollaries 1 and 2 with ρ and r from Theorem 1. From 1 on, they claim nothing."""
    for about, value in _of_nscl(values):
        for source, metric, measure, norm, lower_bound in (
            ("P2 Corollary 1", "cka", "cosine_biased", "centred", bounds.cka_lower_bound),
            ("P2 Corollary 2", "rsa", "pearson_cosine", "off_diagonal_scatter",
             bounds.rsa_lower_bound),
        ):  # fmt: skip
            log10_ratio = float(drift.log10) - math.log10(value("similarity_norm", norm))
            ratio = 10**log10_ratio if log10_ratio < 0 else math.inf
            yield inequality(
                source, metric, f"theorem_1_{variant}", float(lower_bound(ratio)),
                value(metric, measure), "lower", kind="network",
                vacuous_orders=log10_ratio, **about,
            )  # fmt: skip


def _of_nscl(values: Mapping[Key, float]) -> Iterator[tuple[Where, Callable[[str, str], float]]]:
    """Split and features where the similarities of NSCL were compared with DCL's.

    Each comes with a function from metric and variant to the value there, NaN where none is.
    """
    for split, objective, features in groups(values, "similarity_gap"):
        if objective == "nscl":
            about: Where = {"split": split, "objective": objective, "features": features}
            yield about, partial(value_of, values, split, objective, features)


def _is_plain_sgd(cell: Mapping[str, Any]) -> bool:
    """Whether the weights move along the batch's gradient, by the learning rate."""
    return (
        cell["optimizer"] == "sgd"
        and cell["framework"] == "simclr"
        and not cell["momentum"]
        and not cell["weight_decay"]
    )


def _values(measured: pl.DataFrame, step: int) -> dict[Key, float]:
    """Values at one step by (split, objective, features, metric, variant), with DCL as reference.

    The number of images of every group is added as metric "images", variant "count".
    """
    table = measured.filter(pl.col("step") == step, pl.col("reference").is_in(["", REFERENCE]))
    columns = ("split", "objective", "features", "metric", "variant", "value")
    values = {row[:5]: row[5] for row in table.select(columns).iter_rows()}
    for split, objective, features, n in table.select(*columns[:3], "n").unique().iter_rows():
        if n is not None:
            values[split, objective, features, "images", "count"] = n
    return values
