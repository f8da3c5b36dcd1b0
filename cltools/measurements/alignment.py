"""Alignment of representations: CKA, RSA, residuals, ranks, angles, and what the theory says."""

from collections.abc import Iterator, Sequence

import numpy as np

from cltools.maths.alignment import MEASURES, zero_norm_rows
from cltools.maths.alignment.distances import gap_of
from cltools.maths.alignment.measures import RSA, Measure, measure_of, takes_cosines
from cltools.maths.alignment.moments import Pair, Table
from cltools.maths.alignment.permutations import null_mean, null_of
from cltools.maths.alignment.ranks import spearman_of
from cltools.maths.alignment.residuals import residual_measures
from cltools.maths.angles import feature_angle, similarity_angle
from cltools.maths.bounds import cka_lower_bound, cosine_lower_bound, rsa_lower_bound
from cltools.maths.intervals import FEWEST_IMAGES, intervals_of
from cltools.measurements.representations import Representations
from cltools.measurements.table import Row, rows_of

# The measures that the papers report. Intervals and permutation tests are computed for these.
PAPERS_MEASURES = (("cka", "cosine_biased"), ("cka", "cosine_debiased"), ("rsa", "pearson_cosine"))
INTERVAL_DRAWS, NULL_DRAWS = 100, 99
RANKED_PAIRS = 200_000


def alignment_rows(of: Representations, features: str = "h") -> Iterator[Row]:
    """CKA and RSA of all pairs, with labels also without class means; counts of zero rows.

    In a pair with the reference, this is the row's reference, else the objective that comes first.
    If there are starts, every objective is also compared with its own (`cka_to_init`).
    """
    for name, count in zero_norm_rows(of.features).items():
        yield from rows_of({("zero_norm_rows", "count"): count}, objective=name, features=features)
    for pair in of.pairs:
        initial = pair[0] in of.begun.values()
        values = {m: measure_of(m, pair, _whole(of, m)) for m in MEASURES}
        if not initial and of.labels is not None:
            values |= residual_measures(pair, of.cosine)
        for (metric, variant), value in values.items():
            yield {
                "objective": pair[1],
                "reference": "init" if initial else pair[0],
                "features": features,
                "metric": f"{metric}_to_init" if initial else metric,
                "variant": variant,
                "value": value,
            }


def _whole(of: Representations, measure: Measure) -> Table:
    return (of.cosine if takes_cosines(measure) else of.raw).whole


def corollary_rows(of: Representations, features: str = "h") -> Iterator[Row]:
    """Distance of similarity matrices from the reference's, and P2's lower bounds from it.

    `cka_lower_bound` and `rsa_lower_bound` bound `cka` and `rsa` from below. Variant `corollary` is
    P2's bound; `tight` is the best bound that the same distance allows. NaN where P2 claims
    nothing.
    """
    for name in of.others:
        gap = gap_of((of.reference, name), of.features, of.cosine.whole, of.device)
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
        yield from rows_of(values, objective=name, reference=of.reference, features=features)


def angle_rows(rows: list[Row], of: Representations, features: str = "h") -> Iterator[Row]:
    """Angles with the reference, in degrees; `rows` must hold the CKA, which gives one of them."""
    wanted = {"reference": of.reference, "features": features, "metric": "cka",
              "variant": "cosine_biased"}  # fmt: skip
    cka = {row["objective"]: row["value"] for row in rows if wanted.items() <= row.items()}
    for name in of.others:
        pair = of.features[of.reference], of.features[name]
        values = {
            ("representation_angle", "similarities"): similarity_angle(cka[name]),
            ("representation_angle", "features"): feature_angle(*pair, of.device),
        }
        yield from rows_of(values, objective=name, reference=of.reference, features=features)


def null_rows(of: Representations) -> Iterator[Row]:
    """Permutation tests of the alignment with the reference.

    `cka_null` and `rsa_null` are the mean values after images are shuffled within their classes:
    the alignment that class means alone give. `…_null_p` is the p-value: how often a
    shuffle reaches the measured value. `rsa_mantel_p` is the p-value when all images are shuffled,
    and the only row where there are no labels.

    The p-values are of the images of `of.sample`, whose number is the `n` of their rows. The mean
    values are over the same shuffles or, if these are not all images, over all possible shuffles of
    all images.
    """
    images = of.sample.images
    one_class = np.zeros(len(images), dtype=np.intp)
    for name in of.others:
        pair = of.reference, name
        about = {"objective": name, "reference": of.reference, "features": "h"}
        if of.labels is not None:
            yield from _within_class_rows(of, pair, about)
        mantel = null_of(of.sample, pair, one_class, NULL_DRAWS, 0, [RSA])[RSA]
        yield from rows_of({("rsa_mantel_p", RSA[1]): mantel.p}, n=len(images), **about)


def _within_class_rows(of: Representations, pair: Pair, about: Row) -> Iterator[Row]:
    images = of.sample.images
    tests = null_of(of.sample, pair, of.index[images], NULL_DRAWS, 0, list(PAPERS_MEASURES))
    means = {m: test.mean for m, test in tests.items()}
    if len(images) < len(of):
        means = null_mean(pair, of.cosine, of.index, PAPERS_MEASURES)
    for (metric, variant), test in tests.items():
        yield from rows_of({(f"{metric}_null", variant): means[metric, variant]}, **about)
        tail = {(f"{metric}_null_p", variant): test.p}
        yield from rows_of(tail, n=len(images), **about)


def rank_rows(of: Representations) -> Iterator[Row]:
    """Spearman RSA with the reference over a sample of image pairs, and its standard error."""
    pairs = [(of.reference, name) for name in of.others]
    for (_, name), found in spearman_of(of.features, pairs, RANKED_PAIRS, device=of.device).items():
        values = {
            ("rsa", "spearman_cosine"): found.value,
            ("rsa_error", "spearman_cosine"): found.standard_error,
        }
        yield from rows_of(values, objective=name, reference=of.reference, features="h")


def add_intervals(
    rows: list[Row], of: Representations, pairs: Sequence[Pair] | None = None
) -> None:
    """Add 90 % intervals over images to the papers' measures of h, of these pairs.

    By default, these are the pairs with the reference. None are added for fewer than four images,
    which are too few to draw subsamples from.
    """
    pairs = [(of.reference, name) for name in of.others] if pairs is None else pairs
    if not pairs or len(of) < FEWEST_IMAGES:
        return
    values = {
        pair: {m: measure_of(m, pair, of.cosine.whole) for m in PAPERS_MEASURES} for pair in pairs
    }
    table = intervals_of(of.sample, len(of), values, draws=INTERVAL_DRAWS)
    for row in rows:
        pair = (row.get("reference", ""), row["objective"])
        interval = table.get(pair, {}).get((row["metric"], row["variant"]))
        if interval is not None and row["features"] == "h":
            row["ci_low"], row["ci_high"] = interval.low, interval.high
