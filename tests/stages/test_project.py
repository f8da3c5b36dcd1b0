"""Features in the plane: principal components, turning, and the stage `project`."""

import importlib.util

import numpy as np
import polars as pl
import pytest
import torch
import xarray as xr
from sklearn.decomposition import PCA

from cltools.config.cells import resolve_cell
from cltools.config.experiment import load_experiment
from cltools.layout import CellFolder, Embeddings
from cltools.maths.projection import principal_plane, turned, umap_plane
from cltools.measurements.descriptions import COLUMNS
from cltools.runtime.errors import InputError
from cltools.stages import embed, project, train
from cltools.stages.project import all_turned, some_images
from cltools.training.manifests import read_manifest, saved_weights

OBJECTIVES = ["dcl", "nscl"]


def cloud(seed, n=30, d=7):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * np.linspace(3, 0.5, d)


def turn(points, angle, mirror=False):
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) @ np.diag([1, -1 if mirror else 1])


def test_principal_plane_is_that_of_scikit_learn():
    x = cloud(0)
    points, share = principal_plane(x)
    reference = PCA(2).fit(x)
    theirs = reference.transform(x)
    assert np.abs(points) == pytest.approx(np.abs(theirs))
    assert share == pytest.approx(reference.explained_variance_ratio_.sum())
    assert (points.max(axis=0) >= -points.min(axis=0)).all()
    # The sign of the features is no matter of the picture's.
    assert principal_plane(-x)[0] == pytest.approx(points)


def test_principal_plane_at_the_edges():
    points, share = principal_plane(np.arange(4.0)[:, None])
    assert points[:, 1].tolist() == [0] * 4
    assert share == pytest.approx(1)
    points, share = principal_plane(np.ones((3, 5)))
    assert not points.any()
    assert np.isnan(share)
    with pytest.raises(ValueError, match="finite"):
        principal_plane(np.full((3, 2), np.nan))


@pytest.mark.parametrize("mirror", [False, True])
def test_turned_undoes_place_size_and_orientation(mirror):
    points = turned(cloud(1, d=2))
    assert np.square(points).sum(axis=1).mean() == pytest.approx(1)
    moved = 5 * turn(points, 2.0, mirror) + [3, -8]
    assert turned(moved, points) == pytest.approx(points)
    # And nothing else: what is bent stays bent.
    bent = moved * [1, 2]
    assert turned(bent, points) != pytest.approx(points, abs=0.1)


def test_turned_leaves_a_single_point_alone():
    assert not turned(np.ones((4, 2)), cloud(2, 4, 2)).any()


def test_panels_are_turned_onto_those_of_the_first_objective():
    """The same picture in any orientation at all steps: all panels come out equal."""
    points = turned(cloud(3, d=2))
    keys = [(o, s) for s in (0, 10, 20) for o in ("dcl", "nscl", "ce")]
    planes = {key: turn(points, angle, angle > 4) for angle, key in enumerate(keys)}
    found = all_turned(planes)
    assert list(found) == keys
    for panel in found.values():
        assert panel == pytest.approx(found["dcl", 20])
    assert found["dcl", 20] == pytest.approx(planes["dcl", 20])  # the one that is not turned


def test_some_images_are_the_first_of_the_first_classes():
    labels = torch.tensor([2, 0, 1, 0, 0, 1, 2])
    assert some_images(labels, 2, 2).tolist() == [1, 2, 3, 5]
    assert some_images(labels, 9, 9).tolist() == list(range(7))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("trained")
    small = {
        "dataset": "digits", "recipe": "digits", "horizon": "4 steps", "checkpoints": ["0 steps"],
        "objectives": OBJECTIVES, "images_per_class": 15, "test_images_per_class": 10,
        "batch_size": 30, "projector_hidden": 16, "projector_dim": 8, "optimizer": "sgd",
    }  # fmt: skip
    train.run(
        cell=resolve_cell(small),
        store=digits,
        run=folder / "run",
        manifest=folder / "trained.json",
        device="cpu",
    )
    return folder / "trained.json"


@pytest.mark.parametrize("settings", [{}, {"split": "train", "features": "z", "classes": 3}])
@pytest.mark.parametrize("recalibrate", [False, True])
def test_project(settings, recalibrate, manifest, digits, tmp_path):
    """The plane of what `embed` stores of the same images, up to size and orientation."""
    output = tmp_path / "p.parquet"
    settings = {"images_per_class": 4, **settings}
    project.run(
        manifest=manifest,
        store=digits,
        output=output,
        settings=settings,
        device="cpu",
        recalibrate=recalibrate,
    )
    table = pl.read_parquet(output)
    assert table.columns == list(COLUMNS["project"])
    embed.run(
        manifests=[manifest],
        stores=[digits],
        done=tmp_path / "e.json",
        device="cpu",
        embeddings=Embeddings(recalibrated=recalibrate),
    )
    split, which = settings.get("split", "test"), settings.get("features", "h")
    about = read_manifest(manifest)
    for step, _ in saved_weights(about):
        made = Embeddings(recalibrated=recalibrate)
        file = CellFolder.of(manifest).embeddings(made).file(step)
        stored = xr.load_dataset(file)
        stored = stored.isel(sample=stored.split == split)
        for objective in OBJECTIVES:
            rows = table.filter(objective=objective, step=step)
            assert rows["class"].value_counts()["count"].to_list() == [4] * settings.get(
                "classes", 10
            )
            kept = stored.isel(sample=np.isin(stored.sample_id, rows["sample"]))
            assert kept.label.values.tolist() == rows["class"].to_list()
            x = kept[which].sel(objective=objective).values
            plane, share = principal_plane(x)
            points = rows.select("x", "y").to_numpy()
            assert points == pytest.approx(turned(plane, points), abs=1e-4)
            assert rows["share"][0] == pytest.approx(share, abs=1e-4)
    start = [rows.select("x", "y") for rows in table.filter(step=0).partition_by("objective")]
    assert start[0].to_numpy() == pytest.approx(start[1].to_numpy())  # all start from one encoder
    assert set(table["cell"]) == {about["id"]}


@pytest.mark.skipif(importlib.util.find_spec("umap") is not None, reason="umap-learn is there")
def test_umap_that_is_not_installed(manifest, digits, tmp_path):
    with pytest.raises(InputError, match=r"umap-learn is not installed: run `uv sync --extra umap"):
        project.run(
            manifest=manifest,
            store=digits,
            output=tmp_path / "p.parquet",
            settings={"method": "umap"},
            device="cpu",
        )
    assert not list(tmp_path.iterdir())


def test_umap_parts_what_is_apart():
    pytest.importorskip("umap")
    x = np.concatenate([cloud(4, 40), cloud(5, 40) + 30])
    points = umap_plane(x)
    assert points.shape == (80, 2)
    apart = np.linalg.norm(points[:, None] - points, axis=2) + np.diag([np.inf] * 80)
    assert ((apart.argmin(axis=1) < 40) == (np.arange(80) < 40)).all()
    assert (umap_plane(x) == points).all()


def test_pictures_need_a_base_sweep():
    config = {
        "experiment": "e",
        "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
        "base": {"horizon": 2},
        "sweeps": {"t": {"vary": {"tau": [0.1, 0.5]}}, "base": {"vary": {"seed": [3, 4]}}},
        "project": {},
    }
    experiment = load_experiment(config)
    assert experiment.plans[experiment.pictured_cell].cell["seed"] == 3
    del config["sweeps"]["base"]
    with pytest.raises(InputError, match="project needs a sweep that varies only the seed"):
        load_experiment(config)
