"""Stage `project`: what the networks of a cell make of some images, in the plane.

The same images for every objective and checkpoint. Every panel has a projection of its own, since
the directions that matter change in training; all are then brought to one size and turned onto one
another, so that what differs between panels is more than their orientation: DCL's onto its next
checkpoint, every other objective's onto DCL's of the same checkpoint.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from cltools.config.schema import with_defaults
from cltools.data.image_set import ImageSet
from cltools.layout import CellFolder
from cltools.maths.projection import principal_plane, turned, umap_plane
from cltools.runtime.devices import choose_device
from cltools.runtime.errors import InputError
from cltools.runtime.files import whole_file
from cltools.runtime.progress import track
from cltools.training import recalibration
from cltools.training.manifests import read_manifest, saved_weights
from cltools.training.networks import Network
from cltools.training.trained import BLOCK, load_network, trained_images, with_stores


def run(
    *,
    manifest: Path,
    store: Path,
    output: Path,
    settings: Mapping[str, Any],
    recalibrate: bool = False,
    device: str = "auto",
    threads: int = 1,
) -> None:
    """Project features of one trained cell and write a tidy parquet, one row a point, to `output`.

    Columns: cell, step, epoch, objective, method, split, features, share
    (of the variance in the plane; null but for principal components), sample (position in the
    split), class, x, y. A picture has a root mean square radius of 1.

    Args:
        manifest: the cell's training manifest.
        store: image store of its data set.
        output: the parquet file.
        settings: keys of the config schema's `project`, in the place of their defaults.
        recalibrate, device, threads: as `cltools embed` has them.

    Raises:
        InputError: settings that the schema refuses, no umap-learn, weights or images that are not
            the manifest's, features that are not finite.
    """
    chosen = with_defaults(settings, "project")
    torch.set_num_threads(threads)
    trained = read_manifest(manifest)
    ((_, opened),) = with_stores([manifest], [store])
    sets = trained_images(opened, trained, manifest, choose_device(device))
    data = sets[chosen["split"]]
    data = data.chosen(some_images(data.labels, chosen["classes"], chosen["images_per_class"]))
    planes, shares = {}, {}
    for step, hashes in track(saved_weights(trained), len(trained["checkpoints"]), "projecting"):
        for objective, sha in hashes.items():
            file = CellFolder.of(manifest).run.weights(objective, step)
            network = load_network(
                file, sha, trained["cell"], sets["train"], objective, data.device
            )
            if recalibrate:
                recalibration.recalibrate(network, sets["train"])
            features = _features(network, data, chosen["features"])
            try:
                plane, share = _plane(features, chosen["method"])
            except ValueError as error:
                raise InputError(f"{file}: {error}: train this cell again") from None
            planes[objective, step], shares[objective, step] = plane, share
    labels, samples = data.labels.numpy(), data.samples.numpy()
    tables = [
        pl.DataFrame(
            {"sample": samples, "class": labels, "x": points[:, 0], "y": points[:, 1]}
        ).select(
            pl.lit(trained["id"]).alias("cell"),
            pl.lit(step, pl.Int64).alias("step"),
            pl.lit(step / trained["steps_per_epoch"], pl.Float64).alias("epoch"),
            pl.lit(objective).alias("objective"),
            pl.lit(chosen["method"]).alias("method"),
            pl.lit(chosen["split"]).alias("split"),
            pl.lit(chosen["features"]).alias("features"),
            pl.lit(shares[objective, step], pl.Float64).alias("share"),
            "sample",
            "class",
            "x",
            "y",
        )
        for (objective, step), points in all_turned(planes).items()
    ]
    with whole_file(output) as scratch:
        pl.concat(tables).write_parquet(scratch)


def some_images(labels: Tensor, classes: int, per_class: int) -> Tensor:
    """Positions of the first images of each of the first classes, in ascending order."""
    found = [(labels == c).nonzero()[:per_class, 0] for c in torch.unique(labels)[:classes]]
    return torch.cat(found).sort().values


def all_turned(
    planes: Mapping[tuple[str, int], np.ndarray],
) -> dict[tuple[str, int], np.ndarray]:
    """(objective, step) -> points: of the first objective, turned onto its next step.

    Those of the others are turned onto the first objective's of the same step, so that equal
    features look equal.
    """
    first = next(iter(planes))[0]
    reference: dict[int, np.ndarray] = {}
    onto = None
    for step in sorted((s for o, s in planes if o == first), reverse=True):
        onto = reference[step] = turned(planes[first, step], onto)
    return {
        (objective, step): reference[step] if objective == first else turned(plane, reference[step])
        for (objective, step), plane in planes.items()
    }


@torch.inference_mode()
def _features(network: Network, data: ImageSet, which: str) -> np.ndarray:
    blocks = data.plain(torch.split(torch.arange(len(data.labels)), BLOCK))
    made = [network(data.normalise(pixels))[("h", "z").index(which)] for pixels in blocks]
    return torch.cat(made).float().cpu().numpy()


def _plane(features: np.ndarray, method: str) -> tuple[np.ndarray, float | None]:
    if method == "pca":
        return principal_plane(features)
    try:
        return umap_plane(features), None
    except ModuleNotFoundError:
        raise InputError(
            "config key project.method is 'umap', but umap-learn is not installed: "
            "run `uv sync --extra umap`, or take 'pca'"
        ) from None
