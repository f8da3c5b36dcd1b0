"""What `cltools status` and `watch` make of results folders whose state is known."""

import fcntl
import json
import math
import struct

import pytest
from typer.testing import CliRunner

from cltools.cli import app
from cltools.cli.watch import sparkline
from cltools.config.experiment import load_experiment
from cltools.layout import PLAIN, VERSIONS, MeasureSettings, RunFolder, measures_table
from cltools.runtime.sealed import write_json
from cltools.stages import status
from cltools.stages.status import status_lines
from cltools.training.live import HEADER, LiveRow

CONFIG = {
    "experiment": "tiny",
    "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
    "base": {"dataset": "digits", "batch_size": 50, "horizon": 4, "epochs": 2},
    "sweeps": {"temperature": {"vary": {"tau": [0.1, 0.5]}}},
    "cells_per_job": 2,
}
EXPERIMENT = load_experiment(CONFIG)
FIRST, SECOND = EXPERIMENT.plans


@pytest.fixture
def results(tmp_path):
    """Nothing but the store."""
    store = tmp_path / "stores" / EXPERIMENT.plans[FIRST].cell["dataset"]
    store.mkdir(parents=True)
    write_json(store / "store.json", {"content": "images"})
    return tmp_path


def of(results, cell=FIRST, stage="train"):
    return status.run(experiment=EXPERIMENT, results=results)["cells"][cell][stage]


def trained(results, cell=FIRST, version=VERSIONS["train"], store="images"):
    """A manifest of a finished run."""
    path = results / "cells" / cell / "trained-2epochs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"made_by": {"version": version}, "store": store, "steps": 6, "id": cell})
    return path


def train_log(results, text, cell=FIRST):
    path = results / f"logs/train/{cell}-2epochs.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def resume_state(results, step, name="resume.safetensors"):
    """A file with the header of a resume state, and no tensors behind it."""
    path = results / "cells" / FIRST / "run" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"__metadata__": {"cltools": json.dumps({"step": step})},
              "w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}  # fmt: skip
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def list_of(results, folder, manifests, tables):
    path = results / f"tiny/{folder}/batch000.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {str(m): str(t) for m, t in zip(manifests, tables, strict=True)}
    write_json(path, {"tables": named})


def test_nothing_is_there(results):
    report = status.run(experiment=EXPERIMENT, results=results)
    assert report["counts"] == {stage: {"waiting": 2} for stage in ("train", "measure", "theory")}
    assert report["tables"] == []
    assert not any(report["figures"].values())
    assert "alignment_temperature" in report["figures"]


def test_trained_is_done(results):
    trained(results)
    assert of(results)["state"] == "done"
    assert of(results, SECOND)["state"] == "waiting"
    assert of(results, FIRST, "measure")["state"] == "waiting"
    assert status.run(experiment=EXPERIMENT, results=results)["counts"]["train"] == {
        "done": 1,
        "waiting": 1,
    }


@pytest.mark.parametrize("changes", [{"version": VERSIONS["train"] + 1}, {"store": "others"}])
def test_of_another_version_or_store_is_stale(results, changes):
    trained(results, **changes)
    assert of(results)["state"] == "stale"
    assert of(results, FIRST, "measure")["state"] == "waiting"  # for training, first


def test_a_held_lock_is_running(results):
    """With the step of the log, which is ahead of the saved one."""
    train_log(
        results, "resumed at step 2 of 6\ntraining: step 3 of 6\ntraining: step 5 of 6, 2 s left\n"
    )
    resume_state(results, step=4)
    lock = results / "cells" / FIRST / "run/lock"
    lock.write_text("process 1 on a machine")
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert of(results) == {
            "state": "running", "step": 5, "steps": 6, "error": None, "live": None,
            "log": str(results / f"logs/train/{FIRST}-2epochs.log"),
        }  # fmt: skip
    assert of(results)["state"] == "begun"  # the holder is gone, whatever the file says


def live_rows(results, *rows, folder="run"):
    path = RunFolder(results / "cells" / FIRST / folder).live()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(LiveRow(*values).line() for values in rows))


DCL = (4, 2.0, "dcl", 4.5, 4.5, 4.25, 0.25, 1.0, 0.1, 0.5)
NSCL = (4, 2.0, "nscl", 4.0, 4.375, 4.0, 0.375, 1.0, 0.1, 0.5)
CE = (4, 2.0, "ce", math.nan, math.nan, math.nan, math.nan, 1.0, 0.1, 0.5)


@pytest.mark.parametrize("log", [None, "training: step 3 of 6, 9 s left, loss of dcl 5\n"])
def test_live_rows_say_how_it_trains(results, log):
    """Also without a log, as two epochs of training are asked for, and an epoch has two steps."""
    if log is not None:
        train_log(results, log)
    live_rows(results, (2, 1.0, *DCL[2:]), DCL, NSCL, CE)
    found, stop = of(results), 4 if log is None else 6
    assert (found["state"], found["step"], found["steps"]) == ("begun", 4, stop)
    assert found["live"] == {
        "losses": {"dcl": 4.5, "nscl": 4.0, "ce": None}, "gap": 0.25, "steps_per_second": 0.5,
        "seconds_left": (stop - 4) / 0.5, "collapsed": {},
    }  # fmt: skip
    json.dumps(found, allow_nan=False)
    lines = list(status_lines(status.run(experiment=EXPERIMENT, results=results)))
    left = "0 ms" if log is None else "4 s"
    said = (
        f"begun at step 4 of {stop} (loss of dcl 4.5, nscl 4; gap 0.25; 0.5 steps/s; {left} left)"
    )
    assert any(said in line for line in lines)


def test_an_earlier_stop_has_live_rows_of_its_own(results):
    live_rows(results, (40, 20.0, *DCL[2:]))
    live_rows(results, DCL, folder="run/until-2epochs")
    assert of(results)["step"] == 4


def watched(results, *options):
    arguments = ["watch", json.dumps(CONFIG), "--results", str(results), "--once", *options]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_watch(results):
    trained(results, SECOND)
    train_log(results, "training: step 3 of 6, 9 s left, loss of dcl 5\n")
    live_rows(results, *((s, s / 2, "dcl", 9.0 - s, *DCL[4:]) for s in range(1, 5)), NSCL)
    log = results / "logs/embed/tiny-batch000.log"
    log.parent.mkdir(parents=True)
    log.write_text("Error: weights are damaged: train this cell again\n")
    said = watched(results)
    lines = said.splitlines()
    assert lines[0].startswith("tiny: 2 cells, 0 of")
    (row,) = (line.split() for line in lines if line.startswith(FIRST))
    assert row == [FIRST, "begun", "4/6", row[3], "dcl", "5", "0.25", "0.5", "4", "s", "█▆▃▁"]
    assert set(row[3]) <= set("━╸╺")
    (train,) = (line.split() for line in lines if line.startswith("train"))
    assert train == ["train", "1", "0", "1", "0", "0", "0"]
    assert (
        f"{SECOND} measure: Error: weights are damaged: train this cell again (see {log})" in said
    )
    assert "\x1b" not in said


def test_watch_without_anything(results):
    assert watched(results).splitlines()[0].startswith("tiny: 2 cells, 0 of")


def test_sparklines():
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([float(k) for k in range(80)], width=8) == "▁▂▃▄▅▆▇█"


def test_experiments_by_name(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config/more").mkdir(parents=True)
    arguments = ["watch", "tiny", "--results", str(results), "--once"]
    done = CliRunner().invoke(app, arguments)
    assert "tiny is neither a file nor the experiment of a config in config/" in str(done.exception)
    (tmp_path / "config/none.yaml").write_text("- a list")
    (tmp_path / "config/more/one.yaml").write_text(json.dumps(CONFIG))
    assert CliRunner().invoke(app, arguments).output.startswith("tiny: 2 cells")
    (tmp_path / "config/two.yaml").write_text(json.dumps(CONFIG))
    done = CliRunner().invoke(app, arguments)
    assert "one.yaml and config/two.yaml are configs of the experiment tiny" in str(done.exception)


def test_a_long_log_of_a_resumed_run(results):
    """Only its end is read."""
    lines = [f"training: step {step} of 115200\n" for step in range(100_001, 101_001)]
    train_log(results, "resumed at step 100000 of 115200\n" + "".join(lines))
    found = of(results)
    assert (found["step"], found["steps"]) == (101000, 115200)


def test_a_state_without_a_log_is_begun(results):
    resume_state(results, step=4)
    resume_state(results, step=3, name="resume-previous.safetensors")
    found = of(results)
    assert (found["state"], found["step"], found["steps"]) == ("begun", 4, None)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, struct.pack("<Q", 2) + b"{}"])
def test_a_damaged_state_tells_nothing(results, content):
    resume_state(results, step=4)
    (results / "cells" / FIRST / "run/resume.safetensors").write_bytes(content)
    assert of(results)["state"] == "waiting"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "training: step 3 of 6\nError: loss of dcl is not finite\n",
            "Error: loss of dcl is not finite",
        ),
        ("Traceback (most recent call last):\n  x\nValueError: no\n\n", "ValueError: no"),
        ("torch.OutOfMemoryError: CUDA\n", "torch.OutOfMemoryError: CUDA"),
    ],
)
def test_an_error_in_the_log_is_failed(results, log, said):
    train_log(results, log)
    found = of(results)
    assert (found["state"], found["error"]) == ("failed", said)
    lines = list(status_lines(status.run(experiment=EXPERIMENT, results=results)))
    assert f"    train: {said}" in lines
    assert f"    train: see {results}/logs/train/{FIRST}-2epochs.log" in lines


def test_a_table_is_done_when_it_is_that_of_the_present_settings(results):
    manifests = [trained(results, cell) for cell in (FIRST, SECOND)]
    table = measures_table(manifests[0], MeasureSettings("last"), PLAIN)
    table.parent.mkdir()
    table.touch()
    list_of(results, "measured", manifests, [table, "another.parquet"])
    assert of(results, FIRST, "measure")["state"] == "done"
    assert of(results, SECOND, "measure")["state"] == "stale"
    assert of(results, FIRST, "theory")["state"] == "waiting"
    table.unlink()
    measures_table(manifests[0], MeasureSettings("all"), PLAIN).touch()
    assert of(results, FIRST, "measure")["state"] == "stale"


def test_a_failed_batch_is_that_of_its_cells(results):
    trained(results)
    trained(results, SECOND)
    log = results / "logs/embed/tiny-batch000.log"
    log.parent.mkdir(parents=True)
    log.write_text("Error: weights are damaged: train this cell again\n")
    for cell in (FIRST, SECOND):
        found = of(results, cell, "measure")
        assert (found["state"], found["log"]) == ("failed", str(log))


def test_the_command(results, tmp_path):
    trained(results)
    arguments = ["status", json.dumps(CONFIG), "--results", str(results)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert done.output.splitlines()[0] == "tiny: 2 cells"
    assert f"{FIRST}  train done, measure waiting, theory waiting" in done.output
    report = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert report["cells"][FIRST]["train"]["state"] == "done"
