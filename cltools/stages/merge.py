"""Stage `merge`: networks on the line between the weights of the reference and of another.

The reference is DCL, the decoupled contrastive loss, unless the config says another. Both networks
start from the same weights and see the same views, so that an average of their weights may work as
a network too. Batch statistics are computed again for every point of the line, its ends included,
so that only the weights differ along it. The values at the ends therefore differ from those that
`measure` finds for the networks as trained.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cltools import measurements
from cltools.config.schema import with_defaults
from cltools.data.image_set import ImageSet
from cltools.data.store import ImageStore
from cltools.layout import VERSIONS, CellFolder, merge_table, whose
from cltools.maths.alignment import alignment
from cltools.maths.objectives import REFERENCE
from cltools.maths.probes import linear_probe, nccc
from cltools.runtime.devices import choose_device
from cltools.runtime.errors import InputError
from cltools.runtime.progress import track
from cltools.runtime.sealed import usable_table, write_json, write_table
from cltools.training.manifests import read_manifest, saved_weights
from cltools.training.merging import interpolate
from cltools.training.networks import OWN_PARTS, Network, build_network, on_device
from cltools.training.recalibration import recalibrate
from cltools.training.trained import BLOCK, load_weights, trained_images, with_stores

CKA = ("cka", "cosine_biased")
Features = dict[str, np.ndarray]  # split -> h (n, features)
log = logging.getLogger("cltools")


def run(
    *,
    manifests: list[Path],
    stores: list[Path],
    done: Path,
    settings: Mapping[str, Any],
    reference: str = REFERENCE,
    device: str = "auto",
    threads: int = 1,
) -> None:
    """Merge the networks of several trained cells and write the list of tables to `done`.

    Each cell uses the store that has the name of its data set. Raises InputError when a store is
    missing, and as `merge_cell` does.
    """
    torch.set_num_threads(threads)
    chosen = choose_device(device)
    tables = {
        str(path): str(merge_cell(path, store, chosen, settings, reference))
        for path, store in with_stores(manifests, stores)
    }
    write_json(done, {"stage": "merge", "tables": tables, "version": VERSIONS["merge"]})


def merge_cell(
    manifest_path: Path,
    store: ImageStore,
    device: torch.device,
    settings: Mapping[str, Any],
    reference: str = REFERENCE,
) -> Path:
    """Measure merged networks of one cell's last checkpoint; return the tidy parquet file.

    The file is made once, see `merge_table`. `settings` are the keys of the config's `merge`.
    Lines start at `reference`. Objectives that the cell did not train are left out. Raises
    InputError when settings are wrong, the cell did not train the reference, weights do not match
    the manifest or the store holds other images.
    """
    settings = with_defaults(settings, "merge")
    manifest = read_manifest(manifest_path)
    wanted, points = sorted(settings["with"]), settings["points"]
    path = merge_table(manifest_path, settings, reference)
    if usable_table(path, whose(path, manifest_path)):
        return path
    step, weights = _last_weights(manifest_path, manifest, reference, wanted)
    sets = trained_images(store, manifest, manifest_path, device)
    shape, classes = sets["train"].image_shape, sets["train"].classes
    network = build_network(manifest["cell"], shape, classes, reference)
    on_device(network, device)
    at = {"step": step, "epoch": step / manifest["steps_per_epoch"]}
    rows = [{**at, **row} for row in _lines(network, weights, sets, points)]
    store.check()
    write_table(path, measurements.tidy(rows), whose(path, manifest_path))
    return path


def _last_weights(
    manifest_path: Path, manifest: dict[str, Any], reference: str, wanted: list[str]
) -> tuple[int, dict[str, dict[str, Tensor]]]:
    """The last step, and the weights of the reference and the wanted objectives, without heads.

    Weights are objective -> name -> tensor. Raises InputError when the cell did not train the
    reference.
    """
    step, hashes = saved_weights(manifest)[-1]
    if reference not in hashes:
        raise InputError(
            f"{manifest_path} has no network of {reference!r} to merge others with: "
            "add it to the cell's objectives, or take its sweep out of merge.sweeps"
        )
    weights = {}
    for objective in (reference, *wanted):
        if objective not in hashes:
            log.info("%s did not train %s: not merged", manifest_path, objective)
            continue
        file = CellFolder.of(manifest_path).run.weights(objective, step)
        named = load_weights(file, hashes[objective])
        weights[objective] = {n: w for n, w in named.items() if not n.startswith(OWN_PARTS)}
    return step, weights


def _lines(
    network: Network,
    weights: Mapping[str, Mapping[str, Tensor]],
    sets: Mapping[str, ImageSet],
    points: int,
) -> Iterator[measurements.Row]:
    """Rows of the lines from the first of `weights` to each of the others.

    The weights of `network` are overwritten.
    """
    start, *others = weights
    labels = {split: data.labels.numpy() for split, data in sets.items()}
    decimals = max(2, len(str(points - 2)))  # enough to tell the points apart
    first = _features(network, weights[start], sets)
    for other in others:
        last = _features(network, weights[other], sets)
        for point in track(range(points), points, f"merging {start} and {other}", "point"):
            weight = point / (points - 1)
            if point in (0, points - 1):
                h = last if point else first
            else:
                h = _features(network, interpolate(weights[start], weights[other], weight), sets)
            variant = f"lambda_{weight:.{decimals}f}"
            for row in _rows(h, first, last, labels):
                yield {"objective": other, "reference": start, "variant": variant, **row}


def _features(
    network: Network, weights: Mapping[str, Tensor], sets: Mapping[str, ImageSet]
) -> Features:
    """h of all images with these weights, and with batch statistics computed for them."""
    network.load_state_dict(weights)
    recalibrate(network, sets["train"])
    return {split: _encode(network, data) for split, data in sets.items()}


@torch.inference_mode()
def _encode(network: Network, data: ImageSet) -> np.ndarray:
    blocks = data.plain(torch.split(torch.arange(len(data.labels)), BLOCK))
    encoded = [network.encoder(data.normalize(pixels)).cpu() for pixels in blocks]
    return torch.cat(encoded).numpy()


def _rows(
    h: Features, first: Features, last: Features, labels: Mapping[str, np.ndarray]
) -> Iterator[measurements.Row]:
    """Accuracies in [0, 1] of h, and its CKA with the h of both ends of the line."""
    probed = (h["train"], labels["train"], h["test"], labels["test"])
    accuracies = zip(nccc(*probed), linear_probe(*probed)[:2], strict=True)
    for (split, y), (centers, probe) in zip(labels.items(), accuracies, strict=True):
        arrays = {"h": h[split], "first": first[split], "last": last[split]}
        cka = alignment(arrays, [("first", "h"), ("last", "h")], [CKA])
        values = {
            "merged_nccc": centers,
            "merged_linear_probe": probe,
            "merged_cka": cka["first", "h"][CKA],
            "merged_cka_to_objective": cka["last", "h"][CKA],
        }
        for metric, value in values.items():
            yield {"split": split, "features": "h", "metric": metric, "value": value, "n": len(y)}
