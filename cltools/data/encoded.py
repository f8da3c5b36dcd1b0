"""Writing a store of encoded images: each is decoded once, to check it, and kept as it came.

A million photographs take hours. They are written in parts, each with a record of its own in the
folder `preparing`; a call that finds records of the same source goes on after the last whole part,
and ends with the same bytes as one that was never stopped.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cltools.data.decoding import (
    GRAY_MODES,
    DamagedImageError,
    center,
    format_of,
    in_order,
    open_new_image,
    pool,
    say_skipped,
    workers_available,
)
from cltools.data.store import (
    ENCODED_FORMAT,
    SPLITS,
    check_labels,
    counts,
    encoded_content_hash,
    hash_of_sizes,
    part_hash,
    statistics_of_counts,
)
from cltools.layout import StoreFolder
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_text, whole_file
from cltools.runtime.progress import track
from cltools.runtime.sealed import read_json, write_json

PART = 2000  # images: 250 MB of photographs, a quarter of a minute on one core
log = logging.getLogger("cltools")

Named = tuple[str, Callable[[], bytes]]  # an image: its name for messages, and what reads it


@dataclass(frozen=True, eq=False)
class EncodedSource:
    """Images that are still encoded, and what is to be made of them.

    labels: "train" and "test", each int64 (N,).
    images: the images of a split from a row on, in the order of the labels. Reading one raises
        DamagedImageError when it cannot be had.
    size, resize: see `decoding.center`.
    """

    class_names: list[str]
    labels: dict[str, NDArray[np.int64]]
    images: Callable[[str, int], Iterator[Named]]
    provenance: dict[str, Any]
    size: int | None = None
    resize: int | None = None
    skip_damaged: bool = False

    @property
    def side(self) -> int:
        """`size`, without which images cannot stay encoded."""
        if self.size is None:
            raise TypeError("images that stay encoded need a size")
        return self.size

    @property
    def preprocessing(self) -> str:
        """What evaluation does to the pixels, in words."""
        if self.size is None:
            return "none"
        if self.resize in (None, self.size):
            return f"shorter side resized to {self.size} (bilinear), centre crop"
        return (
            f"shorter side resized to {self.resize} (bilinear), centre crop of {self.size}x"
            f"{self.size}"
        )


@dataclass(frozen=True, eq=False)
class _Checked:
    """One image: its bytes, what decoding showed, and how often each value occurs, (3, 256)."""

    encoded: bytes
    height: int
    width: int
    gray: bool
    encoding: str
    values: NDArray[np.int64] | int


def write_encoded_store(
    folder: Path | str, name: str, source: EncodedSource, workers: int | None = None
) -> dict[str, int]:
    """Write a store of encoded images, or finish one that was begun; images by split.

    `workers` threads decode [one per core]; their number changes no byte.

    Raises InputError for labels without a name and, unless `source.skip_damaged`, for an image that
    cannot be decoded. Parts that were whole by then are kept for the next call.
    """
    folder = Path(folder)
    for split in SPLITS:
        check_labels(name, source.class_names, split, source.labels[split])
    StoreFolder(folder).manifest.unlink(missing_ok=True)
    _begin(folder, source)
    try:
        parts = {split: _write_images(folder, split, source, workers) for split in SPLITS}
    except InputError:
        _forget_if_empty(folder)
        raise
    write_json(StoreFolder(folder).manifest, _finish(folder, name, source, parts))
    shutil.rmtree(StoreFolder(folder).preparing)
    return {split: sum(part["count"] for part in parts[split]) for split in SPLITS}


def _begin(folder: Path, source: EncodedSource) -> None:
    """Keep the parts of an earlier call if it was of the same source, else remove them."""
    labels = {split: array.tolist() for split, array in source.labels.items()}
    plan = {
        "source": source.provenance,
        "preprocessing": source.preprocessing,
        "labels": sha256_text(canonical_json([source.class_names, labels])),
        "part": PART,
        "reasons": True,  # records of parts say why images were skipped; earlier ones did not
    }
    path = StoreFolder(folder).source
    if _record(path) != plan:
        shutil.rmtree(StoreFolder(folder).preparing, ignore_errors=True)
        write_json(path, plan)


def _record(path: Path) -> dict[str, Any] | None:
    """What an earlier call noted; None where there is nothing, or nothing to be relied on."""
    if not path.exists():
        return None
    try:
        return read_json(path, made_by="cltools prepare")
    except InputError:
        log.warning("%s is damaged: preparing from there again", path)
        return None


def _forget_if_empty(folder: Path) -> None:
    """Leave nothing of a call that failed in its first part."""
    if list(StoreFolder(folder).preparing.glob("*-*.json")):
        return
    shutil.rmtree(StoreFolder(folder).preparing)
    for split in SPLITS:
        StoreFolder(folder).encoded_images(split).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _whole_parts(folder: Path, split: str) -> list[dict[str, Any]]:
    """The records of the parts that lie whole in the file of images, in order."""
    file, end = StoreFolder(folder).encoded_images(split), 0
    parts: list[dict[str, Any]] = []
    written = file.stat().st_size if file.exists() else 0
    while part := _record(StoreFolder(folder).part(split, len(parts))):
        end += part["bytes"]
        if end > written:
            break
        parts.append(part)
    return parts


def _write_images(
    folder: Path, split: str, source: EncodedSource, workers: int | None
) -> list[dict[str, Any]]:
    """Write the images of a split that are not there yet; the records of all its parts."""
    parts = _whole_parts(folder, split)
    first, rows = len(parts) * PART, len(source.labels[split])
    if first and first < rows:
        log.info("going on at %s image %d of %d", split, first, rows)
    check = partial(_check, source=source, count=split == "train")
    ahead = 8 * (workers or workers_available())
    checked = in_order(pool(workers), check, source.images(split, first), ahead)
    shown = track(checked, rows - first, f"Checking {split} images")
    with open(StoreFolder(folder).encoded_images(split), "ab") as file, closing(checked):
        file.truncate(sum(part["bytes"] for part in parts))
        for start in range(first, rows, PART):
            part = _write_part(file, islice(shown, PART), start)
            file.flush()
            os.fsync(file.fileno())
            write_json(StoreFolder(folder).part(split, len(parts)), part)
            parts.append(part)
    return parts


def _check(image: Named, source: EncodedSource, count: bool) -> _Checked | DamagedImageError:
    """Read and decode one image; with `count`, also count the values of its evaluation pixels."""
    where, read = image
    try:
        encoded = read()
        decoded = open_new_image(encoded, where)
    except DamagedImageError as error:
        if source.skip_damaged:
            return error
        raise
    values: NDArray[np.int64] | int = 0
    if count:
        pixels = center(decoded.convert("RGB"), source.side, source.resize)
        values = np.array(pixels.histogram()).reshape(3, 256)
    gray = decoded.mode in GRAY_MODES
    return _Checked(encoded, decoded.height, decoded.width, gray, format_of(decoded), values)


def _write_part(
    file: BinaryIO, images: Iterable[_Checked | DamagedImageError], start: int
) -> dict[str, Any]:
    """Append the next images to `file`; what is to be remembered of them, for JSON."""
    kept, skipped = [], []
    reasons: Counter[str] = Counter()
    values = np.zeros((3, 256), dtype=np.int64)
    for row, image in enumerate(images, start):
        if isinstance(image, DamagedImageError):
            log.warning("skipped: %s", image.problem)
            skipped.append(row)
            reasons[image.reason] += 1
            continue
        file.write(image.encoded)
        values += image.values
        kept.append(image)
    return {
        "count": len(kept),
        "bytes": sum(len(image.encoded) for image in kept),
        "sha256": part_hash(image.encoded for image in kept),
        "lengths": [len(image.encoded) for image in kept],
        "sizes": [[image.height, image.width] for image in kept],
        "skipped": skipped,
        "skipped_because": reasons,
        "gray": all(image.gray for image in kept),
        "encodings": Counter(image.encoding for image in kept),
        "values": values.tolist(),
    }


def _finish(
    folder: Path, name: str, source: EncodedSource, parts: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Write all but the manifest, which is returned."""
    labels, splits = {}, {}
    reasons: dict[str, Counter[str]] = {}
    for split in SPLITS:
        lengths = [length for part in parts[split] for length in part["lengths"]]
        sizes = [size for part in parts[split] for size in part["sizes"]]
        skipped = [row for part in parts[split] for row in part["skipped"]]
        reasons[split] = sum((Counter(p["skipped_because"]) for p in parts[split]), Counter())
        say_skipped(reasons[split], split)
        labels[split] = np.delete(source.labels[split], skipped)
        check_labels(name, source.class_names, split, labels[split])
        _save(StoreFolder(folder).array(split, "offsets"), np.cumsum([0, *lengths], dtype=np.int64))
        _save(StoreFolder(folder).array(split, "sizes"), np.array(sizes, dtype=np.int32))
        _save(StoreFolder(folder).array(split, "labels"), labels[split])
        splits[split] = {
            **counts(labels[split], len(source.class_names)),
            "bytes": sum(lengths),
            "sizes": hash_of_sizes(np.array(sizes, dtype=np.int32)),
            "parts": [{key: part[key] for key in ("count", "sha256")} for part in parts[split]],
        }
    every = [part for split in SPLITS for part in parts[split]]
    channels = 1 if all(part["gray"] for part in every) else 3
    values = np.sum([part["values"] for part in parts["train"]], axis=0)
    mean, std = statistics_of_counts(values[:channels])
    provenance = {
        **source.provenance,
        "encodings": sum((Counter(part["encodings"]) for part in every), Counter()),
    }
    if source.skip_damaged:
        provenance["skipped"] = {s: sum(len(p["skipped"]) for p in parts[s]) for s in SPLITS}
        if why := sum(reasons.values(), Counter()):
            provenance["skipped_because"] = why
    shape, resize = [source.side, source.side, channels], source.resize or source.side
    hashes = {split: [part["sha256"] for part in parts[split]] for split in SPLITS}
    return {
        "format": ENCODED_FORMAT,
        "name": name,
        "class_names": source.class_names,
        "image_shape": shape,
        "resize": resize,
        "splits": splits,
        "mean": mean,
        "std": std,
        "content": encoded_content_hash(source.class_names, shape, resize, labels, hashes),
        "provenance": provenance,
        "preprocessing": f"kept encoded; for evaluation: {source.preprocessing}",
    }


def _save(path: Path, array: NDArray[np.integer]) -> None:
    with whole_file(path) as scratch:
        np.save(scratch, array, allow_pickle=False)
