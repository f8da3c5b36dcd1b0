"""Alignment layer by layer, against similarity matrices worked out in full."""

import numpy as np
import pytest
import torch

from cltools.measurements import LayerOutputs, layer_rows, layers, tidy_layers

N, WIDTHS = 40, {"stem": 5, "block0": 12, "h": 7, "z": 3}


def networks(names, seed=0):
    random = np.random.default_rng(seed)
    shared = random.standard_normal((N, 20))
    return {
        name: {
            layer: np.maximum(shared @ random.standard_normal((20, d)), 0).astype(np.float32)
            for layer, d in WIDTHS.items()
        }
        for name in names
    }


def outputs(names=("dcl", "nscl", "scl"), reference="dcl", own_starts=False):
    found = networks(names)
    starts = networks(names, seed=1)
    if not own_starts:
        starts = dict.fromkeys(names, starts[names[0]])
    labels = np.array(["a", "b", "c", "d"])[np.arange(N) % 4]
    return LayerOutputs(found, starts, labels, reference, torch.device("cpu"))


def centered(x, labels=None):
    x = x.astype(np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    cosines = x / np.where(norms > 0, norms, 1)  # a row of zeros has cosine 0 with all
    if labels is not None:
        cosines = np.stack([c - cosines[labels == y].mean(0)
                            for c, y in zip(cosines, labels, strict=True)])  # fmt: skip
    return cosines - cosines.mean(0)


def cka(x, y, labels=None):
    """The biased estimator from N x N matrices."""
    k, m = (centered(a, labels) @ centered(a, labels).T for a in (x, y))
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


def debiased(x, y):
    """With HSIC_1 of Song et al. 2012, equation 5, from N x N matrices."""

    def hsic(k, m):
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        ones = np.ones(N)
        return (np.trace(k @ m) + ones @ k @ ones * (ones @ m @ ones) / ((N - 1) * (N - 2))
                - 2 / (N - 2) * ones @ k @ m @ ones) / (N * (N - 3))  # fmt: skip

    k, m = (centered(a) @ centered(a).T for a in (x, y))
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("own_starts", [True, False])
def test_every_pair_equals_the_similarity_matrices(one_pass, own_starts, monkeypatch):
    if not one_pass:
        monkeypatch.setattr(layers, "MOMENTS_BYTES", 8 * 400)
    made = outputs(own_starts=own_starts)
    table = tidy_layers(layer_rows(made, every_pair=True))
    of_pairs = table.filter(reference="dcl", variant="cosine_biased")
    count = len(WIDTHS)
    assert len(of_pairs) == 2 * count**2 + count * (count - 1) / 2
    assert len(table.unique(["objective", "reference", "features", "reference_features", "metric",
                             "variant"])) == len(table)  # fmt: skip
    for row in table.iter_rows(named=True):
        x = made.networks[row["objective"]][row["features"]]
        begun = row["reference"] == "init"
        other = (made.starts if begun else made.networks)[
            row["objective"] if begun else row["reference"]
        ][row["reference_features"]]
        assert row["metric"].endswith("_to_init") == begun
        match row["variant"]:
            case "cosine_biased":
                expected = cka(other, x)
            case "cosine_debiased":
                expected = debiased(other, x)
            case "residual_biased":
                expected = cka(other, x, made.labels)
            case _:
                continue
        assert row["value"] == pytest.approx(expected, abs=1e-10)


def test_intervals_are_of_the_same_layer():
    table = tidy_layers(layer_rows(outputs(), every_pair=True))
    same = (table["features"] == table["reference_features"]) & (table["reference"] == "dcl")
    papers = table["variant"].is_in(["cosine_biased", "cosine_debiased", "pearson_cosine"])
    given = table["ci_low"].is_not_null()
    assert given.to_list() == (same & papers).to_list()
    assert (table.filter(given)["ci_low"] <= table.filter(given)["ci_high"]).all()


def test_without_the_reference_only_starts_are_compared():
    table = tidy_layers(layer_rows(outputs(("nscl", "scl")), every_pair=True))
    assert set(table["reference"]) == {"init"}
    alone = outputs()
    nothing = LayerOutputs(alone.networks, {}, alone.labels, "dcl")
    assert "init" not in set(tidy_layers(layer_rows(nothing, every_pair=False))["reference"])
