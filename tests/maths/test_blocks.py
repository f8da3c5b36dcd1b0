"""Rows are read block by block, from arrays, tensors and files alike."""

import numpy as np
import pytest
import torch

from cltools.maths.blocks import as_rows, blocks_of, each_block, read, take

X = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)


class OnDisk:
    """Rows that give themselves as slices only."""

    shape, dtype = X.shape, X.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        assert isinstance(rows, slice)
        return X[rows].copy()


SOURCES = {"array": X, "tensor": torch.from_numpy(X), "file": OnDisk(), "list": X.tolist()}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_all_rows_in_order(source, monkeypatch):
    monkeypatch.setattr("cltools.maths.blocks.BLOCK_BYTES", 7 * 5 * 8)  # seven rows
    x = as_rows("x", source)
    parts = list(each_block(x))
    assert [part for part, _ in parts] == [slice(i, min(i + 7, 23)) for i in range(0, 23, 7)]
    assert all(rows.dtype == torch.float64 for _, rows in parts)
    np.testing.assert_array_equal(torch.cat([rows for _, rows in parts]), X.astype(float))


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_single_rows(source, monkeypatch):
    monkeypatch.setattr("cltools.maths.blocks.BLOCK_BYTES", 7 * 5 * 8)
    wanted = np.array([0, 6, 7, 8, 22])
    found = take(as_rows("x", source), wanted, dtype=torch.float32)
    np.testing.assert_array_equal(found, X[wanted])


@pytest.mark.filterwarnings("error")
def test_reversed_and_read_only_arrays():
    fixed = X[::-1].copy()
    fixed.flags.writeable = False
    for source in (X[::-1], fixed):
        np.testing.assert_array_equal(read(as_rows("x", source), slice(0, 3)), X[:-4:-1])


def test_a_file_is_not_read_whole():
    source = OnDisk()
    assert as_rows("x", source) is source
    assert read(source, slice(3, 5)).shape == (2, 5)


@pytest.mark.parametrize(("n", "d", "size"), [(10, 3, 1), (10, 3, 100), (1, 1, 8), (7, 2, 32)])
def test_slices_cover_all_rows_once(n, d, size):
    parts = blocks_of(n, d, size)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))
    assert all(part.stop - part.start in (1, *range(1, size // (8 * d) + 1)) for part in parts)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 3)), [["a"]], np.zeros((2, 2), complex)])
def test_what_has_no_rows_is_refused(bad):
    with pytest.raises(ValueError, match="features of 'dcl' must be a real array"):
        as_rows("dcl", bad)
