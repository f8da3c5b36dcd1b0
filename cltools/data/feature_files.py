"""Embeddings that other software wrote: NumPy, safetensors, torch, netCDF, CSV and Parquet files.

What a file with several arrays holds:

- `features` (or `h`), (N, d), is the representation of the N images, and `features:LAYER` are those
  of layers, each with a d of its own. Without such names, every array of floats (N, d) is a
  representation. `FILE:NAME` or `FILE:LAYER` names one of them;
- `labels` (or `label`) are the N classes and `ids` (or `sample_id`) name the N images.

In the embeddings of a cell, `h` is (objectives, N, d): FILE:OBJECTIVE names the features of one.

In CSV and Parquet files, the columns of numbers are the dimensions of `features`; a column of lists
is an array (N, d). Nothing is ever unpickled.

`cltools embed --model` writes such files, as netCDF.
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cltools.data.embeddings import Samples
from cltools.data.netcdf import BlockWriter, Layout, new_file
from cltools.runtime.errors import InputError

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

FEATURES = "features"
OBJECTIVE = "objective"  # names the networks in the embeddings of a cell
NAMES = {"features": ("features", "h"), "labels": ("labels", "label"), "ids": ("ids", "sample_id")}
INDEX = ("", "Unnamed: 0", "__index_level_0__")  # columns that pandas writes for the names of rows
Array = NDArray[Any]
Opened = tuple[list[str], Callable[[str], Array]]  # names of all arrays, and what reads one


@dataclass(frozen=True)
class Arrays:
    """What a file holds: features (N, d) by name, and labels and ids (N,) or None. Text is str.

    The name of features that need none is "".
    """

    features: Mapping[str, Array]
    labels: Array | None = None
    ids: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))


def split_name(given: Path) -> tuple[Path, str | None]:
    """FILE:NAME in its two parts; None for a path without the name of an array."""
    if not given.exists():
        parts = str(given).split(":")
        for end in range(1, len(parts)):
            file = Path(":".join(parts[:end]))
            if file.suffix in _READERS:
                return file, ":".join(parts[end:])
    return given, None


def read_arrays(path: Path, chosen: str | None = None) -> Arrays:
    """The representations of one file, or only the `chosen` one, with labels and ids.

    Raises InputError when the file cannot be read, holds no representation, or its arrays do not
    fit each other.
    """
    with _opened(path) as (names, read):
        known = _known(names)
        features = _features(path, names, known, read, chosen)
        others = {kind: as_text(read(known[kind])) for kind in ("labels", "ids") if kind in known}
    found = Arrays(features, **others)
    layers = ((f"{FEATURES} of {name}", array[:, 0]) for name, array in features.items())
    for kind, values in (*others.items(), *layers):
        if values.shape != (len(found),):
            raise InputError(
                f"{path} has {len(found)} images but {kind} of shape {values.shape}: "
                "give one for each image"
            )
    return found


@contextmanager
def new_feature_file(
    path: Path, widths: Mapping[str, int], samples: Samples, about: Mapping[str, Any]
) -> Iterator[BlockWriter]:
    """Write the features of some images, in float32, as netCDF, with what they were made from.

    `widths` are those of the arrays by name: "features", or "features:LAYER" for each layer. Labels
    and ids are those of `samples`. Raises InputError as `netcdf.new_file`.
    """
    dimensions = {name: name.replace(FEATURES, "feature", 1) for name in widths}
    layout = Layout(
        sizes={"sample": samples.count, **{dimensions[n]: width for n, width in widths.items()}},
        coordinates=samples.coordinates(),
        variables={name: ("sample", dimension) for name, dimension in dimensions.items()},
    )
    with new_file(path, layout, np.dtype("float32"), about) as writer:
        yield writer


def read_labels(given: Path) -> Array:
    """Classes of any kind, (N,): `labels` of a file, the only array that it holds, or FILE:NAME.

    Raises InputError when the file cannot be read, or it is not clear which array they are.
    """
    path, chosen = split_name(given)
    with _opened(path) as (names, read):
        name = chosen or _known(names).get("labels") or (names[0] if len(names) == 1 else None)
        if name not in names:
            raise InputError(
                f"{path} has no array {name or 'labels'!r} (it has {', '.join(names)}): name the "
                f"labels, as in {path}:{names[0] if names else 'labels'}"
            )
        values = as_text(read(name))
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _known(names: list[str]) -> dict[str, str]:
    """The arrays that NAMES knows, by their kind."""
    return {kind: next(name for name in known if name in names)
            for kind, known in NAMES.items() if {*known} & {*names}}  # fmt: skip


def _features(
    path: Path,
    names: list[str],
    known: dict[str, str],
    read: Callable[[str], Array],
    chosen: str | None,
) -> dict[str, Array]:
    layers = {name.partition(":")[2]: name for name in names if name.startswith(f"{FEATURES}:")}
    if OBJECTIVE in names and known.get("features") not in (None, chosen):
        return _by_objective(path, as_text(read(OBJECTIVE)), read(known["features"]), chosen)
    if chosen is not None:
        if chosen not in {*names, *layers}:
            raise InputError(
                f"{path} holds no array {chosen!r} (it has {', '.join(names)}): name one of these"
            )
        wanted = {chosen: layers.get(chosen, chosen)}
    else:
        wanted = ({"": known["features"]} if "features" in known else {}) | layers
    if not wanted:
        return _every_array(path, {n: read(n) for n in names if n not in known.values()})
    features = {name: read(stored) for name, stored in wanted.items()}
    for array in features.values():
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise InputError(
                f"the features in {path} are of shape {array.shape} and type {array.dtype}: "
                "give numbers of shape (images, dimensions)"
            )
    return features


def _by_objective(
    path: Path, objectives: Array, features: Array, chosen: str | None
) -> dict[str, Array]:
    """The features (N, d) of each objective, or of the `chosen` one, of (objectives, N, d)."""
    if features.ndim != 3 or objectives.shape != features.shape[:1]:
        raise InputError(
            f"{path} has {objectives.size} objectives and features of shape {features.shape}: give "
            "(objectives, images, dimensions)"
        )
    found = {str(name): array for name, array in zip(objectives, features, strict=True)}
    if chosen is None:
        return found
    if chosen not in found:
        raise InputError(
            f"{path} holds no objective {chosen!r} (it has {', '.join(found)}): name one of these"
        )
    return {chosen: found[chosen]}


def _every_array(path: Path, arrays: dict[str, Array]) -> dict[str, Array]:
    """Those of a file that are representations, none of which has a name that is known."""
    found = {name: a for name, a in arrays.items() if a.ndim == 2 and a.dtype.kind == "f"}
    if not found:
        told = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in arrays.items()) or "none"
        raise InputError(
            f"{path} holds no array of floats (images, dimensions), but {told}: add it as "
            "'features'"
        )
    if len(found) == 1:
        (array,) = found.values()
        return {"": array}
    return found


def as_text(values: Array) -> Array:
    """Bytes and objects, such as the strings of netCDF, as str; numbers as they are."""
    if values.dtype.kind in "SO":
        texts = [
            value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
            for value in values.ravel()
        ]
        return np.array(texts, dtype=np.str_).reshape(values.shape)
    return values


def differing(first: Array, second: Array) -> int | None:
    """The first place in which two arrays (N,) differ, None if in none.

    NaN equals NaN. Where one is text and the other are numbers, the numbers are taken as text.
    """
    if (first.dtype.kind == "U") != (second.dtype.kind == "U"):
        first, second = first.astype(np.str_), second.astype(np.str_)
    differ = (first != second) & ~(missing(first) & missing(second))
    return int(differ.argmax()) if differ.any() else None


def missing(values: Array) -> NDArray[np.bool_]:
    """Which values are NaN, bool (N,)."""
    if values.dtype.kind == "f":
        return np.asarray(np.isnan(values))
    return np.zeros(len(values), dtype=bool)


# --- kinds of files --------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[Opened]:
    """The arrays of a file, while it is open; what goes wrong in the block is the file's fault."""
    if path.suffix not in _READERS:
        raise InputError(f"{path} is of an unknown type: give {', '.join(_READERS)}")
    try:
        with _READERS[path.suffix](path) as opened:
            yield opened
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check its path") from None
    except Exception as error:  # each library has errors of its own for a damaged file
        remedy = "write it again"
        if "allow_pickle" in str(error):
            remedy = "write text as text, for example np.array(ids, dtype=str), not as objects"
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be read ({reason}): {remedy}") from None


@contextmanager
def _npy(path: Path) -> Iterator[Opened]:
    yield ["features"], lambda _: np.load(path, allow_pickle=False)


@contextmanager
def _npz(path: Path) -> Iterator[Opened]:
    with np.load(path, allow_pickle=False) as archive:
        yield list(archive.files), archive.__getitem__


@contextmanager
def _safetensors(path: Path) -> Iterator[Opened]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        yield list(file.keys()), lambda name: _as_array(file.get_tensor(name))


@contextmanager
def _torch(path: Path) -> Iterator[Opened]:
    """A tensor, or a mapping of tensors; other values of it are not read, but for lists."""
    from pickle import UnpicklingError

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise InputError(
            f"{path} holds more than tensors, or is damaged: save tensors, for example "
            "torch.save({'features': h, 'labels': y}, path)"
        ) from None
    if isinstance(loaded, torch.Tensor):
        loaded = {"features": loaded}
    if not isinstance(loaded, dict):
        raise InputError(
            f"{path} holds a {type(loaded).__name__}: save a tensor, or a dict of tensors"
        )
    arrays = {
        str(name): _as_array(value) if isinstance(value, torch.Tensor) else np.asarray(value)
        for name, value in loaded.items()
        if isinstance(value, torch.Tensor | list)
    }
    yield list(arrays), arrays.__getitem__


def _as_array(tensor: "Tensor") -> Array:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16 or tensor.element_size() < 2:
        tensor = tensor.float() if tensor.is_floating_point() else tensor  # NumPy lacks these
    return np.asarray(tensor.numpy())


@contextmanager
def _netcdf(path: Path) -> Iterator[Opened]:
    import xarray as xr

    with open(path, "rb") as file:
        engine = "scipy" if file.read(3) == b"CDF" else "h5netcdf"  # netCDF-3, else HDF5
    with xr.open_dataset(path, engine=engine) as dataset:
        names = [str(name) for name in dataset.variables]
        yield names, lambda name: np.array(dataset[name].values)


@contextmanager
def _csv(path: Path) -> Iterator[Opened]:
    """A first line of numbers alone is no header, but the first image."""
    import polars as pl

    with open(path, newline="", encoding="utf-8-sig") as lines:
        first = next(csv.reader(lines), [])
    with open(path, "rb") as file:
        frame = pl.read_csv(
            file, has_header=not all(map(_is_number, first)), infer_schema_length=None
        )
    yield _columns(path, frame)


@contextmanager
def _parquet(path: Path) -> Iterator[Opened]:
    import polars as pl

    with open(path, "rb") as file:  # a path would be searched for [, * and ?
        frame = pl.read_parquet(file)
    yield _columns(path, frame)


def _columns(path: Path, frame: "pl.DataFrame") -> Opened:
    """Lists as arrays (N, d), labels, ids and other text as (N,); numbers together as `features`.

    An index that pandas wrote names the images, unless there are ids.
    """
    import polars as pl

    single = [*NAMES["labels"], *NAMES["ids"]]
    columns = {name.lower() if name.lower() in single else name: name for name in frame.columns}
    index = [name for name in INDEX if name in columns]
    if index and not {*NAMES["ids"]} & {*columns}:
        columns["ids"] = columns[index[0]]
    for name in index:
        del columns[name]
    nested = [n for n, c in columns.items() if isinstance(frame.schema[c], pl.List | pl.Array)]
    numbers = [n for n, c in columns.items() if frame.schema[c].is_numeric() and n not in single]
    names = [n for n in columns if n not in numbers]
    if numbers and not nested:
        names = ["features", *names]

    def read(name: str) -> Array:
        if name == "features" and not nested:
            text = [n for n in columns if n not in numbers and n not in single]
            return _dimensions(path, frame.select(numbers), text)
        series = frame[columns[name]]
        if isinstance(series.dtype, pl.List):
            series = series.list.to_array(len(series[0]) if len(series) else 0)
        return np.asarray(series.to_numpy())

    return names, read


def _dimensions(path: Path, frame: "pl.DataFrame", text: list[str]) -> Array:
    """Columns of numbers as one array (N, d); `text` are others, which are no numbers.

    Raises InputError where a column may be something else than a dimension.
    """
    whole = [s.name for s in frame if s.dtype.is_integer() and s.n_unique() > 1]
    odd = text or (whole if len(whole) < frame.width else [])
    if odd:
        kind = "is not of numbers" if text else "is of whole numbers, unlike the others"
        raise InputError(
            f"column {odd[0]!r} of {path} {kind}: call it label or ids, or leave it out"
        )
    return frame.to_numpy()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_READERS: dict[str, Callable[[Path], AbstractContextManager[Opened]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
    ".nc": _netcdf,
    ".nc4": _netcdf,
    ".cdf": _netcdf,
    ".csv": _csv,
    ".parquet": _parquet,
}
