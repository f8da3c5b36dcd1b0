"""Stage `project`: features of some images in the plane, for the networks of a cell.

The images are the same for every objective and checkpoint. Every panel has its own projection,
because the important directions change in training. All panels are then scaled to one size and
rotated or reflected, so that they do not differ in orientation alone: those of DCL onto its next
checkpoint, those of every other objective onto DCL at the same checkpoint.
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
from cltools.runtime.progress import track
from cltools.runtime.sealed import write_table
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
    """Project features of one trained cell and write a tidy parquet to `output`, a row per point.

    Columns: cell, step, epoch, objective, method, split, features, share (of the variance that
    is in the plane; only for principal components, else null), sample (position in the split),
    class, x, y. The points of a panel have a root mean square radius of 1.

    Args:
        manifest: the cell's training manifest.
        store: image store of its data set.
        output: the parquet file.
        settings: keys of the config schema's `project` that replace their defaults.
        recalibrate, device, threads: as `cltools embed` has them.

    Raises:
        InputError: settings that the schema refuses, umap-learn is needed but not installed,
            weights or images are not those of the manifest, features are not finite.
    """
    chosen = with_defaults(settings, "project")
    torch.set_num_threads(threads)
    trained = read_manifest(manifest)
    ((_, opened),) = with_stores([manifest], [store])
    sets = trained_images(opened, trained, manifest, choose_device(device))
    data = sets[chosen["split"]]
    data = data.chosen(some_images(data.labels, chosen["classes"], chosen["images_per_class"]))
    planes, shares = {}, {}
    saved = saved_weights(trained)
    for step, hashes in track(saved, len(saved), "projecting", "checkpoint"):
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
    opened.check()
    write_table(output, pl.concat(tables), {"table": "project", "cell": trained["id"]})


def some_images(labels: Tensor, classes: int, per_class: int) -> Tensor:
    """Positions of the first images of each of the first classes, in ascending order."""
    found = [(labels == c).nonzero()[:per_class, 0] for c in torch.unique(labels)[:classes]]
    return torch.cat(found).sort().values


def all_turned(
    planes: Mapping[tuple[str, int], np.ndarray],
) -> dict[tuple[str, int], np.ndarray]:
    """(objective, step) -> points (n, 2), turned so that equal features look equal.

    The points of the first objective are turned onto those of its next step, the points of other
    objectives onto those of the first objective at the same step.
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
    made = [network(data.normalize(pixels))[("h", "z").index(which)] for pixels in blocks]
    return torch.cat(made).float().cpu().numpy()


def _plane(features: np.ndarray, method: str) -> tuple[np.ndarray, float | None]:
    if method == "pca":
        return principal_plane(features)
    try:
        return umap_plane(features), None
    except ModuleNotFoundError:
        raise InputError(
            "config key project.method is 'umap', but umap-learn is not installed: "
            "run `uv sync --extra umap`, or set it to 'pca'"
        ) from None
