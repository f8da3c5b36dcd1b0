"""Stage `embed`: what every objective's network makes of the images, checkpoint by checkpoint.

One netCDF file per checkpoint. With n samples (training images first, then test images):

- `h` (objective, sample, feature): encoder output on the plain images, what the metrics use;
- `z` (objective, sample, dimension): normalised projector output on the plain images;
- `z_views` (objective, view, sample, dimension): the same on K augmented views, what the losses of
  a whole data set are defined on.

Networks are in evaluation mode: batch statistics are the running ones of training or, on request,
those of the plain training images. Evaluation has its own views, which no training epoch sees.
"""

import json
import logging
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from cltools.data.image_set import ImageSet
from cltools.data.store import ImageStore
from cltools.data.views import Recipe, epoch_views
from cltools.layout import VERSIONS, measures_table
from cltools.runtime.devices import choose_device
from cltools.runtime.files import canonical_json, whole_file, write_json
from cltools.runtime.progress import track
from cltools.stages.train import weights_file
from cltools.training import recalibration
from cltools.training.manifests import read_manifest, saved_weights
from cltools.training.networks import Network
from cltools.training.trained import BLOCK, load_network, trained_images, with_stores

VERSION = VERSIONS["embed"]
KEPT = "kept"  # a file of this name says that these embeddings are not to be discarded
# Epoch numbers under which the evaluation views are drawn; training counts from 0.
VIEW_EPOCHS = {"train": -1, "test": -2}
log = logging.getLogger("cltools")


def embedding_folder(cell_folder: Path, recalibrated: bool, dtype: str = "float32") -> Path:
    """Where a cell's embeddings lie; recalibrated ones, and those of another type, lie apart."""
    apart = "-recalibrated" * recalibrated + f"-{dtype}" * (dtype != "float32")
    return cell_folder / f"embeddings{apart}"


def discard(folder: Path) -> None:
    """Remove a folder of embeddings, unless some experiment has it kept."""
    if not (folder / KEPT).exists():
        shutil.rmtree(folder, ignore_errors=True)


def embedding_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.nc"


def embed_cells(
    manifests: list[Path],
    store_folders: list[Path],
    done: Path,
    device_name: str = "auto",
    dtype: str = "float32",
    threads: int = 1,
    recalibrate: bool = False,
    workers: int | None = None,
    unless_measured: str | None = None,
    keep: bool = False,
) -> None:
    """Embed several trained cells and write the list of files, by manifest, to `done`.

    Each cell takes the store that carries the name of its data set. With `unless_measured`, cells
    are left out whose measures with that `full_at` are there: embeddings are large, are deleted
    once measured, and would serve for nothing. With `keep`, they are not deleted, even if another
    experiment with these cells does not want them. Raises InputError when there is no store, and as
    `embed` does.
    """
    torch.set_num_threads(threads)
    device = choose_device(device_name)
    files: dict[str, list[str]] = {str(path): [] for path in manifests}
    if unless_measured is not None:
        manifests = [
            path
            for path in manifests
            if not measures_table(path, unless_measured, recalibrate, dtype).exists()
        ]
    for path, store in with_stores(manifests, store_folders):
        made = embed(path, store, device, dtype, recalibrate, workers)
        files[str(path)] = [str(file) for file in made]
        if keep:
            (embedding_folder(path.parent, recalibrate, dtype) / KEPT).touch()
    write_json(done, {"files": files, "version": VERSION})


def embed(
    manifest_path: Path,
    store: ImageStore,
    device: torch.device,
    dtype: str = "float32",
    recalibrate: bool = False,
    workers: int | None = None,
) -> list[Path]:
    """Embed the images of one trained cell at all its checkpoints; the files, in order of steps.

    They go to `embedding_folder`, beside the manifest; those that are up to date are kept. With
    `recalibrate`, the networks' batch statistics are worked out anew from the plain training images
    first, and the files say so. `workers`: see `image_set`. Raises InputError when weights do not
    match the manifest or the store holds other images.
    """
    manifest = read_manifest(manifest_path)
    cell, run = manifest["cell"], manifest_path.parent / "run"
    folder = embedding_folder(manifest_path.parent, recalibrate, dtype)
    sets = trained_images(store, manifest, manifest_path, device, workers)
    files = []
    for step, hashes in track(saved_weights(manifest), len(manifest["checkpoints"]), "embedding"):
        path = embedding_file(folder, step)
        made_from = {
            "cell": manifest["id"],
            "dtype": dtype,
            "step": step,
            "steps_per_epoch": manifest["steps_per_epoch"],
            "store": store.content,
            "version": VERSION,
            "weights": hashes,
        }
        if recalibrate:
            made_from["recalibrated"] = True
        files.append(path)
        if _made_from(path) == made_from:
            continue
        networks = {
            objective: load_network(
                weights_file(run, objective, step), sha, cell, sets["train"], objective, device
            )
            for objective, sha in hashes.items()
        }
        if recalibrate:
            for network in networks.values():
                recalibration.recalibrate(network, sets["train"])
        dataset = _embed_step(cell, networks, sets, dtype)
        dataset.attrs["cltools"] = canonical_json(made_from)
        with whole_file(path) as scratch:
            # Into memory first: HDF5 can crash as it closes a file on a disk that is full.
            scratch.write_bytes(dataset.to_netcdf(engine="h5netcdf"))
    return files


def _made_from(path: Path) -> dict[str, Any] | None:
    """What an embedding file says it was made from; None where there is no such file."""
    try:
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            return json.loads(dataset.attrs["cltools"])
    except (OSError, KeyError, ValueError):
        return None


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
                plain = [network(data.normalise(pixels)) for network in networks.values()]
                rendered = [data.normalise(view) for view in views_of_them]
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
    """One array (objective, ...) of the storage type."""
    return torch.stack(tensors).float().cpu().numpy().astype(dtype)
