"""Embeddings on disk: what networks make of images, checkpoint by checkpoint.

One netCDF file per checkpoint. With n samples (training images first, then test images):

- `h` (objective, sample, feature): encoder output on the plain images, what the metrics use;
- `z` (objective, sample, dimension): normalized projector output on the plain images;
- `z_views` (objective, view, sample, dimension): the same on K augmented views, what the losses of
  a whole data set are defined on.

Files are written (see `netcdf`) and read in blocks of samples, so that memory does not grow with
their number.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cltools.data.netcdf import BlockWriter, Layout, new_file
from cltools.layout import VERSIONS, EmbeddingFolder, Embeddings
from cltools.maths.blocks import RowSource
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json
from cltools.runtime.sealed import KEY, METADATA, Damaged, check_seal, usable

DIMENSIONS = {
    "h": ("objective", "sample", "feature"),
    "z": ("objective", "sample", "dimension"),
    "z_views": ("objective", "view", "sample", "dimension"),
}


def origin(
    manifest: Mapping[str, Any], step: int, weights: Mapping[str, str], made: Embeddings
) -> dict[str, Any]:
    """What the embeddings of one checkpoint are made from; `weights` are hashes by objective."""
    found = {
        "cell": manifest["id"],
        "dtype": made.dtype,
        "step": step,
        "steps_per_epoch": manifest["steps_per_epoch"],
        "store": manifest["store"],
        "version": VERSIONS["embed"],
        "weights": dict(weights),
    }
    if made.recalibrated:
        found["recalibrated"] = True
    if made.precision != "float32":
        found["precision"] = made.precision
    return found


@dataclass(frozen=True)
class Samples:
    """The images of a file, in its order: labels and numbers in their split (n,), by split."""

    labels: Mapping[str, NDArray[np.int64]]
    ids: Mapping[str, NDArray[np.int64]]

    @property
    def count(self) -> int:
        return sum(map(len, self.labels.values()))

    def coordinates(self) -> dict[str, tuple[str, NDArray[Any]]]:
        """The variables that say which image each sample is, with their dimension."""
        sizes = [len(labels) for labels in self.labels.values()]
        return {
            "split": ("sample", np.repeat(np.array(list(self.labels), dtype=object), sizes)),
            "label": ("sample", np.concatenate(list(self.labels.values()))),
            "sample_id": ("sample", np.concatenate(list(self.ids.values()))),
        }


@contextmanager
def new_embeddings(
    path: Path,
    objectives: Sequence[str],
    samples: Samples,
    widths: Mapping[str, int],
    made_from: Mapping[str, Any],
) -> Iterator[BlockWriter]:
    """Write one checkpoint's embeddings, sealed, with what they were made from.

    `widths` are the sizes of "feature", "dimension" and "view". All samples have to be written, as
    `netcdf.new_file` says. `h` and `z` are (objective, n, d), `z_views` is (objective, view, n, d).
    """
    widths = {name: widths[name] for name in ("feature", "dimension", "view")}
    layout = Layout(
        sizes={"objective": len(objectives), "sample": samples.count, **widths},
        coordinates={
            "objective": ("objective", np.array(objectives, dtype=object)),
            **samples.coordinates(),
        },
        variables=DIMENSIONS,
    )
    with new_file(path, layout, np.dtype(made_from["dtype"]), made_from) as writer:
        yield writer


@dataclass(frozen=True)
class StoredRows:
    """Features (N, d) of some samples in a file that is open, read as they are asked for."""

    variable: h5py.Dataset
    leading: tuple[int, ...]  # the number of the objective, and of the view
    first: int
    count: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.count, self.variable.shape[-1]

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = self.variable.dtype
        return found

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, step = rows.indices(self.count)
        wanted = slice(self.first + start, self.first + max(start, stop), step)
        found: NDArray[Any] = self.variable[(*self.leading, wanted)]
        return found


@dataclass(frozen=True)
class EmbeddedSplit:
    """Embeddings of one checkpoint and split, by objective, in a file that is open.

    labels (n,); views are K row sources for each objective.
    """

    labels: NDArray[np.int64]
    h: Mapping[str, RowSource]
    z: Mapping[str, RowSource]
    z_views: Mapping[str, Sequence[RowSource]]


@contextmanager
def open_embeddings(
    path: Path, made_from: Mapping[str, Any], made: Embeddings
) -> Iterator[dict[str, EmbeddedSplit]]:
    """One checkpoint's embeddings by split, "train" and "test", open for the length of the block.

    The file is compared with its seal once, before anything is read of it. Raises InputError unless
    it is as it was written, from these weights and images.
    """
    options = " --recalibrate" * made.recalibrated
    options += f" --dtype {made.dtype}" * (made.dtype != "float32")
    options += f" --precision {made.precision}" * (made.precision != "float32")
    remedy = f"run `cltools embed{options}` on this cell again"
    try:
        _check(path, made_from)
        file = h5py.File(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {remedy}") from None
    except Damaged as error:
        raise InputError(f"{path} {error}: {remedy}") from None
    with file:
        splits = file["split"].asstr()[:]
        yield {name: _split(file, splits == name) for name in dict.fromkeys(splits.tolist())}


def _split(file: h5py.File, chosen: NDArray[np.bool_]) -> EmbeddedSplit:
    """The part of an open file that some samples are, which lie side by side."""
    first, count = int(chosen.argmax()), int(chosen.sum())
    objectives = file["objective"].asstr()[:].tolist()

    def rows(name: str, *leading: int) -> StoredRows:
        return StoredRows(file[name], leading, first, count)

    views = range(file["z_views"].shape[1])
    return EmbeddedSplit(
        labels=file["label"][first : first + count],
        h={o: rows("h", i) for i, o in enumerate(objectives)},
        z={o: rows("z", i) for i, o in enumerate(objectives)},
        z_views={o: [rows("z_views", i, v) for v in views] for i, o in enumerate(objectives)},
    )


def usable_embeddings(path: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether this file is there as it was written, from these weights and images.

    If it is damaged, one line of the log says that it is made again.
    """
    return usable(path, lambda: _check(path, made_from))


def _check(path: Path, made_from: Mapping[str, Any]) -> None:
    """Raise Damaged unless a file is as it was written, and made from this."""
    try:
        check_seal(path)
        with h5py.File(path) as file:
            found = json.loads(file.attrs[METADATA])
    except (FileNotFoundError, Damaged):
        raise
    except (OSError, KeyError, ValueError, TypeError):
        raise Damaged("is damaged") from None
    del found[KEY]
    if found["dtype"] != made_from["dtype"]:
        raise Damaged(f"holds {found['dtype']}, not {made_from['dtype']}")
    if found != json.loads(canonical_json(made_from)):
        raise Damaged("was made from other weights or images than trained")


def discard(folder: EmbeddingFolder) -> None:
    """Remove a folder of embeddings, unless some experiment has it kept."""
    if not folder.kept.exists():
        shutil.rmtree(folder.path, ignore_errors=True)
