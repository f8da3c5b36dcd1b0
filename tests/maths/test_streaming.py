"""Measures of features in files, larger than memory, equal those of arrays."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from numerics import rows_per_block
from test_alignment_controls import clusters

from cltools.maths.alignment import (
    alignment,
    frobenius_gap,
    residual_alignment,
    spearman_rsa,
    within_class_null,
    zero_norm_rows,
)
from cltools.maths.angles import feature_angle
from cltools.maths.collapse import class_statistics
from cltools.maths.intervals import alignment_intervals


class InFile:
    """Rows of a .npy file; they can be had as slices only."""

    def __init__(self, path, array):
        np.save(path, array)
        self._rows = np.load(path, mmap_mode="r")
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return self._rows[rows]


def flat(values):
    """All numbers of nested results, in order."""
    if isinstance(values, dict):
        return [number for value in values.values() for number in flat(value)]
    if hasattr(values, "null"):
        return [values.value, *values.null]
    if hasattr(values, "__dataclass_fields__"):
        return [number for name in vars(values) for number in flat(getattr(values, name))]
    return np.asarray(values, dtype=float).ravel().tolist()


MEASURED = {
    "alignment": lambda a, b, y: alignment({"a": a, "b": b}),
    "residuals": lambda a, b, y: residual_alignment({"a": a, "b": b}, y),
    "gap": lambda a, b, y: frobenius_gap(a, b),
    "small gap": lambda a, b, y: frobenius_gap(a, a),
    "null": lambda a, b, y: within_class_null(a, b, y, 5),
    "intervals": lambda a, b, y: alignment_intervals({"a": a, "b": b}, draws=5),
    "ranks": lambda a, b, y: spearman_rsa(a, b, 500),
    "angle": lambda a, b, y: feature_angle(a, b),
    "zero rows": lambda a, b, y: zero_norm_rows({"a": a, "b": b}),
    "classes": lambda a, b, y: class_statistics(a, y),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", MEASURED)
def test_features_in_files(name, dtype, tmp_path, monkeypatch):
    a, b, y = clusters(other_d=8)
    a[5] = 0
    a, b = (x.astype(dtype) for x in (a, b))
    expected = flat(MEASURED[name](a.astype(float), b.astype(float), y))
    rows_per_block(7, 8, monkeypatch)
    monkeypatch.setattr("cltools.maths.alignment.ranks.HELD_BYTES", 11 * 8 * 8)
    sources = [InFile(tmp_path / f"{i}.npy", x) for i, x in enumerate((a, b))]
    for pair in (sources, [torch.from_numpy(x) for x in (a, b)]):
        found = flat(MEASURED[name](*pair, y))
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images():
    code = """
        import resource, sys
        import numpy as np
        from cltools import measurements
        from cltools.maths import blocks
        from cltools.maths.alignment import moments, ranks, samples

        blocks.BLOCK_BYTES = moments.BLOCK_BYTES = 1 << 20
        ranks.HELD_BYTES, samples.SAMPLED_IMAGES = 1 << 20, 500
        measurements.alignment.RANKED_PAIRS = 5000
        n, d = int(sys.argv[1]), 128

        class Made:
            shape, dtype = (n, d), np.dtype(np.float64)

            def __init__(self, seed):
                self.mixing = np.random.default_rng(seed).standard_normal((3, d))

            def __getitem__(self, rows):
                i = np.arange(n)[rows, None]
                return np.sin(np.hstack([i, i % 7, i % 10]) @ self.mixing)

        of = measurements.Representations(
            {name: Made(i) for i, name in enumerate(("dcl", "nscl"))}, np.arange(n) % 10
        )
        rows = [
            *measurements.alignment_rows(of),
            *measurements.corollary_rows(of),
            *measurements.geometry_rows(of, intervals=True),
            *measurements.rank_rows(of),
            *measurements.null_rows(of),
        ]
        rows += measurements.angle_rows(rows, of)
        measurements.add_intervals(rows, of)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", textwrap.dedent(code), n]))
        for n in ("4000", "150000")
    ]
    one_copy = 150_000 * 128 * 8 / 1024
    assert peaks[1] - peaks[0] < one_copy / 2
