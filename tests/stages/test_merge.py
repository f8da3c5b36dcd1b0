"""Batch statistics worked out anew, networks between networks, and the stage `merge`."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import xarray as xr
from small import small_cell

from cltools.config.durations import Duration
from cltools.data.image_set import image_set
from cltools.data.store import ImageStore
from cltools.layout import Embeddings
from cltools.maths.randomness import initialize
from cltools.runtime.errors import InputError
from cltools.runtime.files import sha256_file
from cltools.runtime.sealed import write_json
from cltools.stages import embed, merge, prepare, train
from cltools.stages.embed import embed_cell
from cltools.stages.merge import merge_cell
from cltools.training.merging import interpolate
from cltools.training.networks import build_network
from cltools.training.recalibration import Norm, recalibrate

CPU = torch.device("cpu")
KEYS = ["step", "split", "objective", "reference", "features", "metric", "variant"]
METRICS = {"merged_nccc", "merged_linear_probe", "merged_cka", "merged_cka_to_objective"}


cell = partial(
    small_cell,
    horizon="12 steps",
    checkpoints=["0 steps", "1 steps"],
    images_per_class=15,
    test_images_per_class=10,
    batch_size=30,
    optimizer="sgd",
    lr=0.2,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, digits):
    """A trained cell of four objectives."""
    folder = tmp_path_factory.mktemp("trained")
    train.run(
        cell=cell(),
        store=digits,
        run=folder / "run",
        manifest=folder / "trained.json",
        device="cpu",
    )
    return folder / "trained.json"


@pytest.fixture
def copied(manifest, tmp_path):
    """The same cell in a folder of its own, without what stages made of it."""
    shutil.copytree(manifest.parent / "run", tmp_path / "cell/run")
    shutil.copy(manifest, tmp_path / "cell")
    return tmp_path / "cell/trained.json"


@pytest.fixture
def data(digits):
    return image_set(ImageStore.open(digits), cell(), "train", CPU)


def network_of(data, seed=0):
    network = build_network(cell(), data.image_shape, data.classes, "dcl")
    initialize(network, seed)
    return network.to(memory_format=torch.channels_last)


def norms(network):
    return {name: norm for name, norm in network.named_modules() if isinstance(norm, Norm)}


def values_by_channel(x):
    return x.double().transpose(0, 1).flatten(1)


@pytest.mark.parametrize("block", [512, 64, 40])
def test_statistics_are_those_of_all_values(data, block):
    """150 images in one block, in three of 50, and in four of 37 and 38."""
    network, given = network_of(data), {}
    for name, norm in norms(network).items():
        norm.register_forward_pre_hook(
            lambda _, inputs, name=name: given.setdefault(name, []).append(inputs[0].clone())
        )
    recalibrate(network, data, block)
    # What the first layer is given does not depend on how the images came.
    with torch.no_grad():
        first = network.encoder.conv1(data.normalize(data.pixels(torch.arange(150))))
    assert sorted(len(x) for x in given["encoder.bn1"]) == {
        512: [150], 64: [50, 50, 50], 40: [37, 37, 38, 38],
    }[block]  # fmt: skip
    assert len(given) == 11
    given = {name: torch.cat([values_by_channel(x) for x in xs], 1) for name, xs in given.items()}
    given["encoder.bn1"] = values_by_channel(first)
    for name, norm in norms(network).items():
        x = given[name]
        assert norm.running_mean.numpy() == pytest.approx(x.mean(1).numpy(), rel=1e-5, abs=1e-6)
        assert norm.running_var.numpy() == pytest.approx(x.var(1).numpy(), rel=1e-5)


def test_recalibration_forgets_and_repeats(data):
    """The result does not depend on what was there before, nor on the global random state."""
    states = []
    for before in (0.0, math.nan):
        network = network_of(data)
        for norm in norms(network).values():
            norm.running_mean.fill_(before)
            norm.running_var.fill_(before)
        torch.manual_seed(len(states))
        recalibrate(network, data, 64)
        assert not any(module.training for module in network.modules())
        states.append(network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    parameters = network_of(data).named_parameters()
    assert all(torch.equal(value, states[0][name]) for name, value in parameters)


def test_recalibrated_network_is_that_of_training(data):
    """On one block, evaluation with the new statistics is what train mode computes."""
    network = network_of(data)
    images = data.normalize(data.pixels(torch.arange(len(data.labels))))
    with torch.no_grad():
        h, z = network.train()(images)
        recalibrate(network, data)
        for got, expected in zip(network(images), (h, z), strict=True):
            # Train mode divides by biased deviations.
            assert torch.linalg.norm(got - expected) < 0.01 * torch.linalg.norm(expected)


def test_one_image_has_no_statistics(data):
    network = network_of(data)
    with pytest.raises(ValueError, match="more than 1 value"):
        recalibrate(network, data, block=1)
    assert not network.training


def test_interpolation(data):
    a, b = (network_of(data, seed).state_dict() for seed in (0, 1))
    b["encoder.bn1.num_batches_tracked"] = torch.tensor(7)
    for weight, expected in ((0.0, a), (1.0, b)):
        got = interpolate(a, b, weight)
        assert list(got) == list(a)
        assert all(torch.equal(got[n], expected[n]) for n in a if a[n].is_floating_point())
        assert got["encoder.bn1.num_batches_tracked"] == 0
    middle = interpolate(a, b, 0.5)["encoder.conv1.weight"]
    assert torch.allclose(middle, (a["encoder.conv1.weight"] + b["encoder.conv1.weight"]) / 2)
    quarter = interpolate(a, b, 0.25)["projector.0.weight"]
    expected = 0.75 * a["projector.0.weight"] + 0.25 * b["projector.0.weight"]
    assert torch.allclose(quarter, expected, atol=1e-7)
    assert all(torch.equal(value, a[name]) for name, value in interpolate(a, a, 0.3).items())


def test_interpolation_of_different_networks(data):
    a = network_of(data).state_dict()
    fewer = {name: value for name, value in a.items() if name != "projector.0.weight"}
    for other in (fewer, {**a, "projector.0.weight": torch.zeros(3)}):
        with pytest.raises(ValueError, match=r"differ in their tensors: \['projector.0.weight'\]"):
            interpolate(a, other, 0.5)


def test_table(manifest, digits, tmp_path):
    done = tmp_path / "merged.json"
    merge.run(
        manifests=[manifest],
        stores=[digits],
        done=done,
        settings={"with": ["nscl", "ce"], "points": 5},
        device="cpu",
    )
    listed = json.loads(done.read_text())
    assert (listed["stage"], set(listed)) == ("merge", {"seal", "stage", "tables", "version"})
    table = pl.read_parquet(listed["tables"][str(manifest)])
    assert not table.select(KEYS).is_duplicated().any()
    assert len(table) == 2 * 5 * 2 * len(METRICS)  # objectives, points, splits
    assert set(table["metric"]) == METRICS
    assert set(table["objective"]) == {"nscl", "ce"}
    assert set(zip(table["split"], table["n"], strict=True)) == {("train", 150), ("test", 100)}
    constant = table.select("step", "epoch", "reference", "features").unique()
    assert constant.rows() == [(12, 12 / 5, "dcl", "h")]
    variants = table["variant"].unique().sort().to_list()
    assert variants == [f"lambda_{x}" for x in ("0.00", "0.25", "0.50", "0.75", "1.00")]
    assert table["value"].is_between(0, 1 + 1e-12).all()
    ends = {"merged_cka": variants[0], "merged_cka_to_objective": variants[-1]}
    for metric, end in ends.items():
        cka = table.filter(pl.col("metric") == metric)
        is_end = pl.col("variant") == end
        assert cka.filter(is_end)["value"].to_list() == pytest.approx([1.0] * 4)
        assert (cka.filter(~is_end)["value"] < 0.9999).all()


def test_made_once(copied, digits):
    store, settings = ImageStore.open(digits), {"points": 2}
    path = merge_cell(copied, store, CPU, settings)
    written = path.stat().st_mtime_ns
    assert merge_cell(copied, store, CPU, {**settings, "sweeps": ["base"]}) == path
    assert path.stat().st_mtime_ns == written
    assert merge_cell(copied, store, CPU, {"points": 3}) != path
    bytes_before = path.read_bytes()
    path.unlink()
    assert merge_cell(copied, store, CPU, settings).read_bytes() == bytes_before


def test_lines_start_at_the_reference(copied, digits):
    """From NSCL to DCL the other way round: ends change places, the network halfway is the same."""
    store, settings = ImageStore.open(digits), {"points": 3, "with": ["dcl"]}
    there = pl.read_parquet(merge_cell(copied, store, CPU, settings, "nscl"))
    back = pl.read_parquet(merge_cell(copied, store, CPU, {**settings, "with": ["nscl"]}))
    assert there.select("reference", "objective").unique().rows() == [("nscl", "dcl")]
    where = {"split": "test", "metric": "merged_nccc"}
    one, other = (t.filter(**where).sort("variant")["value"].to_list() for t in (there, back))
    assert one == pytest.approx(other[::-1])


def test_many_points_have_their_own_names(data, monkeypatch):
    from cltools.stages import merge as stage

    monkeypatch.setattr(stage, "_features", lambda *_: {})
    monkeypatch.setattr(stage, "_rows", lambda *_: [{}])
    rows = list(stage._lines(None, {"dcl": {}, "nscl": {}}, {}, points=161))
    variants = [row["variant"] for row in rows]
    assert len(set(variants)) == 161
    assert variants == sorted(variants)
    assert (variants[0], variants[-1]) == ("lambda_0.000", "lambda_1.000")


def test_start_of_all_lines_is_dcl(copied, digits):
    """λ = 0 is DCL's network whatever is at the other end; objectives not trained are left out."""
    store, starts = ImageStore.open(digits), []
    for objective in ("nscl", "ce"):
        settings = {"with": [objective, "nt_xent"], "points": 2}
        table = pl.read_parquet(merge_cell(copied, store, CPU, settings))
        assert set(table["objective"]) == {objective}
        start = table.filter(
            pl.col("variant") == "lambda_0.00", pl.col("metric") != "merged_cka_to_objective"
        )
        starts.append(start.drop("objective"))
    assert starts[0].equals(starts[1])


def test_ends_are_the_trained_networks(copied, digits):
    """λ = 0 and 1 have the accuracies of recalibrated embeddings."""
    from cltools.maths.probes import nccc

    store = ImageStore.open(digits)
    table = pl.read_parquet(merge_cell(copied, store, CPU, {"points": 3})).filter(
        pl.col("metric") == "merged_nccc"
    )
    with xr.open_dataset(
        embed_cell(copied, store, CPU, embeddings=Embeddings(recalibrated=True))[-1]
    ) as dataset:
        for objective, variant in (("dcl", "lambda_0.00"), ("nscl", "lambda_1.00")):
            parts = [dataset.isel(sample=dataset.split == split) for split in ("train", "test")]
            arrays = [
                array
                for part in parts
                for array in (part.h.sel(objective=objective).values, part.label.values)
            ]
            here = table.filter(pl.col("variant") == variant)
            assert here["value"].to_list() == list(nccc(*arrays))


def test_equal_networks_give_a_flat_line(digits, tmp_path):
    """Before training, all objectives have one network."""
    manifest = tmp_path / "trained.json"
    train.run(
        cell=cell(),
        store=digits,
        run=tmp_path / "run",
        manifest=manifest,
        until=Duration.parse("0 steps"),
        device="cpu",
    )
    table = pl.read_parquet(merge_cell(manifest, ImageStore.open(digits), CPU, {"points": 4}))
    for _, along in table.group_by("split", "metric"):
        assert along["value"].n_unique() == 1
        assert len(along) == 4
    cka = table.filter(pl.col("metric").str.starts_with("merged_cka"))
    assert cka["value"].to_list() == pytest.approx([1.0] * 16)


def test_what_cannot_be_merged(copied, digits, tmp_path):
    store = ImageStore.open(digits)
    with pytest.raises(InputError, match=r"merge\.point is unknown: did you mean points\?"):
        merge_cell(copied, store, CPU, {"point": 3})
    prepare.run(
        name="digits", definition={"source": "digits", "seed": 5}, store=tmp_path / "redrawn"
    )
    with pytest.raises(InputError, match="holds other images"):
        merge_cell(copied, ImageStore.open(tmp_path / "redrawn"), CPU, {"points": 2})
    prepare.run(name="other", definition={"source": "digits"}, store=tmp_path / "other")
    with pytest.raises(InputError, match="but the stores given hold 'other'"):
        merge.run(
            manifests=[copied],
            stores=[tmp_path / "other"],
            done=tmp_path / "m.json",
            settings={},
            device="cpu",
        )
    weights = copied.parent / "run/weights/nscl-0000012.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"nscl-0000012.safetensors is damaged"):
        merge_cell(copied, store, CPU, {"points": 2})
    assert not (copied.parent / "merge").exists()
    manifest = json.loads(copied.read_text())
    manifest["cell"]["objectives"].remove("dcl")
    write_json(copied, manifest)
    with pytest.raises(InputError, match="no network of 'dcl' to merge others with"):
        merge_cell(copied, store, CPU, {"points": 2})


def opened(path):
    with xr.open_dataset(path, engine="h5netcdf") as dataset:
        return dataset.load()


def test_recalibrated_embeddings(copied, digits, tmp_path):
    store = ImageStore.open(digits)
    plain_files = embed_cell(copied, store, CPU)
    hashes = [sha256_file(path) for path in plain_files]
    plain = [opened(path) for path in plain_files]
    assert all("recalibrated" not in json.loads(data.attrs["cltools"]) for data in plain)
    embed.run(
        manifests=[copied],
        stores=[digits],
        done=tmp_path / "e.json",
        device="cpu",
        embeddings=Embeddings(recalibrated=True),
    )
    (files,) = json.loads((tmp_path / "e.json").read_text())["files"].values()
    assert not {str(path) for path in plain_files} & set(files)
    for before, path in zip(plain, files, strict=True):
        after = opened(path)
        assert json.loads(after.attrs["cltools"])["recalibrated"] is True
        for name in ("h", "z", "z_views"):
            assert np.isfinite(after[name]).all()
            # After few steps, a good part of the running statistics is their initial value.
            change = np.linalg.norm(after[name] - before[name]) / np.linalg.norm(before[name])
            assert change > 0.05
    written = [Path(path).stat().st_mtime_ns for path in files]
    embed_cell(copied, store, CPU, embeddings=Embeddings(recalibrated=True))
    assert [Path(path).stat().st_mtime_ns for path in files] == written
    assert [sha256_file(path) for path in plain_files] == hashes
