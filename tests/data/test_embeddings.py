"""Files of embeddings: read as xarray reads them, in blocks, whole or not there."""

import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import xarray as xr

from cltools.data.embeddings import (
    Samples,
    new_embeddings,
    open_embeddings,
    usable_embeddings,
)
from cltools.data.sparse import PAGE, SparseFile
from cltools.layout import Embeddings
from cltools.runtime.errors import InputError

OBJECTIVES = ["dcl", "nscl:shuffled"]


def samples(train, test):
    labels = {"train": np.arange(train) % 7, "test": np.arange(test) % 7}
    return Samples(labels, {split: np.arange(len(y))[::-1].copy() for split, y in labels.items()})


def write(path, images, widths, block, dtype="float32", values=None):
    """Random values (or those given), written in blocks; returns what was written."""
    sizes = {"h": (widths["feature"],), "z": (widths["dimension"],)}
    draw = np.random.default_rng(0)
    about = {"dtype": dtype, "made": "here"}
    with new_embeddings(path, OBJECTIVES, images, widths, about) as writer:
        for first in range(0, images.count, block):
            n = min(block, images.count - first)
            made = {
                name: draw.standard_normal((2, n, *size), np.float32)
                for name, size in sizes.items()
            }
            shape = (2, widths["view"], n, widths["dimension"])
            made["z_views"] = draw.standard_normal(shape, np.float32)
            writer.write(first, **made)
            if values is not None:
                for name, part in made.items():
                    values.setdefault(name, []).append(part)
    return about


WIDTHS = {"feature": 5, "dimension": 3, "view": 2}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_same_data_set_as_xarray_writes(tmp_path, dtype):
    images, values = samples(40, 11), {}
    write(tmp_path / "ours.nc", images, WIDTHS, 16, dtype, values)
    h, z, z_views = (
        np.concatenate(values[n], axis=-2).astype(dtype) for n in ("h", "z", "z_views")
    )
    theirs = xr.Dataset(
        {
            "h": (("objective", "sample", "feature"), h),
            "z": (("objective", "sample", "dimension"), z),
            "z_views": (("objective", "view", "sample", "dimension"), z_views),
        },
        coords={
            "objective": OBJECTIVES,
            "split": ("sample", np.repeat(["train", "test"], [40, 11])),
            "label": ("sample", np.concatenate(list(images.labels.values()))),
            "sample_id": ("sample", np.concatenate(list(images.ids.values()))),
        },
    )
    theirs.to_netcdf(tmp_path / "theirs.nc", engine="h5netcdf")
    found = [xr.load_dataset(tmp_path / f"{name}.nc") for name in ("ours", "theirs")]
    assert "cltools-seal:" in found[0].attrs.pop("cltools")
    xr.testing.assert_identical(*found)
    for name in theirs.variables:
        ours, others = (dict(dataset[name].encoding) for dataset in found)
        assert str({**ours, "source": ""}) == str({**others, "source": ""})


def test_the_same_bytes_whatever_the_blocks(tmp_path):
    draw = np.random.default_rng(0)
    h, z = (draw.random((2, 51, d), np.float32) for d in (5, 3))
    z_views = draw.random((2, 2, 51, 3), np.float32)
    for block in (7, 51):
        path = tmp_path / f"{block}.nc"
        with new_embeddings(
            path, OBJECTIVES, samples(40, 11), WIDTHS, {"dtype": "float32"}
        ) as file:
            for first in range(0, 51, block):
                rows = slice(first, first + block)
                file.write(first, h=h[:, rows], z=z[:, rows], z_views=z_views[:, :, rows])
    assert (tmp_path / "7.nc").read_bytes() == (tmp_path / "51.nc").read_bytes()


def test_rows_of_a_split(tmp_path):
    values = {}
    about = write(tmp_path / "e.nc", samples(40, 11), WIDTHS, 16, values=values)
    z_views = np.concatenate(values["z_views"], axis=-2)
    with open_embeddings(tmp_path / "e.nc", about, Embeddings()) as splits:
        assert list(splits) == ["train", "test"]
        test = splits["test"]
        assert list(test.h) == OBJECTIVES
        assert test.labels.tolist() == (np.arange(11) % 7).tolist()
        rows = test.z_views["nscl:shuffled"][1]
        assert rows.shape == (11, 3)
        assert rows.dtype == np.float32
        for part in (slice(None), slice(2, 5), slice(-3, None), slice(8, 99), slice(5, 2)):
            assert np.array_equal(rows[part], z_views[1, 1, 40:][part])
    others = open_embeddings(tmp_path / "e.nc", {**about, "made": "there"}, Embeddings())
    with pytest.raises(InputError, match="was made from other weights or images"), others:
        pass


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Neither of what is written nor of what is read: less than a quarter of a file is held."""
    path, widths = tmp_path / "e.nc", {"feature": 512, "dimension": 64, "view": 2}
    tracemalloc.start()
    try:
        about = write(path, samples(20_000, 4_000), widths, 256)
        with open_embeddings(path, about, Embeddings()) as splits:
            rows = splits["train"].h["dcl"]
            sums = sum(rows[first : first + 256].sum() for first in range(0, 20_000, 256))
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.isfinite(sums)
    assert held < path.stat().st_size / 4


def test_what_stops_midway_leaves_nothing(tmp_path):
    path = tmp_path / "e.nc"
    begun = new_embeddings(path, OBJECTIVES, samples(40, 11), WIDTHS, {"dtype": "float32"})
    with pytest.raises(RuntimeError), begun:
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    assert not usable_embeddings(path, {"dtype": "float32"})


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=4m none {0} && {1} {2} {0}
code=$?; ls -A {0}; exit $code
"""
WRITING = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_embeddings import samples, write
from cltools.runtime.errors import InputError
try:
    write(Path(sys.argv[1]) / "e.nc", samples({images}, 100), {widths}, 256)
except InputError as error:
    print("InputError", error)
"""


@pytest.mark.parametrize("images", [500, 50_000])
def test_a_full_disk(tmp_path, images):
    """A real one, of 4 MB, too small for the embeddings, or even for what says what they are."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a disk here")
    folder, script = tmp_path / "disk", tmp_path / "write.py"
    folder.mkdir()
    widths = {"feature": 500, "dimension": 300, "view": 2}
    script.write_text(WRITING.format(tests=os.path.dirname(__file__), images=images, widths=widths))
    command = ON_A_SMALL_DISK.format(folder, sys.executable, script)
    done = subprocess.run(["unshare", "-rm", "bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sentence = (
        r"InputError \S+/e\.nc cannot be written \(No space left on device\): free space .*\n"
    )
    assert re.fullmatch(sentence, done.stdout), done.stdout  # and no file


def test_a_file_with_holes():
    """It gives what was written, and zeros elsewhere, like a file on disk."""
    draw, size = np.random.default_rng(1), 3 * PAGE
    like, file = bytearray(size), SparseFile()
    for _ in range(50):
        place = int(draw.integers(size))
        content = draw.bytes(int(draw.integers(size - place)) // 3)
        file.seek(place)
        assert file.write(content) == len(content)
        like[place : place + len(content)] = content
    file.truncate(size)
    file.seek(0)
    assert file.read() == like
    file.seek(-5, os.SEEK_END)
    assert file.read(10) == like[-5:]
    whole = bytearray(size)
    for place, part in file.parts():
        whole[place : place + len(part)] = part
    assert whole == like
