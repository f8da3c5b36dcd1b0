"""Data sets as torchvision keeps them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cltools.data.sources.source import Source, file_hashes, in_words
from cltools.data.store import Arrays
from cltools.runtime.errors import InputError

Scalar = TypeVar("Scalar", np.uint8, np.int64)

TORCHVISION_FILES = {
    "CIFAR10": tuple(
        f"cifar-10-batches-py/{name}"
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ),
    "CIFAR100": tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
    "FashionMNIST": tuple(
        f"FashionMNIST/raw/{split}-{kind}-ubyte"
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ),
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
}


def read_torchvision(dataset: str, root: str, download: bool = True, extra: bool = False) -> Source:
    """CIFAR10, CIFAR100, FashionMNIST or SVHN as torchvision keeps them under `root`.

    Files that are missing or damaged are downloaded if `download`. `extra` adds SVHN's extra
    split to its train split. CIFAR comes as pickles, which run code when loaded; torchvision
    checks their MD5 first.
    """
    if dataset not in TORCHVISION_FILES:
        raise InputError(f"dataset is {dataset!r}: use one of {in_words(TORCHVISION_FILES)}")
    if extra and dataset != "SVHN":
        raise InputError(f"extra is true, but {dataset} has no extra split: only SVHN has one")
    files = (*TORCHVISION_FILES[dataset], *(["extra_32x32.mat"] if extra else []))

    train = _torchvision_split(dataset, root, "train", download, files)
    splits = {
        "train": _torchvision_arrays(train),
        "test": _torchvision_arrays(_torchvision_split(dataset, root, "test", download, files)),
    }
    if extra:
        more = _torchvision_arrays(_torchvision_split(dataset, root, "extra", download, files))
        (images, labels), (more_images, more_labels) = splits["train"], more
        splits["train"] = _joined(images, more_images), _joined(labels, more_labels)
    # SVHN alone names no classes: it is the ten digits, with torchvision's label 0 for the digit 0.
    class_names = list(getattr(train, "classes", [str(digit) for digit in range(10)]))
    present = [Path(root, file) for file in files if Path(root, file).is_file()]
    return Source(class_names, splits, {"files": file_hashes(Path(root), present)})


def _torchvision_split(
    dataset: str, root: str, split: str, download: bool, files: Iterable[str]
) -> Any:
    """One split as a torchvision data set, from disk if it is there, else downloaded if allowed."""
    from torchvision import datasets

    which = {"split": split} if dataset == "SVHN" else {"train": split == "train"}
    for fetch in (False, True) if download else (False,):
        try:
            return getattr(datasets, dataset)(root, download=fetch, **which)
        except Exception as error:  # missing, wrong MD5, wrong content, no network: one remedy
            failure = error
    looked_for = ", ".join(str(Path(root, file)) for file in files)
    raise InputError(
        f"{dataset} is not complete under {root}"
        f"{' and its download failed' if download else ''}: put the original, unpacked files in "
        f"place ({looked_for}){'' if download else ' or set download to true'}"
    ) from failure


def _torchvision_arrays(loaded: Any) -> Arrays:
    """Images (N, H, W, C) and labels (N,), which torchvision keeps in three ways."""
    images = np.asarray(loaded.data)
    if hasattr(loaded, "labels"):  # SVHN: channels first, `labels` for `targets`
        return images.transpose(0, 2, 3, 1), np.asarray(loaded.labels)
    if images.ndim == 3:  # FashionMNIST: gray, no channel
        images = images[..., None]
    return images, np.asarray(loaded.targets, dtype=np.int64)


def _joined(first: NDArray[Scalar], more: NDArray[Scalar]) -> NDArray[Scalar]:
    """Both arrays, one after the other and contiguous, in one copy: SVHN's take 2 GB."""
    both = np.empty((len(first) + len(more), *first.shape[1:]), dtype=first.dtype)
    both[: len(first)], both[len(first) :] = first, more
    return both
