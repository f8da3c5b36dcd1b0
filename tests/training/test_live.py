"""Rows for watching a run: what they say, and that they are whole after whatever happens."""

import logging
import math
from functools import partial
from itertools import count

import polars as pl
import pytest
from ranks import on_ranks
from small import files, small_cell, train_rank
from small import train_into as run

from cltools.layout import RunFolder
from cltools.runtime import progress
from cltools.stages.train import Saves
from cltools.training import trainer
from cltools.training.live import (
    HEADER,
    TAIL,
    Follower,
    LastValues,
    LiveRow,
    latest,
    read_live,
    settle,
)
from cltools.training.trainer import CoupledTrainer

MODELS = ["dcl", "nscl", "ce"]
STEPS, FLUSH = 24, 10  # three rows of each model: after 10 steps, 20 and at the end


def cell(**settings):
    return small_cell(
        **{"objectives": MODELS, "horizon": f"{STEPS} steps", "optimizer": "sgd", "lr": 0.05,
           "warmup": 2, "batch_size": 12, **settings}
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def rows_often():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "FLUSH_STEPS", FLUSH)
        yield


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run(cell(), digits, folder)
    return folder


def row(step, model="dcl", **values):
    numbers = {**dict.fromkeys(LiveRow._fields[3:], 1.0), "z_rank": 5.0}
    return LiveRow(**{**numbers, "step": step, "epoch": step / 10, "model": model, **values})


def test_rows_are_means_of_the_log(whole):
    rows = read_live(RunFolder(whole / "run"))
    assert [(row.step, row.model) for row in rows] == [
        (step, model) for step in (10, 20, STEPS) for model in MODELS
    ]
    log = pl.read_parquet(whole / f"run/log-{STEPS}steps.parquet").fill_nan(None)
    for found in rows:
        first = {10: 0, 20: 10, STEPS: 20}[found.step]
        steps = log.filter(pl.col("step").is_between(first, found.step - 1), model=found.model)
        for column in ("grad_norm", *(() if found.model == "ce" else ("dcl", "nscl"))):
            assert getattr(found, column) == pytest.approx(steps[column].mean(), rel=1e-4)
        assert found.loss == pytest.approx(steps[found.model].mean(), rel=1e-4)
        assert found.lr == pytest.approx(steps["lr"][-1], rel=1e-5)
        assert found.epoch == pytest.approx(steps["epoch"][-1] * found.step / (found.step - 1))
        assert found.steps_per_second > 0
        if found.model == "ce":
            assert found.gap != found.gap  # CE has no contrastive losses
        else:
            assert found.gap == pytest.approx(found.dcl - found.nscl, abs=1e-4)
            assert found.gap > 0


def failing_at(monkeypatch, stop):
    """Let training end with an error after the step `stop`."""
    step = CoupledTrainer.train_step

    def failing(self):
        step(self)
        if self.step == stop:
            raise ZeroDivisionError

    monkeypatch.setattr(CoupledTrainer, "train_step", failing)


def test_a_resumed_run_has_each_step_once(digits, whole, tmp_path, monkeypatch):
    """It ended after step 23, and its last state is of 12; the last line was torn."""
    with monkeypatch.context() as patch:
        failing_at(patch, 23)
        with pytest.raises(ZeroDivisionError):
            run(cell(), digits, tmp_path, saves=Saves(every_steps=12))
    live = RunFolder(tmp_path / "run")
    assert {row.step for row in read_live(live)} == {10, 12, 22}
    with open(live.live(), "a") as file:
        file.write("24,10,dcl,1.2")
    run(cell(), digits, tmp_path)
    rows = read_live(live)
    assert [row.step for row in rows] == [s for s in (10, 12, 22, STEPS) for _ in MODELS]
    assert len(live.live().read_text().splitlines()) == 1 + len(rows)
    assert files(tmp_path) == files(whole)


def rank_with_rows(store, folder):
    trainer.FLUSH_STEPS = FLUSH  # in a process of its own
    train_rank(cell(), store, folder)


def test_ranks_write_the_rows_of_their_models(digits, whole, tmp_path):
    """And no message more for it: see test_objective_ranks.py. At the end they are one file."""
    on_ranks(2, rank_with_rows, digits, tmp_path)
    live = RunFolder(tmp_path / "run")
    assert live.all_live == [live.live()]
    ours, theirs = (
        {
            (row.step, row.model): row._replace(steps_per_second=0)[3:]
            for row in read_live(RunFolder(folder / "run"))
        }
        for folder in (tmp_path, whole)
    )
    assert ours.keys() == theirs.keys()
    for key, values in ours.items():
        assert values == pytest.approx(theirs[key], rel=1e-5, nan_ok=True)
    assert files(tmp_path) == files(whole)


def test_collapse_is_named(tmp_path):
    """To a point or to a line. A row without the two columns, of an older version, is read too."""
    without = {"z_std": math.nan, "z_rank": math.nan}
    found = [row(1), row(1, z_std=0.05), row(1, z_rank=1.2), row(1, **without)]
    assert [bool(one.collapse) for one in found] == [False, True, True, False]
    words = LastValues.of({"byol": found[1], "simsiam": found[2]}, 100).words()
    assert "byol has collapsed: all images have nearly the same z (spread 0.05 of 1)" in words
    assert "simsiam has collapsed: z lies nearly on a line (1.2 dimensions)" in words
    run = RunFolder(tmp_path)
    run.live().write_text(row(1).line().rsplit(",", 2)[0] + "\n")
    (read,) = read_live(run)
    assert read[:10] == row(1)[:10]
    assert math.isnan(read.z_std)


def test_files_of_several_ranks(tmp_path):
    run = RunFolder(tmp_path)
    run.live().write_text(HEADER + row(50).line() + row(100).line())
    run.live(1).write_text(HEADER + row(50, "nscl").line())
    run.live(10).write_text(HEADER)
    assert run.all_live == [run.live(), run.live(1), run.live(10)]
    follower = Follower(run, ["dcl", "nscl"])
    assert follower.new() == []
    with open(run.live(1), "a") as file:
        file.write(row(150, "nscl").line())
        file.write(row(200, "nscl").line()[:10])  # not yet written to its end
    with open(run.live(), "a") as file:
        file.write(row(150).line() + row(200).line())
    assert follower.new() == [[row(150), row(150, "nscl")]]
    with open(run.live(1), "a") as file:
        file.write(row(200, "nscl").line()[10:])
    assert follower.new() == [[row(200), row(200, "nscl")]]
    settle(run, step=150)
    assert run.all_live == [run.live()]
    expected = [row(50), row(50, "nscl"), row(100), row(150), row(150, "nscl")]
    assert read_live(run) == expected
    before = run.live().stat().st_mtime_ns
    settle(run, step=150)
    assert run.live().stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"step\n1,2\n", b"a,b,c,d,e,f,g,h,i,j\n"])
def test_a_damaged_file_has_no_rows(content, tmp_path):
    run = RunFolder(tmp_path)
    run.live().write_bytes(content)
    assert read_live(run) == read_live(run, TAIL) == []
    settle(run, 10)
    assert run.live().read_text() == HEADER


def test_the_end_of_a_long_file(tmp_path):
    run = RunFolder(tmp_path)
    run.live().write_text(HEADER + "".join(row(step).line() for step in range(1000, 2000)))
    rows = read_live(run, last_bytes=500)
    assert 5 < len(rows) < 20
    assert rows[-1] == row(1999)
    assert rows == [row(step) for step in range(2000 - len(rows), 2000)]


def test_training_goes_on_where_rows_cannot_be_written(digits, whole, tmp_path, caplog):
    (tmp_path / "run/live.csv").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "cltools"):
        run(cell(), digits, tmp_path)
    said = [record.message for record in caplog.records if "live.csv" in record.message]
    assert len(said) == 1
    assert "cannot be kept up to date" in said[0]
    assert files(tmp_path) == files(whole)


def test_last_values():
    rows = [row(50, loss=4.5123, gap=0.25), row(50, "nscl", loss=4.25, gap=0.125),
            row(100, loss=4.0, gap=0.5, steps_per_second=2.0)]  # fmt: skip
    last = latest(rows, ["nscl", "dcl"])
    assert list(last) == ["nscl", "dcl"]
    # NSCL's rank is at step 50 and does one step a second.
    assert LastValues.of(last, 110) == LastValues({"nscl": 4.25, "dcl": 4.0}, 0.5, 1.0, 60.0)
    assert (
        LastValues.of(last, 110).words()
        == "loss of nscl 4.25, dcl 4; gap 0.5; 1 steps/s; 60 s left"
    )
    lost = {"ce": row(50, "ce", loss=math.nan, gap=math.nan, steps_per_second=0.0)}
    assert LastValues.of(lost, None) == LastValues({"ce": None}, None, 0.0, None)


def test_the_log_says_them(monkeypatch, caplog):
    """Of a run that goes on at step 40: the time left is that of the steps since then."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    ticks = count(0, 15)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))
    with caplog.at_level(logging.INFO, "cltools"):
        steps = range(40, 43)
        note = partial(str, "loss of dcl 4")
        list(progress.track(steps, 43, "training", "step", first=40, note=note))
        list(progress.track(range(1), 1, "embedding"))
        list(progress.numbered(["a", "b"], "cell"))
        list(progress.numbered(["a"], "cell"))
    assert caplog.messages == [
        "training: step 40 of 43, loss of dcl 4",
        "training: step 41 of 43, 60 s left, loss of dcl 4",
        "training: step 42 of 43, 22.5 s left, loss of dcl 4",
        "embedding: 0 of 1",
        "cell 1 of 2: a",
        "cell 2 of 2: b",
    ]
