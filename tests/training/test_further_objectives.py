"""Objectives without negatives in the coupled trainer: the randomness rule, what they learn."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from itertools import count

import polars as pl
import pytest
import torch
from ranks import on_ranks
from small import SMALL, files, small_cell, train_rank
from small import train_into as run

from cltools.config.cells import canonical_cell, cell_id, resolve_cell
from cltools.data.image_set import image_set, open_store
from cltools.layout import MeasureSettings, RunFolder
from cltools.maths.few_shot import knn
from cltools.maths.randomness import initialize
from cltools.objectives import built_in, find
from cltools.runtime.errors import InputError
from cltools.runtime.tensors import load_tensors
from cltools.stages import embed, measure, theory
from cltools.stages.train import Saves
from cltools.training.live import LastValues, latest, read_live
from cltools.training.momentum import target_momentum
from cltools.training.networks import build_network
from cltools.training.recalibration import recalibrate_all
from cltools.training.trainer import CoupledTrainer, work_of_step

CPU = torch.device("cpu")
OTHERS = ["barlow_twins", "byol", "simsiam", "supcon_in", "vicreg"]
cell = partial(
    small_cell,
    objectives=["dcl", *OTHERS],
    horizon="6 steps",
    checkpoints=[0],
    optimizer="sgd",
    lr=0.02,
    warmup=2,
)


def trainer_of(settings, store):
    data = image_set(open_store(store, settings), settings, "train", CPU)
    return CoupledTrainer(settings, data, CPU)


@pytest.fixture(scope="module")
def together(digits, tmp_path_factory):
    """A run of all objectives, and its folder."""
    folder = tmp_path_factory.mktemp("together")
    return run(cell(), digits, folder), folder


def weights_in(folder):
    return {path.name: path.read_bytes() for path in (folder / "run/weights").iterdir()}


@pytest.mark.parametrize("objective", OTHERS)
def test_together_is_alone(digits, together, tmp_path, objective):
    manifest, folder = together
    single = run(cell(objectives=[objective]), digits, tmp_path)
    alone = weights_in(tmp_path)
    assert len(alone) == 2
    assert alone.items() <= weights_in(folder).items()
    assert single["checkpoints"]["0"]["digests"] == manifest["checkpoints"]["0"]["digests"]


def test_others_have_the_bytes_of_a_run_without_them(digits, together, tmp_path):
    run(cell(objectives=["dcl"]), digits, tmp_path)
    assert weights_in(tmp_path).items() <= weights_in(together[1]).items()


def test_all_share_their_start(together):
    start = {
        o: load_tensors(together[1] / f"run/weights/{o}-0000000.safetensors", "")[0]
        for o in cell()["objectives"]
    }
    for objective, weights in start.items():
        own = weights.keys() - start["dcl"].keys()
        assert all(torch.equal(value, weights[name]) for name, value in start["dcl"].items())
        assert {name.partition(".")[0] for name in own} == (
            {"predictor"} if built_in()[objective].predictor else set()
        )


def test_the_start_of_the_predictor_depends_on_its_names_alone():
    """Not on how many random numbers the encoder or another predictor takes."""
    made = [
        build_network(cell(**changed), (8, 8, 1), 10, "simsiam")
        for changed in ({}, {"width": 2}, {"projector_hidden": 24})
    ]
    for network in made:
        initialize(network, 3)
    for network in made[1:]:
        for name, value in made[0].predictor.state_dict().items():
            assert torch.equal(value, network.predictor.state_dict()[name])


def test_an_interrupted_run_continues(digits, together, tmp_path):
    """Predictor and momentum network are in the state: the bytes are those of the whole run."""
    calls = count(1)
    step = CoupledTrainer.train_step

    def failing(self):
        if next(calls) == 5:
            raise KeyboardInterrupt
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CoupledTrainer, "train_step", failing)
        with pytest.raises(KeyboardInterrupt):
            run(cell(), digits, tmp_path, saves=Saves(every_steps=3))
    run(cell(), digits, tmp_path)
    assert files(tmp_path) == files(together[1])


@pytest.mark.slow
def test_ranks_with_objectives_of_their_own(digits, together, tmp_path):
    on_ranks(2, train_rank, cell(), digits, tmp_path)
    assert files(tmp_path) == files(together[1])


def test_the_momentum_network_follows(digits):
    trainer = trainer_of(cell(objectives=["byol"]), digits)
    network, target = trainer.networks["byol"], trainer.targets["byol"].network
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    trainer.train_step()
    trainer.train_step()  # the learning rate of the first step may be 0
    assert all(not p.requires_grad for p in target.parameters())
    assert not any(name.startswith("predictor") for name in dict(target.named_parameters()))
    trained = dict(network.named_parameters())
    moved = 0.0
    for name, p in target.named_parameters():
        gone, whole = (p - before[name]).norm(), (trained[name] - before[name]).norm()
        assert gone <= 0.02 * whole + 1e-6
        moved += float(gone)
    assert moved > 0
    assert target_momentum(0.9, 0, 10) == pytest.approx(0.9)
    assert target_momentum(0.9, 5, 10) == pytest.approx(0.95)
    assert target_momentum(0.9, 10, 10) == pytest.approx(1)


def test_what_is_logged(together):
    log = pl.read_parquet(together[1] / "run/log-6steps.parquet")
    for objective in OTHERS:
        own = log.filter(model=objective)
        assert own[objective].is_finite().all()
        contrastive = built_in()[objective].contrastive
        assert own["dcl"].is_finite().all() == contrastive
        assert own["z_std"].is_finite().all() == own["z_rank"].is_finite().all() != contrastive
        others = set(OTHERS) - {objective, "supcon_in"}
        assert own.select(*others).fill_nan(None).null_count().row(0) == (6,) * len(others)
    assert log.filter(model="dcl")["supcon_in"].is_finite().all()  # as of every contrastive loss


def test_a_cell_of_the_papers_has_no_column_more(digits):
    columns = trainer_of(cell(objectives=["dcl", "nscl", "ce"]), digits).columns
    assert columns == ["grad_norm", "dcl", "nscl", "scl", "ce"]


def onto_a_line(outputs):
    """A loss that is smallest where z is one direction or its opposite."""
    return 1 - outputs.z[:, :, 0].square().mean()


@pytest.mark.slow
def test_collapse_is_told(digits, tmp_path, caplog, monkeypatch):
    """Once, and in the live rows, from which `cltools status` has it."""
    collapsing = replace(find("simsiam"), loss=onto_a_line)
    monkeypatch.setitem(built_in(), "simsiam", collapsing)
    find.cache_clear()
    settings = cell(objectives=["dcl", "simsiam"], horizon="60 steps", lr=0.5)
    try:
        run(settings, digits, tmp_path, saves=Saves(every_steps=20))
    finally:
        monkeypatch.undo()
        find.cache_clear()
    told = [r.getMessage() for r in caplog.records if "has collapsed" in r.getMessage()]
    assert len(told) == 1
    assert re.match(r"simsiam has collapsed at step \d+: z lies nearly on a line \(1\.", told[0])
    last = latest(read_live(RunFolder(tmp_path / "run")), settings["objectives"])
    assert LastValues.of(last, 60).collapsed.keys() == {"simsiam"}


@pytest.mark.slow
def test_measures_and_theory(digits, together, tmp_path):
    """Losses of whole data sets and bounds are of contrastive networks; the rest is of all."""
    shutil.copytree(together[1], tmp_path / "cell")
    manifests = [tmp_path / "cell/trained.json"]
    on_cpu = {"device": "cpu", "threads": 1}
    embed.run(manifests=manifests, stores=[digits], done=tmp_path / "embedded.json", **on_cpu)
    measured = tmp_path / "measured.json"
    measure.run(manifests=manifests, done=measured, settings=MeasureSettings("last"), **on_cpu)
    bounded = tmp_path / "theory.json"
    theory.run(manifests=manifests, stores=[digits], measured=measured, done=bounded,
               settings={}, **on_cpu)  # fmt: skip

    def objectives(rows, **where):
        return set(rows.filter(**where)["objective"]) - {""}

    (table,) = json.loads(measured.read_text())["tables"].values()
    rows = pl.read_parquet(table)
    for metric in ("cka", "effective_rank", "uniformity", "cdnv", "weight_gap", "knn"):
        assert objectives(rows, metric=metric) >= {"byol", "simsiam", "vicreg"}, metric
    assert objectives(rows, metric="gap") == {"dcl", "supcon_in"}
    (table,) = json.loads(bounded.read_text())["tables"].values()
    assert objectives(pl.read_parquet(table), quantity="gap") == {"dcl", "supcon_in"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"byol": {"momentum": 1}}, "momentum is 1, but must be at least 0 and below 1"),
        ({"byol": {"speed": 1}}, "byol.speed is unknown: known keys are momentum"),
        ({"simsiam": {"speed": 1}}, "simsiam.speed is unknown: simsiam has no settings"),
        ({"nscl": {"tau": 1}}, "nscl is about an objective that the cell does not train"),
        ({"byol": 3}, "objective_settings.byol is 3, but must be of type mapping"),
        ({"byol": {"momentum": "high"}}, "momentum is 'high', but must be of type number"),
    ],
)
def test_settings_that_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        cell(objective_settings=settings)


def test_settings_at_their_defaults_are_no_other_cell():
    plain = cell()
    same = cell(objective_settings={"byol": {"momentum": 0.996}, "vicreg": {"variance": 25}})
    assert cell_id(plain) == cell_id(same)
    other = cell(objective_settings={"vicreg": {"variance": 24}})
    assert cell_id(plain) != cell_id(other)
    assert "objective_settings" not in canonical_cell(plain)


def test_moco_refuses_what_has_no_queue():
    moco = {"framework": "moco", "queue_size": 48}
    with pytest.raises(InputError, match="supcon_in, which has no form with a queue"):
        resolve_cell({**SMALL, **moco, "objectives": ["dcl", "supcon_in"]})


def test_work_of_a_step():
    assert [work_of_step(cell(), o) for o in ("dcl", "simsiam", "byol")] == [6, 6, 8]


# Of h, from 0.72 before training, with 400 images; the smallest gain is some 0.11.
MARGIN = 0.05
LEARNS = {
    "images_per_class": 40, "batch_size": 50, "projector_hidden": 64, "projector_dim": 32,
    "horizon": "100 steps", "warmup": "10 steps", "lr": 0.05, "base_batch": 50,
    "objective_settings": {
        "byol": {"momentum": 0.9},
        "barlow_twins": {"redundancy": 0.1, "scale": 0.1},
        "vicreg": {"invariance": 2.5, "variance": 2.5, "covariance": 0.1},
    },
}  # fmt: skip


def neighbors(trainer, test):
    """Objective -> accuracy of the 5 nearest neighbors of test images, from h."""
    sets = {"train": trainer.data, "test": test}
    recalibrate_all(list(trainer.networks.values()), trainer.data)
    images = {
        split: data.normalize(next(iter(data.plain([torch.arange(len(data.labels))]))))
        for split, data in sets.items()
    }
    labels = [data.labels.numpy() for data in sets.values()]
    with torch.no_grad():
        h = {
            o: [network.eval()(images[split])[0].numpy() for split in sets]
            for o, network in trainer.networks.items()
        }
    return {o: knn(a, labels[0], b, labels[1], k=5) for o, (a, b) in h.items()}


@pytest.mark.slow
def test_each_learns(digits):
    """Neighbors are more alike than in the untrained network, by a margin."""
    settings = cell(**LEARNS)
    trainer = trainer_of(settings, digits)
    test = image_set(open_store(digits, settings), settings, "test", CPU)
    before = neighbors(trainer, test)
    for _ in range(trainer.horizon):
        trainer.train_step()
    trainer.flush()
    after = neighbors(trainer, test)
    gains = {o: after[o] - before[o] for o in after}
    assert min(gains.values()) > MARGIN, gains
