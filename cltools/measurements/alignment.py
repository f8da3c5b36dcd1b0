"""How alike representations are: plain, beyond class clusters, by ranks, beside the theory."""

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
from cltools.maths.intervals import alignment_intervals
from cltools.maths.objectives import REFERENCE
from cltools.measurements.table import Features, Row, others, rows_of

# The measures that the papers state; intervals and nulls are worked out for these.
PAPERS_MEASURES = (("cka", "cosine_biased"), ("cka", "cosine_debiased"), ("rsa", "pearson_cosine"))
INTERVAL_DRAWS, NULL_DRAWS = 100, 99
RANKED_PAIRS = 200_000


def alignment_rows(
    arrays: Features,
    labels: np.ndarray,
    features: str = "h",
    starts: Mapping[str, np.ndarray] | None = None,
) -> Iterator[Row]:
    """CKA and RSA of all pairs, plain and after class means are removed; rows without direction.

    With `starts`, the same images before training, also everyone against itself as it was then
    (`cka_to_init`); objectives that started alike may share one array there.
    """
    arrays = dict(arrays)
    for name, count in zero_norm_rows(arrays).items():
        values = {("zero_norm_rows", "count"): count}
        yield from rows_of(values, objective=name, features=features)
    pairs = list(combinations(arrays, 2))
    found = residual_alignment(arrays, labels, pairs)
    # One entry for each distinct start, however many models share it.
    begun = {name: f"init {id(starts[name])}" for name in arrays} if starts else {}
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
    """How far similarity matrices drift from the reference's, and what P2 concludes from it.

    `cka` and `rsa` lie above the rows `cka_lower_bound` and `rsa_lower_bound`: variant `corollary`
    is P2's, `tight` the best that the same distance allows; NaN where nothing is claimed.
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
    """Angles with the reference, in degrees; `rows` hold the CKA that one of them follows from."""
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

    `cka_null` and `rsa_null` are what is left, on average, when images are shuffled within their
    classes, so that it comes from class means alone; `…_null_p` how often chance reaches the
    measured value. `rsa_mantel_p` is the same when all images are shuffled.
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
    """Spearman RSA with the reference over a sample of image pairs, and the sample's error."""
    for name in others(arrays, reference):
        found = spearman_rsa(arrays[reference], arrays[name], RANKED_PAIRS)
        values = {
            ("rsa", "spearman_cosine"): found.value,
            ("rsa_error", "spearman_cosine"): found.standard_error,
        }
        yield from rows_of(values, objective=name, reference=reference, features="h")


def add_intervals(rows: list[Row], arrays: Features, reference: str = REFERENCE) -> None:
    """Put 90 % intervals over images beside the papers' measures of h against the reference."""
    pairs = [(reference, name) for name in others(arrays, reference)]
    if not pairs:
        return
    table = alignment_intervals(arrays, pairs, PAPERS_MEASURES, draws=INTERVAL_DRAWS)
    for row in rows:
        pair = (row.get("reference"), row["objective"])
        interval = table.get(pair, {}).get((row["metric"], row["variant"]))
        if interval is not None and row["features"] == "h":
            row["ci_low"], row["ci_high"] = interval.low, interval.high
