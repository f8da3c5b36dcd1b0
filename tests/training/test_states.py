"""States that are written beside training: one at a time, whole, and never failing in silence."""

import threading

import pytest
import torch
from ranks import on_ranks
from small import small_cell
from small import train_rank as run

from cltools.runtime.errors import InputError
from cltools.runtime.tensors import load_checked, save_checked
from cltools.stages.train import Saves
from cltools.training import states
from cltools.training.states import States


class SlowDisk:
    """`save_checked`, which waits for `go` and may fail."""

    def __init__(self):
        self.go, self.begun, self.at_once = threading.Semaphore(0), [], 0

    def __call__(self, path, tensors, metadata, previous):
        self.begun.append(metadata["step"])
        self.at_once += 1
        assert self.at_once == 1
        self.go.acquire()
        self.at_once -= 1
        if metadata["step"] < 0:
            raise InputError("the disk is full")
        save_checked(path, tensors, metadata, previous)


@pytest.fixture
def disk(monkeypatch):
    disk = SlowDisk()
    monkeypatch.setattr(states, "save_checked", disk)
    return disk


def test_a_save_does_not_wait(disk, tmp_path):
    """The next one waits for it; what is on disk is whole at all times."""
    folder = States(tmp_path)
    folder.save({"x": torch.ones(3)}, {"step": 1})
    folder.check()  # not yet written, and nothing wrong
    assert States(tmp_path).load() is None
    later = threading.Thread(target=folder.save, args=({"x": torch.zeros(3)}, {"step": 2}))
    later.start()
    disk.go.release()
    later.join()
    assert load_checked(folder.latest, "")[1]["step"] == 1
    disk.go.release()
    folder.wait()
    assert [load_checked(p, "")[1]["step"] for p in (folder.latest, folder.previous)] == [2, 1]
    assert disk.begun == [1, 2]
    folder.close()


@pytest.mark.parametrize("then", ["check", "wait", "save"])
def test_a_write_that_fails_is_told_once(disk, tmp_path, then):
    folder = States(tmp_path)
    disk.go.release()
    folder.save({}, {"step": 1})
    folder.wait()
    folder.save({}, {"step": -1})
    disk.go.release()
    folder.close()  # waits, and leaves the error to be told
    with pytest.raises(InputError, match="the disk is full"):
        folder.save({}, {"step": 3}) if then == "save" else getattr(folder, then)()
    folder.check()
    folder.wait()
    assert load_checked(folder.latest, "")[1]["step"] == 1


def failing_at(step):
    def failing(path, tensors, metadata, previous):
        if metadata["step"] == step:
            raise InputError("the disk is full")
        save_checked(path, tensors, metadata, previous)

    return failing


def full_disk(cell, store, folder):
    states.save_checked = failing_at(6)
    try:
        run(cell, store, folder, saves=Saves(every_steps=3))
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_ends_training(digits, tmp_path, ranks):
    """Also where another rank trains; the state before is kept."""
    settings = small_cell(horizon="40 steps", optimizer="sgd", lr=0.02)
    assert on_ranks(ranks, full_disk, settings, digits, tmp_path) == ["the disk is full"] * ranks
    assert load_checked(tmp_path / "run/resume.safetensors", "")[1]["step"] == 3
    assert not (tmp_path / "trained.json").exists()
    assert not list(tmp_path.rglob(".*"))


def seen(cell, store, folder):
    """The steps of which states were written, saved as often as time allows."""
    found = []

    def noting(path, tensors, metadata, previous):
        found.append(metadata["step"])
        save_checked(path, tensors, metadata, previous)

    states.save_checked = noting
    run(cell, store, folder, saves=Saves(every_seconds=0))
    return found


def test_saves_by_the_clock(digits, tmp_path):
    """One process at any step, several where they talk anyway; with the same bytes."""
    settings = small_cell(horizon="24 steps", optimizer="sgd", lr=0.02, checkpoints=[])
    alone = on_ranks(1, seen, settings, digits, tmp_path / "one")[0]
    assert alone == [*range(1, 25), 24]
    assert on_ranks(2, seen, settings, digits, tmp_path / "two") == [[10, 20, 24], []]
    one, two = (
        (tmp_path / name / "run/resume.safetensors").read_bytes() for name in ("one", "two")
    )
    assert one == two


def test_how_often_states_are_saved():
    """As often as ever in the first hour; a given time holds throughout."""
    usual, given = Saves(), Saves(every_seconds=45.0)
    assert [usual.seconds_between(t) for t in (0, 3599, 3600, 1e6)] == [120, 120, 600, 600]
    assert [given.seconds_between(t) for t in (0, 1e6)] == [45, 45]
