"""Measures of arrays against other definitions and what the pipeline writes; types and errors."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

import cltools
from cltools import measurements
from cltools.stages import compare

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
A = RNG.standard_normal((60, 5)) + 3 * np.eye(5)[LABELS]
B = A @ RNG.standard_normal((5, 8)) + RNG.standard_normal((60, 8))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def hsic(k, other, debiased):
    """From N x N matrices: Gretton et al. 2005, and Song et al. 2012, eq. 5."""
    n = len(k)
    if not debiased:
        h = np.eye(n) - 1 / n
        return np.trace(h @ k @ h @ other)
    k, other = (m - np.diag(np.diag(m)) for m in (k, other))
    both = k.sum() * other.sum() / ((n - 1) * (n - 2))
    return np.trace(k @ other) + both - 2 / (n - 2) * k.sum(0) @ other.sum(0)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("cosine", [True, False])
def test_cka_equals_its_definition(debiased, cosine):
    a, b = (unit(A), unit(B)) if cosine else (A, B)
    k, other = a @ a.T, b @ b.T
    norm = math.sqrt(hsic(k, k, debiased) * hsic(other, other, debiased))
    found = cltools.cka(A, B, debiased=debiased, cosine=cosine)
    assert found == pytest.approx(hsic(k, other, debiased) / norm, abs=1e-12)
    assert type(found) is float
    if debiased and cosine:
        assert cltools.cka(A, B) == found


@pytest.mark.parametrize(("ranks", "correlation"), [(False, pearsonr), (True, spearmanr)])
def test_rsa_equals_its_definition(ranks, correlation):
    pairs = np.triu_indices(60, 1)
    distances = [1 - (unit(x) @ unit(x).T)[pairs] for x in (A, B)]
    found = cltools.rsa(A, B, ranks=ranks)
    assert found == pytest.approx(correlation(*distances).statistic, abs=1e-9)


def measures(x, y, labels):
    return (
        cltools.cka(x, y),
        cltools.rsa(x, y),
        cltools.rsa(x, y, ranks=True),
        cltools.cdnv(x, labels),
        *cltools.nccc(x, labels, x, labels),
    )


def test_arrays_tensors_and_lists_give_the_same(device):
    exact = measures(A, B, LABELS)
    a, b = (torch.tensor(x, device=device, requires_grad=True) for x in (A, B))
    labels = torch.tensor(LABELS, device=device)
    assert measures(a, b, labels) == pytest.approx(exact, abs=1e-12)
    assert measures(A.tolist(), B[::-1][::-1], LABELS.tolist()) == pytest.approx(exact, abs=1e-12)
    assert measures(list(a), list(b), LABELS.astype(str)) == pytest.approx(exact, abs=1e-12)
    half = measures(a.bfloat16(), b.half(), LABELS.astype(object))
    assert half == pytest.approx(exact, abs=0.02)


def test_alignment_is_what_the_pipeline_writes(tmp_path):
    for name, x in (("a", A), ("b", B), ("c", B[:, :3])):
        np.savez(tmp_path / f"{name}.npz", features=x, labels=LABELS)
    files = [tmp_path / f"{name}.npz" for name in "abc"]
    compare.run(files=files, output=tmp_path / "out.parquet")
    theirs = pl.read_parquet(tmp_path / "out.parquet")
    ours = cltools.alignment({"a": A, "b": B, "c": torch.tensor(B[:, :3])}, labels=LABELS)
    assert ours["ci_low"].count() == 3 * 3  # three measures of three pairs
    assert ours.join(theirs, on=ours.columns, how="anti", nulls_equal=True).is_empty()
    assert ours["metric"].unique().sort().to_list() == [
        "cka", "cka_null", "cka_null_p", "rsa", "rsa_error", "rsa_mantel_p", "rsa_null",
        "rsa_null_p", "zero_norm_rows",
    ]  # fmt: skip
    found = ours.filter(metric="cka", variant="cosine_debiased", objective="b")
    assert found["value"].item() == pytest.approx(cltools.cka(A, B), abs=1e-12)


def test_alignment_needs_no_labels():
    with_labels = cltools.alignment(A, B, labels=LABELS)
    without = cltools.alignment(A, B)
    assert without["variant"].str.contains("residual").sum() == 0
    assert set(without["metric"]) == {"cka", "rsa", "rsa_error", "rsa_mantel_p", "zero_norm_rows"}
    keys = ["objective", "reference", "metric", "variant"]
    both = without.join(with_labels, on=keys, maintain_order="left")
    for column in ("value", "ci_low", "ci_high"):
        expected = both[f"{column}_right"].to_list()
        assert without[column].to_list() == pytest.approx(expected, abs=1e-12)
    few = cltools.alignment(A[:3], B[:3])
    assert few["ci_low"].null_count() == len(few)


def test_what_features_say_of_classes_is_what_the_pipeline_writes():
    sets = A[:40], LABELS[:40], A[40:], LABELS[40:]
    rows = measurements.downstream_rows({"x": sets[0]}, sets[1], {"x": sets[2]}, sets[3], True)
    written = {(row["split"], row["metric"]): row["value"] for row in rows}
    for measure in (cltools.nccc, cltools.linear_probe):
        found = measure(*sets)
        name = measure.__name__
        assert (found.train, found.test) == (written["train", name], written["test", name])
    of = measurements.Representations({"x": A}, LABELS, reference="x")
    collapse = {(r["metric"], r["variant"]): r["value"] for r in measurements.geometry_rows(of)}
    assert cltools.cdnv(A, LABELS) == collapse["cdnv", "pairs"]
    assert cltools.cdnv(A, LABELS, directional=True) == collapse["cdnv", "directional"]


def test_the_bound_of_unbalanced_labels():
    bound = math.log(1 + 3 * math.exp(2 / 0.5) / 2)
    assert cltools.gap_bound(["a", "a", "b", "a", "c"], 0.5) == pytest.approx(bound)


NOT_FINITE = np.where(np.arange(60)[:, None] == 7, np.inf, B)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: cltools.cka(A, B[:50]), "differ in their number of images: {'a': 60, 'b': 50}"),
        (lambda: cltools.cka(A, B[0]), r"features of 'b' must be a real array \(images, features"),
        (lambda: cltools.rsa(NOT_FINITE, A), "features of 'a' hold NaN, infinity"),
        (lambda: cltools.cka(A, [["a"]] * 60), "b must hold real numbers"),
        (lambda: cltools.alignment(A), "give two arrays, or one mapping"),
        (lambda: cltools.alignment({"a": A}, B), "give two arrays, or one mapping"),
        (lambda: cltools.alignment({"a": A}), "between two representations, not 1"),
        (lambda: cltools.alignment(A, B, labels=LABELS[:9]), r"labels of shape \(9,\) are not one"),
        (lambda: cltools.nccc(A, LABELS, B, LABELS), "train and test differ in features"),
        (lambda: cltools.linear_probe(A, [0] * 60, A, LABELS), "at least two classes"),
        (lambda: cltools.cdnv(A, [0] * 60), "at least two"),
        (lambda: cltools.cdnv(A, None), "labels are missing"),
        (lambda: cltools.gap_bound([1, 1], 0.5), "at least two classes"),
        (lambda: cltools.gap_bound([1, 2], 0), "tau must be above 0"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_what_is_undefined_is_nan():
    assert math.isnan(cltools.cka(A, np.ones((60, 4))))
    assert math.isnan(cltools.rsa(A[:2], B[:2]))
    assert math.isnan(cltools.cka(A[:3], B[:3]))
    assert 0 <= cltools.cka(A[:3], B[:3], debiased=False) <= 1
