"""Which randomness the objectives share, and that nothing else changes with it."""

from functools import partial

import polars as pl
import pytest
import torch
from small import small_cell
from small import train_into as run

from cltools.config.cells import cell_id
from cltools.data.image_set import image_set, open_store
from cltools.runtime.tensors import load_tensors
from cltools.training.trainer import CoupledTrainer

SOURCES = ["init", "batches", "views"]


cell = partial(
    small_cell,
    horizon="8 steps",
    checkpoints=[0],
    optimizer="sgd",
    objectives=["dcl", "nscl", "dcl_twin"],
)


@pytest.fixture
def trainer(digits, device):
    """A function from settings to a trainer on the device of --device."""

    def made(**settings):
        settings = cell(**settings)
        data = image_set(open_store(digits, settings), settings, "train", device)
        return CoupledTrainer(settings, data, device)

    return made


def start_of(one, name):
    return torch.cat([p.flatten() for p in one.networks[name].parameters()])


@pytest.mark.parametrize("private", [*SOURCES, "all"])
def test_only_what_is_private_differs(trainer, private):
    coupling = [] if private == "all" else [s for s in SOURCES if s != private]
    one = trainer(coupling=coupling)
    shared = trainer(objectives=["dcl"])
    reference = shared.batches["dcl"]
    assert torch.equal(start_of(one, "dcl"), start_of(shared, "dcl"))
    for step in (0, 3):
        views, images = reference.at(step)
        assert torch.equal(one.batches["dcl"].at(step)[0], views)
        for name in ("nscl", "dcl_twin"):
            own_views, own_images = one.batches[name].at(step)
            assert torch.equal(own_images, images) == (private not in ("batches", "all"))
            assert torch.equal(own_views, views) == (private == "init")
    for name in ("nscl", "dcl_twin"):
        same = torch.equal(start_of(one, name), start_of(shared, "dcl"))
        assert same == (private not in ("init", "all"))
    if private in ("batches", "views", "all"):  # each has its own, not all the same other one
        assert not torch.equal(one.batches["nscl"].at(0)[0], one.batches["dcl_twin"].at(0)[0])
    if private == "batches":  # an image has the same views, wherever it stands
        orders, views = zip(*(one.batches[n].epoch_of(0) for n in ("dcl", "nscl")), strict=True)
        sizes = [one.batches[name].at(0)[0].shape for name in ("dcl", "nscl")]
        assert sizes[0] == sizes[1]
        assert sorted(orders[0].flatten().tolist()) == sorted(orders[1].flatten().tolist())
        assert torch.equal(views[0].table.top, views[1].table.top)


def test_dcl_is_the_same_whatever_the_coupling(digits, tmp_path):
    weights = {}
    for name, coupling in (("all", SOURCES), ("views", ["init", "batches"]), ("none", [])):
        run(cell(coupling=coupling), digits, tmp_path / name)
        found = load_tensors(tmp_path / name / "run/weights/dcl-0000008.safetensors", "")[0]
        weights[name] = torch.cat([value.flatten().float() for value in found.values()])
    assert torch.equal(weights["all"], weights["views"])
    assert torch.equal(weights["all"], weights["none"])


def test_a_model_alone_is_the_model_among_others(digits, tmp_path):
    run(cell(coupling=["init"]), digits, tmp_path / "together")
    run(cell(coupling=["init"], objectives=["nscl"]), digits, tmp_path / "alone")
    name = "run/weights/nscl-0000008.safetensors"
    files = [(tmp_path / folder / name).read_bytes() for folder in ("together", "alone")]
    assert files[0] == files[1]


def test_a_run_with_private_batches_continues(digits, tmp_path):
    settings = cell(coupling=["init"])
    whole = run(settings, digits, tmp_path / "whole")
    run(settings, digits, tmp_path / "parts", until="3 steps")
    assert run(settings, digits, tmp_path / "parts") == whole
    digests = whole["checkpoints"]["8"]["digests"]
    assert set(digests) == {
        "init", "batches", "views", "batches/nscl", "views/nscl", "batches/dcl_twin",
        "views/dcl_twin",
    }  # fmt: skip
    assert len({digests[f"batches{of}"] for of in ("", "/nscl", "/dcl_twin")}) == 3
    log = pl.read_parquet(tmp_path / "whole/run/log-8steps.parquet")
    assert log.filter(model="dcl_twin")["dcl"].is_finite().all()
    largest = {m: log.filter(model=m)["n_max"].to_list() for m in ("dcl", "nscl", "dcl_twin")}
    assert largest["dcl"] != largest["nscl"]  # of each model's own batches


def test_a_state_from_before_batches_could_be_private_is_taken_up(trainer):
    """It has one composition a step, not one for each model."""
    one, other = (trainer(objectives=["dcl", "nscl"]) for _ in range(2))
    for _ in range(3):
        one.train_step()
    tensors, about = one.state()
    other.restore({**tensors, "log/composition": tensors["log/composition"][:, 0]}, about)
    for each in (one, other):
        each.train_step()
    before, after = one.log(4), other.log(4)
    assert all((before[key] == after[key]).all() for key in ("n_max", "dcl", "model"))


def test_where_all_is_shared_the_second_dcl_model_has_its_own_batches_and_views(trainer):
    """It would be the first one otherwise. The other models share everything."""
    one, apart = trainer(), trainer(coupling=["init"])
    assert torch.equal(start_of(one, "dcl_twin"), start_of(one, "dcl"))
    assert one.batches["nscl"] is one.batches["dcl"]
    for own, expected in zip(
        one.batches["dcl_twin"].at(3), apart.batches["dcl_twin"].at(3), strict=True
    ):
        assert torch.equal(own, expected)
    for same, other in zip(one.batches["dcl"].at(3), one.batches["dcl_twin"].at(3), strict=True):
        assert not torch.equal(same, other)
    assert cell(coupling=["views", "init"])["coupling"] == ["init", "views"]
    assert cell_id(cell(coupling=["views", "init"])) != cell_id(cell())


def test_measures_of_a_run_without_common_start(digits, tmp_path):
    """CKA with the initial weights is with each model's own."""
    from cltools.data.store import ImageStore
    from cltools.stages.embed import embed_cell
    from cltools.stages.measure import measure_cell

    settings = cell(coupling=[], test_images_per_class=10, objectives=["dcl", "nscl", "dcl_twin"])
    run(settings, digits, tmp_path)
    embed_cell(tmp_path / "trained.json", ImageStore.open(digits), torch.device("cpu"))
    table = pl.read_parquet(measure_cell(tmp_path / "trained.json"))
    begun = table.filter(
        step=0, metric="cka_to_init", variant="cosine_biased", features="h", split="test"
    )
    assert dict(begun.select("objective", "value").iter_rows()) == pytest.approx(
        {"dcl": 1, "nscl": 1, "dcl_twin": 1}
    )
    apart = table.filter(
        step=0, metric="cka", variant="cosine_biased", features="h", split="test", reference="dcl"
    )
    assert (apart["value"] < 0.999).all()
    assert table.filter(metric="weight_angle", variant="from_init").is_empty()
    # The twin has losses of its own, as every contrastive model.
    assert len(table.filter(metric="gap", objective="dcl_twin", step=8)) == 4
