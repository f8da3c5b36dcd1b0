"""Stage `layers`: how similar the networks of a cell are, layer by layer.

The images of one split pass through the networks of all objectives at once, checkpoint by
checkpoint, from the weights that training kept. What the layers put out is written to files without
a name, so that memory does not grow with the number of images, and compared.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from cltools import measurements
from cltools.config.schema import with_defaults
from cltools.data.image_set import ImageSet
from cltools.data.store import ImageStore
from cltools.layout import VERSIONS, CellFolder, layers_table, step_of, unfinished, whose
from cltools.maths.objectives import REFERENCE
from cltools.measurements.layers import Layers
from cltools.runtime.devices import choose_device, computing_in
from cltools.runtime.files import only_process
from cltools.runtime.progress import track
from cltools.runtime.sealed import read_table, usable_table, write_json, write_table
from cltools.training import recalibration
from cltools.training.layers import Taps
from cltools.training.manifests import read_manifest, saved_weights
from cltools.training.networks import Network
from cltools.training.trained import BLOCK, load_network, trained_images, with_stores

AGAIN = "run `cltools layers` on this cell again"


def run(
    *,
    manifests: list[Path],
    stores: list[Path],
    done: Path,
    settings: Mapping[str, Any],
    reference: str = REFERENCE,
    recalibrate: bool = False,
    device: str = "auto",
    threads: int = 1,
    workers: int | None = None,
) -> None:
    """Compare the layers of several trained cells and write the list of tables to `done`.

    Each cell uses the store that has the name of its data set. With `recalibrate`, batch statistics
    are first computed again from the plain training images. Raises InputError when a store is
    missing, and as `compare_layers` does.
    """
    torch.set_num_threads(threads)
    chosen = choose_device(device)
    tables = {}
    for path, store in with_stores(manifests, stores):
        with only_process(CellFolder.of(path).path, wait=True):  # experiments may share cells
            table = compare_layers(path, store, chosen, settings, reference, recalibrate, workers)
        tables[str(path)] = str(table)
    write_json(done, {"stage": "layers", "tables": tables, "version": VERSIONS["layers"]})


def compare_layers(
    manifest_path: Path,
    store: ImageStore,
    device: torch.device,
    settings: Mapping[str, Any],
    reference: str = REFERENCE,
    recalibrate: bool = False,
    workers: int | None = None,
) -> Path:
    """Compare the layers of one trained cell's networks; return the tidy parquet file.

    The file is made once, see `layers_table`. Until it is complete, the rows of each checkpoint are
    kept in a folder beside it, from where a call after a kill continues. `settings` are the keys of
    the config's `layers`. Every layer is compared with the same layer of `reference` and with
    itself before training; at the last step with all layers of the reference. Raises InputError
    when settings are wrong, weights do not match the manifest or the store holds other images.
    """
    settings = with_defaults(settings, "layers")
    manifest = read_manifest(manifest_path)
    path = layers_table(manifest_path, settings, reference, recalibrate)
    if usable_table(path, whose(path, manifest_path)):
        return path
    sets = trained_images(store, manifest, manifest_path, device, workers)
    saved = dict(saved_weights(manifest))
    last = max(saved)
    wanted = [step for step in saved if step == last or settings["at"] == "all"]
    parts = {step: step_of(path, step) for step in wanted}
    missing = [s for s, part in parts.items() if not usable_table(part, whose(part, manifest_path))]
    with ExitStack() as files:
        outputs = _Outputs(
            manifest, CellFolder.of(manifest_path), sets, settings["split"], recalibrate, device
        )
        starts = outputs.starts(saved[0], files) if missing and 0 in saved else {}
        for step in track(missing, len(missing), "comparing layers", "checkpoint"):
            with ExitStack() as of_step:
                networks = starts if step == 0 else outputs.at(step, saved[step], of_step)
                labels = outputs.images.labels.numpy()
                made = measurements.LayerOutputs(networks, starts, labels, reference, device)
                at = {"step": step, "epoch": step / manifest["steps_per_epoch"],
                      "split": settings["split"], "n": len(labels)}  # fmt: skip
                rows = [{**at, **row} for row in measurements.layer_rows(made, step == last)]
                table = measurements.tidy_layers(rows)
                write_table(parts[step], table, whose(parts[step], manifest_path))
    store.check()
    tables = [read_table(part, AGAIN, whose(part, manifest_path)) for part in parts.values()]
    write_table(path, pl.concat(tables).rechunk(), whose(path, manifest_path))
    shutil.rmtree(unfinished(path))
    return path


class _Outputs:
    """What the layers of a cell's networks put out for all images of a split."""

    def __init__(
        self,
        manifest: dict[str, Any],
        home: CellFolder,
        sets: dict[str, ImageSet],
        split: str,
        recalibrate: bool,
        device: torch.device,
    ) -> None:
        self._manifest, self._home, self._sets = manifest, home, sets
        self._recalibrate, self._device = recalibrate, device
        self.images = sets[split]

    def starts(self, hashes: Mapping[str, str], files: ExitStack) -> Layers:
        """`at` before training; objectives that start from the same weights share one mapping."""
        if "init" not in self._manifest["cell"]["coupling"]:
            return self.at(0, hashes, files)
        first = next(iter(hashes))
        return dict.fromkeys(hashes, self.at(0, {first: hashes[first]}, files)[first])

    @torch.inference_mode()
    def at(self, step: int, hashes: Mapping[str, str], files: ExitStack) -> Layers:
        """Objective -> layer -> (n, d) at a step; they can be read until `files` is closed."""
        networks = {o: self._network(o, step, sha) for o, sha in hashes.items()}
        if self._recalibrate:
            recalibration.recalibrate_all(list(networks.values()), self._sets["train"])
        with ExitStack() as tapped, computing_in("float32", self._device):
            taps = {o: tapped.enter_context(Taps(network)) for o, network in networks.items()}
            written: dict[str, dict[str, _Rows]] = {o: {} for o in networks}
            for images in self._blocks():
                for objective, tap in taps.items():
                    for layer, rows in tap.of(images).items():
                        if layer not in written[objective]:
                            file = files.enter_context(TemporaryFile(dir=self._home.path))
                            written[objective][layer] = _Rows(file, rows.shape[1])
                        written[objective][layer].add(rows)
        return {o: {layer: rows.read() for layer, rows in of.items()} for o, of in written.items()}

    def _network(self, objective: str, step: int, sha: str) -> Network:
        file = self._home.run.weights(objective, step)
        cell, train = self._manifest["cell"], self._sets["train"]
        return load_network(file, sha, cell, train, objective, self._device)

    def _blocks(self) -> Iterator[Tensor]:
        """The images, normalized, some at a time."""
        positions = torch.split(torch.arange(len(self.images.labels)), BLOCK)
        return map(self.images.normalize, self.images.plain(positions))


class _Rows:
    """Rows (n, d) of float32 that are written to a file, and then read from it."""

    def __init__(self, file: IO[bytes], width: int) -> None:
        self._file, self._width, self._count = file, width, 0

    def add(self, rows: Tensor) -> None:
        """Raises OSError where the disk is full."""
        self._file.write(np.ascontiguousarray(rows.cpu().numpy()).data)
        self._count += len(rows)

    def read(self) -> np.ndarray:
        self._file.flush()
        return np.memmap(self._file, np.float32, "r", shape=(self._count, self._width))
