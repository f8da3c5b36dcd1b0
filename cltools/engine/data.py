"""From the image store to the images of one cell on the device."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cltools.engine.store import ImageStore, Subset
from cltools.errors import InputError
from cltools.files import read_json


@dataclass(frozen=True)
class ImageSet:
    """The images of one cell and split, on the device.

    images (n, H, W, c) uint8; labels (n,) 0..C-1 on the CPU; samples (n,) positions in the split,
    on the CPU; split_size images in the whole split; mean, std (c,) of the data set in [0, 1].
    """

    images: Tensor
    labels: Tensor
    samples: Tensor
    split_size: int
    classes: int
    mean: Tensor
    std: Tensor

    def pixels(self, positions: Tensor) -> Tensor:
        """Images at `positions` (on the device) as floats (n, c, H, W) in [0, 1]."""
        return self.images[positions].permute(0, 3, 1, 2).float().div_(255)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Standardised by channel, in the memory format that convolutions want."""
        standard = (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        return standard.contiguous(memory_format=torch.channels_last)


PER_CLASS = {"train": "images_per_class", "test": "test_images_per_class"}


def open_store(folder: Path, cell: dict[str, Any]) -> ImageStore:
    """The cell's image store. Raises InputError when it holds another data set."""
    store = ImageStore.open(folder)
    if store.name != cell["dataset"]:
        raise InputError(
            f"the store {folder} holds {store.name!r}, but the cell is of {cell['dataset']!r}: "
            "give the store of that data set"
        )
    return store


def with_stores(
    manifests: Iterable[Path], store_folders: Iterable[Path]
) -> Iterator[tuple[Path, ImageStore]]:
    """Each training manifest's path with the store that carries the name of its data set.

    Raises InputError when there is none.
    """
    stores = {store.name: store for store in map(ImageStore.open, store_folders)}
    for path in manifests:
        dataset = read_json(path, made_by="cltools train")["cell"]["dataset"]
        if dataset not in stores:
            raise InputError(
                f"{path} was trained on {dataset!r}, but the stores given hold "
                f"{', '.join(map(repr, stores))}: give the store of that data set"
            )
        yield path, stores[dataset]


def cell_subset(store: ImageStore, cell: dict[str, Any], split: str) -> Subset:
    """The images that a cell uses of a split ("train" or "test"). Raises InputError.

    Only training sets are unbalanced on demand: accuracies stay those of a balanced test set.
    """
    imbalance = cell["imbalance"] if split == "train" else 1.0
    return store.subset(
        split, cell["classes"], cell["class_draw"], cell[PER_CLASS[split]], imbalance
    )


def image_set(
    store: ImageStore, cell: dict[str, Any], split: str, device: torch.device
) -> ImageSet:
    """A cell's images of one split, held on the device as uint8."""
    subset = cell_subset(store, cell, split)
    images = np.ascontiguousarray(store.images[split][subset.indices])
    return ImageSet(
        images=torch.from_numpy(images).to(device),
        labels=torch.from_numpy(subset.labels),
        samples=torch.from_numpy(subset.indices),
        split_size=len(store.labels[split]),
        classes=len(subset.class_ids),
        mean=torch.tensor(store.mean, dtype=torch.float32, device=device),
        std=torch.tensor(store.std, dtype=torch.float32, device=device),
    )


def trained_images(
    store: ImageStore, manifest: Mapping[str, Any], manifest_path: Path, device: torch.device
) -> dict[str, ImageSet]:
    """The images of both splits, "train" and "test", of a trained cell.

    Raises InputError when the store holds other images than the cell was trained on.
    """
    if store.content != manifest["store"]:
        raise InputError(
            f"the store {store.folder} holds other images than {manifest_path} was trained on: "
            "prepare that data set again, or delete the cell's folder to train it anew"
        )
    return {split: image_set(store, manifest["cell"], split, device) for split in PER_CLASS}
