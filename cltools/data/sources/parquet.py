"""Parquet files in the layout of the Hugging Face hub."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cltools.data.decoding import DamagedImageError
from cltools.data.encoded import EncodedSource, Named
from cltools.data.sources.columns import (
    Labels,
    Shard,
    choose_image_column,
    choose_label_column,
    holds_bytes,
    is_labeled,
    joined_labels,
    label_series,
    read_shard,
    reading,
)
from cltools.data.sources.source import (
    Source,
    drawn_split,
    file_hashes,
    finish,
    held_out,
    in_words,
    require_two_each,
    shown,
)
from cltools.runtime.errors import InputError

log = logging.getLogger("cltools")
ROWS_AT_ONCE = 1000  # of a parquet file: 100 MB of photographs, 1 MB of CIFAR
ENDINGS = (".parquet", ".pq")
# A word in the name of a file or folder that says its split, as in train-00000-of-00005.parquet,
# partial-train/0000.parquet or flowers_test.pq.
SPLIT = re.compile(
    r"(?<![a-z])(?:(train)(?:ing|set)?|(test)(?:ing|set|s)?|(val)(?:id|idation|set)?)(?![a-z])"
)
PARTIAL = re.compile(r"(?<![a-z])partial(?![a-z])")
SAID = ("train", "test", "validation")  # the splits by the groups of SPLIT
READ = (
    "what is read are files .parquet or .pq with train in their names, or in those of their "
    "folders, and others with test or validation"
)


def read_parquet(
    path: str | list[str],
    size: int | None = None,
    resize: int | None = None,
    encoded: bool = False,
    skip_damaged: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Source | EncodedSource:
    """Hugging Face parquet: a folder of train, test and validation files, or a list of such files.

    The word train, test or val (training, valid, …) in the name of a file, or of its folder, says
    its split. `validation` stands in for a `test` that is not there or has no labels (all -1, all
    empty, no such column). If neither can be used, a test split is drawn from train, class by
    class, with `test_fraction` and `seed`.

    The columns of images and labels are those that the metadata or their names say (see module
    `columns`); `image_column` and `label_column` overrule this. Labels are whole numbers or text.
    Classes are the labels that occur, in the order of the numbers, of the names in the metadata or
    of the alphabet. Class names and types are compared across all files that are read. For the
    rest see `source.finish`.

    Raises InputError when files do not belong together, columns are not clear or labels are wrong.
    """
    root, found = _parquet_files(path)
    train = [read_shard(file) for file in found["train"]]
    image = choose_image_column(train[0], image_column)
    label = choose_label_column(train[0], label_column)
    series = {"train": [label_series(shard, label) for shard in train]}
    shards = {"train": train}
    test = _labeled_test(found, label, shards, series)
    _require_images([shard for split in shards.values() for shard in split], image)
    rows: dict[str, NDArray[np.intp]] = {}
    if test is None:
        labels, rows = _drawn(shards, series, label, test_fraction, seed)
        about: dict[str, Any] = {"split": drawn_split(test_fraction, seed)}
    else:
        labels = joined_labels(shards, series, label)
        about = {"test_split": test}
    files = {split: [shard.file for shard in some] for split, some in shards.items()}

    def images(split: str, first: int) -> Iterator[Named]:
        if test is not None:
            return _parquet_images(files[split], image, first)
        return _chosen_images(files["train"], image, rows[split][first:])

    listed = EncodedSource(
        class_names=labels.class_names,
        labels=labels.of,
        images=images,
        provenance={
            "files": file_hashes(root, [file for some in files.values() for file in some]),
            "columns": {"image": image, "label": label},
            **about,
        },
    )
    return finish(listed, size, resize, encoded, skip_damaged)


def _labeled_test(
    found: dict[str, list[Path]],
    label: str,
    shards: dict[str, list[Shard]],
    series: dict[str, list[Any]],
) -> str | None:
    """Add the test split to `shards` and `series`: test, or else validation, if it has labels.

    Returns which it is, and None if it has to be drawn. What is not as usual is said in one line.
    """
    for split in ("test", "validation"):
        if split in found:
            some = [read_shard(file) for file in found[split]]
            labels = [label_series(shard, label) for shard in some]
            if is_labeled(labels):
                shards["test"], series["test"] = some, labels
                if split == "validation" and "test" in found:
                    log.info("the test files have no labels: the validation files are used instead")
                return split
    there = [split for split in ("test", "validation") if split in found]
    why = f"the {' and '.join(there)} files have no labels" if there else "there are no test files"
    log.info("%s: a test split is drawn from the train files", why)
    return None


def _drawn(
    shards: dict[str, list[Shard]],
    series: dict[str, list[Any]],
    label: str,
    fraction: float,
    seed: int,
) -> tuple[Labels, dict[str, NDArray[np.intp]]]:
    """Labels of both splits, drawn class by class from train, and their rows in it."""
    every = joined_labels(shards, series, label)
    labels = every.of["train"]
    folder = shown(shards["train"][0].file.parent)
    require_two_each(labels, [f"class '{name}' in {folder}" for name in every.class_names])
    held = held_out(labels, fraction, seed)
    rows = {"train": np.flatnonzero(~held), "test": np.flatnonzero(held)}
    return Labels(every.class_names, {split: labels[some] for split, some in rows.items()}), rows


# --- which files -----------------------------------------------------------------------------


def _parquet_files(path: str | list[str]) -> tuple[Path | None, dict[str, list[Path]]]:
    """The folder, if one was given, and the files of train, test and validation, sorted."""
    root = None
    if isinstance(path, str | Path) and Path(path).is_dir():
        root = Path(path)
        _refuse_arrow(root)
        every = [
            (file, file.relative_to(root).parts)
            for file in sorted(root.rglob("*"))
            if file.suffix.lower() in ENDINGS and not any(map(hidden, file.relative_to(root).parts))
        ]
    else:
        given = sorted(set(map(Path, [path] if isinstance(path, str | Path) else path)))
        every = [(file, (file.name,)) for file in given]
        for file in given:
            if not file.is_file():
                raise InputError(
                    f"{shown(file)} does not exist: give parquet files or their folder"
                )
    found: dict[str, list[Path]] = {}
    unknown: list[str] = []
    for file, parts in every:
        if (split := split_of(file, parts)) is None:
            unknown.append(shown("/".join(parts)))
        else:
            if any(PARTIAL.search(part.lower()) for part in parts):
                log.info("%s holds a part of the data set, by its name", shown(file))
            found.setdefault(split, []).append(file)
    if "train" not in found:
        _refuse_without_train(path, found, unknown)
    if unknown:
        log.info("not read, as no name says their split: %s", in_words(unknown))
    for split, files in found.items():
        _check_shards(split, files)
    return root, found


def hidden(name: str) -> bool:
    """Whether files and folders of this name are no part of a data set."""
    return name.startswith(".") or name == "__MACOSX"


def split_of(file: Path, parts: tuple[str, ...]) -> str | None:
    """The split that a file belongs to, by its name, or else by its folders'.

    parts: names of its folders and its own. Raises InputError for a name that says several splits.
    """
    for part in reversed(parts):
        said = {split for match in SPLIT.finditer(part.lower())
                for split, word in zip(SAID, match.groups(), strict=True) if word}  # fmt: skip
        if len(said) > 1:
            raise InputError(
                f"the name of {shown(file)} says {' and '.join(sorted(said))}: rename it after one "
                "split"
            )
        if said:
            return said.pop()
    return None


def _refuse_arrow(root: Path) -> None:
    """Refuse what `save_to_disk` of Hugging Face's datasets wrote: Arrow files."""
    if any(root.glob("*.parquet")):
        return
    for folder in (root, *(entry for entry in sorted(root.iterdir()) if entry.is_dir())):
        for file in sorted(folder.glob("*.arrow")):
            raise InputError(
                f"{shown(root)} holds Arrow files, as save_to_disk writes them "
                f"({shown(file.relative_to(root))}), but Parquet files are read: load it with "
                "datasets.load_from_disk and write each split with to_parquet"
            )


def _refuse_without_train(
    path: str | list[str], found: dict[str, list[Path]], unknown: list[str]
) -> None:
    named = shown(path) if isinstance(path, str | Path) else in_words(map(shown, path))
    if not found and not unknown:
        raise InputError(f"{named} has no parquet files: {READ}")
    has = in_words(found) if found else f"no split ({in_words(unknown[:5])})"
    remedy = "rename the files to train on after it, such as train.parquet"
    raise InputError(f"{named} has parquet files for {has}, but none for train: {remedy}; {READ}")


def _check_shards(split: str, files: list[Path]) -> None:
    """Refuse a split that mixes two data sets or lacks some of its numbered files."""
    if len(folders := {file.parent for file in files}) > 1:
        raise InputError(
            f"the {split} files lie in several folders ({in_words(map(shown, folders))}): give the "
            "one to use"
        )
    begins = {
        SPLIT.split(file.name.lower())[0] for file in files if SPLIT.search(file.name.lower())
    }
    if len(begins) > 1:
        raise InputError(
            f"the {split} files in {shown(files[0].parent)} have names of several data sets "
            f"({in_words(shown(file.name) for file in files[:10])}): give a list of those to use"
        )
    numbers = [re.search(r"-(\d+)-of-(\d+)\b", file.name) for file in files]
    numbered = [number for number in numbers if number]
    if len(numbered) < len(files):
        return
    shards, total = Counter(int(number[1]) for number in numbered), int(numbered[0][2])
    if shards != Counter(range(total)):
        raise InputError(
            f"{shown(files[0].parent)} does not hold each of the {total} {split} files "
            "exactly once: download the missing ones and remove the others"
        )


# --- images ----------------------------------------------------------------------------------


def _require_images(shards: list[Shard], column: str) -> None:
    for shard in shards:
        if column not in shard.schema or not holds_bytes(shard.schema[column]):
            raise InputError(
                f"{shown(shard.file)} has no column '{column}' of images ({shard.columns()}), but "
                f"{shown(shards[0].file)} has: write both with the same columns"
            )


def _chosen_images(files: list[Path], column: str, rows: NDArray[np.intp]) -> Iterator[Named]:
    """The images of some rows, ascending."""
    if not len(rows):
        return
    at = int(rows[0])
    images = _parquet_images(files, column, at)
    for row in rows.tolist():
        yield next(islice(images, row - at, None))
        at = row + 1


def _parquet_images(files: list[Path], column: str, first: int) -> Iterator[Named]:
    """The images of all rows from `first` on; holds a thousand rows at a time."""
    import polars as pl

    for file in files:
        with reading(file):
            frame = pl.scan_parquet(file, glob=False).select(column)
            nested = frame.collect_schema()[column] != pl.Binary
            encoded = pl.col(column).struct.field("bytes") if nested else pl.col(column)
            rows = frame.select(pl.len()).collect().item()
        for start in range(first, rows, ROWS_AT_ONCE):
            with reading(file):
                block = frame.slice(start, ROWS_AT_ONCE).select(encoded).collect().to_series()
            for row, image in enumerate(block.to_list(), start):
                where = f"{shown(file)}: row {row} of column '{column}'"
                yield where, partial(_present, image, where)
        first = max(first - rows, 0)


def _present(image: bytes | None, where: str) -> bytes:
    if image is None:
        raise DamagedImageError(
            where,
            "has no image bytes (at most a path)",
            "export the data set again with its images inside",
        )
    return image
