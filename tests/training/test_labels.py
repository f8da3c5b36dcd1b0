"""Objectives with labels of their own are trained like any other, on these labels."""

from dataclasses import replace
from functools import partial

import polars as pl
import pytest
import torch
from small import small_cell
from small import train_into as run

from cltools.config.cells import cell_id
from cltools.data.image_set import image_set, open_store
from cltools.runtime.errors import InputError
from cltools.training.trainer import CoupledTrainer

CPU = torch.device("cpu")
OWN = [
    "nscl:shuffled", "nscl:random3", "nscl:coarse2", "nscl:noise40", "nscl:clusters4",
    "scl:coarse2", "ce:random3", "nscl_with_positive:shuffled",
]  # fmt: skip
cell = partial(small_cell, horizon="8 steps", checkpoints=[0], optimizer="sgd")


def trained(settings, data, steps=3):
    one = CoupledTrainer(settings, data, CPU)
    for _ in range(steps):
        one.train_step()
    return one


def images(digits, settings):
    return image_set(open_store(digits, settings), settings, "train", CPU)


@pytest.mark.parametrize(
    ("objective", "framework"),
    [(o, f) for o in OWN for f in ("simclr", "moco") if (o[:3], f) != ("scl", "moco")],
)
def test_it_is_the_objective_on_images_with_these_labels(digits, objective, framework):
    """The reference: the plain objective, on a training set that has these labels itself."""
    queue = {"framework": "moco", "queue_size": 72} if framework == "moco" else {}
    settings = cell(objectives=["dcl", objective], **queue)
    data = images(digits, settings)
    one = trained(settings, data)
    labels = one.labels[objective]
    assert (labels.values != data.labels).any()
    assert int(labels.values.max()) < labels.classes

    loss = objective.partition(":")[0]
    relabeled = replace(data, labels=labels.values, classes=labels.classes)
    other = trained(cell(objectives=["dcl", loss], **queue), relabeled)
    for name, weights in other.networks[loss].state_dict().items():
        assert torch.equal(one.networks[objective].state_dict()[name], weights), name
    ours, theirs = one.log(3), other.log(3)
    for column in ("n_max", "batch_classes", loss):
        assert ours[column][1::2] == pytest.approx(theirs[column][1::2], nan_ok=True)


def test_the_other_objectives_do_not_notice(digits):
    alone = trained(settings := cell(objectives=["dcl", "nscl"]), images(digits, settings))
    with_others = trained(
        settings := cell(objectives=["dcl", "nscl", *OWN]), images(digits, settings)
    )
    for objective in ("dcl", "nscl"):
        expected = alone.networks[objective].state_dict()
        for name, weights in with_others.networks[objective].state_dict().items():
            assert torch.equal(weights, expected[name])


def test_labels_depend_on_the_seed_and_the_kind_alone(digits):
    def labels(objectives, **settings):
        made = cell(objectives=objectives, **settings)
        return CoupledTrainer(made, images(digits, made), CPU).labels

    first = labels(["dcl", "nscl:shuffled", "ce:shuffled", "nscl:random3"])
    again = labels(["nscl:shuffled"], tau=0.1)
    assert first["nscl:shuffled"] is first["ce:shuffled"]
    assert torch.equal(first["nscl:shuffled"].values, again["nscl:shuffled"].values)
    other = labels(["nscl:shuffled"], seed=1)
    assert not torch.equal(first["nscl:shuffled"].values, other["nscl:shuffled"].values)


def test_a_run_with_labels_of_its_own_continues(digits, tmp_path):
    settings = cell(objectives=["dcl", "nscl:coarse2", "ce:random3"])
    whole = run(settings, digits, tmp_path / "whole")
    run(settings, digits, tmp_path / "parts", until="3 steps")
    assert run(settings, digits, tmp_path / "parts") == whole
    assert whole["labels"]["nscl:coarse2"]["classes"] == 2
    assert whole["labels"]["nscl:coarse2"]["dropped"]["same_class"] == 1.0
    assert "labels" not in run(cell(objectives=["dcl", "nscl"]), digits, tmp_path / "plain")
    log = pl.read_parquet(tmp_path / "whole/run/log-8steps.parquet")
    classes = {m: log.filter(model=m)["batch_classes"].max() for m in settings["objectives"]}
    assert classes["nscl:coarse2"] == 2
    assert classes["ce:random3"] == 3 < classes["dcl"]


@pytest.mark.parametrize(
    ("objective", "said"),
    [("nscl:coarse10", "10 classes"), ("nscl:random2000", "training images")],
)
def test_more_groups_than_there_are_is_one_sentence(digits, objective, said):
    settings = cell(objectives=["dcl", objective])
    with pytest.raises(InputError, match=said):
        CoupledTrainer(settings, images(digits, settings), CPU)


def test_labels_are_part_of_the_cell():
    assert cell_id(cell(objectives=["dcl", "nscl"])) != cell_id(
        cell(objectives=["dcl", "nscl:shuffled"])
    )
    given = ["nscl:random10", "nscl:coarse2", "nscl:random2", "dcl_twin", "ce", "dcl"]
    assert cell(objectives=given)["objectives"] == [
        "dcl", "ce", "dcl_twin", "nscl:random2", "nscl:random10", "nscl:coarse2"
    ]  # fmt: skip
    with pytest.raises(InputError, match="only 4 classes"):
        cell(objectives=["dcl", "nscl:coarse4"], classes=4)
    with pytest.raises(InputError, match="scl:shuffled, which has no form with a queue"):
        cell(objectives=["dcl", "scl:shuffled"], framework="moco", queue_size=72)


@pytest.mark.parametrize(
    "wrong", ["nscl:", "dcl:shuffled", "nscl:coarse1", "nscl:noise0", "nscl:noise100",
              "nscl:shuffled2", "nscl:random02", "nscl:shuffled\n", "dcl_twin:shuffled"],
)  # fmt: skip
def test_other_names_are_refused(wrong):
    with pytest.raises(InputError, match="with labels of its own, after a colon"):
        cell(objectives=["dcl", wrong])
