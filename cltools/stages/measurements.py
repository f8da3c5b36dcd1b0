"""What is measured of one checkpoint: generators of tidy rows, one function per family.

A row is a dict with any of the columns of `cltools.stages.measure.SCHEMA`; columns that a family
does not set are the same for the whole checkpoint or are left empty.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
import xarray as xr

from cltools.maths import collapse
from cltools.maths.alignment import alignment
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
REFERENCE = "dcl"
# The measures that the papers state; intervals and nulls are worked out for these.
PAPERS_MEASURES = (("cka", "cosine_biased"), ("cka", "cosine_debiased"), ("rsa", "pearson_cosine"))
INTERVAL_DRAWS, NULL_DRAWS = 100, 99
SHOTS, SHOT_REPEATS = (1, 5, 10, 20, 50, 100, 500), 20
NEIGHBOURS = 20


def features_of(part: xr.Dataset, variable: str) -> dict[str, np.ndarray]:
    """Objective -> (n, d) array of "h" or "z", in the order of the objectives."""
    return {o: part[variable].sel(objective=o).values for o in part.objective.values.tolist()}


def alignment_rows(part: xr.Dataset, start: xr.Dataset | None) -> Iterator[Row]:
    """CKA and RSA of all pairs of objectives, plain and after class means are removed.

    With `start`, the same images at step 0, also each encoder against its untrained self.
    """
    labels = part.label.values
    for features in ("h", "z"):
        arrays = features_of(part, features)
        pairs = list(combinations(arrays, 2))
        found = residual_alignment(arrays, labels, pairs)
        if features == "h" and start is not None:
            # All objectives start from the same encoder; the first one's stands for it.
            arrays["init"] = start["h"].isel(objective=0).values
            pairs += [("init", objective) for objective in part.objective.values.tolist()]
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


def corollary_rows(part: xr.Dataset) -> Iterator[Row]:
    """How far the similarity matrices of h drift from DCL's, and what P2 concludes from it.

    `cka` and `rsa` lie above the rows `cka_lower_bound` and `rsa_lower_bound`: variant `corollary`
    is P2's, `tight` the best that the same distance allows; NaN where nothing is claimed.
    """
    for objective, h in _others(part).items():
        gap = frobenius_gap(part["h"].sel(objective=REFERENCE).values, h)
        for metric, variant, value in (
            ("similarity_gap", "frobenius", gap.gap),
            ("similarity_gap", "rho", gap.rho),
            ("similarity_gap", "r", gap.r),
            ("cka_lower_bound", "corollary", cka_lower_bound(gap.rho)),
            ("cka_lower_bound", "tight", cosine_lower_bound(gap.rho)),
            ("rsa_lower_bound", "corollary", rsa_lower_bound(gap.r)),
            ("rsa_lower_bound", "tight", cosine_lower_bound(gap.r)),
        ):
            yield {
                "objective": objective,
                "reference": REFERENCE,
                "features": "h",
                "metric": metric,
                "variant": variant,
                "value": float(value),
            }


def null_rows(part: xr.Dataset) -> Iterator[Row]:
    """Alignment with DCL when images are shuffled within their classes: mean and p-value.

    What is left then comes from class means alone (metric `cka_null` or `rsa_null`).
    """
    reference = part["h"].sel(objective=REFERENCE).values if _has_reference(part) else None
    for objective, h in _others(part).items():
        tests = within_class_null(
            reference, h, part.label.values, NULL_DRAWS, measures=PAPERS_MEASURES
        )
        for (metric, variant), test in tests.items():
            for kind, value in (("", test.mean), ("_p", test.p)):
                yield {
                    "objective": objective,
                    "reference": REFERENCE,
                    "features": "h",
                    "metric": f"{metric}_null{kind}",
                    "variant": variant,
                    "value": value,
                }


def intervals(part: xr.Dataset) -> dict[tuple[str, str, str], tuple[float, float]]:
    """90 % intervals over images of the papers' measures of h against DCL.

    (objective, metric, variant) -> (low, high).
    """
    arrays = features_of(part, "h")
    pairs = [(REFERENCE, objective) for objective in _others(part)]
    if not pairs:
        return {}
    table = alignment_intervals(arrays, pairs, PAPERS_MEASURES, draws=INTERVAL_DRAWS)
    return {
        (objective, *measure): (interval.low, interval.high)
        for (_, objective), values in table.items()
        for measure, interval in values.items()
    }


def loss_rows(part: xr.Dataset, tau: float) -> Iterator[Row]:
    """Whole-set DCL and NSCL of every contrastive model on augmented views, gap and bound."""
    labels = part.label.values
    bounds = {t: gap_bound(int(np.bincount(labels).max()), len(labels), t) for t in {tau, 1.0}}
    for objective in part.objective.values.tolist():
        if objective not in CONTRASTIVE:
            continue
        z = torch.from_numpy(part["z_views"].sel(objective=objective).values).float()
        losses = whole_set_losses(z, torch.from_numpy(labels), sorted(bounds))
        for variant, t in (("training_tau", tau), ("tau_1", 1.0)):
            dcl, nscl = losses[t]
            for metric, value in (
                ("dcl_loss", dcl),
                ("nscl_loss", nscl),
                ("gap", dcl - nscl),
                ("gap_bound", bounds[t]),
            ):
                yield {
                    "objective": objective,
                    "features": "z",
                    "metric": metric,
                    "variant": variant,
                    "value": value,
                }


def geometry_rows(part: xr.Dataset) -> Iterator[Row]:
    """Collapse of h towards class means and a simplex; spread and agreement of views of z."""
    labels = part.label.values
    for objective, h in features_of(part, "h").items():
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
        for (metric, variant), value in values.items():
            yield _geometry_row(objective, "h", metric, variant, value)
        views = part["z_views"].sel(objective=objective).values
        distance, relative = collapse.view_distance(views)
        yield _geometry_row(objective, "z", "view_distance", "squared", distance)
        yield _geometry_row(objective, "z", "view_distance", "relative", relative)
        yield _geometry_row(objective, "z", "uniformity", "t_2", collapse.uniformity(views[0]))


def _geometry_row(objective: str, features: str, metric: str, variant: str, value: float) -> Row:
    return {
        "objective": objective,
        "features": features,
        "metric": metric,
        "variant": variant,
        "value": value,
    }


def downstream_rows(train: xr.Dataset, test: xr.Dataset, probe: bool) -> Iterator[Row]:
    """Accuracies in [0, 1] on h: nearest class centre; with `probe` also the dearer ones."""
    y, test_y = train.label.values, test.label.values
    test_features = features_of(test, "h")
    for objective, x in features_of(train, "h").items():
        sets = (x, y, test_features[objective], test_y)
        both = {"nccc": nccc(*sets)}
        if probe:
            both["linear_probe"] = linear_probe(*sets)[:2]
        for metric, accuracies in both.items():
            for split, value, n in zip(
                ("train", "test"), accuracies, (len(y), len(test_y)), strict=True
            ):
                yield _accuracy_row(objective, split, metric, "accuracy", value, n)
        if not probe:
            continue
        yield _accuracy_row(
            objective, "test", "knn", f"k_{NEIGHBOURS}", knn(*sets, NEIGHBOURS), len(test_y)
        )
        for ways, name in ((None, "all_way"), (2, "two_way")):
            accuracies = few_shot(*sets, SHOTS, SHOT_REPEATS, ways).mean
            for shots, value in zip(SHOTS, accuracies.tolist(), strict=True):
                metric = f"few_shot_nccc_{name}"
                yield _accuracy_row(objective, "test", metric, f"shots_{shots}", value, len(test_y))


def _accuracy_row(
    objective: str, split: str, metric: str, variant: str, value: float, n: int
) -> Row:
    return {
        "split": split,
        "objective": objective,
        "features": "h",
        "metric": metric,
        "variant": variant,
        "value": value,
        "n": n,
    }


def weight_rows(weights: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Row]:
    """How far every objective's encoder weights lie from those of DCL."""
    for objective in weights:
        if objective != REFERENCE and REFERENCE in weights:
            yield {
                "objective": objective,
                "reference": REFERENCE,
                "metric": "weight_gap",
                "variant": "mean_layer",
                "value": weight_gap(weights[REFERENCE], weights[objective])[0],
            }


def _has_reference(part: xr.Dataset) -> bool:
    return REFERENCE in part.objective.values


def _others(part: xr.Dataset) -> dict[str, np.ndarray]:
    """h of every objective but DCL; empty where DCL was not trained."""
    if not _has_reference(part):
        return {}
    return {o: h for o, h in features_of(part, "h").items() if o != REFERENCE}
