"""From the image store to the images of one cell on the device."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cltools.engine.store import ImageStore, Subset
from cltools.engine.trainer import ImageSet
from cltools.errors import InputError

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


def cell_subset(store: ImageStore, cell: dict[str, Any], split: str) -> Subset:
    """The images that a cell uses of a split ("train" or "test"). Raises InputError."""
    return store.subset(split, cell["classes"], cell["class_draw"], cell[PER_CLASS[split]])


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
