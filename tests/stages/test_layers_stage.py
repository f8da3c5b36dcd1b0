"""Stage `layers`: what layers put out, and how it is compared and kept."""

import shutil

import dictionary
import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from small import small_cell

from cltools.data.store import ImageStore
from cltools.layout import unfinished
from cltools.maths.alignment import alignment
from cltools.maths.randomness import initialize
from cltools.models.outputs import pooled
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import read_json
from cltools.stages import embed, layers, train
from cltools.training.layers import Taps, layers_of
from cltools.training.networks import build_network

CPU = torch.device("cpu")
KINDS = {
    "resnet": {},
    "vit": {"architecture": "small_vit", "patch": 2},
    "own starts": {"coupling": ["batches", "views"]},
}


@pytest.fixture(scope="module", params=KINDS)
def manifest(request, tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("trained")
    cell = small_cell(
        horizon="4 steps", checkpoints=["0 steps", "2 steps"], objectives=["dcl", "nscl", "ce"],
        test_images_per_class=6, **KINDS[request.param],
    )  # fmt: skip
    train.run(
        cell=cell, store=digits, run=folder / "run", manifest=folder / "trained.json", device="cpu"
    )
    return folder / "trained.json"


def compared(manifest, digits, **settings):
    return layers.compare_layers(manifest, ImageStore.open(digits), CPU, settings)


def test_h_and_z_are_those_of_the_embeddings(manifest, digits):
    files = embed.embed_cell(manifest, ImageStore.open(digits), CPU)
    table = pl.read_parquet(compared(manifest, digits))
    assert table["step"].unique().sort().to_list() == [0, 2, 4]
    assert dictionary.missing("layers", table) == []
    import xarray as xr

    for step, file in zip((0, 2, 4), files, strict=True):
        with xr.open_dataset(file, engine="h5netcdf") as found:
            part = found.isel(sample=found.split.values == "test")
            for layer in ("h", "z"):
                arrays = {o: part[layer].sel(objective=o).values for o in ("dcl", "nscl", "ce")}
                for (a, b), values in alignment(arrays).items():
                    if a != "dcl":
                        continue
                    for (metric, variant), value in values.items():
                        if variant.startswith("raw"):
                            continue
                        row = table.filter(
                            step=step, objective=b, reference=a, features=layer,
                            reference_features=layer, metric=metric, variant=variant,
                        )  # fmt: skip
                        assert row["value"].item() == pytest.approx(value, abs=1e-5)


def test_all_pairs_at_the_last_step_alone(manifest, digits):
    table = pl.read_parquet(compared(manifest, digits)).filter(variant="cosine_biased")
    names = table["features"].unique(maintain_order=True).to_list()
    assert names[0] == "stem"
    assert names[-3:] == ["h", "projector", "z"]
    pairs = table.filter(pl.col("features") != pl.col("reference_features"))
    assert pairs["step"].unique().to_list() == [4]
    count = len(names)
    assert len(pairs) == 2 * count * (count - 1) + count * (count - 1) / 2
    begun = table.filter(reference="init", step=0)
    assert begun["value"].to_list() == pytest.approx([1.0] * (3 * count))
    last = pl.read_parquet(compared(manifest, digits, at="last"))
    assert last["step"].unique().to_list() == [4]
    assert set(pl.read_parquet(compared(manifest, digits, split="train"))["split"]) == {"train"}


def test_made_once_and_continued_after_a_kill(manifest, digits, tmp_path, monkeypatch):
    copied = shutil.copytree(manifest.parent, tmp_path / "cell") / manifest.name
    shutil.rmtree(copied.parent / "layers", ignore_errors=True)
    whole = compared(manifest, digits).read_bytes()
    with monkeypatch.context() as patched:
        rows = layers.measurements.layer_rows

        def killed(outputs, every_pair):
            if every_pair:  # the last checkpoint
                raise KeyboardInterrupt
            return rows(outputs, every_pair)

        patched.setattr(layers.measurements, "layer_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            compared(copied, digits)
    (table,) = (copied.parent / "layers").iterdir()
    assert len(list(table.iterdir())) == 2
    path = compared(copied, digits)
    assert path.read_bytes() == whole
    assert not unfinished(path).exists()
    made = path.stat().st_mtime_ns
    assert compared(copied, digits).stat().st_mtime_ns == made
    assert not list(copied.parent.glob("tmp*"))


def test_list_of_tables(manifest, digits, tmp_path):
    done = tmp_path / "layers.json"
    layers.run(
        manifests=[manifest], stores=[digits], done=done, settings={"at": "last"}, device="cpu"
    )
    listed = read_json(done, "cltools layers")
    assert listed["stage"] == "layers"
    assert list(listed["tables"]) == [str(manifest)]


def test_other_settings_are_refused(manifest, digits):
    with pytest.raises(InputError, match=r"layers\.spilt is unknown: did you mean split"):
        compared(manifest, digits, spilt="test")


@pytest.mark.parametrize("kind", ["resnet", "vit"])
@torch.no_grad()
def test_layers_are_those_of_the_forward_pass(kind):
    cell = small_cell(**KINDS[kind])
    network = build_network(cell, (8, 8, 1), 10, "dcl").eval()
    initialize(network, 0, "")
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with Taps(network) as taps:
        found = taps.of(images)
    assert list(found) == layers_of(network)
    h, z = network(images)
    torch.testing.assert_close(found["h"], h, rtol=0, atol=0)
    torch.testing.assert_close(found["z"], z, rtol=0, atol=0)
    hidden = F.relu(network.projector[1](network.projector[0](h)))
    torch.testing.assert_close(found["projector"], hidden)
    if kind == "resnet":
        x = network.encoder.maxpool(F.relu(network.encoder.bn1(network.encoder.conv1(images))))
        torch.testing.assert_close(found["stem"], x.mean((2, 3)))
        for name in list(found)[1:-3]:
            x = network.encoder.get_submodule(name)(x)
            torch.testing.assert_close(found[name], x.mean((2, 3)))
    else:
        blocks = len(network.encoder.vit.blocks)
        last = network.encoder.vit.get_intermediate_layers(
            images, n=[blocks - 1], norm=False, return_prefix_tokens=True
        )[0]
        tokens = torch.cat([last[1], last[0]], 1)
        torch.testing.assert_close(found[f"block{blocks - 1}"], tokens.mean(1))
    with pytest.raises(ValueError, match="neither vectors nor tokens nor maps"):
        pooled(torch.zeros(2, 3, 4, 5, 6))


def test_hooks_are_gone_afterwards():
    network = build_network(small_cell(), (8, 8, 1), 10, "dcl").eval()
    with Taps(network):
        pass
    assert not any(module._forward_hooks for module in network.modules())
    assert np.isfinite(network(torch.zeros(2, 1, 8, 8))[0].detach().numpy()).all()
