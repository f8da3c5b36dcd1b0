"""Every measure and every bound on features that have collapsed, and on very few images.

None raises or warns. What is undefined is NaN; where the answer is known, it is that.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pytest

from cltools import measurements
from cltools.measurements import inequalities

pytestmark = pytest.mark.filterwarnings("error")

OBJECTIVES = ("dcl", "nscl", "ce")
TAU, VIEWS, BATCH = 0.5, 2, 4
ONE_CLASS = {"one image": [0], "two images of one class": [0, 0]}
LABELS = {
    "two images": [0, 1],
    "three images of two classes": [0, 0, 1],
    "three images of three classes": [0, 1, 2],
    "four images": [0, 0, 1, 1],
    "five images of five classes": [0, 1, 2, 3, 4],
    "a class of one image": [0, 0, 0, 0, 1, 1, 1, 1, 2],
}


def zero(labels, d, rng):
    return np.zeros((len(labels), d))


def one_zero_row(labels, d, rng):
    return rng.standard_normal((len(labels), d)) * (np.arange(len(labels)) > 0)[:, None]


def constant(labels, d, rng):
    return np.tile(rng.standard_normal(d), (len(labels), 1))


def one_constant_column(labels, d, rng):
    return np.hstack([rng.standard_normal((len(labels), d - 1)), np.full((len(labels), 1), 3.0)])


def collapsed(labels, d, rng):
    return rng.standard_normal((labels.max() + 1, d))[labels]


def coinciding_means(labels, d, rng):
    """Images at ± one point, in turn within each class; classes of even size have the mean 0."""
    turn = [np.count_nonzero(labels[:i] == y) % 2 for i, y in enumerate(labels)]
    return np.where(turn, -1.0, 1.0)[:, None] * rng.standard_normal(d)


def rank_one(labels, d, rng):
    return np.outer(rng.standard_normal(len(labels)), rng.standard_normal(d))


KINDS = (
    zero, one_zero_row, constant, one_constant_column, collapsed, coinciding_means, rank_one
)  # fmt: skip


@dataclass
class Embedded:
    """What `measure` has of one split: h and start (n, 6), z (n, 4), z_views (2, n, 4)."""

    labels: np.ndarray
    start: dict[str, np.ndarray]
    h: dict[str, np.ndarray]
    z: dict[str, np.ndarray]
    z_views: dict[str, np.ndarray]


def embedded(kind: Callable[..., np.ndarray], labels: list[int]) -> Embedded:
    y = np.array(labels)

    def features(d: int, seed: int) -> dict[str, np.ndarray]:
        rngs = {o: np.random.default_rng([seed, i]) for i, o in enumerate(OBJECTIVES)}
        return {o: kind(y, d, rng).astype(np.float32) for o, rng in rngs.items()}

    z = {objective: unit(x) for objective, x in features(4, 2).items()}
    views = {objective: np.stack([x] * VIEWS) for objective, x in z.items()}
    return Embedded(y, features(6, 0), features(6, 1), z, views)


def of_h(e: Embedded) -> measurements.Representations:
    return measurements.Representations(e.h, e.labels, e.start)


def of_z(e: Embedded) -> measurements.Representations:
    return measurements.Representations(e.z, e.labels)


def layers(e: Embedded) -> measurements.LayerOutputs:
    found = {objective: {"h": h, "z": e.z[objective]} for objective, h in e.h.items()}
    starts = {objective: {"h": h, "z": e.z[objective]} for objective, h in e.start.items()}
    return measurements.LayerOutputs(found, starts, e.labels, "dcl")


def unit(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def weights(e: Embedded) -> dict[str, dict[str, np.ndarray]]:
    return {objective: {"encoder.one.weight": h.T @ h} for objective, h in e.h.items()}


def head(e: Embedded) -> tuple[np.ndarray, np.ndarray]:
    classes = e.labels.max() + 1
    return np.ones((classes, 4)), np.zeros(classes)


# Takes the rows that were made before it, in this order. The first need no second class.
m = measurements
WITHOUT_CLASSES = {
    "alignment_rows": lambda e, rows: [
        *m.alignment_rows(of_h(e), "h"), *m.alignment_rows(of_z(e), "z")
    ],
    "corollary_rows": lambda e, rows: [
        *m.corollary_rows(of_h(e)), *m.corollary_rows(of_z(e), features="z")
    ],
    "angle_rows": lambda e, rows: [
        *m.angle_rows(rows, of_h(e)), *m.angle_rows(rows, of_z(e), features="z")
    ],
    "loss_rows": lambda e, rows: m.loss_rows(e.z_views, e.labels, TAU),
    "batch_loss_rows": lambda e, rows: m.batch_loss_rows(e.z_views, e.z, e.labels, TAU, BATCH),
    "view_rows": lambda e, rows: m.view_rows(e.z_views),
    "rank_rows": lambda e, rows: m.rank_rows(of_h(e)),
    "null_rows": lambda e, rows: m.null_rows(of_h(e)),
    "weight_rows": lambda e, rows: m.weight_rows(weights(e), weights(e)["dcl"]),
    "dropped_rows": lambda e, rows: m.dropped_rows(e.h, e.labels, {}),
    "layer_rows": lambda e, rows: m.layer_rows(layers(e), every_pair=True),
}  # fmt: skip
OF_CLASSES = {
    "geometry_rows": lambda e, rows: m.geometry_rows(of_h(e), intervals=True),
    "head_rows": lambda e, rows: m.head_rows(e.z["ce"], e.labels, *head(e), objective="ce"),
    "labelling_rows": lambda e, rows: m.labelling_rows(e.z_views, e.labels, TAU),
    "downstream_rows": lambda e, rows: m.downstream_rows(e.h, e.labels, e.h, e.labels, full=True),
}
BOUNDS = {
    "gap_rows": lambda e, values: inequalities.gap_rows(values, VIEWS, BATCH),
    "corollary_rows": lambda e, values: inequalities.corollary_rows(values),
    "few_shot_rows": lambda e, values: inequalities.few_shot_rows(values, len(set(e.labels))),
    "lemma_rows": lambda e, values: inequalities.lemma_rows(
        {objective: e.z_views[objective] for objective in ("dcl", "nscl")}, e.labels, TAU
    ),
}


def test_no_family_is_left_out():
    assert {*WITHOUT_CLASSES, *OF_CLASSES} == {n for n in m.__all__ if n.endswith("_rows")}
    assert set(BOUNDS) == {n for n in vars(inequalities) if n.endswith("_rows")}


def measured(e: Embedded, families: Iterable[Callable[..., Iterable[m.Row]]]) -> list[m.Row]:
    rows: list[m.Row] = []
    for family in families:
        rows += [{"split": "test", "n": len(e.labels), **row} for row in family(e, rows)]
    m.add_intervals(rows, of_h(e))
    m.tidy(rows)
    return rows


def values_of(rows: list[m.Row]) -> dict[inequalities.Key, float]:
    """As `theory` takes them from the table of measures."""
    values = {}
    for row in rows:
        if row.get("reference", "") in ("", "dcl"):
            group = row["split"], row.get("objective", ""), row.get("features", "")
            values[*group, row["metric"], row["variant"]] = row["value"]
            values[*group, "images", "count"] = row["n"]
    return values


def bounded(e: Embedded, rows: list[m.Row]) -> list[inequalities.Row]:
    return [row for bound in BOUNDS.values() for row in bound(e, values_of(rows))]


def check_values(rows: list[m.Row], kind: Callable[..., np.ndarray]) -> None:
    """Finite or NaN, but for variance over distance where the distance of class means is 0."""
    assert rows
    for row in rows:
        infinite = any(
            math.isinf(row.get(column, 0.0)) for column in ("value", "ci_low", "ci_high")
        )
        if infinite:
            assert row["metric"] in ("cdnv", "nc1"), row
            assert kind in (zero, constant, coinciding_means), row


def check_bounds(rows: list[inequalities.Row]) -> None:
    for row in rows:
        assert row["kind"] != "bound" or row["holds"] is not False, row
        for column in ("bound", "measured"):
            assert not math.isinf(row[column]), row


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_features_are_measured(kind, labels):
    e = embedded(kind, labels)
    rows = measured(e, [*WITHOUT_CLASSES.values(), *OF_CLASSES.values()])
    check_values(rows, kind)
    # Pairs of different layers are no values of the bounds.
    check_bounds(bounded(e, [row for row in rows if "reference_features" not in row]))


@pytest.mark.parametrize("labels", ONE_CLASS.values(), ids=ONE_CLASS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_needs_no_second_class_is_measured_without_one(kind, labels):
    e = embedded(kind, labels)
    rows = measured(e, WITHOUT_CLASSES.values())
    check_values(rows, kind)
    check_bounds(bounded(e, rows))


@pytest.mark.parametrize("name", OF_CLASSES)
def test_what_needs_a_second_class_says_so(name):
    """Which no cell comes to, since training refuses a single class."""
    with pytest.raises(ValueError, match="classes"):
        list(OF_CLASSES[name](embedded(constant, [0, 0]), []))


def found(rows: list[m.Row], metric: str, variant: str, **about: str) -> list[float]:
    """The values of a measure, of all objectives."""
    where = {"metric": metric, "variant": variant, **about}
    values = [row["value"] for row in rows if where.items() <= row.items()]
    assert values
    return values


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_collapsed_classes(labels):
    e = embedded(collapsed, labels)
    rows = measured(e, [*WITHOUT_CLASSES.values(), *OF_CLASSES.values()])
    for metric, variant in (
        ("cdnv", "pairs"), ("cdnv", "directional"), ("cdnv", "root"), ("nc1", "pseudo_inverse"),
        ("nc1", "quotient"), ("within_class_spread", "share"), ("view_distance", "squared"),
    ):  # fmt: skip
        assert set(found(rows, metric, variant)) == {0.0}
    assert set(found(rows, "nccc", "accuracy")) == {1.0}
    assert np.isnan(found(rows, "cka", "residual_biased")).all()
    errors = [r for r in bounded(e, rows) if r["quantity"].startswith("few_shot_error")]
    assert errors
    # These images do not show how far others lie from the class means: nothing is claimed.
    assert all(math.isnan(r["bound"]) and r["holds"] is None for r in errors)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("kind", [zero, constant])
def test_constant_features(kind, labels):
    e = embedded(kind, labels)
    rows = measured(e, [*WITHOUT_CLASSES.values(), *OF_CLASSES.values()])
    n = len(labels)
    for metric, variant in (
        ("cka", "cosine_biased"), ("cka", "cosine_debiased"), ("rsa", "pearson_cosine"),
        ("rsa", "spearman_cosine"), ("rsa_mantel_p", "pearson_cosine"),
        ("within_class_spread", "share"), ("nc1", "quotient"), ("etf_deviation", "gram"),
        ("effective_rank", "covariance"), ("class_mean_angle", "mean"),
    ):  # fmt: skip
        assert np.isnan(found(rows, metric, variant)).all()
    assert set(found(rows, "cdnv", "pairs")) == {math.inf}
    assert np.abs(found(rows, "similarity_gap", "frobenius")).max() < 1e-6
    assert set(found(rows, "zero_norm_rows", "count")) == {n if kind is zero else 0}
    # The positive of an anchor is as similar to it as its negatives are.
    others = n - np.bincount(labels)[labels]
    dcl, nscl = math.log(VIEWS * (n - 1)), np.log(VIEWS * others).mean()
    assert found(rows, "dcl_loss", "training_tau") == pytest.approx([dcl] * 2, abs=1e-5)
    assert found(rows, "nscl_loss", "training_tau") == pytest.approx([nscl] * 2, abs=1e-5)
    # One cluster, within which there are no negatives.
    assert np.isnan(found(rows, "gap_bound_clustered_labels", "tau_1")).all()
    lemmas = [r for r in bounded(e, rows) if r["quantity"] == "smoothness_of_gradient"]
    assert len(lemmas) == (0 if kind is zero else 2)  # a zero row has no cosine


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_intervals_from_four_images_on(n):
    e = embedded(rank_one, [0, 1, 2, 3][:n])
    rows = measured(e, WITHOUT_CLASSES.values())
    assert any("ci_low" in row for row in rows) == (n == 4)
