"""A small cell of the digits, an experiment of one such cell, its training; and random colors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cltools.config.cells import resolve_cell
from cltools.config.durations import Duration
from cltools.data.store import write_store
from cltools.stages import train

SMALL = {
    "dataset": "digits",
    "recipe": "digits",
    "horizon": 4,
    "images_per_class": 12,
    "batch_size": 24,
    "projector_hidden": 16,
    "projector_dim": 8,
}


def small_cell(**settings: Any) -> dict[str, Any]:
    """A resolved cell that trains in a moment; `settings` say where it leaves `SMALL`."""
    return resolve_cell({**SMALL, **settings})


def colors_store(folder: Path, side: int) -> Path:
    """A store of 60 random RGB images in five classes, the same in both splits."""
    images = np.random.default_rng(0).integers(0, 256, (60, side, side, 3), dtype=np.uint8)
    splits = dict.fromkeys(("train", "test"), (images, np.arange(60) % 5))
    write_store(folder, "colors", list("abcde"), splits, {})
    return folder


def small_config(**base: Any) -> str:
    """A config of one cell, which trains for two epochs; `base` are further settings of it."""
    config = {
        "experiment": "tiny",
        "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
        "base": {"dataset": "digits", "optimizer": "sgd", "horizon": 2, "checkpoints": [0], **base},
        "sweeps": {"base": {"vary": {"seed": [0]}}},
    }
    return yaml.safe_dump(config)


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder, by name; live rows differ, and are left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.match("live*.csv")
    }


def train_rank(
    cell: dict[str, Any], store: Path, folder: Path, until: str | None = None, **options: Any
) -> None:
    """Train a cell into `folder`, on the CPU. Of several ranks the first writes the manifest.

    The others may be back before it has.
    """
    train.run(
        cell=cell,
        store=store,
        run=folder / "run",
        manifest=folder / "trained.json",
        until=None if until is None else Duration.parse(until),
        **{"device": "cpu", **options},
    )


def train_into(
    cell: dict[str, Any], store: Path, folder: Path, until: str | None = None, **options: Any
) -> dict[str, Any]:
    """Train a cell into `folder`, on the CPU; returns the manifest, which is `trained.json`."""
    train_rank(cell, store, folder, until, **options)
    return json.loads((folder / "trained.json").read_text())
