"""Neural collapse: of features to class means and a simplex, of views, of a linear head."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from cltools.maths import collapse, sphere
from cltools.maths.alignment.measures import Measure
from cltools.maths.alignment.samples import sampled_images
from cltools.maths.blocks import CPU, RowSource, each_block, take
from cltools.maths.intervals import FEWEST_IMAGES, interval_of, subsets
from cltools.measurements.representations import Representations
from cltools.measurements.table import Row, ViewSources, rows_of

INTERVAL_DRAWS = 100
WIDTH = 1.6448536269514722  # standard errors on each side of a 90 % interval
CLASSES_ONE_BY_ONE = 10  # with at most this many classes, every pair of class means has a row
# Functions of the class statistics that get intervals.
WITH_INTERVAL = {
    ("cdnv", "pairs"): collapse.cdnv,
    ("cdnv", "directional"): collapse.directional_cdnv,
    ("etf_deviation", "gram"): collapse.etf_deviation,
    ("within_class_spread", "share"): collapse.within_class_spread,
}


def geometry_rows(
    of: Representations, features: str = "h", intervals: bool = False
) -> Iterator[Row]:
    """Collapse to class means and a simplex, and the effective rank; without labels only the rank.

    `class_mean_cosine` is the cosine of one pair of centered class means; classes are numbered as
    in the cell. With `intervals`, the measures of `WITH_INTERVAL` get 90 % intervals over images.
    """
    if of.labels is None:
        yield from _rank_rows(of, features)
        return
    for name, array in of.features.items():
        within = of.raw.within[name]
        s = collapse.class_statistics(array, of.labels, of.device, within)
        equiangular_sd, equiangular = collapse.nc2_equiangularity(s)
        pairs = np.triu_indices(len(s.means), 1)
        cosines = collapse.class_mean_cosines(s)[pairs]
        angles = np.degrees(np.arccos(cosines))
        values = {measure: function(s) for measure, function in WITH_INTERVAL.items()} | {
            ("cdnv", "root"): collapse.cdnv_root(s),
            ("nc1", "pseudo_inverse"): collapse.nc1(s),
            ("nc1", "quotient"): collapse.nc1_quotient(s),
            ("nc2", "equinorm"): collapse.nc2_equinorm(s),
            ("nc2", "equiangular"): equiangular,
            ("nc2", "equiangular_sd"): equiangular_sd,
            ("class_mean_angle", "smallest"): angles.min(),
            ("class_mean_angle", "mean"): angles.mean(),
            ("class_mean_angle", "largest"): angles.max(),
            ("effective_rank", "covariance"): collapse.effective_rank(s.total),
        }
        if len(s.means) <= CLASSES_ONE_BY_ONE:
            values |= {
                ("class_mean_cosine", f"classes_{i}_{j}"): cosine
                for i, j, cosine in zip(*pairs, cosines, strict=True)
            }
        limits = _intervals(array, of, values) if intervals else {}
        for row in rows_of(values, objective=name, features=features):
            yield row | limits.get((row["metric"], row["variant"]), {})


def _rank_rows(of: Representations, features: str) -> Iterator[Row]:
    for name in of.features:
        constant = of.raw.whole.rows[name].constant
        rank = np.nan if constant else collapse.effective_rank(of.raw.within[name])
        yield from rows_of({("effective_rank", "covariance"): rank}, objective=name,
                           features=features)  # fmt: skip


def view_rows(z_views: ViewSources, device: torch.device = CPU) -> Iterator[Row]:
    """Distance between views of an image, and spread over the sphere; z_views (K, n, d).

    Uniformity of more than `sphere.MOST_IMAGES` images is that of a sample, with a 90 % interval.
    """
    for objective, views in z_views.items():
        distance, relative = sphere.view_distance(views, device)
        spread = sphere.uniformity(views[0], device=device)
        values = {
            ("view_distance", "squared"): distance,
            ("view_distance", "relative"): relative,
            ("uniformity", "t_2"): spread.value,
        }
        for row in rows_of(values, objective=objective, features="z"):
            if row["metric"] == "uniformity" and spread.standard_error > 0:
                half = WIDTH * spread.standard_error
                row |= {"ci_low": spread.value - half, "ci_high": spread.value + half}
            yield row


def head_rows(
    z: RowSource,
    labels: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    device: torch.device = CPU,
    **about: Any,
) -> Iterator[Row]:
    """NC3 and NC4 of a linear head on z (n, d): weight (C, d) and bias (C,)."""
    w, b = (torch.from_numpy(array).to(device, torch.float64) for array in (weight, bias))
    predicted = torch.cat([(rows @ w.T + b).argmax(1) for _, rows in each_block(z, device)])
    values = {
        ("nc3", "head"): collapse.nc3(collapse.class_statistics(z, labels, device), weight),
        ("nc4", "head"): collapse.nc4(z, labels, predicted.numpy(force=True), device),
    }
    yield from rows_of(values, features="z", **about)


def _intervals(
    array: RowSource, of: Representations, values: Mapping[Measure, float]
) -> dict[Measure, dict[str, float]]:
    """ci_low and ci_high of the measures in WITH_INTERVAL; none for fewer than four images."""
    if len(of) < FEWEST_IMAGES:
        return {}
    images = sampled_images(len(of))
    rows, labels = take(array, images, of.device), of.index[images]

    drawn = subsets(len(images), INTERVAL_DRAWS)
    table = [
        [np.nan] * len(WITH_INTERVAL)
        if s is None
        else [function(s) for function in WITH_INTERVAL.values()]
        for s in collapse.spreads_of_subsets(rows, labels, drawn)
    ]
    whole = [values[measure] for measure in WITH_INTERVAL]
    interval = interval_of(whole, table, drawn.shape[1], len(images), len(of))
    low, high = np.asarray(interval.low), np.asarray(interval.high)
    return {
        measure: {"ci_low": float(low[i]), "ci_high": float(high[i])}
        for i, measure in enumerate(WITH_INTERVAL)
    }
