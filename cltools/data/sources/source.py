"""What a source gives, and what all readers share: decoding, drawn splits, hashes of files."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cltools.data.decoding import (
    GRAY_MODES,
    DamagedImageError,
    center,
    format_of,
    open_new_image,
    say_skipped,
)
from cltools.data.encoded import EncodedSource, Named
from cltools.data.store import Arrays, Images
from cltools.runtime.errors import InputError
from cltools.runtime.files import sha256_file
from cltools.runtime.progress import track

log = logging.getLogger("cltools")
HASHED_BYTES = 4 << 30  # source files are hashed up to this size in all, a few seconds' work


@dataclass(frozen=True, eq=False)
class Source:
    """What was read: everything `write_store` needs but the data set's name.

    splits: "train" and "test", each (images uint8 (N, H, W, C), labels int64 (N,)).
    provenance: the definition as given, and what the files turned out to be. JSON values only.
    preprocessing: what was done to the pixels, in words.
    """

    class_names: list[str]
    splits: dict[str, Arrays]
    provenance: dict[str, Any]
    preprocessing: str = "none"


def finish(
    listed: EncodedSource,
    size: int | None,
    resize: int | None,
    encoded: bool,
    skip_damaged: bool,
) -> Source | EncodedSource:
    """The listed images as they are if they are to stay `encoded`, else decoded to one shape.

    With `size`, the shorter side is resized to it, or to `resize` (bilinear, antialiased), and the
    center cropped to size x size; without, all images must have one size. An image that cannot be
    decoded is an error or, with `skip_damaged`, left out; why is said and kept in the provenance.
    """
    listed = replace(listed, size=size, resize=resize, skip_damaged=skip_damaged)
    if encoded:
        return listed
    decoder = Decoder(size, resize, skip_damaged)
    splits, skipped = {}, {}
    reasons: dict[str, Counter[str]] = {}
    for split, labels in listed.labels.items():
        images = listed.images(split, 0)
        pixels, kept, reasons[split] = decoder.decode(
            images, len(labels), f"Decoding {split} images"
        )
        splits[split] = (pixels, labels[kept])
        skipped[split] = int((~kept).sum())
        say_skipped(reasons[split], split)
    listed.provenance["encodings"] = decoder.encodings()
    if skip_damaged:
        listed.provenance["skipped"] = skipped
        if why := sum(reasons.values(), Counter()):
            listed.provenance["skipped_because"] = dict(why)
    finished = decoder.finished(splits)
    return Source(listed.class_names, finished, listed.provenance, listed.preprocessing)


@dataclass(eq=False)
class Decoder:
    """Decodes encoded images, of one or more splits, to arrays of one shape, as `finish` says.

    Images are held as RGB until all have been seen: only a set in which every one is gray stays
    gray.
    """

    size: int | None = None
    resize: int | None = None
    skip_damaged: bool = False
    shape: tuple[int, ...] | None = None
    all_gray: bool = True
    seen: Counter[str] = field(default_factory=Counter)

    def encodings(self) -> dict[str, int]:
        """How many images came in which format, e.g. {"JPEG": 60000}."""
        return dict(self.seen)

    def decode(
        self, images: Iterable[Named], total: int, description: str
    ) -> tuple[Images, NDArray[np.bool_], Counter[str]]:
        """uint8 (n, H, W, 3) of `total` images; which of them these n are, bool (total,).

        Also why others were left out, and how many for each reason.

        Raises InputError, naming the image, when one cannot be decoded or differs in size.
        """
        pixels = np.empty((0, 0, 0, 3), dtype=np.uint8)
        kept = np.zeros(total, dtype=bool)
        reasons: Counter[str] = Counter()
        count = 0
        for row, (where, read) in enumerate(track(images, total, description)):
            try:
                image = self._decode_one(read(), where)
            except DamagedImageError as error:
                if not self.skip_damaged:
                    raise
                log.warning("skipped: %s", error.problem)
                reasons[error.reason] += 1
                continue
            if self.shape is None:
                self.shape = image.shape
            if image.shape != self.shape:
                raise InputError(
                    f"{where} has {image.shape[1]}x{image.shape[0]} pixels, but those before it "
                    f"{self.shape[1]}x{self.shape[0]}: give `size` to bring all to one size"
                )
            if not count:
                pixels = np.empty((total, *self.shape), dtype=np.uint8)
            pixels[count] = image
            kept[row] = True
            count += 1
        return pixels[:count], kept, reasons

    def finished(self, splits: dict[str, Arrays]) -> dict[str, Arrays]:
        """`splits` with one channel instead of three if every image ever decoded was gray."""
        if not self.all_gray:
            return splits
        return {
            split: (np.ascontiguousarray(images[..., :1]), labels)
            for split, (images, labels) in splits.items()
        }

    def _decode_one(self, encoded: bytes, where: str) -> NDArray[np.uint8]:
        image = open_new_image(encoded, where)
        self.all_gray &= image.mode in GRAY_MODES
        self.seen[format_of(image)] += 1
        color = image.convert("RGB")
        return np.asarray(color if self.size is None else center(color, self.size, self.resize))


def held_out(labels: NDArray[np.integer], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Bool (N,): which samples form the test split, drawn class by class from `seed`.

    Of each class of labels (N,), `fraction` is held out, but at least one sample and not all.
    """
    if not 0 < fraction < 1:
        raise InputError(f"test_fraction is {fraction}: give a number between 0 and 1")
    if seed < 0:
        raise InputError(f"seed is {seed}: give a whole number from 0 up")
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        key = np.random.SeedSequence((seed, int(label)))
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held[np.random.Generator(np.random.PCG64(key)).permutation(members)[:count]] = True
    return held


def require_two_each(labels: NDArray[np.integer], places: list[str]) -> None:
    """Refuse a class of a single image, which cannot be in both splits that are to be drawn.

    labels: (N,). places: for each class, where its images are, for the message.
    """
    lonely = np.flatnonzero(np.bincount(labels) == 1)
    if lonely.size:
        raise InputError(
            f"{places[lonely[0]]} holds one image: a class needs at least 2 to have one in each "
            "split"
        )


def shown(text: str | Path) -> str:
    r"""A name from the disk as text that any file or terminal takes.

    Bytes that are not UTF-8 become backslash escapes such as \xe9; other names stay as they are,
    whatever the locale.
    """
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def drawn_split(fraction: float, seed: int) -> dict[str, Any]:
    return {"drawn": "per class", "test_fraction": fraction, "seed": seed}


def file_hashes(root: Path | None, files: list[Path]) -> dict[str, dict[str, Any]]:
    """Size and, when they are small enough in all, SHA-256 of each file, by its name under root."""
    sizes = {file: file.stat().st_size for file in files}
    cheap = sum(sizes.values()) <= HASHED_BYTES
    return {
        shown(file.relative_to(root).as_posix() if root else file): {
            "bytes": size,
            **({"sha256": sha256_file(file)} if cheap else {}),
        }
        for file, size in sizes.items()
    }


def in_words(names: Iterable[Any]) -> str:
    return ", ".join(sorted(map(str, names)))
