"""The worked examples of docs/extend/: their patches apply, and what they add works."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import polars as pl
import pytest
import yaml
from places import ROOT

PAGES = sorted((ROOT / "docs/extend").glob("*.md"))
OBJECTIVE = ROOT / "docs/extend/objective.md"
CONFIG = {
    "experiment": "extended",
    "base": {
        "dataset": "mine",
        "batch_size": 20,
        "projector_hidden": 16,
        "projector_dim": 8,
        "optimizer": "sgd",
        "horizon": 2,
        "checkpoints": [0],
    },
    "sweeps": {"base": {"vary": {"seed": [0, 1]}}},
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.+?)^```$", page.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with all patches applied."""
    folder = tmp_path_factory.mktemp("extended")
    for part in ("cltools", "workflow", "config"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "slurm").mkdir()
    for page in PAGES:
        for number, patch in enumerate(blocks(page, "diff")):
            file = folder / f"{page.stem}-{number}.diff"
            file.write_text(patch)
            subprocess.run(["git", "apply", "-p1", file.name], cwd=folder, check=True)
    _install_own_objectives(folder)
    return folder


def _install_own_objectives(folder):
    """What `pip install` makes of the package on the page: its module, and its entry points."""
    (module,), (project,) = (blocks(OBJECTIVE, language) for language in ("python", "toml"))
    (folder / "my_objectives.py").write_text(module)
    points = tomllib.loads(project)["project"]["entry-points"]
    about = folder / "my_objectives-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my_objectives\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{name} = {at}\n" for name, at in named.items())
             for group, named in points.items()]  # fmt: skip
    (about / "entry_points.txt").write_text("\n".join(lines))


def run(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_there_is_a_page_for_each():
    assert [page.stem for page in PAGES] == ["data_set", "figure", "metric", "objective"]
    assert all(blocks(page, "diff") for page in PAGES)


@pytest.mark.slow
def test_the_objectives_are_the_published_ones(extended):
    """Their values against loops over anchors and other images of their view, and over pairs."""
    script = """
import torch
from cltools.maths.objectives import pair_masks
from cltools.objectives import Outputs, find
z = torch.nn.functional.normalize(torch.randn(2, 5, 4, dtype=torch.float64), dim=2)
terms = [
    -z[a, i] @ z[1 - a, i] / 0.5
    + torch.stack([z[a, i] @ z[a, j] / 0.5 for j in range(5) if j != i]).logsumexp(0)
    for a in range(2) for i in range(5)
]
labels = torch.arange(5) % 2
loss = find("dhel").loss(Outputs(z, labels, 0.5, pair_masks(labels, 2)))
torch.testing.assert_close(loss, torch.stack(terms).mean())

apart = [(z[v, i] - z[v, j]).square().sum() for v in (0, 1) for i in range(5) for j in range(i)]
uniformity = torch.stack(apart).mul(-2).exp().view(2, -1).mean(dim=1).log().mean()
alignment = torch.stack([(z[0, i] - z[1, i]).square().sum() for i in range(5)]).mean()
loss = find("align_uniform").loss(Outputs(z, labels, 0.5, pair_masks(labels, 2)), weight=0.5)
torch.testing.assert_close(loss, alignment + 0.5 * uniformity)
"""
    run(extended, "-c", script)


@pytest.mark.slow
def test_they_work_together(extended):
    """The new objective is trained on the new data set, the new metric measured and drawn."""
    noise = np.random.default_rng(0)
    arrays = {
        "images": noise.integers(0, 256, (60, 8, 8, 1), np.uint8),
        "labels": np.arange(60) % 3,
    }
    np.savez(extended / "mine.npz", **arrays)
    config = dict(CONFIG)
    for page in PAGES:
        for text in blocks(page, "yaml"):
            for key, value in yaml.safe_load(text).items():
                config[key] = {**config.get(key, {}), **value}
    (extended / "mine.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    figure = "results/extended/figures/norm_variation"
    snakemake = ("-m", "snakemake", f"{figure}.csv", "--cores", "1", "--configfile", "mine.yaml")
    run(extended, *snakemake)
    drawn = pl.read_csv(extended / f"{figure}.csv")
    assert set(drawn["objective"]) == {"dcl", "nscl", "dhel", "align_uniform"}
    assert (drawn["value"] > 0).all()
    measures = pl.read_parquet(extended / "results/extended/measures.parquet")
    found = measures.filter(metric="norm_variation", features="h")["value"]
    assert sorted(found) == pytest.approx(sorted(drawn["value"]))
    log = pl.read_parquet(extended / "results/extended/training_log.parquet")
    assert log.filter(model="dhel")["dhel"].is_finite().all()
    own = log.filter(model="align_uniform")
    assert own["align_uniform"].is_finite().all()
    assert own["z_rank"].min() > 1
    (manifest, *_) = (extended / "results/cells").glob("*/trained-*.json")
    assert json.loads(manifest.read_text())["made_by"]["objectives"] == {
        "align_uniform": "my_objectives 1.0"
    }
