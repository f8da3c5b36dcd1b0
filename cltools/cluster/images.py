"""How many images a cell has, as far as can be known before its store is read. Imports quickly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cltools.runtime.errors import InputError
from cltools.runtime.sealed import read_json


class Images(NamedTuple):
    """Images of a cell, or of a whole data set: their numbers, shape and classes.

    encoded: whether they stay encoded in the store, so that every job decodes them.
    """

    train: int
    test: int
    side: int
    channels: int = 3
    classes: int = 10
    encoded: bool = False

    @property
    def both(self) -> int:
        return self.train + self.test


KNOWN = {
    "CIFAR10": Images(50_000, 10_000, 32),
    "CIFAR100": Images(50_000, 10_000, 32, classes=100),
    "SVHN": Images(73_257, 26_032, 32),
    "FashionMNIST": Images(60_000, 10_000, 28, channels=1),
    "digits": Images(1_438, 359, 8, channels=1),
    # By the names that the papers' configs give them; they have no others.
    "tiny_imagenet": Images(100_000, 10_000, 64, classes=200),
    "mini_imagenet": Images(50_000, 5_000, 224, classes=100, encoded=True),
    "imagenet": Images(1_281_167, 50_000, 224, classes=1000, encoded=True),
}
# The same by their names on the Hugging Face hub.
ON_HUB = {
    "uoft-cs/cifar10": "CIFAR10",
    "uoft-cs/cifar100": "CIFAR100",
    "zalando-datasets/fashion_mnist": "FashionMNIST",
}
SVHN_EXTRA = 531_131
# Of a data set of which nothing is known before it is prepared.
UNKNOWN = KNOWN["tiny_imagenet"]
PHOTOGRAPH_BYTES = 110_000  # an image of ImageNet-1k, as a JPEG of 500 x 375 pixels
BYTES_PER_PIXEL = 0.5  # of small images as JPEG files
TRAIN_SHARE = 0.9  # where only the number of all images is known


def images_known(name: str, extra: bool = False) -> Images | None:
    """The images of a known data set, None for another one.

    `name` may be written as in configs, as "cifar10" or "fashion_mnist". `extra`: with the further
    training images of SVHN.
    """
    plain = {known.lower().replace("_", ""): images for known, images in KNOWN.items()}
    found = plain.get(name.lower().replace("_", ""))
    return found and found._replace(train=found.train + (SVHN_EXTRA if extra else 0))


def images_of_cell(cell: Mapping[str, Any], definition: Mapping[str, Any], store: Path) -> Images:
    """The images of a resolved cell. `store` is the store.json of its data set, if it exists."""
    whole = images_of_set(definition, store)
    classes = min(cell["classes"] or whole.classes, whole.classes)

    def chosen(images: int, per_class: int | None) -> int:
        return per_class * classes if per_class else max(1, images * classes // whole.classes)

    return whole._replace(
        train=chosen(whole.train, cell["images_per_class"]),
        test=chosen(whole.test, cell["test_images_per_class"]),
        classes=classes,
    )


def images_of_set(definition: Mapping[str, Any], store: Path) -> Images:
    """The images of a data set.

    Their numbers are exact if the store is there or the data set is known. Otherwise they are
    worked out from the size of its parquet files, and assumed where there are none.
    """
    side = definition.get("size")
    encoded = bool(definition.get("encoded"))
    if (prepared := _prepared(store)) is not None:
        return prepared._replace(encoded=encoded)
    name = definition.get("dataset") or ON_HUB.get(definition.get("repo", ""))
    known = images_known(name or definition["source"], bool(definition.get("extra")))
    if known is not None:
        return known._replace(side=side or known.side)
    found = UNKNOWN._replace(side=side or UNKNOWN.side, encoded=encoded)
    each = PHOTOGRAPH_BYTES if encoded else BYTES_PER_PIXEL * found.side**2
    if size := _parquet_bytes(definition):
        images = max(2, round(size / each))
        train = round(images * TRAIN_SHARE)
        found = found._replace(train=train, test=images - train)
    return found


def _prepared(store: Path) -> Images | None:
    try:
        content = read_json(store, made_by="cltools prepare")
        splits = [content["splits"][split]["class_counts"] for split in ("train", "test")]
        side, _, channels = content["image_shape"]
        return Images(sum(splits[0]), sum(splits[1]), side, channels, len(splits[0]))
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return None  # what is wrong is said by the jobs that use the store


def _parquet_bytes(definition: Mapping[str, Any]) -> int:
    """Bytes of the data set's parquet files, 0 where there are none."""
    if definition["source"] != "parquet":
        return 0
    given = definition.get("path", [])
    paths = [Path(path) for path in ([given] if isinstance(given, str) else given)]
    try:
        files = {
            f for path in paths for f in (path.rglob("*.parquet") if path.is_dir() else [path])
        }
        return sum(file.stat().st_size for file in files)
    except OSError:
        return 0
