"""Data so small or so alike that measures are undefined: no stage ends in a traceback."""

import json

import numpy as np
import polars as pl
import pytest
from commands import cltools
from small import small_config

from cltools.config.cells import canonical_cell
from cltools.data.store import write_store


def store_of(folder, name, train, test, seed):
    """A store of 8x8 images: `train` and `test` are their labels. Without a seed all are black."""
    classes = sorted(set(train) | set(test))

    def images(labels, stream):
        pixels = np.zeros((len(labels), 8, 8, 1), dtype=np.uint8)
        if seed is not None:
            rng = np.random.default_rng([seed, stream])
            pixels = rng.integers(0, 256, pixels.shape, dtype=np.uint8)
        return pixels, np.array(labels)

    splits = {"train": images(train, 0), "test": images(test, 1)}
    write_store(folder, name, [f"class {c}" for c in classes], splits, {})
    return folder


@pytest.mark.parametrize(
    ("train", "test", "seed"),
    [
        ([0, 1] * 4, [0, 0, 1], 0),
        ([0, 1, 2, 3], [0, 1, 2, 3], 0),
        ([0, 1, 2] * 3, [0, 1, 2] * 2, None),
    ],
    ids=["three test images", "one image of each class", "all images black"],
)
def test_every_stage_ends_well(tmp_path, train, test, seed):
    config = small_config(batch_size=4, projector_hidden=8, projector_dim=4)
    (tmp_path / "config.yaml").write_text(config)
    said = [cltools("plan", tmp_path / "config.yaml", "--output", tmp_path / "plan.json")]
    ((_, entry),) = json.loads((tmp_path / "plan.json").read_text())["cells"].items()
    store = store_of(tmp_path / "store", entry["cell"]["dataset"], train, test, seed)
    manifest = tmp_path / "cell" / "trained-2epochs.json"
    said += [
        cltools("train", "--cell", canonical_cell(entry["cell"]), "--store", store, "--run",
                tmp_path / "cell/run", "--manifest", manifest),
        cltools("embed", manifest, "--store", store, "--done", tmp_path / "embedded.json"),
        cltools("measure", manifest, "--done", tmp_path / "measured.json", "--full-at", "all"),
        cltools("theory", manifest, "--measured", tmp_path / "measured.json", "--store", store,
                "--done", tmp_path / "theory.json", "--settings", '{"power_iterations": 2}'),
        cltools("collect", tmp_path / "measured.json", tmp_path / "theory.json", "--plan",
                tmp_path / "plan.json", "--measures", tmp_path / "measures.parquet", "--log",
                tmp_path / "log.parquet", "--theory", tmp_path / "theory.parquet"),
    ]  # fmt: skip
    assert not any("Warning" in words for words in said), said
    measures = pl.read_parquet(tmp_path / "measures.parquet")
    assert set(measures["split"]) > {"train", "test"}
    proved = pl.read_parquet(tmp_path / "theory.parquet").filter(kind="bound")
    assert len(proved) > 50
    assert proved["holds"].drop_nulls().all()
