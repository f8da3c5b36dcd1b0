"""Kinds of projectors: what they compute, how wide z is, and that cells train with them."""

import h5py
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from small import small_cell, train_into

from cltools.config.cells import canonical_cell, cell_id
from cltools.config.projectors import projector_widths, projector_words, with_widths
from cltools.data.store import ImageStore
from cltools.maths.randomness import generator, initialize
from cltools.objectives import find
from cltools.runtime.errors import InputError
from cltools.stages import embed, layers
from cltools.training.layers import layers_of
from cltools.training.networks import build_network
from cltools.training.optimizers import lr_at, lr_constant

CPU = torch.device("cpu")
NONE = {"projector_layers": 0, "projector_hidden": 2048, "projector_dim": 128}  # the defaults
LINEAR = {"projector_layers": 1, "projector_hidden": 2048}
UNNORMALIZED = {"projector_norm": "none"}
# Kind -> settings, widths from h to z, and the names of its hidden layers.
KINDS = {
    "none": (NONE, [32], []),
    "linear": (LINEAR, [32, 8], []),
    "papers": ({}, [32, 16, 8], ["projector"]),
    "three": ({"projector_layers": 3}, [32, 16, 16, 8], ["projector.0", "projector.1"]),
    "linear, unnormalized": (LINEAR | UNNORMALIZED, [32, 8], []),
    "unnormalized": (UNNORMALIZED, [32, 16, 8], ["projector"]),
}


def network_of(settings, objective="dcl"):
    network = build_network(small_cell(**settings), (8, 8, 1), 10, objective)
    initialize(network, 0)
    return network


def written_out(weights, h, widths, normalized):
    """The projector in plain functions of torch, in training mode."""
    x, last = h, len(widths) - 2
    for layer in range(last + 1):
        part = f"projector.{3 * layer}"
        x = F.linear(x, weights[f"{part}.weight"], weights.get(f"{part}.bias"))
        if normalized:
            gain, shift = (weights[f"projector.{3 * layer + 1}.{n}"] for n in ("weight", "bias"))
            x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() * gain + shift
        x = x.relu() if layer < last else x
    return x


@pytest.mark.parametrize(("settings", "widths", "hidden"), KINDS.values(), ids=KINDS)
def test_each_kind_is_what_is_written_out(settings, widths, hidden):
    network = network_of(settings)
    normalized = "projector_norm" not in settings
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.projector.parameters():
            if parameter.ndim == 1 and parameter.requires_grad:  # gains not 1, shifts not 0
                parameter.add_(torch.randn(parameter.shape, generator=draw))
    h, projections = network.project(torch.randn(6, 1, 8, 8, generator=draw))
    weights = network.state_dict()
    torch.testing.assert_close(projections, written_out(weights, h, widths, normalized))
    assert projector_widths(small_cell(**settings), 32) == widths
    assert projections.shape == (6, widths[-1])
    assert layers_of(network) == ["stem", "layer1.0", "layer2.0", "h", *hidden, "z"]
    fixed = {name for name, p in network.named_parameters() if not p.requires_grad}
    last = f"projector.{3 * (len(widths) - 2)}.bias"
    shift = f"projector.{3 * (len(widths) - 2) + 1}.bias"
    assert last not in weights
    assert fixed == ({shift} if normalized and len(widths) > 1 else set())


def test_the_projector_of_cells_without_these_keys_is_as_ever():
    """Its tensors have the names that they always had, and so their bytes; cells have their ids."""
    state = network_of({}).projector.state_dict()
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert list(state) == ["0.weight", *(f"1.{n}" for n in norm), "3.weight",
                           *(f"4.{n}" for n in norm)]  # fmt: skip
    for name, shape in (("0.weight", (16, 32)), ("3.weight", (8, 16))):
        bound = shape[1] ** -0.5
        draw = generator("init", 0, f"projector.{name}")
        assert torch.equal(state[name], torch.empty(shape).uniform_(-bound, bound, generator=draw))
    assert cell_id(small_cell()) == "digits-Call-tau0.5-B24-linear-seed0-05ba804526"
    said = small_cell(projector_layers=2, projector_norm="batch", lr_schedule="per_step")
    assert canonical_cell(said) == canonical_cell(small_cell())


def test_kinds_share_what_they_have_in_common():
    papers, plain, deep = (
        network_of(settings).state_dict()
        for settings in ({}, UNNORMALIZED, {"projector_layers": 3})
    )
    for name in ("projector.0.weight", "projector.3.weight"):
        assert torch.equal(papers[name], plain[name])
    assert torch.equal(papers["projector.0.weight"], deep["projector.0.weight"])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({**NONE, "projector_dim": 8}, "projector_dim is 8.* projector_layers 0: leave it out"),
        ({**NONE, "projector_hidden": 16}, "projector_hidden is 16.* its default 2048"),
        ({**NONE, **UNNORMALIZED}, "projector_norm is 'none'"),
        ({"projector_layers": 1}, "projector_hidden is 16.* projector_layers 1"),
        ({"projector_layers": 4}, "projector_layers is 4, but must be at most 3"),
        ({"projector_norm": "layer"}, "projector_norm is 'layer', but must be one of"),
    ],
)
def test_keys_that_mean_nothing_are_refused(settings, key):
    with pytest.raises(InputError, match=rf"config key cell\.{key}"):
        small_cell(**settings)


def test_words_and_what_predictors_get():
    words = {
        kind: projector_words(small_cell(**settings)) for kind, (settings, *_) in KINDS.items()
    }
    assert words == {
        "none": "no projector",
        "linear": "1-layer projector",
        "papers": "",
        "three": "3-layer projector",
        "linear, unnormalized": "1-layer projector, unnormalized",
        "unnormalized": "2-layer projector, unnormalized",
    }
    for settings, hidden, width in ((NONE, 32, 32), (LINEAR, 8, 8), ({}, 16, 8)):
        cell = with_widths(small_cell(**settings), 32)
        assert find("byol").predictor(cell) == hidden
        assert find("simsiam").predictor(cell) == width // 4
        predictor = network_of(settings, "byol").predictor
        assert predictor[0].weight.shape == (hidden, width)


@pytest.mark.parametrize(
    ("settings", "objectives"),
    [
        (NONE, ["dcl", "ce", "byol"]),
        ({**NONE, "framework": "moco", "queue_size": 48}, ["dcl", "nscl"]),
        (LINEAR | UNNORMALIZED, ["dcl", "nscl"]),
        ({"projector_layers": 3, "lr_schedule": "constant"}, ["dcl", "simsiam"]),
    ],
    ids=["none", "none, MoCo", "linear", "three"],
)
def test_a_cell_of_each_kind(digits, tmp_path, settings, objectives):
    """It trains, is embedded and compared by layers; a model alone is the model among others."""
    brief = {"horizon": "3 steps", "checkpoints": [0], "optimizer": "sgd", "warmup": 1}
    weights = []
    for folder, trained in (("together", objectives), ("alone", objectives[-1:])):
        cell = small_cell(**brief, **settings, objectives=trained)
        train_into(cell, digits, tmp_path / folder)
        name = f"run/weights/{objectives[-1]}-0000003.safetensors"
        weights.append((tmp_path / folder / name).read_bytes())
    assert weights[0] == weights[1]
    manifest, store = tmp_path / "together/trained.json", ImageStore.open(digits)
    widths = projector_widths(cell, 32)
    with h5py.File(embed.embed_cell(manifest, store, CPU)[-1]) as file:
        assert file["z"].shape[-1] == widths[-1]
    table = pl.read_parquet(layers.compare_layers(manifest, store, CPU, {"at": "last"}))
    assert table["features"].n_unique() == 5 + max(0, len(widths) - 2)
    if cell["lr_schedule"] == "constant":
        log = pl.read_parquet(tmp_path / "together/run/log-3steps.parquet")
        assert log["lr"].unique().to_list() == [pytest.approx(0.3 * 24 / 256)]


def test_a_rate_that_stays():
    """The warm-up of the other schedules, then the peak."""
    rates = [lr_constant(step, 2.0, 10) for step in range(30)]
    assert rates == pytest.approx([2.0 * min(1, (step + 1) / 10) for step in range(30)])
    assert rates[:11] == [lr_at(step, 2.0, 10, 30) for step in range(11)]
    assert lr_constant(0, 2.0, 0) == 2.0
