"""What is measured of representations: generators of tidy rows, one function per family.

A row is a dict with any of the columns of `tidy`; those that a family does not set are the same for
all that is measured together, or are left empty.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import torch

from cltools.maths import collapse
from cltools.maths.alignment import alignment, zero_norm_rows
from cltools.maths.alignment_nulls import frobenius_gap, residual_alignment, within_class_null
from cltools.maths.bounds import gap_bound
from cltools.maths.few_shot import few_shot, knn
from cltools.maths.intervals import alignment_intervals
from cltools.maths.objectives import CONTRASTIVE
from cltools.maths.probes import linear_probe, nccc
from cltools.maths.theory import cka_lower_bound, cosine_lower_bound, rsa_lower_bound
from cltools.maths.weights import weight_gap
from cltools.maths.whole_set import whole_set_losses

Row = dict[str, Any]
Features = Mapping[str, np.ndarray]  # name of an objective (or of a file) -> (n, d)
SCHEMA = {
    "step": pl.Int64,
    "epoch": pl.Float64,
    "split": pl.String,
    "objective": pl.String,
    "reference": pl.String,
    "features": pl.String,
    "metric": pl.String,
    "variant": pl.String,
    "value": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
}
EMPTY = {name: "" if dtype == pl.String else None for name, dtype in SCHEMA.items()}
REFERENCE = "dcl"
# The measures that the papers state; intervals and nulls are worked out for these.
PAPERS_MEASURES = (("cka", "cosine_biased"), ("cka", "cosine_debiased"), ("rsa", "pearson_cosine"))
INTERVAL_DRAWS, NULL_DRAWS = 100, 99
SHOTS, SHOT_REPEATS = (1, 5, 10, 20, 50, 100, 500), 20
NEIGHBOURS = 20


def tidy(rows: Iterable[Row]) -> pl.DataFrame:
    """The rows as a table of all columns; text that a row lacks is "", numbers are null."""
    return pl.DataFrame([{**EMPTY, **row} for row in rows], schema=SCHEMA)


def alignment_rows(
    arrays: Features, labels: np.ndarray, features: str = "h", start: np.ndarray | None = None
) -> Iterator[Row]:
    """CKA and RSA of all pairs, plain and after class means are removed; rows without direction.

    With `start`, the same images before training, also everyone against it (`cka_to_init`).
    """
    arrays = dict(arrays)
    for name, count in zero_norm_rows(arrays).items():
        values = {("zero_norm_rows", "count"): count}
        yield from _rows(values, objective=name, features=features)
    pairs = list(combinations(arrays, 2))
    found = residual_alignment(arrays, labels, pairs)
    if start is not None:
        pairs += [("init", name) for name in arrays]
        arrays["init"] = start
    for pair, values in alignment(arrays, pairs).items():
        for (metric, variant), value in {**values, **found.get(pair, {})}.items():
            yield {
                "objective": pair[1],
                "reference": pair[0],
                "features": features,
                "metric": f"{metric}_to_init" if pair[0] == "init" else metric,
                "variant": variant,
                "value": value,
            }


def corollary_rows(arrays: Features, reference: str = REFERENCE) -> Iterator[Row]:
    """How far similarity matrices drift from the reference's, and what P2 concludes from it.

    `cka` and `rsa` lie above the rows `cka_lower_bound` and `rsa_lower_bound`: variant `corollary`
    is P2's, `tight` the best that the same distance allows; NaN where nothing is claimed.
    """
    for name in _others(arrays, reference):
        gap = frobenius_gap(arrays[reference], arrays[name])
        values = {
            ("similarity_gap", "frobenius"): gap.gap,
            ("similarity_gap", "rho"): gap.rho,
            ("similarity_gap", "r"): gap.r,
            ("cka_lower_bound", "corollary"): cka_lower_bound(gap.rho),
            ("cka_lower_bound", "tight"): cosine_lower_bound(gap.rho),
            ("rsa_lower_bound", "corollary"): rsa_lower_bound(gap.r),
            ("rsa_lower_bound", "tight"): cosine_lower_bound(gap.r),
        }
        yield from _rows(values, objective=name, reference=reference, features="h")


def null_rows(arrays: Features, labels: np.ndarray, reference: str = REFERENCE) -> Iterator[Row]:
    """Alignment with the reference when images are shuffled within their classes: mean and p-value.

    What is left then comes from class means alone (metrics `cka_null`, `rsa_null` and `…_p`).
    """
    for name in _others(arrays, reference):
        tests = within_class_null(
            arrays[reference], arrays[name], labels, NULL_DRAWS, measures=PAPERS_MEASURES
        )
        values = {}
        for (metric, variant), test in tests.items():
            values[f"{metric}_null", variant] = test.mean
            values[f"{metric}_null_p", variant] = test.p
        yield from _rows(values, objective=name, reference=reference, features="h")


def add_intervals(rows: list[Row], arrays: Features, reference: str = REFERENCE) -> None:
    """Put 90 % intervals over images beside the papers' measures of h against the reference."""
    pairs = [(reference, name) for name in _others(arrays, reference)]
    if not pairs:
        return
    table = alignment_intervals(arrays, pairs, PAPERS_MEASURES, draws=INTERVAL_DRAWS)
    for row in rows:
        pair = (row.get("reference"), row["objective"])
        interval = table.get(pair, {}).get((row["metric"], row["variant"]))
        if interval is not None and row["features"] == "h":
            row["ci_low"], row["ci_high"] = interval.low, interval.high


def loss_rows(z_views: Features, labels: np.ndarray, tau: float) -> Iterator[Row]:
    """Whole-set DCL and NSCL of every contrastive model, z_views (K, n, d), gap and bound."""
    bounds = {t: gap_bound(int(np.bincount(labels).max()), len(labels), t) for t in {tau, 1.0}}
    for objective in z_views:
        if objective not in CONTRASTIVE:
            continue
        z = torch.from_numpy(z_views[objective]).float()
        losses = whole_set_losses(z, torch.from_numpy(labels), sorted(bounds))
        values = {}
        for variant, t in (("training_tau", tau), ("tau_1", 1.0)):
            dcl, nscl = losses[t]
            values["dcl_loss", variant] = dcl
            values["nscl_loss", variant] = nscl
            values["gap", variant] = dcl - nscl
            values["gap_bound", variant] = bounds[t]
        yield from _rows(values, objective=objective, features="z")


def geometry_rows(arrays: Features, labels: np.ndarray) -> Iterator[Row]:
    """Collapse towards class means and a simplex, and the effective rank."""
    for name, h in arrays.items():
        s = collapse.class_statistics(h, labels)
        equiangular_sd, equiangular = collapse.nc2_equiangularity(s)
        values = {
            ("cdnv", "pairs"): collapse.cdnv(s),
            ("cdnv", "directional"): collapse.directional_cdnv(s),
            ("cdnv", "root"): collapse.cdnv_root(s),
            ("nc1", "pseudo_inverse"): collapse.nc1(s),
            ("nc1", "quotient"): collapse.nc1_quotient(s),
            ("nc2", "equinorm"): collapse.nc2_equinorm(s),
            ("nc2", "equiangular"): equiangular,
            ("nc2", "equiangular_sd"): equiangular_sd,
            ("etf_deviation", "gram"): collapse.etf_deviation(s),
            ("within_class_spread", "share"): collapse.within_class_spread(s),
            ("effective_rank", "covariance"): collapse.effective_rank(s.total),
        }
        yield from _rows(values, objective=name, features="h")


def view_rows(z_views: Features) -> Iterator[Row]:
    """Agreement of the views of an image and spread over the sphere, z_views (K, n, d)."""
    for objective, views in z_views.items():
        distance, relative = collapse.view_distance(views)
        values = {
            ("view_distance", "squared"): distance,
            ("view_distance", "relative"): relative,
            ("uniformity", "t_2"): collapse.uniformity(views[0]),
        }
        yield from _rows(values, objective=objective, features="z")


def downstream_rows(
    train: Features, y: np.ndarray, test: Features, test_y: np.ndarray, full: bool
) -> Iterator[Row]:
    """Accuracies in [0, 1] on h: nearest class centre; with `full` also the dearer ones."""
    for objective, x in train.items():
        sets = (x, y, test[objective], test_y)
        on_train, on_test = {}, {}
        on_train["nccc", "accuracy"], on_test["nccc", "accuracy"] = nccc(*sets)
        if full:
            probe = linear_probe(*sets)
            on_train["linear_probe", "accuracy"], on_test["linear_probe", "accuracy"] = probe[:2]
            on_test["knn", f"k_{NEIGHBOURS}"] = knn(*sets, NEIGHBOURS)
            for ways, name in ((None, "all_way"), (2, "two_way")):
                means = few_shot(*sets, SHOTS, SHOT_REPEATS, ways).mean.tolist()
                for shots, value in zip(SHOTS, means, strict=True):
                    on_test[f"few_shot_nccc_{name}", f"shots_{shots}"] = value
        about = {"objective": objective, "features": "h"}
        yield from _rows(on_train, split="train", n=len(y), **about)
        yield from _rows(on_test, split="test", n=len(test_y), **about)


def weight_rows(weights: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Row]:
    """How far every objective's encoder weights lie from those of DCL."""
    for objective in _others(weights, REFERENCE):
        gap, _ = weight_gap(weights[REFERENCE], weights[objective])
        yield from _rows(
            {("weight_gap", "mean_layer"): gap}, objective=objective, reference=REFERENCE
        )


def _rows(values: Mapping[tuple[str, str], float], **about: Any) -> Iterator[Row]:
    for (metric, variant), value in values.items():
        yield {**about, "metric": metric, "variant": variant, "value": float(value)}


def _others(arrays: Mapping[str, Any], reference: str) -> list[str]:
    """All names but the reference's; none where there is no reference."""
    return [name for name in arrays if name != reference] if reference in arrays else []
