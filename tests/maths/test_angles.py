"""Angles between weights and between representations."""

import numpy as np
import pytest

from cltools.maths.alignment import alignment
from cltools.maths.angles import feature_angle, similarity_angle, weight_angle


def weights(*vectors):
    return {f"encoder.{i}.weight": np.array(v, dtype=float) for i, v in enumerate(vectors)}


def test_weight_angle_is_of_all_layers_as_one_vector():
    a, b = weights([1, 0], [0]), weights([0, 0], [1])
    assert weight_angle(a, b) == pytest.approx(90)
    assert weight_angle(a, weights([-3, 0], [0])) == pytest.approx(180)
    assert weight_angle(weights([1, 1], [0]), a) == pytest.approx(45)
    assert np.isnan(weight_angle(a, weights([0, 0], [0])))


def test_weight_angle_from_a_common_start_forgets_what_is_shared():
    start = weights([100, 100], [100])
    a, b = weights([101, 100], [100]), weights([100, 101], [100])
    assert weight_angle(a, b) < 1
    assert weight_angle(a, b, start) == pytest.approx(90)
    assert np.isnan(weight_angle(a, start, start))
    with pytest.raises(ValueError, match="differ in their layers"):
        weight_angle(a, b, weights([1, 1, 1], [0]))


def representation_angles(a, b):
    measure = ("cka", "cosine_biased")
    cka = alignment({"a": a, "b": b}, measures=[measure])["a", "b"][measure]
    return similarity_angle(cka), feature_angle(a, b)


def test_representation_angles():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((50, 6))
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    assert representation_angles(a, 3 * a) == pytest.approx((0, 0), abs=1e-5)
    kernel, features = representation_angles(a, a @ rotation)
    assert kernel == pytest.approx(0, abs=1e-5)
    assert features > 20
    # Against the formula: the angle between the two centred N×N matrices.
    b = rng.standard_normal((50, 9))
    centre = np.eye(50) - 1 / 50
    k, m = (centre @ (u @ u.T) @ centre for u in
            (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)))  # fmt: skip
    cosine = (k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m)
    kernel, features = representation_angles(a, b)
    assert kernel == pytest.approx(np.degrees(np.arccos(cosine)))
    assert np.isnan(features)  # widths differ


def test_rows_of_norm_zero_have_no_angle():
    a = np.eye(4)
    b = np.eye(4)[[1, 0, 2, 3]]
    b[0] = 0
    assert representation_angles(a, b)[1] == pytest.approx(90 / 3)
    assert np.isnan(representation_angles(a, np.zeros((4, 4)))[1])
    with pytest.raises(ValueError, match="different images"):
        feature_angle(a, b[1:])
