"""MoCo: losses against a loop, one step by hand, the queue, resuming, and what is refused."""

import json
import math
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from precise import RECIPE, in_float64, make_float_double
from small import small_cell
from small import train_into as run

from cltools.config.cells import cell_id, resolve_cell
from cltools.data.image_set import image_set, open_store
from cltools.layout import MeasureSettings
from cltools.maths.bounds import gap_bound
from cltools.maths.objectives import QUEUE_OBJECTIVES, KeyMasks, key_logits, queue_loss
from cltools.runtime.errors import InputError
from cltools.runtime.tensors import load_tensors
from cltools.stages import embed, measure
from cltools.training.moco import KeyQueue, key_masks, queued_positions
from cltools.training.trainer import CoupledTrainer

CPU = torch.device("cpu")
IN_DENOMINATOR = {"nt_xent": 1, "nscl_with_positive": 1, "nt_xent_double_positive": 2}


cell = partial(
    small_cell,
    horizon="8 steps",
    checkpoints=[0],
    optimizer="sgd",
    objectives=["dcl", "nscl", "ce"],
    framework="moco",
    queue_size=72,
    key_momentum=0.9,
)


def trainer(digits, **settings):
    settings = cell(**settings)
    return CoupledTrainer(settings, image_set(open_store(digits, settings), settings, "train", CPU),
                          CPU)  # fmt: skip


def loop_reference(name, queries, keys, own, images, labels, tau):
    """Straight from the formula: `images` and `labels` are of the keys."""
    terms = []
    for number, query in enumerate(queries):
        mine = own + number
        weights = [math.exp(float(query @ key) / tau) for key in keys]
        negatives = sum(
            weight
            for weight, image, label in zip(weights, images, labels, strict=True)
            if (label != labels[mine] if name.startswith("nscl") else image != images[mine])
        )
        times = IN_DENOMINATOR.get(name, 0)
        terms.append(-math.log(weights[mine] / (negatives + times * weights[mine])))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("name", QUEUE_OBJECTIVES)
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_losses_equal_the_formula(name, tau):
    """An image that stands in the queue twice is no negative of itself."""
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.tensor([3, 1, 0, 2, 4, 1]), torch.tensor([0, 1, 0, 2, 0, 1])
    keys = F.normalize(torch.randn(6, 5, generator=draw, dtype=torch.float64), dim=1)
    queries = F.normalize(torch.randn(2, 5, generator=draw, dtype=torch.float64), dim=1)
    anchors = slice(4, 6)
    masks = KeyMasks(4, images[anchors, None] != images, labels[anchors, None] != labels)
    loss = queue_loss(name, key_logits(queries, keys, tau), masks)
    expected = loop_reference(name, queries, keys, 4, images.tolist(), labels.tolist(), tau)
    assert float(loss) == pytest.approx(expected, abs=1e-12)


def test_no_other_loss_has_a_queue():
    masks = KeyMasks(0, torch.ones(2, 2, dtype=bool), torch.ones(2, 2, dtype=bool))
    with pytest.raises(ValueError, match="'scl' has no form with a queue"):
        queue_loss("scl", torch.zeros(2, 2), masks)


def test_steps_are_those_written_by_hand(digits, monkeypatch):
    """Weights after four steps, of which the last replaces the first batch in the queue."""
    make_float_double(monkeypatch)
    ours, plain = (in_float64(trainer(digits, recipe=RECIPE)) for _ in range(2))
    network, optimizer = plain.networks["nscl"], plain.optimizers["nscl"]
    slow = plain._network("nscl").double()
    past = []
    for step in range(4):
        ours.train_step()
        views, images = plain.batches["nscl"].at(step)
        labels = plain.data.labels[images]
        query_view, key_view = views.chunk(2)
        with torch.no_grad():
            for old, new in zip(slow.parameters(), network.parameters(), strict=True):
                old.mul_(0.9).add_(0.1 * new)
            key = slow.train()(key_view)[1]
        past = [*past, (key, labels)][-3:]
        keys, classes = (torch.cat(part) for part in zip(*past, strict=True))
        query = network.train()(query_view)[1]
        logits = (query @ keys.T) / 0.5
        negatives = (logits.exp() * (labels[:, None] != classes)).sum(1)
        loss = (negatives.log() - (query * key).sum(1) / 0.5).mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = plain.lr_at(step)
        optimizer.step()
        column = 1 + ours.logged.index("nscl")
        row = ours._pending[-1][list(ours.networks).index("nscl")]
        assert float(row[column]) == pytest.approx(loss.item(), abs=1e-12)
    for a, b in zip(ours.networks["nscl"].parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    for a, b in zip(ours.queues["nscl"].network.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    assert "ce" not in ours.queues


def test_what_the_queue_holds(digits):
    """Labels and images of the masks are those whose keys are there, across epochs."""
    one = trainer(digits)
    batches, order = one.batches["dcl"], []
    assert one.steps_per_epoch == 5
    for step in range(12):
        order.append(batches.epoch_of(step)[0][step % 5])
        queued = queued_positions(batches, step, 3)
        assert sorted(queued.tolist()) == sorted(torch.cat(order[-3:]).tolist())
        own = 24 * (step % 3)
        assert torch.equal(queued[own : own + 24], order[-1])
        masks = key_masks(queued, own, 24, one.data.labels, CPU)
        assert masks.own == own
        assert torch.equal(masks.other_image, order[-1][:, None] != queued)
        labels = one.data.labels
        assert torch.equal(masks.other_class, labels[order[-1]][:, None] != labels[queued])
        assert one.images_among(step) == len(queued)


def test_the_log_counts_the_queue_and_obeys_its_bound(digits, tmp_path):
    run(cell(), digits, tmp_path)
    log = pl.read_parquet(tmp_path / "run/log-8steps.parquet").filter(model="dcl")
    assert log["scl"].is_nan().all()
    for step, n_max, bound in log.select("step", "n_max", "gap_bound").iter_rows():
        assert bound == gap_bound(n_max, 24 * min(step + 1, 3), 0.5)
    gap = (log["dcl"] - log["nscl"]).to_numpy()
    assert ((gap >= 0) & (gap <= log["gap_bound"].to_numpy())).all()


def test_the_shared_start_gives_dcl_and_nscl_the_same_keys(digits):
    one = trainer(digits)
    one.train_step()
    keys = [one.queues[objective].until(0) for objective in ("dcl", "nscl")]
    assert torch.equal(*keys)
    apart = trainer(digits, coupling=["batches", "views"])
    apart.train_step()
    keys = [apart.queues[objective].until(0) for objective in ("dcl", "nscl")]
    assert not torch.allclose(*keys, atol=0.1)


@pytest.mark.parametrize("until", ["2 steps", "7 steps"])
def test_a_stopped_run_continues(digits, tmp_path, until):
    """Its queue is neither full nor empty, or has gone round."""
    whole = run(cell(), digits, tmp_path / "whole")
    run(cell(), digits, tmp_path / "parts", until)
    assert run(cell(), digits, tmp_path / "parts") == whole


def test_a_model_alone_is_the_model_among_others(digits, tmp_path):
    run(cell(), digits, tmp_path / "together")
    run(cell(objectives=["nscl"]), digits, tmp_path / "alone")
    name = "run/weights/nscl-0000008.safetensors"
    files = [(tmp_path / folder / name).read_bytes() for folder in ("together", "alone")]
    assert files[0] == files[1]


def test_it_is_embedded_and_measured(digits, tmp_path):
    run(cell(), digits, tmp_path)
    manifests = [tmp_path / "trained.json"]
    embed.run(
        manifests=manifests,
        stores=[digits],
        done=tmp_path / "embedded.json",
        device="cpu",
        threads=1,
    )
    measure.run(
        manifests=manifests,
        done=tmp_path / "measured.json",
        settings=MeasureSettings("last"),
        discard_embeddings=False,
        threads=1,
    )
    (table,) = json.loads((tmp_path / "measured.json").read_text())["tables"].values()
    rows = pl.read_parquet(table).filter(metric="cka", objective="nscl", split="test")
    assert rows["value"].is_between(0, 1 + 1e-6).all()
    weights, _ = load_tensors(tmp_path / "run/weights/nscl-0000008.safetensors", "")
    assert not any(name.startswith("keys") for name in weights)


def test_a_queue_of_one_class_gives_nscl_no_step(digits):
    one = trainer(digits, objectives=["dcl", "nscl"])
    one.data.labels.zero_()
    before = {name: p.detach().clone() for name, p in one.networks["nscl"].named_parameters()}
    one.train_step()
    assert all(torch.equal(p, before[n]) for n, p in one.networks["nscl"].named_parameters())
    assert one.skipped_steps(1) == {"nscl": 1}
    row = one.log(1)
    assert np.isnan(row["nscl"]).all()
    assert np.isfinite(row["dcl"][0])


def test_the_queue_follows_with_its_momentum(digits):
    one = trainer(digits)
    queue = KeyQueue(one._network("dcl"), one.cell)
    target = one._network("dcl")
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(1)
    before = [p.clone() for p in queue.network.parameters()]
    for _ in range(3):
        queue.follow(target)
    share = 0.9**3
    for start, now, end in zip(
        before, queue.network.parameters(), target.parameters(), strict=True
    ):
        torch.testing.assert_close(now, share * start + (1 - share) * end)


def test_the_default_framework_leaves_no_trace_in_a_cells_name():
    plain = {"dataset": "digits", "recipe": "digits", "horizon": 2}
    named = {**plain, "framework": "simclr", "queue_size": 0, "key_momentum": 0.999}
    assert cell_id(resolve_cell(plain)) == cell_id(resolve_cell(named))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"queue_size": 0}, r"cell\.queue_size is 0, but .* a multiple of batch_size \(24\)"),
        ({"queue_size": 60}, r"queue_size is 60, but framework moco needs a multiple"),
        ({"objectives": ["dcl", "scl"]}, r"objectives lists scl, which has no form with a queue"),
        ({"views": 3}, r"cell\.views is 3, but MoCo passes"),
        ({"view_forward": "apart"}, r"view_forward is 'apart', but MoCo passes"),
        ({"framework": "simclr"}, r"queue_size is 72, but only MoCo has a queue"),
        ({"framework": "simclr", "queue_size": 0}, r"key_momentum is 0\.9, but only MoCo"),
        ({"framework": "byol"}, r"framework is 'byol', but must be one of 'simclr', 'moco'"),
    ],
)
def test_settings_that_do_not_fit(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        cell(**settings)


@pytest.mark.slow
def test_key_networks_are_compiled_too(digits, monkeypatch):
    """As the others are; traced and run by the plain operations, a step has the same bits."""
    plain = trainer(digits)
    found, compile_with = [], torch.compile

    def tracing(network, options, **how):
        found.append(network)
        return compile_with(network, backend="eager", **how)

    monkeypatch.setattr(torch, "compile", tracing)
    traced = trainer(digits, compile=True)
    networks = [*traced.networks.values(), *(queue.network for queue in traced.queues.values())]
    assert {id(network) for network in found} == {id(network) for network in networks}
    assert len(found) == len(networks) == 5
    for each in (plain, traced):
        each.train_step()
    for objective, queue in plain.queues.items():
        assert torch.equal(queue.keys, traced.queues[objective].keys)
        assert queue.keys.any()
