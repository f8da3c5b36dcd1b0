"""Ranks that train different objectives give the bytes of one process, whatever happens to them."""

import json
import os
import random
import re
import signal
import subprocess
from collections import Counter
from functools import partial

import pytest
import torch
import torch.distributed as dist
from ranks import command, on_ranks, start_ranks
from small import files, small_cell
from small import train_rank as run
from waiting import HANGS

from cltools.runtime.errors import InputError
from cltools.runtime.tensors import load_checked
from cltools.stages.train import Saves
from cltools.training.distributed import divided
from cltools.training.trainer import CoupledTrainer, work_of_step

cell = partial(
    small_cell,
    horizon="24 steps",
    warmup=2,
    checkpoints=[0, "13 steps"],
    optimizer="sgd",
    lr=0.02,
)
KINDS = {
    "SimCLR": {},
    "MoCo": {"framework": "moco", "queue_size": 72, "objectives": ["dcl", "nscl", "ce"]},
    "a twin with batches and views of its own": {
        "objectives": ["nscl", "dcl_twin", "dcl"], "coupling": ["init"],
    },
    "nothing shared": {"objectives": ["nscl", "ce", "dcl_twin"], "coupling": []},
    "made labels, batches of one class": {
        "objectives": ["dcl", "nscl:shuffled", "nscl:random2", "scl"],
        "classes": 2, "batch_size": 4,
    },
    "LARS as the authors": {
        "optimizer": "authors_lars", "sampler": "authors", "view_forward": "apart",
    },
}  # fmt: skip


def test_objectives_are_divided_by_their_work():
    assert divided({"a": 1, "b": 1, "c": 1, "d": 1}, 2) == [["a", "c"], ["b", "d"]]
    assert divided({"a": 4, "b": 4, "c": 6}, 2) == [["c"], ["a", "b"]]
    for size in range(1, 6):
        costs = {name: random.randint(1, 9) for name in "abcde"}
        ranks = divided(costs, size)
        assert sorted(name for own in ranks for name in own) == list(costs)
        assert all(own == sorted(own) for own in ranks)
        assert all(ranks)


def test_work_counts_the_key_network():
    """A query forward and backward, a key forward; cross-entropy has no queue."""
    moco = cell(**KINDS["MoCo"])
    assert [work_of_step(moco, o) for o in moco["objectives"]] == [4, 4, 6]
    assert work_of_step(cell(views=4), "dcl") == 12


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory):
    """The files of one process, by kind of cell; made once each."""
    made = {}

    def of(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("alone")
            run(cell(**KINDS[kind]), digits, folder)
            made[kind] = files(folder)
        return made[kind]

    return of


OFTEN = ("SimCLR", "a twin with batches and views of its own")
SELDOM = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind not in OFTEN]


@pytest.mark.parametrize("kind", [*OFTEN, *SELDOM])
def test_two_ranks_are_one_process(digits, alone, tmp_path, kind):
    """Weights, log, state, settings and manifest, byte for byte."""
    on_ranks(2, run, cell(**KINDS[kind]), digits, tmp_path)
    whole = alone(kind)
    assert files(tmp_path) == whole
    assert json.loads(whole["trained.json"])["trained_by"] == {"0": 1}
    assert {"run/resume.safetensors", "run/log-24steps.parquet"} <= whole.keys()


@pytest.mark.slow
def test_three_ranks_are_one_process(digits, alone, tmp_path):
    on_ranks(3, run, cell(), digits, tmp_path)
    assert files(tmp_path) == alone("SimCLR")


def killed_rank(settings, store, folder, stop):
    """Rank 1 is killed as it has made the step `stop`; states are saved after every third."""
    step = CoupledTrainer.train_step

    def last(self):
        step(self)
        if self.step == stop and self.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    CoupledTrainer.train_step = last
    try:
        run(settings, store, folder, saves=Saves(every_steps=3))
    except InputError as error:
        return str(error)


@pytest.mark.parametrize(
    "kind",
    ["SimCLR", *(pytest.param(k, marks=pytest.mark.slow) for k in ("MoCo", "nothing shared"))],
)
def test_killed_and_resumed_by_other_numbers_of_ranks(digits, alone, tmp_path, kind):
    settings = cell(**KINDS[kind])
    for size, stop in ((2, 8), (3, 14), (2, 20)):
        ranks, answers = start_ranks(size, killed_rank, settings, digits, tmp_path, stop)
        said = [answers.get(timeout=HANGS) for _ in range(size - 1)]
        for rank in ranks:
            rank.join()
        assert ranks[1].exitcode == -signal.SIGKILL
        assert all("lost the connection to the other ranks" in answer for _, answer, _ in said)
        reached = load_checked(tmp_path / "run/resume.safetensors", "")[1]["step"]
        assert stop - 6 < reached < stop  # the last save may not have been written
        assert not (tmp_path / "trained.json").exists()
    run(settings, digits, tmp_path)
    assert files(tmp_path) == alone(kind)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_a_longer_run_goes_on_with_another_number(digits, alone, tmp_path, first):
    """And the state of an unfinished run is that of one process, too."""
    for folder, size in (("ours", first), ("theirs", 1)):
        on_ranks(size, run, cell(), digits, tmp_path / folder, until="15 steps")
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    on_ranks(3 - first, run, cell(), digits, tmp_path / "ours")
    whole, ours = alone("SimCLR"), files(tmp_path / "ours")
    made = whole.keys() - {"run/resume.safetensors"}  # which lists the weights of step 15, too
    assert {name: ours[name] for name in made} == {name: whole[name] for name in made}


def test_weights_of_an_earlier_stop_are_lost(digits, tmp_path):
    """Trained once more to there, in a folder of its own, as by one process."""
    for folder, size in (("ours", 2), ("theirs", 1)):
        on_ranks(size, run, cell(), digits, tmp_path / folder)
        on_ranks(size, run, cell(), digits, tmp_path / folder, until="15 steps")
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    assert (tmp_path / "ours/run/until-15steps/resume.safetensors").exists()


def counted(store, folder, share, horizon):
    """How often each kind of message is sent in a run whose only saves are at its ends."""
    sent = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_reduce", "all_gather", "broadcast", "gather_object", "all_gather_object"):
            patch.setattr(dist, name, _counting(getattr(dist, name), name, sent))
        settings = cell(horizon=f"{horizon} steps", checkpoints=[0])
        run(settings, store, folder, share=share, saves=Saves(every_seconds=1e9))
    return sent


def _counting(collective, name, sent):
    def call(*arguments, **options):
        sent[name] += 1
        return collective(*arguments, **options)

    return call


@pytest.mark.parametrize("share", ["objectives", "batch"])
def test_messages_of_a_step(digits, tmp_path, share):
    """Between ranks with other objectives: one in ten steps, whether to go on."""
    short, long = (
        on_ranks(2, counted, digits, tmp_path / str(steps), share, steps)[0] for steps in (10, 20)
    )
    more = {name: long[name] - short[name] for name in long if long[name] > short[name]}
    if share == "objectives":
        assert more == {"all_reduce": 1}
    else:  # for every objective: its gradient, its projections, and the statistics of every layer
        assert more["all_reduce"] > 10 * 2 * len(cell()["objectives"])
        assert more["all_gather"] > 10 * 2 * len(cell()["objectives"])


def failing_rank(store, folder, settings, faulty, fault):
    """One rank alone finds something wrong in its third step."""
    step = CoupledTrainer.train_step

    def failing(self):
        if self.step == 2 and self.ranks.rank == faulty:
            if fault == "NaN":
                for network in self.networks.values():
                    next(network.parameters()).data.fill_(torch.nan)
            else:
                raise fault
        step(self)

    CoupledTrainer.train_step = failing
    try:
        run(settings, store, folder, saves=Saves(every_steps=2))
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (InputError("this one fails"), "this one fails"),
        ("NaN", "the .* loss is not finite at step 2: lower lr or lengthen warmup"),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (ZeroDivisionError("a mistake"), "a mistake"),
    ],
    ids=str,
)
def test_an_error_of_one_rank_ends_all(digits, tmp_path, fault, sentence, faulty):
    """All have the same error; nothing of a step after it is saved."""
    answers = on_ranks(2, failing_rank, digits, tmp_path, cell(), faulty, fault)
    assert answers[0] == answers[1]
    kind, said = answers[0]
    assert kind is (InputError if fault == "NaN" else type(fault))
    assert re.fullmatch(sentence, said)
    assert load_checked(tmp_path / "run/resume.safetensors", "")[1]["step"] == 2
    assert not (tmp_path / "trained.json").exists()


def other_steps(store, folder):
    """Rank 1 reads an older state than rank 0, as on a shared file system that is slow."""
    restore = CoupledTrainer.restore

    def older(self, tensors, about):
        restore(self, tensors, {**about, "step": about["step"] - self.ranks.rank})

    CoupledTrainer.restore = older
    with pytest.raises(
        InputError, match=r"the 2 ranks are at different steps \(14 and 15\): start"
    ):
        run(cell(), store, folder)


def test_ranks_that_resume_from_different_steps_are_refused(digits, tmp_path):
    run(cell(), digits, tmp_path, until="15 steps")
    on_ranks(2, other_steps, digits, tmp_path)


def refused(store, folder):
    with pytest.raises(InputError, match="share is objectives, but there are 2 ranks for 1 obj"):
        run(cell(objectives=["dcl"]), store, folder, share="objectives")


def test_more_ranks_than_objectives(digits, tmp_path):
    """They split the batch, unless that was not wanted."""
    on_ranks(2, refused, digits, tmp_path)
    assert not list(tmp_path.iterdir())
    on_ranks(2, run, cell(objectives=["dcl"]), digits, tmp_path)
    assert json.loads((tmp_path / "trained.json").read_text())["trained_by"] == {"0": 2}


@pytest.mark.slow
def test_torchrun(digits, alone, tmp_path):
    """As the rule starts it, and interrupted by the time limit of a job."""
    process = subprocess.run(
        command(cell(), digits, tmp_path, 2), capture_output=True, text=True, timeout=HANGS
    )
    assert process.returncode == 0, process.stderr
    assert files(tmp_path) == alone("SimCLR")
