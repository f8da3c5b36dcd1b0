"""The image store: a data set on disk, and class subsets of it.

A store is a folder that holds `{train,test}-images.npy` (uint8, N x H x W x C),
`{train,test}-labels.npy` (int64, N) and `store.json`, which describes them and is written last: a
store that has it is complete. The same images always give the same bytes.

Large images stay encoded. Instead of arrays of pixels such a store has `{train,test}-images.bin`,
the JPEG, PNG, … files one after another, `-offsets.npy` (int64, N + 1: image i is the bytes from
offset i to offset i + 1) and `-sizes.npy` (int32, N x 2: height and width); `encoded` writes it.
"""

import hashlib
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cltools.layout import StoreFolder
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_text, whole_file
from cltools.runtime.sealed import read_json, write_json

FORMAT = 1
ENCODED_FORMAT = "encoded-1"
SPLITS = ("train", "test")
# The config key of how many images of each class are taken from a split.
PER_CLASS = {"train": "images_per_class", "test": "test_images_per_class"}

Scalar = TypeVar("Scalar", np.uint8, np.int32, np.int64)

# First word of every random key below, so that no two uses ever share a stream.
_CLASS_STREAM, _IMAGE_STREAM = 0, 1

Images = NDArray[np.uint8]  # (N, H, W, C)
Labels = NDArray[np.int64]  # (N,)
Arrays = tuple[Images, Labels]


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of one split, relabeled.

    indices: int64 (n,), ascending positions in the split.
    labels: int64 (n,), in 0..C'-1; label i stands for the original class `class_ids[i]`.
    class_ids: the C' original classes, in the order of the draw.
    """

    indices: NDArray[np.int64]
    labels: Labels
    class_ids: tuple[int, ...]


class EncodedImages:
    """The images of one split as the bytes of their files, read one by one where they are wanted.

    sizes: int32 (N, 2), height and width. Any thread may read.
    """

    def __init__(self, file: Path, offsets: NDArray[np.int64], sizes: NDArray[np.int32]) -> None:
        self.file, self.offsets, self.sizes = file, offsets, sizes
        self._descriptor = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> bytes:
        start, end = self.offsets[index : index + 2].tolist()
        # Not a memory map: a page fault would make all threads wait for the disk.
        return os.pread(self._descriptor, end - start, start)


@dataclass(frozen=True, eq=False)
class ImageStore:
    """An opened store; get one with `ImageStore.open`.

    images: per split, uint8 (N, H, W, C), memory-mapped and read-only, or EncodedImages.
    labels: per split, int64 (N,), in 0..len(class_names)-1.
    image_shape: (H, W, C); of encoded images, what evaluation and views bring them to.
    mean, std: per channel, of the train split's pixels / 255.
    content: SHA-256 of all pixels (or bytes of encoded images), labels and class names.
    resize: what evaluation resizes the shorter side of encoded images to; None where decoded.

    Whoever opens a store has its images, labels and sizes compared with their hash, once in a
    process: at once up to `LARGE` bytes, in the background beyond. Before a training manifest, a
    table or embeddings are written, `check` waits for the end of that.
    """

    folder: Path
    name: str
    class_names: list[str]
    image_shape: tuple[int, int, int]
    content: str
    mean: list[float]
    std: list[float]
    provenance: dict[str, Any]
    images: dict[str, Images | EncodedImages]
    labels: dict[str, Labels]
    resize: int | None = None
    verified: "Future[None]" = field(default_factory=Future, repr=False)

    @classmethod
    def open(cls, folder: Path | str) -> "ImageStore":
        """Open the store in `folder`.

        Raises InputError when a file is missing, truncated or at odds with `store.json`.
        """
        folder = Path(folder)
        manifest = read_json(StoreFolder(folder).manifest, made_by="cltools prepare")
        formats = (FORMAT, ENCODED_FORMAT)
        if manifest.get("format") not in formats:
            raise _damaged(
                StoreFolder(folder).manifest,
                f"does not describe an image store of format {FORMAT} or {ENCODED_FORMAT}",
            )
        try:
            splits = {split: _open_split(StoreFolder(folder), split, manifest) for split in SPLITS}
            store = cls(
                folder=folder,
                image_shape=tuple(manifest["image_shape"]),
                images={split: images for split, (images, _) in splits.items()},
                labels={split: labels for split, (_, labels) in splits.items()},
                resize=manifest.get("resize"),
                **{
                    key: manifest[key]
                    for key in ("name", "class_names", "content", "mean", "std", "provenance")
                },
            )
            verification = _Verification(folder, manifest, splits)
        except (KeyError, TypeError):
            raise _damaged(StoreFolder(folder).manifest, "lacks what a store needs") from None
        store = replace(store, verified=verification.begin())
        if store.verified.done():
            store.check()
        return store

    def check(self, wait: bool = True) -> None:
        """Raise InputError if the images, labels or sizes are not those of `store.json`.

        Without `wait`, only if that is known already.
        """
        if wait or self.verified.done():
            self.verified.result()

    def subset(
        self,
        split: str = "train",
        classes: int | None = None,
        class_draw: int = 0,
        per_class: int | None = None,
        imbalance: float = 1.0,
    ) -> Subset:
        """The images of `split` that `select` picks; raises InputError as `select` does."""
        return select(
            self.labels[split],
            self.class_names,
            classes=classes,
            draw=class_draw,
            per_class=per_class,
            imbalance=imbalance,
            split=split,
            name=self.name,
        )


def write_store(
    folder: Path | str,
    name: str,
    class_names: list[str],
    splits: Mapping[str, Arrays],
    provenance: dict[str, Any],
    preprocessing: str = "none",
) -> None:
    """Write a store; `splits` maps "train" and "test" to (images, labels).

    images are uint8 (N, H, W, C) with C = 1 or 3, one shape for both splits; labels are integers
    in 0..len(class_names)-1. `provenance` and `preprocessing` say where the images came from and
    what was done to them; both must hold JSON values only.

    Raises InputError when the images or labels do not have that form.
    """
    folder = Path(folder)
    splits = {split: _checked(name, class_names, split, splits[split]) for split in SPLITS}
    shapes = {images.shape[1:] for images, _ in splits.values()}
    if len(shapes) > 1:
        raise InputError(
            f"the train and test images of data set '{name}' differ in shape: {shapes}"
        )
    mean, std = channel_statistics(splits["train"][0])
    manifest = {
        "format": FORMAT,
        "name": name,
        "class_names": list(class_names),
        "image_shape": list(shapes.pop()),
        "splits": {
            split: counts(labels, len(class_names)) for split, (_, labels) in splits.items()
        },
        "mean": mean,
        "std": std,
        "content": content_hash(class_names, splits),
        "provenance": provenance,
        "preprocessing": preprocessing,
    }
    canonical_json(manifest)  # a value that is not JSON fails here, before anything is touched
    # An older store stops being complete before its first array is replaced.
    StoreFolder(folder).manifest.unlink(missing_ok=True)
    for split, arrays in splits.items():
        named: dict[str, Images | Labels] = dict(zip(("images", "labels"), arrays, strict=True))
        for kind, array in named.items():
            with whole_file(StoreFolder(folder).array(split, kind)) as scratch:
                np.save(scratch, array, allow_pickle=False)
    write_json(StoreFolder(folder).manifest, manifest)


def counts(labels: Labels, classes: int) -> dict[str, Any]:
    """What the manifest says of a split's labels."""
    return {
        "count": len(labels),
        "class_counts": np.bincount(labels, minlength=classes).tolist(),
    }


def select(
    labels: Labels,
    class_names: list[str],
    classes: int | None = None,
    draw: int = 0,
    per_class: int | None = None,
    imbalance: float = 1.0,
    split: str = "train",
    name: str = "unnamed",
) -> Subset:
    """Pick `classes` classes and `per_class` images of each from one split.

    labels: int (N,), in 0..len(class_names)-1. Draw number `draw` is one order of all classes, and
    for each (class, split) one order of its images; a subset is the beginning of both. So subsets
    of one draw nest (2 classes lie within 4, 100 images within 200), and train and test get the
    same classes. `classes=None` takes all classes in their natural order, `per_class=None` all
    their images. `name` is the data set's name, for messages.

    `imbalance` above 1 makes a long tail (Cui et al. 2019, arXiv 1901.05555): of the C classes in
    their order, number r keeps imbalance^(-r/(C-1)) of what the first has, at least one image;
    without `per_class`, the first has as many as the smallest class.

    Raises InputError when the data set has fewer classes or images than asked for, or only one
    class: nothing is measured within a single class.
    """
    available = len(class_names)
    if draw < 0:
        raise InputError(f"class_draw is {draw}: draws are numbered from 0")
    if available < 2:
        raise InputError(
            f"the data set '{name}' has fewer than 2 classes: prepare one with 2 or more"
        )
    if classes is None:
        chosen = np.arange(available)
    elif classes < 2:
        raise InputError(f"classes is {classes}: at least 2 classes are needed")
    elif classes > available:
        raise InputError(
            f"the data set '{name}' has {available} classes, but classes is {classes}: "
            f"use at most {available}"
        )
    else:
        chosen = _generator(_CLASS_STREAM, draw).permutation(available)[:classes]

    by_class = np.argsort(labels, kind="stable")  # stable: ascending within each class
    counts = np.bincount(labels, minlength=available)
    ends = np.cumsum(counts)
    smallest = chosen[np.argmin(counts[chosen])]
    wanted = 1 if per_class is None else per_class
    if wanted < 1:
        raise InputError(f"{PER_CLASS[split]} is {per_class}: at least 1 image per class is needed")
    if counts[smallest] < wanted:
        raise InputError(
            f"class '{class_names[smallest]}' of the data set '{name}' has {counts[smallest]} "
            f"{split} images, but {wanted} per class are needed: "
            f"{f'lower {PER_CLASS[split]} or ' if wanted > 1 else ''}choose other classes"
        )

    if imbalance < 1:
        raise InputError(f"imbalance is {imbalance}: at least 1, which is balanced, is needed")
    most = counts[smallest] if per_class is None else per_class
    shares = float(imbalance) ** -(np.arange(len(chosen)) / max(1, len(chosen) - 1))
    wanted_of = np.maximum(1, np.rint(most * shares)).astype(int)

    kept = []
    for label, count in zip(chosen, wanted_of, strict=True):
        members = by_class[ends[label] - counts[label] : ends[label]]
        if per_class is not None or imbalance > 1:
            key = (_IMAGE_STREAM, draw, int(label), SPLITS.index(split))
            members = _generator(*key).permutation(members)[:count]
        kept.append(members)
    indices = np.sort(np.concatenate(kept)).astype(np.int64)
    relabel = np.empty(available, dtype=np.int64)
    relabel[chosen] = np.arange(len(chosen))
    return Subset(indices, relabel[labels[indices]], tuple(chosen.tolist()))


def content_hash(class_names: list[str], splits: Mapping[str, Arrays]) -> str:
    """SHA-256 over class names, shapes and the bytes of all arrays, split by split."""
    shapes = [[list(array.shape) for array in splits[split]] for split in SPLITS]
    digest = hashlib.sha256(canonical_json([list(class_names), shapes]).encode())
    for split in SPLITS:
        for array in splits[split]:
            digest.update(array.data)
    return digest.hexdigest()


def encoded_content_hash(
    class_names: list[str],
    image_shape: Iterable[int],
    resize: int,
    labels: Mapping[str, Labels],
    parts: Mapping[str, list[str]],
) -> str:
    """SHA-256 over class names, what is made of images, labels, and the parts' hashes."""
    about = [
        [hashlib.sha256(np.ascontiguousarray(labels[split]).data).hexdigest(), parts[split]]
        for split in SPLITS
    ]
    return sha256_text(canonical_json([list(class_names), list(image_shape), resize, about]))


def hash_of_sizes(sizes: NDArray[np.int32]) -> str:
    """SHA-256 over heights and widths (N, 2) of encoded images."""
    return hashlib.sha256(np.ascontiguousarray(sizes).data).hexdigest()


def part_hash(images: Iterable[bytes]) -> str:
    """SHA-256 over the lengths and bytes of some encoded images."""
    digest = hashlib.sha256()
    for encoded in images:
        digest.update(len(encoded).to_bytes(8))
        digest.update(encoded)
    return digest.hexdigest()


def channel_statistics(images: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of uint8 images (N, H, W, C), scaled to 0..1.

    Counts of the 256 values come first: integers sum exactly, so the result depends neither on
    the order of summation nor on the machine, and a few images at a time are held in memory.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images), 1024):
        block = images[start : start + 1024]
        for channel in range(channels):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    return statistics_of_counts(counts)


def statistics_of_counts(counts: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """The same from how often each value occurs, int64 (C, 256)."""
    values = np.arange(256)
    total = counts.sum(axis=1)
    first, second = counts @ values, counts @ values**2
    mean = first / total
    # n Σv² - (Σv)² in Python integers: the difference of two large numbers stays exact.
    spread = [int(n) * int(b) - int(a) ** 2 for n, a, b in zip(total, first, second, strict=True)]
    std = np.sqrt(np.array(spread, dtype=np.float64)) / total
    return (mean / 255).tolist(), (std / 255).tolist()


def _generator(*key: int) -> np.random.Generator:
    """A generator of its own for `key`; keys that share a first word must share their length."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _checked(name: str, class_names: list[str], split: str, arrays: Arrays) -> Arrays:
    """The arrays as the store keeps them: contiguous, uint8 and int64."""
    images, labels = np.ascontiguousarray(arrays[0]), np.ascontiguousarray(arrays[1])
    where = _place(name, split)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(
            f"{where} has images of type {images.dtype} and shape {images.shape}: "
            "a store takes uint8 images of shape N x H x W x C with C = 1 or 3"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise InputError(f"{where} needs one integer label for each of its {len(images)} images")
    if not images.size:
        raise InputError(f"{where} is empty: give it at least one image")
    check_labels(name, class_names, split, labels)
    return images, labels.astype(np.int64)


def check_labels(
    name: str, class_names: list[str], split: str, labels: NDArray[np.integer]
) -> None:
    """Raises InputError when there is no label, or one without a class name."""
    where = _place(name, split)
    if not len(labels):
        raise InputError(f"{where} is empty: give it at least one image")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise InputError(
            f"{where} has labels from {labels.min()} to {labels.max()}, but {len(class_names)} "
            "class names: labels count from 0 and each needs a name"
        )


def _place(name: str, split: str) -> str:
    return f"the {split} split of data set '{name}'"


Splits = Mapping[str, tuple[Images | EncodedImages, Labels]]
LARGE = 1 << 30  # bytes; hashing takes about a second for each GB where the disk is not slower
_verified: dict[Any, "Future[None]"] = {}  # of this process, by what the files are


class _Verification:
    """The comparison of a store's files with the hash of their content."""

    def __init__(self, folder: Path, manifest: dict[str, Any], splits: Splits) -> None:
        self.folder, self.manifest, self.splits = folder, manifest, splits
        self.files = sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".bin"))

    def begin(self) -> "Future[None]":
        """What ends when all is read, with InputError for a damaged store; known files only once.

        Small stores are through when this returns.
        """
        found = [(str(path), path.stat()) for path in self.files]
        seen = [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found]
        key = canonical_json([self.manifest, seen])
        if key not in _verified:
            _verified[key] = Future()
            if sum(stat.st_size for _, stat in found) > LARGE:
                Thread(target=self._run, args=(_verified[key],), daemon=True).start()
            else:
                self._run(_verified[key])
        return _verified[key]

    def _run(self, future: "Future[None]") -> None:
        try:
            if _content(self.manifest, self.splits) != self.manifest["content"]:
                raise _damaged(self.folder, "holds other images or labels than its store.json says")
        except Exception as error:  # raised where the result is asked for
            future.set_exception(error)
        else:
            future.set_result(None)


def _content(manifest: dict[str, Any], splits: Splits) -> str:
    """The content hash of the files as they are now."""
    arrays, parts = {}, {}
    for split, (images, labels) in splits.items():
        if not isinstance(images, EncodedImages):
            arrays[split] = images, labels
            continue
        if hash_of_sizes(images.sizes) != manifest["splits"][split]["sizes"]:
            return ""
        each = iter(images)
        sizes = [part["count"] for part in manifest["splits"][split]["parts"]]
        parts[split] = [part_hash(islice(each, size)) for size in sizes]
    if arrays:
        return content_hash(manifest["class_names"], arrays)
    labels_of = {split: labels for split, (_, labels) in splits.items()}
    names, shape, resize = (manifest[key] for key in ("class_names", "image_shape", "resize"))
    return encoded_content_hash(names, shape, resize, labels_of, parts)


def _open_split(
    folder: StoreFolder, split: str, manifest: dict[str, Any]
) -> tuple[Images | EncodedImages, Labels]:
    """Map the images of a split, load its labels and check both against the manifest."""
    expected = manifest["splits"][split]
    shape = (expected["count"], *manifest["image_shape"])
    images: Images | EncodedImages
    if manifest["format"] == FORMAT:
        images = _open_array(folder.array(split, "images"), np.uint8, shape)
    else:
        images = _open_encoded(folder, split, expected)
    labels = np.array(_open_array(folder.array(split, "labels"), np.int64, shape[:1]))
    classes = len(manifest["class_names"])
    in_range = labels.min() >= 0 and labels.max() < classes
    if not in_range or np.bincount(labels, minlength=classes).tolist() != expected["class_counts"]:
        raise _damaged(folder.array(split, "labels"), "has other class counts than store.json")
    return images, labels


def _open_encoded(folder: StoreFolder, split: str, expected: dict[str, Any]) -> EncodedImages:
    """One split's encoded images, held against the manifest."""
    count, size = expected["count"], expected["bytes"]
    file = folder.encoded_images(split)
    offsets = np.array(_open_array(folder.array(split, "offsets"), np.int64, (count + 1,)))
    sizes = np.array(_open_array(folder.array(split, "sizes"), np.int32, (count, 2)))
    if offsets[0] != 0 or offsets[-1] != size or (np.diff(offsets) <= 0).any():
        raise _damaged(folder.array(split, "offsets"), "has other offsets than store.json says")
    try:
        images = EncodedImages(file, offsets, sizes)
    except FileNotFoundError:
        raise _damaged(file, "is missing") from None
    if (found := file.stat().st_size) != size:
        raise _damaged(file, f"holds {found} bytes, but store.json says {size}")
    return images


def _open_array(path: Path, dtype: type[Scalar], shape: Iterable[int]) -> NDArray[Scalar]:
    """Map one array read-only; never unpickles."""
    try:
        array: NDArray[Scalar] = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None
    except (ValueError, OSError):
        raise _damaged(path, "is truncated or not a .npy file") from None
    if array.dtype != dtype or array.shape != tuple(shape) or not array.flags.c_contiguous:
        raise _damaged(
            path,
            f"holds {array.dtype} {array.shape}, "
            f"but store.json says {np.dtype(dtype)} {tuple(shape)}",
        )
    return array


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(f"{path} {problem}: run `cltools prepare` again")
