"""Parquet files in the layout of the Hugging Face hub."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cltools.data.decoding import DamagedImageError
from cltools.data.encoded import EncodedSource, Named
from cltools.data.sources.source import Source, file_hashes, finish, in_words
from cltools.runtime.errors import InputError

ROWS_AT_ONCE = 1000  # of a parquet file: 100 MB of photographs, 1 MB of CIFAR


def read_parquet(
    path: str | list[str],
    size: int | None = None,
    resize: int | None = None,
    encoded: bool = False,
    skip_damaged: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source | EncodedSource:
    """Hugging Face parquet: a folder of {train,test,validation}* files, or a list of such files.

    `test` falls back to `validation` when there is none, or when its labels are withheld (all -1,
    as in ImageNet). The image column is the one of bytes, the label column the one that the file's
    metadata call a class label, else an integer column called label, labels or fine_label;
    `image_column` and `label_column` overrule this. For the rest see `source.finish`.
    """
    root, found = _parquet_files(path)
    first = found["train"][0]
    schema, features = _parquet_schema(first)
    image = _image_column(first, schema, features, image_column)
    label = _label_column(first, schema, features, label_column)

    labels = {
        split: [_label_series(file, label) for file in files] for split, files in found.items()
    }
    test = "test" if "test" in found else "validation"
    if "validation" in found and all((series == -1).all() for series in labels[test]):
        test = "validation"
    chosen = {"train": "train", "test": test}

    names = features.get(label, {}).get("names")
    if not isinstance(names, list):
        every = (series for split in chosen.values() for series in labels[split])
        names = range(max((series.max() for series in every if len(series)), default=-1) + 1)
    files = [file for source in chosen.values() for file in found[source]]
    listed = EncodedSource(
        class_names=[str(name) for name in names],
        labels={
            split: _checked_labels(found[source], labels[source], label, len(names))
            for split, source in chosen.items()
        },
        images=lambda split, first: _parquet_images(found[chosen[split]], image, first),
        provenance={
            "files": file_hashes(root, files),
            "columns": {"image": image, "label": label},
            "test_split": test,
        },
    )
    return finish(listed, size, resize, encoded, skip_damaged)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what polars raises on a bad file into an InputError."""
    from polars.exceptions import PolarsError

    try:
        yield
    except (PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file} cannot be read ({reason}): download or write it again") from error


def _parquet_files(path: str | list[str]) -> tuple[Path | None, dict[str, list[Path]]]:
    """The folder, if one was given, and the files of train, test and validation, sorted."""
    root = None
    if isinstance(path, str | Path) and Path(path).is_dir():
        root = Path(path)
        every = [
            (file, file.relative_to(root).parts)
            for file in sorted(root.rglob("*.parquet"))
            if not any(part.startswith(".") for part in file.relative_to(root).parts)
        ]
    else:
        given = sorted(map(Path, [path] if isinstance(path, str | Path) else path))
        every = [(file, (file.name,)) for file in given]
        for file in given:
            if not file.is_file():
                raise InputError(f"{file} does not exist: give parquet files or their folder")
    found: dict[str, list[Path]] = {}
    for file, parts in every:
        # Both train-00000-of-00001.parquet and train/0000.parquet are in use; the name goes first.
        for part in reversed(parts):
            if match := re.match("train|test|val", part.lower()):
                split = "validation" if match[0] == "val" else match[0]
                found.setdefault(split, []).append(file)
                break
    if "train" not in found or len(found) < 2:
        raise InputError(
            f"{path} has parquet files for {in_words(found) if found else 'no split'}: names must "
            "begin with train and with test or validation"
        )
    for split, files in found.items():
        _check_shards(split, files)
    return root, found


def _check_shards(split: str, files: list[Path]) -> None:
    """Refuse a split that mixes two data sets or lacks some of its numbered files."""
    if len(folders := {file.parent for file in files}) > 1:
        raise InputError(
            f"the {split} files lie in several folders ({in_words(folders)}): give the one to use"
        )
    numbers = [re.search(r"-(\d+)-of-(\d+)\b", file.name) for file in files]
    numbered = [number for number in numbers if number]
    if len(numbered) < len(files):
        return
    shards, total = Counter(int(number[1]) for number in numbered), int(numbered[0][2])
    if shards != Counter(range(total)):
        raise InputError(
            f"{files[0].parent} does not hold each of the {total} {split} files "
            "exactly once: download the missing ones and remove the others"
        )


def _parquet_schema(file: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A file's column types, and the features that Hugging Face describes in its metadata."""
    import polars as pl

    with _reading(file):
        schema = dict(pl.read_parquet_schema(file))
        metadata = pl.read_parquet_metadata(file)
    try:
        features = json.loads(metadata["huggingface"])["info"]["features"]
        return schema, {name: value for name, value in features.items() if isinstance(value, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return schema, {}  # they are a courtesy: columns and class names have fallbacks


def _image_column(
    file: Path, schema: dict[str, Any], features: dict[str, dict[str, Any]], asked: str | None
) -> str:
    import polars as pl

    def holds_bytes(dtype: Any) -> bool:
        fields = {field.name: field.dtype for field in getattr(dtype, "fields", ())}
        return bool(fields.get("bytes", dtype) == pl.Binary)

    candidates = [name for name, dtype in schema.items() if holds_bytes(dtype)]
    described = [name for name in candidates if features.get(name, {}).get("_type") == "Image"]
    return _one_column(file, schema, "image", described or candidates, candidates, asked)


def _label_column(
    file: Path, schema: dict[str, Any], features: dict[str, dict[str, Any]], asked: str | None
) -> str:
    candidates = [name for name, dtype in schema.items() if dtype.is_integer()]
    described = [name for name in candidates if features.get(name, {}).get("_type") == "ClassLabel"]
    likely = described or candidates
    if len(likely) > 1:
        usual: list[str] = [name for name in ("label", "labels", "fine_label") if name in likely]
        likely = usual[:1] or likely
    return _one_column(file, schema, "label", likely, candidates, asked)


def _one_column(
    file: Path,
    schema: dict[str, Any],
    role: str,
    likely: list[str],
    candidates: list[str],
    asked: str | None,
) -> str:
    """The column that was asked for, if it is a candidate, else the only likely one."""
    if asked in candidates:
        return asked
    if asked is None and len(likely) == 1:
        return likely[0]
    columns = ", ".join(f"{name}: {dtype}" for name, dtype in schema.items())
    problem = "no clear" if asked is None else f"no suitable {asked!r} as"
    raise InputError(f"{file} has {problem} {role} column ({columns}): set `{role}_column`")


def _label_series(file: Path, column: str) -> Any:
    """One file's labels, a polars integer series without nulls."""
    import polars as pl

    with _reading(file):
        series = pl.read_parquet(file, columns=[column], glob=False)[column]
    if series.null_count():
        row = series.is_null().arg_max()
        raise InputError(f"{file}: row {row} of column '{column}' is empty: give it a label")
    return series


def _checked_labels(
    files: list[Path], labels: list[Any], column: str, classes: int
) -> NDArray[np.int64]:
    """One split's labels, int64 (N,), all in 0..classes-1."""
    for file, series in zip(files, labels, strict=True):
        wrong = ~series.is_between(0, classes - 1)
        if wrong.any():
            row = wrong.arg_max()
            raise InputError(
                f"{file}: row {row} of column '{column}' has label {series[row]}, but there are "
                f"{classes} classes: labels must lie in 0..{classes - 1}"
            )
    return np.concatenate([series.to_numpy() for series in labels]).astype(np.int64)


def _parquet_images(files: list[Path], column: str, first: int) -> Iterator[Named]:
    """The images of all rows from `first` on; holds a thousand rows at a time."""
    import polars as pl

    for file in files:
        with _reading(file):
            frame = pl.scan_parquet(file, glob=False).select(column)
            nested = frame.collect_schema()[column] != pl.Binary
            encoded = pl.col(column).struct.field("bytes") if nested else pl.col(column)
            rows = frame.select(pl.len()).collect().item()
        for start in range(first, rows, ROWS_AT_ONCE):
            with _reading(file):
                block = frame.slice(start, ROWS_AT_ONCE).select(encoded).collect().to_series()
            for row, image in enumerate(block.to_list(), start):
                where = f"{file}: row {row} of column '{column}'"
                yield where, partial(_present, image, where)
        first = max(first - rows, 0)


def _present(image: bytes | None, where: str) -> bytes:
    if image is None:
        raise DamagedImageError(
            f"{where} has no image bytes (at most a path): export the data set again with its "
            "images inside"
        )
    return image
