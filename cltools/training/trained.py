"""Loading the results of training: the networks of a cell and the images it was trained on."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from cltools.data.image_set import ImageSet, image_set
from cltools.data.store import PER_CLASS, ImageStore
from cltools.layout import CellFolder
from cltools.runtime.errors import InputError
from cltools.runtime.progress import numbered
from cltools.runtime.sealed import check_hash
from cltools.runtime.tensors import load_tensors
from cltools.training.labels import class_count
from cltools.training.manifests import read_manifest
from cltools.training.networks import Network, build_network, on_device

# Images per forward pass. With twice as many small images, a CPU takes 1.5 times as long per image.
BLOCK = 256


def load_network(
    path: Path, sha256: str, cell: dict[str, Any], data: ImageSet, objective: str,
    device: torch.device,
) -> Network:  # fmt: skip
    """A trained network in eval mode. Raises InputError as `load_weights`."""
    weights = load_weights(path, sha256)
    classes = class_count(objective, data.classes)
    network = build_network(cell, data.image_shape, classes, objective)
    network.load_state_dict(weights)
    return on_device(network, device).eval()


def load_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Weights by name. Raises InputError when the file is missing or its hash is not `sha256`."""
    remedy = _train_again(path.parents[2])
    check_hash(path, sha256, remedy)
    return load_tensors(path, remedy)[0]


def training_log(path: Path, manifest: Mapping[str, Any]) -> pl.DataFrame:
    """The log of a trained cell, whose manifest lies at `path`.

    Raises InputError when the file is not the one that training wrote.
    """
    file = CellFolder.of(path).run.path / manifest["log"]["file"]
    check_hash(file, manifest["log"]["sha256"], _train_again(path.parent))
    return pl.read_parquet(file, glob=False)


def _train_again(folder: Path) -> str:
    return f"delete the training manifests in {folder} and train this cell again"


def with_stores(
    manifests: Iterable[Path], store_folders: Iterable[Path]
) -> Iterator[tuple[Path, ImageStore]]:
    """The path of each training manifest, with the store of its data set.

    Raises InputError when no store has the name of that data set.
    """
    stores = {store.name: store for store in map(ImageStore.open, store_folders)}
    for path in numbered(list(manifests), "cell"):
        dataset = read_manifest(path)["cell"]["dataset"]
        if dataset not in stores:
            raise InputError(
                f"{path} was trained on {dataset!r}, but the stores given hold "
                f"{', '.join(map(repr, stores))}: give the store of that data set"
            )
        yield path, stores[dataset]


def trained_images(
    store: ImageStore,
    manifest: Mapping[str, Any],
    manifest_path: Path,
    device: torch.device,
    workers: int | None = None,
) -> dict[str, ImageSet]:
    """The images of both splits, "train" and "test", of a trained cell.

    Raises InputError when the store holds other images than the cell was trained on.
    """
    if store.content != manifest["store"]:
        raise InputError(
            f"the store {store.folder} holds other images than {manifest_path} was trained on: "
            "prepare that data set again, or delete the folder of the cell and train it again"
        )
    cell = manifest["cell"]
    return {split: image_set(store, cell, split, device, workers) for split in PER_CLASS}
