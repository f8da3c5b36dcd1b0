"""Stage `embed`: the outputs of every objective's network for the images, at every checkpoint.

Networks are in evaluation mode. Batch normalization uses the running statistics of training or, on
request, statistics of the plain training images. The views are drawn for evaluation only; training
never uses them. `data.embeddings` describes the files.
"""

import logging
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cltools.cluster.estimates import MB, NETWORK_MB
from cltools.config.projectors import z_width
from cltools.data.embeddings import Samples, new_embeddings, origin, usable_embeddings
from cltools.data.image_set import ImageSet
from cltools.data.store import ImageStore
from cltools.data.views import Recipe, epoch_views
from cltools.layout import (
    PLAIN,
    VERSIONS,
    CellFolder,
    Embeddings,
    MeasureSettings,
    RunFolder,
    measures_table,
    whose,
)
from cltools.runtime.devices import choose_device, computing_in
from cltools.runtime.files import only_process
from cltools.runtime.progress import track
from cltools.runtime.sealed import usable_table, write_json
from cltools.training import recalibration
from cltools.training.manifests import read_manifest, saved_weights
from cltools.training.networks import Network
from cltools.training.trained import BLOCK, load_network, trained_images, with_stores

# Epoch numbers under which the evaluation views are drawn; training counts from 0.
VIEW_EPOCHS = {"train": -1, "test": -2}
NETWORK_BYTES = round(NETWORK_MB * MB)  # of the networks that are in main memory at a time
MOST_FILES = 100  # that are written at a time: systems allow a process some hundreds
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
    Images are read, and their views made, once for all other checkpoints together, as far as their
    networks fit into memory; see `_groups`. The files of such a group get their names when all of
    them are complete, so a call after a kill repeats one group.

    If `embeddings` asks for recalibration, the batch statistics of the networks are first computed
    again from the plain training images, and the files record it. `workers` is described in
    `image_set`. Raises InputError when weights do not match the manifest or the store holds other
    images.
    """
    manifest = read_manifest(manifest_path)
    home = CellFolder.of(manifest_path)
    folder = home.embeddings(embeddings)
    sets = trained_images(store, manifest, manifest_path, device, workers)
    files, missing = [], []
    for step, hashes in saved_weights(manifest):
        path, about = folder.file(step), origin(manifest, step, hashes, embeddings)
        files.append(path)
        if not usable_embeddings(path, about):
            missing.append(_Checkpoint(step, hashes, path, about))
    for group in _groups(missing, home.run, _room(device)):
        networks = [
            {
                objective: load_network(
                    home.run.weights(objective, checkpoint.step), sha, manifest["cell"],
                    sets["train"], objective, device,
                )
                for objective, sha in checkpoint.hashes.items()
            }
            for checkpoint in group
        ]  # fmt: skip
        if embeddings.recalibrated:
            every = [network for of_step in networks for network in of_step.values()]
            recalibration.recalibrate_all(every, sets["train"])
        with _precision(manifest["cell"], embeddings, device):
            _embed_group(manifest["cell"], group, networks, sets, store)
    return files


def _precision(
    cell: Mapping[str, Any], made: Embeddings, device: torch.device
) -> AbstractContextManager[None]:
    """Let networks compute in the precision of their training, if `made` says so, on a GPU."""
    as_trained = device.type == "cuda" and made.precision == "training"
    return computing_in(cell["precision"] if as_trained else "float32", device)


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint whose embeddings are to be made: hashes by objective, and what is recorded."""

    step: int
    hashes: Mapping[str, str]
    path: Path
    about: Mapping[str, Any]


def _room(device: torch.device) -> int:
    """Bytes that networks may take while images are embedded."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2  # the rest is for what their layers put out
    return NETWORK_BYTES


def _groups(missing: list[_Checkpoint], run: RunFolder, room: int) -> list[list[_Checkpoint]]:
    """The checkpoints in groups whose networks together take at most `room` bytes, or one alone."""
    groups: list[list[_Checkpoint]] = []
    taken = 0
    for checkpoint in missing:
        weights = [run.weights(objective, checkpoint.step) for objective in checkpoint.hashes]
        size = sum(path.stat().st_size for path in weights if path.exists())  # else said on loading
        if not groups or taken + size > room or len(groups[-1]) == MOST_FILES:
            groups.append([])
            taken = 0
        groups[-1].append(checkpoint)
        taken += size
    return groups


@torch.inference_mode()
def _embed_group(
    cell: dict[str, Any],
    group: list[_Checkpoint],
    networks: list[dict[str, Network]],
    sets: dict[str, ImageSet],
    store: ImageStore,
) -> None:
    """Write the files of some checkpoints; `networks` are those of each, by objective."""
    samples = Samples(
        {split: data.labels.numpy() for split, data in sets.items()},
        {split: data.samples.numpy() for split, data in sets.items()},
    )
    features = next(iter(networks[0].values())).encoder.features
    widths = {
        "feature": features,
        "dimension": z_width(cell, features),
        "view": cell["views"],
    }
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                new_embeddings(made.path, list(made.hashes), samples, widths, made.about)
            )
            for made in group
        ]
        images = stack.enter_context(closing(_images(cell, sets)))
        blocks = sum(-(-len(data.labels) // BLOCK) for data in sets.values())
        first = 0
        for plain, views in track(images, blocks, "embedding", "block"):
            for of_step, writer in zip(networks, writers, strict=True):
                outputs = [network(plain) for network in of_step.values()]
                viewed = [
                    torch.stack([network(images)[1] for images in views])
                    for network in of_step.values()
                ]
                writer.write(
                    first,
                    h=_stacked([h for h, _ in outputs]),
                    z=_stacked([z for _, z in outputs]),
                    z_views=_stacked(viewed),
                )
            first += len(plain)
        store.check()


def _images(
    cell: dict[str, Any], sets: dict[str, ImageSet]
) -> Generator[tuple[Tensor, list[Tensor]], None, None]:
    """The images of all splits in blocks of `BLOCK`, normalized: plain ones, and their K views."""
    recipe = Recipe.from_settings(cell["recipe"])
    for split, data in sets.items():
        views = epoch_views(
            cell["seed"], VIEW_EPOCHS[split], cell["views"], data.split_size, data.samples,
            recipe, *data.extent,
        )  # fmt: skip
        with closing(data.plain_and_views(views, recipe, BLOCK)) as blocks:
            for pixels, views_of_them in blocks:
                yield data.normalize(pixels), [data.normalize(view) for view in views_of_them]


def _stacked(tensors: list[Tensor]) -> NDArray[np.float32]:
    """One array (objective, ...)."""
    found: NDArray[np.float32] = torch.stack(tensors).float().cpu().numpy()
    return found
