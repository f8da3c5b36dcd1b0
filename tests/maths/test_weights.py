"""Distances between the weights of two models."""

import math

import numpy as np
import pytest

from cltools.maths.weights import weight_distance, weight_gap


def test_weight_gap_of_known_layers():
    a = {
        "encoder.equal.weight": np.array([3.0, 4.0]),
        "encoder.opposite.weight": np.array([1.0, 0.0]),
        "encoder.orthogonal.weight": np.eye(2)[0],
        "encoder.zero.weight": np.zeros(3),
        "encoder.equal.bias": np.ones(2),
        "head.weight": np.ones(2),
    }
    b = a | {
        "encoder.opposite.weight": np.array([-1.0, 0.0]),
        "encoder.orthogonal.weight": np.eye(2)[1],
        "encoder.equal.bias": np.zeros(2),
    }
    del b["head.weight"]  # heads may differ
    mean, layers = weight_gap(a, b)
    expected = {"equal": 0, "opposite": 2, "orthogonal": math.sqrt(2), "zero": 0}
    assert layers == pytest.approx({f"encoder.{k}.weight": v for k, v in expected.items()})
    assert mean == pytest.approx((2 + math.sqrt(2)) / 4)
    assert weight_gap(b, a)[0] == mean


def test_weight_gap_sums_half_precision_in_float64():
    a = {"encoder.a.weight": np.full(10**5, 0.1, dtype=np.float16)}
    b = {"encoder.a.weight": np.full(10**5, 0.3, dtype=np.float16)}
    assert weight_gap(a, b)[0] == pytest.approx(1.0, rel=1e-3)


def test_weight_gap_refuses_different_encoders():
    a = {"encoder.a.weight": np.ones(2)}
    with pytest.raises(ValueError, match="differ in their layers"):
        weight_gap(a, {"encoder.b.weight": np.ones(2)})
    with pytest.raises(ValueError, match="differ in their layers"):
        weight_gap(a, {"encoder.a.weight": np.ones(3)})
    with pytest.raises(ValueError, match="no tensor"):
        weight_gap({"head.weight": np.ones(2)}, {"head.weight": np.ones(2)})


def test_weight_distance_is_over_what_is_trained_in_encoder_and_projector():
    a = {
        "encoder.conv.weight": np.zeros((2, 2)),
        "encoder.bn.bias": np.zeros(2),
        "encoder.bn.running_mean": np.zeros(2),
        "projector.0.weight": np.zeros(1),
    }
    b = {name: value + 1 for name, value in a.items()} | {"head.weight": np.ones(9)}
    assert weight_distance(a, b) == pytest.approx(math.sqrt(4 + 2 + 1))
    with pytest.raises(ValueError, match="differ"):
        weight_distance(a, {**b, "projector.0.weight": np.ones(2)})
