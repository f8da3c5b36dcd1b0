"""The table of bounds: what is set against what, both ways."""

import math

import numpy as np
import polars as pl
import pytest

from cltools.figures.bounds import tightness
from cltools.maths.bounds import few_shot_bound, gap_bound, reweighting_sides
from cltools.measurements.inequalities import (
    SCHEMA,
    corollary_rows,
    few_shot_rows,
    gap_rows,
    inequality,
    lemma_rows,
)


def test_what_holds_and_what_does_not():
    def holds(bound, measured, **more):
        return inequality("P", "q", "v", bound, measured, **more)["holds"]

    assert holds(1.0, 0.9)
    assert not holds(0.9, 1.0)
    assert holds(0.9, 1.0, side="lower")
    assert not holds(1.0, 0.9, side="lower")
    assert holds(1.0, 1.0 + 1e-9)  # rounding
    assert holds(math.nan, 1.0) is None
    assert holds(1.0, math.nan) is None
    assert holds(0.1, 1.0, kind="estimate") is None
    assert holds(math.inf, 1.0)


def measured(split="test", objective="dcl", features="z", **values):
    keys = {(split, objective, features, *name.split("/")): v for name, v in values.items()}
    return keys | {(split, objective, features, "images", "count"): 100}


def test_gap_rows():
    bound = gap_bound(10, 100, 0.5)
    values = measured(
        **{"gap/training_tau": 0.2, "gap_bound/training_tau": bound,
           "gap_clustered_labels/tau_1": 0.7, "gap_bound_clustered_labels/tau_1": 0.6,
           "batch_gap/training_tau": -0.1, "batch_gap_bound/training_tau": 1.0,
           "nccc/accuracy": 1.0}
    )  # fmt: skip
    rows = {(r["quantity"], r["side"]): r for r in gap_rows(values, views=2, batch_size=16)}
    assert len(rows) == 6
    assert rows["gap", "upper"]["bound"] == bound
    assert rows["gap", "upper"]["vacuous_orders"] == pytest.approx(
        math.log10(bound / math.log(2 * 99))
    )
    verdicts = {key: row["holds"] for key, row in rows.items()}
    assert verdicts == {
        ("gap", "upper"): True,
        ("gap", "lower"): True,
        ("gap_clustered_labels", "upper"): False,
        ("gap_clustered_labels", "lower"): True,
        ("batch_gap", "upper"): True,
        ("batch_gap", "lower"): False,
    }


def test_corollary_rows():
    values = measured(
        objective="nscl", features="h",
        **{"similarity_gap/frobenius": 5.0, "similarity_gap/rho": 0.5, "similarity_gap/r": 2.0,
           "similarity_norm/centred": 8.0, "cka/cosine_biased": 0.3, "rsa/pearson_cosine": -0.9,
           "cka_lower_bound/corollary": 1 / 3, "cka_lower_bound/tight": 0.2,
           "rsa_lower_bound/corollary": math.nan, "rsa_lower_bound/tight": math.nan}
    )  # fmt: skip
    rows = {(r["quantity"], r["variant"]): r["holds"] for r in corollary_rows(values)}
    assert rows == {
        ("cka", "corollary"): False,
        ("cka", "tight"): True,
        ("rsa", "corollary"): None,
        ("rsa", "tight"): None,
        ("centring", "difference"): True,
    }


def test_few_shot_rows():
    values = measured(
        features="h",
        **{"cdnv/directional": 0.01, "cdnv/pairs": 0.4, "cdnv/root": 0.5,
           "few_shot_nccc_all_way/shots_1": 0.3, "few_shot_nccc_two_way/shots_500": 0.01,
           "few_shot_nccc_one_split_all_way/shots_1": 0.4,
           "few_shot_nccc_one_split_all_way/shots_100": 0.6,
           "few_shot_nccc_one_split_all_way/shots_500": math.nan,
           "few_shot_nccc_one_split_two_way/shots_100": 0.9}
    )  # fmt: skip
    found = list(few_shot_rows(values, classes=10))
    rows = {(r["quantity"], r["variant"]): r for r in found if r["kind"] == "bound"}
    assert set(rows) == {
        ("few_shot_error_all_way", "best_shots_1"),
        ("few_shot_error_all_way", "best_shots_100"),
        ("few_shot_error_all_way", "displayed_shots_100"),
        ("few_shot_error_two_way", "best_shots_100"),
        ("few_shot_error_two_way", "displayed_shots_100"),
    }
    one = rows["few_shot_error_all_way", "best_shots_1"]
    assert one["bound"] == few_shot_bound(0.01, 0.4, 0.5, 1, 10)
    assert one["vacuous_orders"] == pytest.approx(math.log10(one["bound"]))
    assert one["measured"] == pytest.approx(0.6)
    two = rows["few_shot_error_two_way", "best_shots_100"]
    assert two["bound"] == few_shot_bound(0.01, 0.4, 0.5, 100, 2)
    # Of training images nothing is claimed, even where the error is above the bound.
    others = {(r["quantity"], r["variant"]): r for r in found if r["kind"] == "not_comparable"}
    assert set(others) == {
        ("few_shot_error_from_train_all_way", "best_shots_1"),
        ("few_shot_error_from_train_two_way", "best_shots_500"),
        ("few_shot_error_from_train_two_way", "displayed_shots_500"),
    }
    assert len(found) == len(rows) + len(others)
    beyond = others["few_shot_error_from_train_two_way", "best_shots_500"]
    assert beyond["measured"] > beyond["bound"] == few_shot_bound(0.01, 0.4, 0.5, 500, 2)
    assert beyond["holds"] is None


def test_lemmas_hold_and_a_planted_fault_breaks_one():
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    z = {name: rng.standard_normal((2, 24, 5)) for name in ("dcl", "nscl")}
    rows = list(lemma_rows(z, labels, 0.5))
    assert [r["quantity"] for r in rows] == ["reweighting"] * 2 + ["smoothness_of_gradient"] * 2
    assert all(r["holds"] for r in rows)
    # One of a hundred negatives shares the class, at the extremes: nearly tight, so that e^(1/τ) in
    # the place of e^(2/τ) would not hold.
    row, same = np.where(np.arange(100) == 0, 1.0, -1.0), np.arange(100) == 0
    sides = reweighting_sides(row, same, tau=1.0)
    assert inequality("P", "reweighting", "batch", sides.right, sides.left)["holds"]
    assert not inequality("P", "reweighting", "batch", sides.right / math.e, sides.left)["holds"]


def test_lemmas_of_a_batch_of_one_class_claim_nothing():
    z = {name: np.random.default_rng(0).standard_normal((2, 6, 3)) for name in ("dcl", "nscl")}
    rows = list(lemma_rows(z, np.zeros(6, dtype=int), 0.5))
    assert [r["variant"] for r in rows] == ["dcl_gradient"]


def test_tightness_counts_and_orders():
    rows = [
        inequality("P1", "gap", "tau_1", 1.0, 0.1),
        inequality("P1", "gap", "tau_1", 1.0, 0.01),
        inequality("P1", "gap", "tau_1", 0.001, 0.01, vacuous_orders=1.0),
        inequality("P2", "cka", "corollary", 0.5, 0.95, "lower"),
        inequality("P2", "cka", "corollary", math.nan, 0.95, "lower"),
        inequality("P2", "weights", "form", math.inf, 10.0, kind="estimate", log10_bound=400.0),
        inequality("P1", "error", "best_shots_1", 1.0, 0.1),
        inequality("P1", "error", "best_shots_5", 1.0, 0.1),
    ]
    table = pl.DataFrame([{n: row.get(n) for n in SCHEMA} for row in rows], schema=SCHEMA)
    found = {row["quantity"]: row for row in tightness(table).iter_rows(named=True)}
    gap = found["gap"]
    assert (gap["cases"], gap["claimed"], gap["violated"], gap["vacuous"]) == (3, 3, 1, 1)
    assert [gap[f"{which}_orders"] for which in ("smallest", "median", "largest")] == (
        pytest.approx([-1, 1, 2])
    )
    cka = found["cka"]
    assert (cka["cases"], cka["claimed"], cka["violated"]) == (2, 1, 0)
    assert cka["median_orders"] == pytest.approx(1)  # 0.5 against 0.05
    assert found["weights"]["median_orders"] == pytest.approx(399)
    assert found["error"]["cases"] == 2  # numbers of shots are one bound
