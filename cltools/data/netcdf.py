"""netCDF files of arrays over samples, written in blocks of samples and sealed.

Memory does not grow with the number of samples. A file has one attribute `cltools`: JSON that says
what the arrays were made from.
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import h5netcdf
import h5py
import numpy as np
from numpy.typing import NDArray

from cltools.data.sparse import SparseFile
from cltools.runtime.files import canonical_json, whole_file
from cltools.runtime.sealed import BLANK, KEY, METADATA, seal


@dataclass(frozen=True)
class Layout:
    """What a file holds.

    sizes: of its dimensions. coordinates: name -> dimension and values; text is of type object.
    variables: name -> dimensions of the arrays of numbers, the last two of which are the sample and
    what it has numbers of.
    """

    sizes: Mapping[str, int]
    coordinates: Mapping[str, tuple[str, NDArray[Any]]]
    variables: Mapping[str, Sequence[str]]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.sizes[dimension] for dimension in self.variables[name])


@dataclass(frozen=True)
class BlockWriter:
    """A file that is being written, in blocks of samples."""

    file: IO[bytes]
    offsets: Mapping[str, int]  # of the first byte of each variable
    layout: Layout
    dtype: np.dtype[Any]

    def write(self, first: int, /, **blocks: NDArray[Any]) -> None:
        """Write the values of some samples, of which `first` is the number of the first one.

        Blocks are by variable and of its shape, but for the number of samples. Raises OSError.
        """
        for name, block in blocks.items():
            *leading, samples, width = self.layout.shape(name)
            rows = block.astype(self.dtype, copy=False).reshape(-1, *block.shape[-2:])
            assert len(rows) == prod(leading), name
            for place, part in enumerate(rows):
                row = place * samples + first
                self.file.seek(self.offsets[name] + row * width * self.dtype.itemsize)
                self.file.write(np.ascontiguousarray(part).data)


@contextmanager
def new_file(
    path: Path, layout: Layout, dtype: np.dtype[Any], made_from: Mapping[str, Any]
) -> Iterator[BlockWriter]:
    """Write a file with what its arrays were made from. All samples have to be written.

    The file gets its name at the end of the block, unless the block raises. Its place on the disk
    is taken at the start. Raises InputError where the disk is full or cannot be written to.

    HDF5 can crash as it closes a file on a disk that is full. So HDF5 only lays the file out, in
    memory, and Python writes all bytes.
    """
    about = canonical_json({**made_from, KEY: BLANK})
    laid_out = SparseFile()
    offsets = _lay_out(laid_out, layout, dtype, about)
    with whole_file(path) as scratch:
        with open(scratch, "w+b") as file:
            _take_place(file, laid_out.size)
            for place, written in laid_out.parts():
                file.seek(place)
                file.write(written)
            yield BlockWriter(file, offsets, layout, dtype)
        seal(scratch)


def _lay_out(
    target: SparseFile, layout: Layout, dtype: np.dtype[Any], about: str
) -> dict[str, int]:
    """Write all of a file but its arrays of numbers, and return where each of them begins.

    Dimensions and attributes are those that xarray gives such a data set.
    """
    at_once = h5py.h5p.create(h5py.h5p.DATASET_CREATE)  # places are given now, and never filled
    at_once.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    at_once.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5netcdf.File(target, "w") as file:
        file.attrs[METADATA] = about
        file.dimensions = dict(layout.sizes)
        for name, (dimension, values) in layout.coordinates.items():
            kind = h5py.string_dtype() if values.dtype == object else values.dtype
            file.create_variable(name, (dimension,), kind, values)
        others = sorted(name for name, (dim, _) in layout.coordinates.items() if name != dim)
        for name, dims in layout.variables.items():
            variable = file.create_variable(
                name, tuple(dims), dtype, fillvalue=dtype.type(np.nan), dcpl=at_once
            )
            variable.attrs["coordinates"] = " ".join(others)
    with h5py.File(target, "r") as written:
        return {name: written[name].id.get_offset() for name in layout.variables}


def _take_place(file: IO[bytes], size: int) -> None:
    """Make a file that long. Raises OSError where the disk has no room for it."""
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without it
                raise
