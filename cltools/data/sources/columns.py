"""The columns of parquet files: which holds the images, which the labels, and what they mean.

A column is chosen by what the files' metadata say of it or by its name, and only if its type fits.
That it is the only one of its type is no reason: a lone integer column may be a width or an index.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cltools.data.sources.source import in_words, shown
from cltools.runtime.errors import InputError

# The first of these names that a file has is taken; upper and lower case are the same.
IMAGE_NAMES = (
    "image", "images", "img", "imgs", "image_bytes", "picture", "photo", "png", "jpg", "jpeg",
    "webp",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "fine_label", "fine_labels", "class", "classes", "class_id", "class_label",
    "class_name", "target", "targets", "category", "cls",
)  # fmt: skip
TEXT, NUMBERS, NOTHING = "text", "numbers", "nothing"  # kinds of label columns

Features = dict[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Shard:
    """One parquet file: its column types (of polars), and what Hugging Face's metadata say."""

    file: Path
    schema: dict[str, Any]
    features: Features

    def names(self, column: str) -> list[str] | None:
        """The class names of a column by label, where the metadata have them."""
        names = self.features.get(column, {}).get("names")
        return [str(name) for name in names] if isinstance(names, list) else None

    def columns(self) -> str:
        """The columns and their types, for messages."""
        return ", ".join(f"{name}: {dtype}" for name, dtype in self.schema.items())


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn what polars raises on a bad file into an InputError."""
    from polars.exceptions import PolarsError

    if shown(file) != str(file):
        raise InputError(
            f"the path {shown(file)} is not UTF-8, which reading parquet needs: rename it"
        )
    try:
        yield
    except (PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{shown(file)} cannot be read ({reason}): download or write it again"
        ) from error


def read_shard(file: Path) -> Shard:
    """A file's column types and metadata. Raises InputError when it is no parquet file."""
    import polars as pl

    with reading(file):
        # Handed over open: a path would be searched for [, * and ?.
        with open(file, "rb") as opened:
            metadata = pl.read_parquet_metadata(opened)
        schema = dict(pl.scan_parquet(file, glob=False).collect_schema())
    try:
        features = json.loads(metadata["huggingface"])["info"]["features"]
        described = {name: value for name, value in features.items() if isinstance(value, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        described = {}  # they are a courtesy: columns and class names have fallbacks
    return Shard(file, schema, described)


# --- which columns ---------------------------------------------------------------------------


def choose_image_column(shard: Shard, asked: str | None) -> str:
    """The column of images: `asked`, or else the only one of bytes, if it is known for images.

    It is known if the metadata call it an Image, or by its name. Of several columns of bytes only
    the metadata decide. Raises InputError when there is no such column.
    """
    candidates = [name for name, dtype in shard.schema.items() if holds_bytes(dtype)]
    described = [c for c in candidates if shard.features.get(c, {}).get("_type") == "Image"]
    if asked is None and not described and len(candidates) == 1:
        described = _first_known(candidates, IMAGE_NAMES)
    return _one_column(shard, "image", described, candidates, asked)


def choose_label_column(shard: Shard, asked: str | None) -> str:
    """The column of labels: `asked`, or what the metadata call a ClassLabel, or a known name.

    Raises InputError when there is none, or when the metadata describe a column with a known name
    as something else, and another one as the label.
    """
    candidates = [name for name, dtype in shard.schema.items() if kind_of(dtype) is not None]
    described = [c for c in candidates if shard.features.get(c, {}).get("_type") == "ClassLabel"]
    if described:
        others = [c for c in _first_known(list(shard.schema), LABEL_NAMES) if c in shard.features]
        likely = sorted({*described, *others}, key=list(shard.schema).index)
        if len(likely) > 1 and set(likely) == set(described):
            likely = _first_known(likely, LABEL_NAMES) or likely
    else:
        likely = _first_known(list(shard.schema), LABEL_NAMES)
    return _one_column(shard, "label", likely, candidates, asked)


def holds_bytes(dtype: Any) -> bool:
    """Whether a column of this type can hold images: bytes, or a struct with a field `bytes`."""
    import polars as pl

    fields = {field.name: field.dtype for field in getattr(dtype, "fields", ())}
    return bool(fields.get("bytes", dtype) == pl.Binary)


def kind_of(dtype: Any) -> str | None:
    """TEXT or NUMBERS for a type that labels can have, NOTHING without values, else None."""
    import polars as pl

    if dtype == pl.Null:
        return NOTHING
    if dtype.is_numeric():
        return NUMBERS
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean):
        return TEXT
    return None


def _first_known(names: list[str], known: tuple[str, ...]) -> list[str]:
    """Those of `names` that are the first of the known names that occurs."""
    for name in known:
        if found := [other for other in names if other.lower() == name]:
            return found
    return []


def _one_column(
    shard: Shard, role: str, likely: list[str], candidates: list[str], asked: str | None
) -> str:
    """The column that was asked for, else the only likely one, if it is a candidate."""
    wanted = [asked] if asked is not None else likely
    if len(wanted) == 1 and wanted[0] in candidates:
        return wanted[0]
    problem = "no clear" if len(wanted) != 1 else f"no suitable {wanted[0]!r} as"
    raise InputError(
        f"{shown(shard.file)} has {problem} {role} column ({shard.columns()}): set `{role}_column`"
    )


# --- what labels mean ------------------------------------------------------------------------


def label_series(shard: Shard, column: str) -> Any:
    """One file's labels, a polars series of 64-bit integers or of text; a column of nulls if none.

    Numbers must be whole; NaN counts as no label.
    """
    import polars as pl

    kind = kind_of(shard.schema[column]) if column in shard.schema else NOTHING
    with reading(shard.file):
        frame = pl.scan_parquet(shard.file, glob=False)
        if column not in shard.schema:
            rows = frame.select(pl.len()).collect().item()
            return pl.Series(column, [None] * rows, dtype=pl.Null)
        series = frame.select(column).collect()[column]
        if kind == TEXT:
            return series.cast(pl.String)
    if kind is None:
        raise InputError(
            f"{shown(shard.file)}: column '{column}' is of type {shard.schema[column]}: labels are "
            "whole numbers or text"
        )
    return series if kind == NOTHING else _whole(shard.file, series)


def _whole(file: Path, series: Any) -> Any:
    """Numbers as 64-bit integers."""
    import polars as pl

    if not series.dtype.is_integer():
        series = series.cast(pl.Float64).fill_nan(None)
    whole = series.cast(pl.Int64, strict=False)
    wrong = (whole.is_null() & series.is_not_null()) | (
        (whole != series).fill_null(False) if not series.dtype.is_integer() else False
    )
    if wrong.any():
        row = wrong.arg_max()
        raise InputError(
            f"{shown(file)}: row {row} of column '{series.name}' is {series[row]}: labels are "
            "whole numbers or text"
        )
    return whole


def is_labeled(series: list[Any]) -> bool:
    """Whether a split has labels at all: -1 and nulls stand for none."""
    return any(
        bool((one != -1).any() if one.dtype.is_integer() else one.is_not_null().any())
        for one in series
    )


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of each split, int64 (N,) in 0..C-1, and the C class names."""

    class_names: list[str]
    of: dict[str, NDArray[np.int64]]


def joined_labels(
    shards: dict[str, list[Shard]], series: dict[str, list[Any]], column: str
) -> Labels:
    """The labels of all files on one scale: classes are those that occur, in either split.

    shards, series: by split, and in the same order. Class names of the metadata are compared across
    files: where their order differs, labels are matched by name.

    Raises InputError when files differ in the type of their labels or in their class names, a label
    is missing or has no name, or a class occurs in one split only.
    """
    every = [shard for split in shards.values() for shard in split]
    _require_one_kind(every, column)
    names = _common_names(every, column)
    if kind_of(every[0].schema[column]) == TEXT:
        occurring = {one for split in series.values() for s in split for one in s.drop_nulls()}
        known = sorted(occurring) if names is None else names
        listed = {s: [_ids_of_text(*pair, column, known) for pair in zip(shards[s], series[s],
                      strict=True)] for s in shards}  # fmt: skip
        return _occurring(listed, known, every[0].file)
    listed = {s: [_ids(*pair, column, names) for pair in zip(shards[s], series[s], strict=True)]
              for s in shards}  # fmt: skip
    return _occurring(listed, names, every[0].file)


def _require_one_kind(shards: list[Shard], column: str) -> None:
    first = shards[0]
    for shard in shards:
        if column not in shard.schema:
            raise InputError(
                f"{shown(shard.file)} has no column '{column}' ({shard.columns()}), but "
                f"{shown(first.file)} has: write both with the same columns"
            )
        if kind_of(shard.schema[column]) not in (kind_of(first.schema[column]), NOTHING):
            raise InputError(
                f"column '{column}' is of type {first.schema[column]} in {shown(first.file)}, but "
                f"of type {shard.schema[column]} in {shown(shard.file)}: write both with one type"
            )


def _common_names(shards: list[Shard], column: str) -> list[str] | None:
    """The class names of the first file that has any; all that have some must have the same set."""
    named = [(shard, names) for shard in shards if (names := shard.names(column)) is not None]
    if not named:
        return None
    first, common = named[0]
    for shard, names in named[1:]:
        if sorted(names) != sorted(common):
            differing = sorted(set(names) ^ set(common)) or ["one occurs several times"]
            raise InputError(
                f"{shown(first.file)} and {shown(shard.file)} differ in the class names of column "
                f"'{column}' ({in_words(differing[:10])}): give files of one data set"
            )
        if names != common and len(set(names)) < len(names):
            raise InputError(
                f"{shown(first.file)} and {shown(shard.file)} have the class names of column "
                f"'{column}' in different orders, and one occurs several times: write both with "
                "one order"
            )
    return common


def _present(shard: Shard, series: Any, column: str) -> Any:
    """The series; raises InputError when a label is missing."""
    if series.null_count():
        row = series.is_null().arg_max()
        raise InputError(
            f"{shown(shard.file)}: row {row} of column '{column}' is empty: give it a label"
        )
    return series


def _ids(shard: Shard, series: Any, column: str, names: list[str] | None) -> NDArray[np.int64]:
    """One file's labels (N,), as places in `names` where there are any."""
    highest = None if names is None else len(names) - 1
    ids: NDArray[np.int64] = _present(shard, series, column).to_numpy().astype(np.int64)
    wrong = (ids < 0) | (False if highest is None else ids > highest)
    if wrong.any():
        row = int(wrong.argmax())
        lies = "start at 0" if highest is None else f"lie in 0..{highest}"
        named = "" if names is None else f", but there are {len(names)} classes"
        raise InputError(
            f"{shown(shard.file)}: row {row} of column '{column}' has label {ids[row]}{named}: "
            f"labels must {lies}"
        )
    own = shard.names(column)
    if names is None or own is None or own == names:
        return ids
    place = {name: position for position, name in enumerate(names)}
    return np.array([place[name] for name in own], dtype=np.int64)[ids]


def _ids_of_text(shard: Shard, series: Any, column: str, names: list[str]) -> NDArray[np.int64]:
    """One file's labels (N,) as places of their text in `names`."""
    place = {name: position for position, name in enumerate(names)}
    texts = _present(shard, series, column).to_list()
    unknown = next((row for row, text in enumerate(texts) if text not in place), None)
    if unknown is not None:
        raise InputError(
            f"{shown(shard.file)}: row {unknown} of column '{column}' has label "
            f"{texts[unknown]!r}, which is none of the {len(names)} class names of the metadata: "
            "correct it"
        )
    return np.array([place[text] for text in texts], dtype=np.int64)


def _occurring(
    listed: dict[str, list[NDArray[np.int64]]], names: list[str] | None, file: Path
) -> Labels:
    """Labels numbered by the classes that occur, which must be the same ones in all splits."""
    ids = {split: np.concatenate(parts) for split, parts in listed.items()}
    of_split = {split: set(np.unique(some).tolist()) for split, some in ids.items()}
    classes = sorted(set().union(*of_split.values()))

    def named(label: int) -> str:
        return str(label) if names is None else names[label]

    for split, some in of_split.items():
        if lacking := [named(label) for label in classes if label not in some]:
            told = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
            raise InputError(
                f"the {split} images of {shown(file.parent)} lack {len(lacking)} of the "
                f"{len(classes)} classes ({told}): each class needs images in both splits"
            )
    order = np.array(classes, dtype=np.int64)
    placed = {split: np.searchsorted(order, some) for split, some in ids.items()}
    return Labels([named(label) for label in classes],
                  {split: some.astype(np.int64) for split, some in placed.items()})  # fmt: skip
