"""Models of other libraries: they embed a store, are encoders of cells, and get ours exported."""

import json
import re
import socket
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import timm
import torch
import torchvision
import xarray as xr
from PIL import Image
from safetensors.torch import load_file, save_file
from small import colors_store, small_cell, train_into
from torch import nn
from typer.testing import CliRunner

from cltools.cli.app import app
from cltools.cluster.arithmetic import network_size
from cltools.data.store import ImageStore
from cltools.layout import RunFolder
from cltools.maths.randomness import initialize
from cltools.models.exported import CARD, WEIGHTS
from cltools.models.exported import exported as for_library
from cltools.models.outputs import Outputs
from cltools.models.sources import Wanted, load
from cltools.models.timm_encoder import TimmEncoder
from cltools.runtime.errors import InputError
from cltools.stages import compare, embed_model, export
from cltools.stages.embed import embed_cell
from cltools.training.batchnorm import share_statistics
from cltools.training.networks import build_network

CPU = torch.device("cpu")
cell = partial(small_cell, horizon="2 steps", warmup=0, checkpoints=[], objectives=["dcl"],
               optimizer="sgd", lr=0.01)  # fmt: skip
colored = partial(cell, dataset="colors", recipe="cifar", images_per_class=None)


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return colors_store(tmp_path_factory.mktemp("stores") / "colors", 16)


def features(path, layer="features"):
    with xr.open_dataset(path, engine="h5netcdf") as found:
        return found[layer].values


def pixels(store, split="test"):
    """Images of a store as a network of a cell takes them, by an independent way."""
    opened = ImageStore.open(store)
    mean, std = (np.array(values, np.float32) for values in (opened.mean, opened.std))
    scaled = (opened.images[split].astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous()


# --- out -------------------------------------------------------------------------------------

ENCODERS = {
    "resnet18, cifar stem, gray": cell(architecture="resnet18", test_images_per_class=4),
    "resnet18, imagenet stem": colored(architecture="resnet18", stem="imagenet"),
    "small_vit, gray": cell(architecture="small_vit"),
    "small_vit": colored(architecture="small_vit", patch=8),
    "timm:test_vit": colored(architecture="timm:test_vit", patch=4),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits, colors):
    """A cell of each encoder, trained for two steps: its folder and store, and h of test images
    with their numbers in the store. Made when it is asked for.
    """
    made = {}

    def of(name):
        if name not in made:
            settings, folder = ENCODERS[name], tmp_path_factory.mktemp("cell")
            store = digits if settings["dataset"] == "digits" else colors
            train_into(settings, store, folder)
            (path,) = embed_cell(folder / "trained.json", ImageStore.open(store), CPU)
            with xr.open_dataset(path, engine="h5netcdf") as found:
                tested = found.sel(sample=found["split"] == "test")
                h = tested["h"].values[0], tested["sample_id"].values
            made[name] = folder, store, h
        return made[name]

    return of


def exported(trained, name, to, folder):
    home, store, h = trained(name)
    export.run(manifest=home / "trained.json", objective="dcl", to=to, output=folder, store=store)
    return store, h


@pytest.mark.parametrize(
    ("name", "to"),
    [*((name, "timm") for name in ENCODERS),
     *((name, "torchvision") for name in ENCODERS if not name.startswith("timm:")),
     ("timm:test_vit", "safetensors")],
)  # fmt: skip
def test_the_code_of_the_model_card_loads_the_same_encoder(
    trained, tmp_path, monkeypatch, name, to
):
    store, (h, ids) = exported(trained, name, to, tmp_path)
    (code,) = re.findall(r"^```python\n(.+?)^```$", (tmp_path / CARD).read_text(), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)  # noqa: S102
    images = pixels(store)[ids[:40]].double()
    network = build_network(ENCODERS[name], (*images.shape[2:], images.shape[1]), 10, "dcl")
    network.load_state_dict(load_file(RunFolder(trained(name)[0] / "run").weights("dcl", 2)))
    with torch.inference_mode():
        theirs = found["model"].double()(images)
        ours = network.double().eval().encoder(images)
    # The same function, and its values in float32 are those that were embedded.
    assert (theirs - ours).abs().max() <= 1e-12 * ours.abs().max()
    assert np.abs(theirs.numpy() - h[:40]).max() <= 1e-5 * np.abs(h).max()
    if to == "timm" and "cifar" in name:
        with pytest.raises(RuntimeError, match=r"size mismatch for conv1\.weight"):
            timm.create_model("local-dir:.", pretrained=True)
    if to == "safetensors":
        assert "projector.0.weight" in load_file(tmp_path / WEIGHTS)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("resnet18, imagenet stem", "timm:local-dir"),
        ("small_vit, gray", "hf"),
        ("timm:test_vit", "timm:local-dir"),
    ],
)
def test_what_was_exported_embeds_as_before(trained, tmp_path, name, library):
    """Weights, sizes and normalization are those of the cell, by `cltools embed --model` too."""
    store, (h, ids) = exported(trained, name, "timm", tmp_path / "model")
    output = tmp_path / "features.nc"
    embed_model.run(wanted=Wanted(f"{library}:{tmp_path / 'model'}"), store=store, output=output)
    assert np.abs(features(output)[ids] - h).max() <= 1e-5 * np.abs(h).max()


@pytest.mark.parametrize(
    ("settings", "to", "sentence"),
    [
        ({}, "timm", "^small_resnet has no counterpart in timm: export it with --to safetensors$"),
        (
            {"architecture": "resnet50", "width": 2},
            "torchvision",
            "^resnet50 of width 2 has no counterpart in torchvision: .*--to safetensors$",
        ),
        ({"architecture": "small_vit"}, "torchvision", "8 × 12 pixels: .* --to timm or --to safe"),
        ({"architecture": "timm:test_vit"}, "torchvision", "is a model of timm.* --to timm"),
    ],
)
def test_what_has_no_counterpart_is_refused(settings, to, sentence):
    pictures = SimpleNamespace(image_shape=(8, 12, 1), mean=[0.5], std=[0.5], resize=None)
    with pytest.raises(InputError, match=sentence):
        for_library(to, cell(**settings), {}, pictures)


def test_what_a_cell_does_not_have_is_not_exported(trained, colors, tmp_path):
    home, store, _ = trained("small_vit, gray")
    cases = {
        "--objective nscl is not among those of .*: choose one of dcl": {"objective": "nscl"},
        "--step 1 is no checkpoint of .*: choose one of 2": {"step": 1},
        "colors holds other images": {"store": colors},
        "are not in .*digits: give their store with --store": {"store": None},
    }
    for sentence, options in cases.items():
        given = {"objective": "dcl", "to": "timm", "store": store, **options}
        with pytest.raises(InputError, match=sentence):
            export.run(manifest=home / "trained.json", output=tmp_path / "out", **given)
    assert list(tmp_path.iterdir()) == []


# --- in --------------------------------------------------------------------------------------

TINY = Wanted("timm:test_vit", "none", size=32)


def test_random_models_by_name_are_compared(digits, tmp_path):
    """Layers of one model, and another model; the same seed gives the same bytes."""
    wanted = {
        "a": (TINY, ()),
        "again": (TINY, ()),
        "layers": (Wanted("timm:test_resnet", "none", size=32), ("layer1", "layer3")),
    }
    for name, (model, layers) in wanted.items():
        output = tmp_path / f"{name}.nc"
        embed_model.run(wanted=model, store=digits, output=output, layers=layers)
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "again.nc").read_bytes()
    compare.run(
        files=[tmp_path / f"{name}.nc" for name in ("a", "layers")],
        output=tmp_path / "table.parquet",
    )
    table = pl.read_parquet(tmp_path / "table.parquet").filter(metric="cka", reference="a")
    values = dict(table.filter(variant="raw_debiased").select("objective", "value").iter_rows())
    assert values.keys() == {"layers:layer1", "layers:layer3"}
    assert all(0 < value < 1 for value in values.values())
    with xr.open_dataset(tmp_path / "layers.nc", engine="h5netcdf") as found:
        about = json.loads(found.attrs["cltools"])
        assert found["label"].shape == (359,)
    assert about["layers"] == {"layer1": [32, 8, 8], "layer3": [192, 2, 2]}
    assert about["input"]["mean"] == ImageStore.open(digits).mean * 3
    assert (about["model"], about["weights"]["seed"]) == ("timm:test_resnet", 0)


def test_features_of_torchvision_are_what_its_classifier_gets(colors):
    found = load(Wanted("torchvision:resnet18", "none", size=32), ImageStore.open(colors))
    images = torch.stack([found.prepare(Image.new("RGB", (40, 50), (9, 99, i))) for i in range(3)])
    assert images.shape == (3, 3, 32, 32)
    outputs = Outputs(found.network, before=found.before)
    ours = outputs(images)[""]
    maps = Outputs(found.network, ["layer4", "bn1"])(images)
    found.network.fc = nn.Identity()
    with torch.inference_mode():
        theirs = found.network(images)
        first = found.network.bn1(found.network.conv1(images))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(maps["layer4"], theirs)
    # The ReLU after it writes into the same memory, later.
    torch.testing.assert_close(maps["bn1"], first.mean((2, 3)))


def test_the_librarys_settings_prepare_images(colors):
    """Published weights' settings, but for the statistics: size, resizing, cropping."""
    opened = ImageStore.open(colors)
    image = Image.fromarray(opened.images["test"][0]).resize((300, 200))
    found = load(Wanted("timm:test_vit", "none"), opened)
    config = timm.data.resolve_model_data_config(found.network)
    expected = timm.data.create_transform(**{**config, "mean": opened.mean, "std": opened.std})
    torch.testing.assert_close(found.prepare(image), expected(image))
    found = load(Wanted("torchvision:mobilenet_v3_small", "none"), opened)
    published = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT
    expected = published.transforms(mean=opened.mean, std=opened.std)
    torch.testing.assert_close(found.prepare(image), expected(image))


OWN = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))

def nothing():
    return None
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_models", None)


def test_a_function_of_the_user(digits, tmp_path, own_module):
    wanted = Wanted("own_models:build", seed=3)
    embed_model.run(wanted=wanted, store=digits, output=tmp_path / "f.nc", split="all")
    network = load(wanted, ImageStore.open(digits)).network
    both = torch.cat([pixels(digits, split) for split in ("train", "test")])
    expected = network(both).detach().numpy()
    np.testing.assert_allclose(features(tmp_path / "f.nc"), expected, atol=1e-6)


def test_weights_of_files(digits, tmp_path):
    """Whatever wraps them, and with a classifier or without."""
    whole = timm.create_model("test_vit", num_classes=7).state_dict()
    bare = {name: tensor for name, tensor in whole.items() if not name.startswith("head.")}
    save_file(bare, tmp_path / "bare.safetensors")
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in whole.items()}}
    torch.save(wrapped, tmp_path / "whole.pth")
    opened = ImageStore.open(digits)
    for name in ("bare.safetensors", "whole.pth"):
        found = load(Wanted("timm:test_vit", str(tmp_path / name)), opened)
        assert all(torch.equal(v, bare[k]) for k, v in found.network.state_dict().items())
        assert found.about["weights"]["from"] == name
    theirs = torchvision.models.resnet18(num_classes=3).state_dict()
    torch.save({k: v for k, v in theirs.items() if "fc" not in k}, tmp_path / "no_head.pt")
    torch.save(theirs, tmp_path / "other_head.pt")
    for name in ("no_head.pt", "other_head.pt"):
        load(Wanted("torchvision:resnet18", str(tmp_path / name)), opened)

    def refused(sentence, tensors, name="wrong.pth"):
        torch.save(tensors, tmp_path / name)
        with pytest.raises(InputError, match=sentence):
            load(Wanted("timm:test_vit", str(tmp_path / name)), opened)

    refused(r"does not fit timm:test_vit \(it lacks cls_token and \d+ more\): give the", {})
    refused(r"it has no place for extra\): give", {**bare, "extra": torch.zeros(1)})
    refused("of another shape is norm.bias", {**bare, "norm.bias": torch.zeros(1)})
    refused("cannot be read as weights .*weights_only=True blocked", {"x": SimpleNamespace(a=1)})
    refused("is of an unknown type: give .safetensors, .pt, .pth", {}, "weights.ckpt")
    with pytest.raises(InputError, match=r"absent\.pt does not exist: check its path"):
        load(Wanted("timm:test_vit", str(tmp_path / "absent.pt")), opened)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("timm:resnet81", "timm has no model 'resnet81': did you mean resnet"),
        ("torchvision:resnet81", "torchvision has no model 'resnet81': did you mean resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no model"),
        ("resnet18", "--model resnet18 names no model: give timm:NAME, torchvision:NAME, hf:REPO"),
        ("absent_models:build", "cannot be imported .*No module named 'absent_models'"),
        ("own_models:absent", "the module own_models has no function absent"),
        ("own_models:nothing", "returns NoneType: let the function return a torch.nn.Module"),
        ("timm:local-dir:absent", "cannot be loaded .*Config file not found"),
    ],
)
def test_models_that_do_not_exist(colors, own_module, model, sentence):
    with pytest.raises(InputError, match=sentence):
        load(Wanted(model, "none"), ImageStore.open(colors))


@pytest.mark.parametrize("model", ["timm:test_vit", "torchvision:resnet18", "hf:a/b"])
def test_without_a_network(colors, tmp_path, monkeypatch, model):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="the network, or give --weights FILE or --weights none"):
        load(Wanted(model), ImageStore.open(colors))


def test_a_hub_model_of_another_library_needs_it(colors, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    monkeypatch.setattr("cltools.models.sources.find_spec", lambda name: None)
    with pytest.raises(InputError, match="is no model of timm: install transformers"):
        load(Wanted(f"hf:{tmp_path}", "none"), ImageStore.open(colors))


def test_layers_and_images_that_do_not_fit(digits, tmp_path):
    def refused(sentence, wanted=TINY, layers=()):
        with pytest.raises(InputError, match=sentence):
            embed_model.run(wanted=wanted, store=digits, output=tmp_path / "f.nc", layers=layers)

    refused("--layers 'block' is no layer of the model: did you mean blocks", layers=["block"])
    refused("--layers head_drop takes no part|.*", Wanted("timm:test_vit", "none", size=30))
    with pytest.raises(InputError, match=r"f.npz must end in \.nc"):
        embed_model.run(wanted=TINY, store=digits, output=tmp_path / "f.npz")
    assert list(tmp_path.iterdir()) == []


def test_the_two_forms_of_the_command_are_kept_apart(digits):
    def refused(*arguments):
        command = ["embed", *arguments, "--store", str(digits)]
        return str(CliRunner().invoke(app, command).exception)

    assert "--output is for a model of another library: name one with --model" in refused(
        "trained.json", "--done", "done.json", "--output", "f.nc"
    )
    assert "--done is for trained cells: leave it out, or leave out --model" in refused(
        "--model", "timm:test_vit", "--output", "f.nc", "--done", "done.json"
    )
    assert "--model needs --output and one --store" in refused("--model", "timm:test_vit")
    assert "give training manifests and --done, or --model" in refused()


# --- as encoders of cells --------------------------------------------------------------------


def test_a_model_of_timm_has_coupled_initial_weights():
    """A function of the seed, whatever else a network has; torch's own numbers are left alone."""
    before = torch.get_rng_state()
    initialize(TimmEncoder("test_resnet", (16, 16, 3)), 0)
    assert torch.equal(torch.get_rng_state(), before)

    def weights(objective, seed=0, owner=None):
        network = build_network(colored(architecture="timm:test_resnet"), (16, 16, 3), 5, objective)
        initialize(network, seed, owner)
        return network.state_dict()

    one, other, ce = weights("dcl"), weights("nscl"), weights("ce")
    assert all(torch.equal(v, other[k]) and torch.equal(v, ce[k]) for k, v in one.items())
    name = "encoder.model.conv1.0.weight"
    for another in (weights("dcl", seed=1), weights("dcl", owner="dcl")):
        assert not torch.equal(another[name], one[name])
    assert one[name].std() > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "timm:test_resnet"},
        pytest.param({"architecture": "timm:test_vit", "patch": 4}, marks=pytest.mark.slow),
        pytest.param({"architecture": "timm:resnet10t"}, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_cell_with_a_model_of_timm_resumes_to_the_same_bytes(digits, tmp_path, settings):
    of = small_cell(**settings, objectives=["dcl", "ce"], horizon="4 steps", warmup=0)
    whole = train_into(of, digits, tmp_path / "whole")
    train_into(of, digits, tmp_path / "parts", "1 steps")
    parts = train_into(of, digits, tmp_path / "parts")
    assert parts["checkpoints"]["4"] == whole["checkpoints"]["4"]


def test_nothing_is_drawn_in_training(monkeypatch):
    """Dropout and stochastic depth are switched off. A model that draws otherwise is refused."""
    create, images = timm.create_model, torch.randn(4, 3, 32, 32)
    dropping = partial(create, drop_rate=0.5, proj_drop_rate=0.5, drop_path_rate=0.5)
    outputs = [dropping("test_vit", img_size=32, num_classes=0).train()(images) for _ in range(2)]
    assert not torch.equal(*outputs)
    monkeypatch.setattr(timm, "create_model", dropping)
    encoder = TimmEncoder("test_vit", (32, 32, 3)).train()
    assert torch.equal(encoder(images), encoder(images))

    class Noisy(nn.Module):
        def forward(self, x):
            return x.flatten(1) + torch.rand(len(x), 1)

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Noisy())
    with pytest.raises(InputError, match="timm:test_vit, which draws random numbers in training"):
        TimmEncoder("test_vit", (32, 32, 3))


def test_sizes_of_jobs_know_models_of_timm():
    settings = colored(architecture="timm:test_vit", patch=4)
    found = network_size(settings, 16)
    network = build_network(settings, (16, 16, 3), 5, "dcl")
    assert found.features == network.encoder.features == 64
    assert found.parameters == pytest.approx(sum(p.numel() for p in network.parameters()), rel=0.02)
    assert found.flops > 2 * 16 * 1e5


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"architecture": "timm:resnet81"}, "timm has no model 'resnet81': did you mean resnet"),
        (
            {"architecture": "timm:test_resnet", "patch": 2},
            "takes no size of patches: leave it out",
        ),
        ({"architecture": "timm:test_vit"}, "does not take images of 8 × 8 pixels .*or patch to a"),
    ],
)
def test_models_that_do_not_fit_a_cell(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        build_network(cell(**settings), (8, 8, 1), 10, "dcl")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"architecture": "timm:Resnet"}, "must be one of .* or 'timm:' and the name of a model"),
        (
            {"architecture": "timm:test_resnet", "width": 2},
            "is a model of timm, which has no width",
        ),
    ],
)
def test_settings_that_a_model_of_timm_does_not_have(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        cell(**settings)


def test_layers_that_do_more_than_normalize_are_not_shared():
    network = build_network(colored(architecture="timm:test_efficientnet"), (32, 32, 3), 5, "dcl")
    with pytest.raises(InputError, match="a network with BatchNormAct2d: let them share the obj"):
        share_statistics(network, None)
