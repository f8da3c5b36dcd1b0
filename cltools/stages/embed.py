"""Stage `embed`: the outputs of every objective's network for the images, at every checkpoint.

Networks are in evaluation mode. Batch normalization uses the running statistics of training or, on
request, statistics of the plain training images. The views are drawn for evaluation only; training
never uses them. `data.embeddings` describes the files.
"""

import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from cltools.data.embeddings import origin, usable_embeddings, write_embeddings
from cltools.data.image_set import ImageSet
from cltools.data.store import ImageStore
from cltools.data.views import Recipe, epoch_views
from cltools.layout import (
    PLAIN,
    VERSIONS,
    CellFolder,
    Embeddings,
    MeasureSettings,
    measures_table,
    whose,
)
from cltools.runtime.devices import choose_device
from cltools.runtime.files import only_process
from cltools.runtime.progress import track
from cltools.runtime.sealed import usable_table, write_json
from cltools.training import recalibration
from cltools.training.manifests import read_manifest, saved_weights
from cltools.training.networks import Network
from cltools.training.trained import BLOCK, load_network, trained_images, with_stores

# Epoch numbers under which the evaluation views are drawn; training counts from 0.
VIEW_EPOCHS = {"train": -1, "test": -2}
log = logging.getLogger("cltools")


def run(
    *,
    manifests: list[Path],
    stores: list[Path],
    done: Path,
    embeddings: Embeddings = PLAIN,
    unless_measured: MeasureSettings | None = None,
    keep: bool = False,
    device: str = "auto",
    threads: int = 1,
    workers: int | None = None,
) -> None:
    """Embed several trained cells and write the list of files, by manifest, to `done`.

    Each cell uses the store that has the name of its data set. `unless_measured` leaves out cells
    that were already measured with these settings: embeddings are large, are deleted after
    measuring, and would not be needed. With `keep`, they are not deleted, even if another
    experiment with the same cells does not need them. Raises InputError when a store is missing,
    and as `embed_cell` does.
    """
    torch.set_num_threads(threads)
    chosen = choose_device(device)
    files: dict[str, list[str]] = {str(path): [] for path in manifests}
    if unless_measured is not None:
        tables = {path: measures_table(path, unless_measured, embeddings) for path in manifests}
        manifests = [m for m, table in tables.items() if not usable_table(table, whose(table, m))]
    for path, store in with_stores(manifests, stores):
        home = CellFolder.of(path)
        with only_process(home.path, wait=True):  # experiments may share cells
            made = embed_cell(path, store, chosen, embeddings, workers)
            files[str(path)] = [str(file) for file in made]
            if keep:
                home.embeddings(embeddings).kept.touch()
    write_json(done, {"files": files, "version": VERSIONS["embed"]})


def embed_cell(
    manifest_path: Path,
    store: ImageStore,
    device: torch.device,
    embeddings: Embeddings = PLAIN,
    workers: int | None = None,
) -> list[Path]:
    """Embed the images of one trained cell at all checkpoints; return the files, in order of steps.

    The files are in a folder beside the manifest. Those that are up to date are not written again.
    If `embeddings` asks for recalibration, the batch statistics of the networks are first computed
    again from the plain training images, and the files record it. `workers` is described in
    `image_set`. Raises InputError when weights do not match the manifest or the store holds other
    images.
    """
    manifest = read_manifest(manifest_path)
    cell, home = manifest["cell"], CellFolder.of(manifest_path)
    folder = home.embeddings(embeddings)
    sets = trained_images(store, manifest, manifest_path, device, workers)
    files = []
    for step, hashes in track(saved_weights(manifest), len(manifest["checkpoints"]), "embedding"):
        path = folder.file(step)
        about = origin(manifest, step, hashes, embeddings)
        files.append(path)
        if usable_embeddings(path, about):
            continue
        networks = {
            objective: load_network(
                home.run.weights(objective, step), sha, cell, sets["train"], objective, device
            )
            for objective, sha in hashes.items()
        }
        if embeddings.recalibrated:
            for network in networks.values():
                recalibration.recalibrate(network, sets["train"])
        dataset = _embed_step(cell, networks, sets, embeddings.dtype)
        store.check()
        write_embeddings(path, dataset, about)
    return files


@torch.inference_mode()
def _embed_step(
    cell: dict[str, Any], networks: dict[str, Network], sets: dict[str, ImageSet], dtype: str
) -> xr.Dataset:
    recipe = Recipe.from_settings(cell["recipe"])
    outputs: dict[str, list[np.ndarray]] = {"h": [], "z": [], "z_views": []}
    for split, data in sets.items():
        views = epoch_views(
            cell["seed"], VIEW_EPOCHS[split], cell["views"], data.split_size, data.samples,
            recipe, *data.extent,
        )  # fmt: skip
        with closing(data.plain_and_views(views, recipe, BLOCK)) as blocks:
            for pixels, views_of_them in blocks:
                plain = [network(data.normalize(pixels)) for network in networks.values()]
                rendered = [data.normalize(view) for view in views_of_them]
                outputs["h"].append(_stacked([h for h, _ in plain], dtype))
                outputs["z"].append(_stacked([z for _, z in plain], dtype))
                viewed = [
                    torch.stack([network(images)[1] for images in rendered])
                    for network in networks.values()
                ]
                outputs["z_views"].append(_stacked(viewed, dtype))
    return xr.Dataset(
        {
            "h": (("objective", "sample", "feature"), np.concatenate(outputs["h"], axis=1)),
            "z": (("objective", "sample", "dimension"), np.concatenate(outputs["z"], axis=1)),
            "z_views": (
                ("objective", "view", "sample", "dimension"),
                np.concatenate(outputs["z_views"], axis=2),
            ),
        },
        coords={
            "objective": list(networks),
            "split": ("sample", np.repeat(list(sets), [len(d.labels) for d in sets.values()])),
            "label": ("sample", np.concatenate([d.labels.numpy() for d in sets.values()])),
            "sample_id": ("sample", np.concatenate([d.samples.numpy() for d in sets.values()])),
        },
    )


def _stacked(tensors: list[Tensor], dtype: str) -> np.ndarray:
    """One array (objective, ...) of the type that is stored."""
    return torch.stack(tensors).float().cpu().numpy().astype(dtype)
