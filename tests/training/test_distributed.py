"""Ranks that split batches compute what one process computes: gradients, statistics, whole runs.

Ranks are gloo processes here. In float64 W ranks and one process agree to 1e-12, and every usual
mistake, planted on purpose, is seen; whole runs are compared as files.
"""

import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from precise import RECIPE, in_float64, make_float_double
from ranks import command, on_ranks
from small import files, small_cell
from small import train_rank as run
from torch import nn
from waiting import HANGS, wait_until

from cltools.data.image_set import image_set, open_store
from cltools.maths.objectives import similarity_logits
from cltools.runtime.errors import InputError, Stopped
from cltools.runtime.tensors import load_tensors
from cltools.stages import train
from cltools.training.batches import Batches
from cltools.training.distributed import SeveralRanks, join_ranks
from cltools.training.trainer import CoupledTrainer

OBJECTIVES = ["dcl", "nscl", "scl", "ce", "nt_xent", "nscl_with_positive"]
CPU = torch.device("cpu")
BY_BATCH = ("--share", "batch")


cell = partial(
    small_cell,
    horizon="4 steps",
    warmup=2,
    checkpoints=[0, 2],
    optimizer="sgd",
    lr=0.02,  # at 0.2 four steps turn float32 rounding into 1 percent of a loss
)


class NoSum(SeveralRanks):
    """The authors' fault: DDP.forward was bypassed, so that gradients were never summed."""

    def sum_gradients(self, network):
        pass


class Mean(SeveralRanks):
    """What DDP does: the mean over ranks, for a loss that every rank computes in full."""

    def sum_gradients(self, network):
        super().sum_gradients(network)
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.size


class LocalStatistics(SeveralRanks):
    def couple(self, network):
        pass


class NoGradientOfStatistics(SeveralRanks):
    """Batch statistics are global, their derivative takes this rank's values for all."""

    def sum(self, own):
        return super().sum(own) if own.ndim == 1 else own * self.size


class LocalSlice(SeveralRanks):
    """A loss of the own anchors, of whose gradient only the own slice is kept (GatherLayer)."""


class LocalNegatives(SeveralRanks):
    """No gathering: every rank has a loss of its own images."""

    def gather(self, own):
        copies = [own if rank == self.rank else own.detach() for rank in range(self.size)]
        return torch.cat(copies, dim=1)


# The last two are none for CE, which has no pairs of images.
MISTAKES = (NoSum, Mean, LocalStatistics, NoGradientOfStatistics, LocalSlice, LocalNegatives)


def _own_anchors(logits, ranks):
    """The same values, but of the rows of other ranks' anchors no gradient flows."""
    anchors = torch.zeros(2, len(logits) // 2, dtype=torch.bool)
    ranks.share(anchors.T)[:] = True
    return torch.where(anchors.flatten()[:, None], logits, logits.detach())


def steps_in_float64(store, steps, kinds=(None,), **changed):
    """Gradients, weights, buffers and log of `steps` steps of all objectives, by kind of ranks."""
    changed = {"objectives": OBJECTIVES, "coupling": ["init", "views"], **changed}
    settings = cell(recipe=RECIPE, **changed)
    ranks, device = join_ranks("cpu")
    with pytest.MonkeyPatch.context() as patch:
        make_float_double(patch)
        data = image_set(open_store(store, settings), settings, "train", device)
        return [
            _steps(
                in_float64(CoupledTrainer(settings, data, CPU, kind() if kind else ranks)), steps
            )
            for kind in kinds
        ]


def _steps(trainer, steps):
    ranks = trainer.ranks
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(ranks, LocalSlice):
            own = lambda z, tau: _own_anchors(similarity_logits(z, tau), ranks)  # noqa: E731
            patch.setattr("cltools.maths.objectives.similarity_logits", own)
        for _ in range(steps):
            trainer.train_step()
    made = {}
    for objective, network in trainer.networks.items():
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                made[f"{objective}/gradient/{name}"] = parameter.grad
        for name, value in network.state_dict().items():
            made[f"{objective}/state/{name}"] = value
    made["log"] = torch.stack(trainer._pending)
    return {name: value.detach().double().numpy() for name, value in made.items()}


def furthest(ours, theirs):
    """Name -> largest difference of an entry, in units of the tensor's largest entry."""
    assert ours.keys() == theirs.keys()

    def distance(a, b):
        a, b = torch.from_numpy(a).nan_to_num(), torch.from_numpy(b).nan_to_num()
        return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300))

    return {name: distance(ours[name], theirs[name]) for name in ours}


@pytest.fixture(scope="module")
def alone(digits):
    """One step and three steps of one process."""
    return {steps: on_ranks(1, steps_in_float64, digits, steps)[0][0] for steps in (1, 3)}


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_are_those_of_one_process(digits, alone, size):
    for (made,) in on_ranks(size, steps_in_float64, digits, 1):
        apart = furthest(made, alone[1])
        assert max(apart.values()) < 1e-12, max(apart, key=apart.get)


def test_views_that_pass_apart(digits):
    """Each view has batch statistics of its own: those of all ranks."""
    (alone,) = on_ranks(1, steps_in_float64, digits, 1, view_forward="apart")[0]
    for (made,) in on_ranks(2, steps_in_float64, digits, 1, view_forward="apart"):
        assert max(furthest(made, alone).values()) < 1e-12


def test_steps_are_those_of_one_process(digits, alone):
    """Weights, running statistics and log after three steps; the same bits on all ranks."""
    (first,), (second,) = on_ranks(2, steps_in_float64, digits, 3)
    apart = furthest(first, alone[3])
    assert max(apart.values()) < 1e-10, max(apart, key=apart.get)
    assert max(furthest(first, second).values()) == 0


def compiled_step_in_float64(store):
    """A step of compiled networks, traced as on a GPU but run by the plain operations."""
    compile_with = torch.compile
    torch.compile = lambda network, options, **how: compile_with(network, backend="eager", **how)
    return steps_in_float64(store, 1, compile=True)


def test_compiled_networks_gather_too(digits, alone):
    for (made,) in on_ranks(2, compiled_step_in_float64, digits):
        assert max(furthest(made, alone[1]).values()) < 1e-12


def test_further_parts_are_those_of_one_process(digits):
    """Queues, predictors and momentum networks: weights and log after three steps."""
    parts = ["barlow_twins", "byol", "simsiam", "vicreg"]
    moco = {"framework": "moco", "queue_size": 48, "objectives": ["dcl", "nscl", "ce", *parts]}
    ((alone,),) = on_ranks(1, steps_in_float64, digits, 3, **moco)
    for (made,) in on_ranks(2, steps_in_float64, digits, 3, **moco):
        apart = furthest(made, alone)
        for objective in ("byol", "simsiam"):  # 0 but for rounding: means over a batch of z are 0
            del apart[f"{objective}/state/predictor.1.running_mean"]
        assert max(apart.values()) < 1e-10, max(apart, key=apart.get)


def test_mistakes_are_seen(digits, alone):
    """Each usual mistake moves the gradient of every objective by far more than the tolerance."""
    made, _ = on_ranks(2, steps_in_float64, digits, 1, MISTAKES)
    for mistake, gradients in zip(MISTAKES, made, strict=True):
        apart = furthest(gradients, alone[1])
        for objective in OBJECTIVES:
            encoder = [d for n, d in apart.items() if n.startswith(f"{objective}/gradient/enc")]
            seen = objective != "ce" or mistake not in (LocalSlice, LocalNegatives)
            assert (max(encoder) > 1e-3) == seen, (mistake, objective, max(encoder))


def _running_statistics(x):
    ranks, _ = join_ranks("cpu")
    layer = nn.Sequential(nn.BatchNorm2d(x.shape[1]))
    ranks.couple(layer)
    layer(ranks.share(x))
    return {name: value.double().numpy() for name, value in layer[0].state_dict().items()}


def test_statistics_do_not_cancel(digits):
    """Variance 1 beside a mean of 1000 in float32, where E[x²] - E[x]² loses it."""
    draw = torch.Generator().manual_seed(0)
    x = (1000 + torch.randn(64, 3, 5, 5, generator=draw, dtype=torch.float64)).float()
    made, _ = on_ranks(2, _running_statistics, x)
    layer = nn.BatchNorm2d(3).double()
    layer(x.double())
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(torch.from_numpy(made[name]), value.double(), rtol=1e-6, atol=0)
    naive = (x**2).mean((0, 2, 3)) - x.mean((0, 2, 3)) ** 2
    assert ((naive - 1).abs() > 0.01).any()


def test_each_rank_makes_its_part_of_the_same_views(digits):
    settings = cell()
    data = image_set(open_store(digits, settings), settings, "train", CPU)
    whole, images = Batches(settings, data, CPU).at(3)
    parts = []
    for rank in range(3):
        ranks = SeveralRanks.__new__(SeveralRanks)
        ranks.rank, ranks.size = rank, 3
        views, everyone = Batches(settings, data, CPU, ranks=ranks).at(3)
        assert torch.equal(everyone, images)
        parts.append(views.unflatten(0, (2, 8)))
    assert torch.equal(torch.cat(parts, dim=1).flatten(0, 1), whole)


@pytest.mark.slow
def test_a_whole_run(digits, tmp_path):
    """torchrun on 2 ranks: near one process, and the same bytes when repeated or interrupted."""
    run(cell(), digits, tmp_path / "alone")
    done = subprocess.run(
        command(cell(), digits, tmp_path / "two", 2, *BY_BATCH),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{n}/trained.json").read_text()) for n in ("alone", "two"))
    assert (one["trained_by"], two["trained_by"]) == ({"0": 1}, {"0": 2})
    assert one["checkpoints"]["0"] == two["checkpoints"]["0"]
    assert one["checkpoints"]["4"]["digests"] == two["checkpoints"]["4"]["digests"]
    assert one.keys() == two.keys()
    for objective in cell()["objectives"]:
        name = f"run/weights/{objective}-0000004.safetensors"
        ours, theirs = (load_tensors(tmp_path / n / name, "")[0] for n in ("two", "alone"))
        assert ours.keys() == theirs.keys()
    # Of the first step, 1e-4 is a thousand roundings of float32. Later steps multiply them: those
    # are compared in float64, above.
    logs = [pl.read_parquet(tmp_path / n / "run/log-4steps.parquet") for n in ("two", "alone")]
    for column in ("dcl", "nscl", "scl", "ce", "grad_norm", "lr"):
        ours, theirs = (log.filter(step=log["step"].min())[column].to_torch() for log in logs)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0, equal_nan=True)

    on_ranks(2, run, cell(), digits, tmp_path / "parts", "3 steps", share="batch")
    on_ranks(2, run, cell(), digits, tmp_path / "parts", share="batch")
    parts, whole = files(tmp_path / "parts"), files(tmp_path / "two")
    assert {name: parts[name] for name in whole if "resume" not in name} == {
        name: data for name, data in whole.items() if "resume" not in name
    }


def first_gradients(store, **changed):
    settings = cell(objectives=OBJECTIVES, **changed)
    ranks, device = join_ranks("cpu")
    data = image_set(open_store(store, settings), settings, "train", device)
    trainer = CoupledTrainer(settings, data, CPU, ranks)
    trainer.train_step()
    return {
        objective: np.concatenate(
            [p.grad.flatten().double().numpy() for p in network.parameters() if p.grad is not None]
        )
        for objective, network in trainer.networks.items()
    }


def test_bfloat16(digits):
    """Gradients of ranks are no further from those of float32 than those of one process are.

    Both are off by as many roundings, of which none is the same: over thousands of entries that
    comes to the same distance, to a few percent.
    """
    (exact,) = on_ranks(1, first_gradients, digits)
    (alone,) = on_ranks(1, first_gradients, digits, precision="bfloat16")
    for made in on_ranks(2, first_gradients, digits, precision="bfloat16"):
        for objective, gradient in exact.items():
            rounding = np.linalg.norm(alone[objective] - gradient)
            assert 0 < rounding < 0.5 * np.linalg.norm(gradient)
            assert np.linalg.norm(made[objective] - gradient) < 1.5 * rounding


def test_another_number_of_ranks_goes_on_and_is_told(digits, tmp_path):
    run(cell(), digits, tmp_path, until="3 steps")
    on_ranks(2, run, cell(), digits, tmp_path, share="batch")
    assert json.loads((tmp_path / "trained.json").read_text())["trained_by"] == {"0": 1, "3": 2}
    run(cell(), digits, tmp_path, until="3 steps")
    assert json.loads((tmp_path / "trained.json").read_text())["trained_by"] == {"0": 1}


def saved_step(folder):
    try:
        return load_tensors(folder / "run/resume.safetensors", "")[1]["step"]
    except InputError:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("share", ["batch", "objectives"])
def test_terminated_is_never_stopped(digits, tmp_path, share):
    """SIGTERM to torchrun ends all ranks; resumed, the bytes are of a run that never stopped."""
    settings = cell(horizon="4000 steps")
    process = subprocess.Popen(
        command(settings, digits, tmp_path / "ended", 2, "--share", share), stderr=-1
    )
    wait_until(
        lambda: saved_step(tmp_path / "ended") >= 5 or process.poll() is not None, "five steps"
    )
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=HANGS)
    assert process.returncode != 0, said
    reached = saved_step(tmp_path / "ended")
    assert 5 <= reached < 4000
    stop = f"{reached + 3} steps"
    on_ranks(2, run, settings, digits, tmp_path / "ended", stop, share=share)
    on_ranks(2, run, settings, digits, tmp_path / "whole", stop, share=share)
    whole, ended = files(tmp_path / "whole"), files(tmp_path / "ended")
    assert {name: ended[name] for name in whole} == whole


def _signalled_rank(store, folder, settings, share):
    """Rank 1 alone is told to stop, at its third step."""
    step = CoupledTrainer.train_step

    def signalled(self):
        if self.step == 2 and self.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self)

    CoupledTrainer.train_step = signalled
    try:
        run(settings, store, folder, share=share)
    except Stopped as stopped:
        return stopped.code, str(stopped)


@pytest.mark.parametrize("share", ["batch", "objectives"])
def test_ranks_stop_together(digits, tmp_path, share):
    """At the next step at which they talk, with the state of that step saved."""
    settings = cell(horizon="14 steps")
    stopped = 143, "stopped by SIGTERM at step 10 of 14: saved; start again to go on"
    assert on_ranks(2, _signalled_rank, digits, tmp_path, settings, share) == [stopped] * 2
    assert saved_step(tmp_path) == 10


def _failing_rank(store, folder, settings, share):
    """Rank 1 alone finds something wrong at its third step."""
    step = CoupledTrainer.train_step

    def failing(self):
        if self.step == 2 and self.ranks.rank == 1:
            raise InputError("this one fails")
        step(self)

    CoupledTrainer.train_step = failing
    try:
        run(settings, store, folder, share=share)
    except InputError as error:
        return str(error)


def test_a_rank_that_fails_stops_the_others(digits, tmp_path):
    first, second = on_ranks(2, _failing_rank, digits, tmp_path, cell(), "batch")
    assert "rank 0 of 2 lost the connection to the other ranks" in first
    assert second == "this one fails"
    assert not (tmp_path / "trained.json").exists()


def _drifting_rank(store, folder):
    """Rank 1 alone changes a weight."""
    step = CoupledTrainer.train_step

    def drifting(self):
        step(self)
        if self.ranks.rank == 1 and self.step == 1:
            next(self.networks["nscl"].parameters()).data.flatten()[0] += 1e-6

    CoupledTrainer.train_step = drifting
    with pytest.raises(InputError, match="2 ranks hold different weights of nscl at step 2: start"):
        run(cell(), store, folder, share="batch")


def test_replicas_that_drift_apart_are_refused(digits, tmp_path):
    on_ranks(2, _drifting_rank, digits, tmp_path)
    assert not (tmp_path / "run/weights/dcl-0000002.safetensors").exists()


def _refused(store, folder, settings, sentence, device="cpu", share="batch"):
    with pytest.raises(InputError, match=sentence):
        train.run(
            cell=settings,
            store=store,
            run=folder / "run",
            manifest=folder / "trained.json",
            until=None,
            device=device,
            share=share,
        )


def test_a_batch_that_cannot_be_shared(digits, tmp_path):
    sentence = "batch_size is 25, which 2 ranks cannot share evenly: make it a multiple of 2"
    on_ranks(2, _refused, digits, tmp_path, cell(batch_size=25), sentence)
    assert not list(tmp_path.iterdir())


def test_refusals(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"2 ranks .* lacks RANK, .*: start them with torchrun"):
        run(cell(), digits, tmp_path)
    for variable in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    _refused(digits, tmp_path, cell(), "--device cuda:0 is one GPU, but there are 2", "cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    _refused(digits, tmp_path, cell(), "this machine has 1 GPUs, too few for 2 ranks", "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("share", [BY_BATCH, ()])
def test_one_sentence(digits, tmp_path, share):
    """All ranks fail alike; one says so."""
    done = subprocess.run(
        command(cell(lr=1e30, warmup=0), digits, tmp_path, 2, *share),
        capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    assert "loss is not finite at step" in errors[0]
    assert not (tmp_path / "trained.json").exists()
    assert not list(Path(tmp_path).glob("run/.*"))
