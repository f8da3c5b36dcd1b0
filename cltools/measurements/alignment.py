"""Alignment of representations: CKA, RSA, residuals, ranks, angles, and what the theory says."""

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from cltools.maths.alignment import (
    alignment,
    frobenius_gap,
    mantel_test,
    residual_alignment,
    spearman_rsa,
    within_class_null,
    zero_norm_rows,
)
from cltools.maths.angles import feature_angle, similarity_angle
from cltools.maths.bounds import cka_lower_bound, cosine_lower_bound, rsa_lower_bound
from cltools.maths.intervals import FEWEST_IMAGES, alignment_intervals
from cltools.maths.objectives import REFERENCE
from cltools.measurements.table import Features, Row, others, rows_of

# The measures that the papers report. Intervals and permutation tests are computed for these.
PAPERS_MEASURES = (("cka", "cosine_biased"), ("cka", "cosine_debiased"), ("rsa", "pearson_cosine"))
INTERVAL_DRAWS, NULL_DRAWS = 100, 99
RANKED_PAIRS = 200_000


def alignment_rows(
    arrays: Features,
    labels: np.ndarray,
    features: str = "h",
    starts: Mapping[str, np.ndarray] | None = None,
    reference: str = REFERENCE,
) -> Iterator[Row]:
    """CKA and RSA of all pairs, plain and after class means are removed; counts of zero rows.

    In a pair with `reference`, this is the row's reference, else the objective that comes first.

    `starts` holds the features of the same images before training. With it, every objective is also
    compared with its own start (`cka_to_init`). Objectives with the same start may share one array.
    """
    arrays = dict(arrays)
    for name, count in zero_norm_rows(arrays).items():
        yield from rows_of({("zero_norm_rows", "count"): count}, objective=name, features=features)
    pairs = list(combinations(sorted(arrays, key=lambda name: name != reference), 2))
    found = residual_alignment(arrays, labels, pairs)
    begun: dict[str, str] = {}
    if starts:
        # One entry for each distinct start, however many models share it.
        begun = {name: f"init {id(starts[name])}" for name in arrays}
        pairs += [(start, name) for name, start in begun.items()]
        arrays |= {start: starts[name] for name, start in begun.items()}
    for pair, values in alignment(arrays, pairs).items():
        initial = pair[0] in begun.values()
        for (metric, variant), value in {**values, **found.get(pair, {})}.items():
            yield {
                "objective": pair[1],
                "reference": "init" if initial else pair[0],
                "features": features,
                "metric": f"{metric}_to_init" if initial else metric,
                "variant": variant,
                "value": value,
            }


def corollary_rows(
    arrays: Features, reference: str = REFERENCE, features: str = "h"
) -> Iterator[Row]:
    """Distance of similarity matrices from the reference's, and P2's lower bounds from it.

    `cka_lower_bound` and `rsa_lower_bound` bound `cka` and `rsa` from below. Variant `corollary` is
    P2's bound; `tight` is the best bound that the same distance allows. NaN where P2 claims
    nothing.
    """
    for name in others(arrays, reference):
        gap = frobenius_gap(arrays[reference], arrays[name])
        values = {
            ("similarity_gap", "frobenius"): gap.gap,
            ("similarity_gap", "rho"): gap.rho,
            ("similarity_gap", "r"): gap.r,
            ("similarity_norm", "centred"): gap.centred_norm,
            ("similarity_norm", "off_diagonal_scatter"): gap.scatter,
            ("cka_lower_bound", "corollary"): cka_lower_bound(gap.rho),
            ("cka_lower_bound", "tight"): cosine_lower_bound(gap.rho),
            ("rsa_lower_bound", "corollary"): rsa_lower_bound(gap.r),
            ("rsa_lower_bound", "tight"): cosine_lower_bound(gap.r),
        }
        yield from rows_of(values, objective=name, reference=reference, features=features)


def angle_rows(
    rows: list[Row], arrays: Features, reference: str = REFERENCE, features: str = "h"
) -> Iterator[Row]:
    """Angles with the reference, in degrees; `rows` must hold the CKA, which gives one of them."""
    wanted = {"reference": reference, "features": features, "metric": "cka",
              "variant": "cosine_biased"}  # fmt: skip
    cka = {row["objective"]: row["value"] for row in rows if wanted.items() <= row.items()}
    for name in others(arrays, reference):
        values = {
            ("representation_angle", "similarities"): similarity_angle(cka[name]),
            ("representation_angle", "features"): feature_angle(arrays[reference], arrays[name]),
        }
        yield from rows_of(values, objective=name, reference=reference, features=features)


def null_rows(arrays: Features, labels: np.ndarray, reference: str = REFERENCE) -> Iterator[Row]:
    """Permutation tests of the alignment with the reference.

    `cka_null` and `rsa_null` are the mean values after images are shuffled within their classes:
    the alignment that class means alone give. `…_null_p` is the p-value: how often a
    shuffle reaches the measured value. `rsa_mantel_p` is the p-value when all images are shuffled.
    """
    for name in others(arrays, reference):
        tests = within_class_null(
            arrays[reference], arrays[name], labels, NULL_DRAWS, measures=PAPERS_MEASURES
        )
        values = {}
        for (metric, variant), test in tests.items():
            values[f"{metric}_null", variant] = test.mean
            values[f"{metric}_null_p", variant] = test.p
        mantel = mantel_test(arrays[reference], arrays[name], NULL_DRAWS)
        values["rsa_mantel_p", "pearson_cosine"] = mantel.p
        yield from rows_of(values, objective=name, reference=reference, features="h")


def rank_rows(arrays: Features, reference: str = REFERENCE) -> Iterator[Row]:
    """Spearman RSA with the reference over a sample of image pairs, and its standard error."""
    for name in others(arrays, reference):
        found = spearman_rsa(arrays[reference], arrays[name], RANKED_PAIRS)
        values = {
            ("rsa", "spearman_cosine"): found.value,
            ("rsa_error", "spearman_cosine"): found.standard_error,
        }
        yield from rows_of(values, objective=name, reference=reference, features="h")


def add_intervals(rows: list[Row], arrays: Features, reference: str = REFERENCE) -> None:
    """Add 90 % intervals over images to the papers' measures of h against the reference.

    None are added for fewer than four images, which are too few to draw subsamples from.
    """
    pairs = [(reference, name) for name in others(arrays, reference)]
    if not pairs or len(arrays[reference]) < FEWEST_IMAGES:
        return
    table = alignment_intervals(arrays, pairs, PAPERS_MEASURES, draws=INTERVAL_DRAWS)
    for row in rows:
        pair = (row.get("reference", ""), row["objective"])
        interval = table.get(pair, {}).get((row["metric"], row["variant"]))
        if interval is not None and row["features"] == "h":
            row["ci_low"], row["ci_high"] = interval.low, interval.high
