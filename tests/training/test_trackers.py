"""What trackers are told of a run that is killed and resumed, and what becomes of their faults.

TensorBoard is the real one. The others are small modules that keep what they are told in a file.
"""

import json
import logging
import sys
from importlib import util

import pytest
from small import files, small_cell
from small import train_into as run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cltools.config.cells import cell_id
from cltools.layout import RunFolder
from cltools.runtime.errors import InputError
from cltools.stages.train import Saves
from cltools.training import trainer
from cltools.training.live import read_live
from cltools.training.trainer import CoupledTrainer

STEPS, FLUSH = 24, 10
CELL = small_cell(
    objectives=["dcl", "nscl:shuffled", "ce"], horizon=f"{STEPS} steps", optimizer="sgd", lr=0.05,
    warmup=2, batch_size=12,
)  # fmt: skip
MODELS = CELL["objectives"]

# The parts of each library that are used, as its documentation describes them. TOLD is the file.
WANDB = """
import json, pathlib
TOLD = pathlib.Path({told!r})

class Run:
    def __init__(self, options):
        self.told = json.loads(TOLD.read_text()) if TOLD.exists() else {{"begun": [], "steps": []}}
        self.told["begun"].append(options)
        self.step = self.told["steps"][-1][0] + 1 if self.told["steps"] else 0

    def log(self, values, step, **options):
        self.told["steps"].append([step, values])

    def finish(self):
        TOLD.write_text(json.dumps(self.told))

def init(**options):
    return Run(options)
"""
MLFLOW = """
import json, pathlib
from types import SimpleNamespace
TOLD = pathlib.Path({told!r})

class Metric:
    def __init__(self, key, value, timestamp, step):
        self.key, self.value, self.step = key, value, step

entities = SimpleNamespace(Metric=Metric)

def set_experiment(name):
    return SimpleNamespace(experiment_id=f"experiment {{name}}")

class MlflowClient:
    def __init__(self):
        self.told = json.loads(TOLD.read_text()) if TOLD.exists() else {{"begun": [], "steps": []}}

    def search_runs(self, experiments, query):
        assert experiments == ["experiment cltools"]
        return [SimpleNamespace(info=SimpleNamespace(run_id="7")) for tags in self.told["begun"][:1]
                if query == f"tags.`cltools_cell` = '{{tags['cltools_cell']}}'"]

    def create_run(self, experiment, tags, run_name):
        self.told["begun"].append(tags)
        return SimpleNamespace(info=SimpleNamespace(run_id="7"))

    def update_run(self, run, status):
        self.told["begun"].append(status)

    def log_param(self, run, key, value):
        self.told.setdefault("parameters", {{}})[key] = value

    def log_batch(self, run, metrics):
        assert run == "7"
        (step,) = {{metric.step for metric in metrics}}
        self.told["steps"].append([step, {{metric.key: metric.value for metric in metrics}}])

    def set_terminated(self, run):
        TOLD.write_text(json.dumps(self.told))
"""
FAKES = {
    "wandb": WANDB,
    "trackio": WANDB.replace("self.step", "self.not_said"),
    "mlflow": MLFLOW,
}


@pytest.fixture(autouse=True)
def rows_often(monkeypatch):
    monkeypatch.setattr(trainer, "FLUSH_STEPS", FLUSH)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a fake library where it is imported; returns the file with what it was told."""
    for name in FAKES:
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)

    def make(name, source):
        folder, told = tmp_path / "library", tmp_path / "told.json"
        folder.mkdir()
        (folder / f"{name}.py").write_text(source.format(told=str(told)))
        monkeypatch.syspath_prepend(folder)
        return told

    yield make
    for name in FAKES:
        sys.modules.pop(name, None)


def killed_and_resumed(monkeypatch, digits, folder, tracker):
    """It ends with an error after step 23, with a state of step 12, and is started again."""
    step = CoupledTrainer.train_step

    def failing(self):
        step(self)
        if self.step == 23:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(CoupledTrainer, "train_step", failing)
        with pytest.raises(ZeroDivisionError):
            run(CELL, digits, folder, tracker=tracker, saves=Saves(every_steps=12))
    run(CELL, digits, folder, tracker=tracker)
    return RunFolder(folder / "run")


def value_of(rows, step, name):
    """What live.csv has under the name that trackers give it."""
    column, _, model = name.partition("/")
    (value,) = {getattr(r, column) for r in rows if r.step == step and r.model in (model or "dcl")}
    return value


def test_tensorboard(digits, tmp_path, monkeypatch):
    live = killed_and_resumed(monkeypatch, digits, tmp_path, "tensorboard")
    events = EventAccumulator(str(live.tensorboard), purge_orphaned_data=True).Reload()
    names = events.Tags()["scalars"]
    assert {f"loss/{model}" for model in MODELS} <= set(names)
    assert {"gap/dcl", "gap/nscl:shuffled", "grad_norm/ce", "lr", "epoch"} <= set(names)
    assert "gap/ce" not in names
    rows = read_live(live)
    for name in names:
        steps = [event.step for event in events.Scalars(name)]
        assert steps == [10, 12, 22, STEPS], name
        if name != "steps_per_second":
            for event in events.Scalars(name):
                expected = value_of(rows, event.step, name)
                assert event.value == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("name", FAKES)
def test_others(digits, tmp_path, monkeypatch, fake, name):
    told_file = fake(name, FAKES[name])
    live = killed_and_resumed(monkeypatch, digits, tmp_path / "cell", name)
    told, identity = json.loads(told_file.read_text()), cell_id(CELL)
    assert [step for step, _ in told["steps"]] == [10, 12, 22, STEPS]
    rows = read_live(live)
    for step, values in told["steps"]:
        assert {f"loss/{model}" for model in MODELS} <= values.keys()
        assert values["gap/nscl:shuffled"] == pytest.approx(
            value_of(rows, step, "gap/nscl:shuffled"), rel=1e-5
        )
    first, again = told["begun"]
    if name == "mlflow":
        assert (first, again) == ({"cltools_cell": identity}, "RUNNING")
        assert json.loads(told["parameters"]["objectives"]) == MODELS
    else:
        assert first == again
        assert (first["name"], first["project"], first["resume"]) == (identity, "cltools", "allow")
        assert first["config"]["objectives"] == MODELS
    if name == "wandb":
        assert first["id"] == identity


@pytest.mark.parametrize("name", FAKES)
def test_a_missing_library_is_one_sentence(digits, tmp_path, monkeypatch, name):
    """Before anything is written."""
    monkeypatch.setitem(sys.modules, name, None)
    assert util.find_spec(name) is None
    sentence = f"tracker is '{name}', but the package {name} is not installed: run `uv sync --extra"
    with pytest.raises(InputError, match=sentence):
        run(CELL, digits, tmp_path, tracker=name)
    assert not list(tmp_path.iterdir())


BROKEN = {
    "as it begins": "def init(**options):\n    raise ConnectionError('no network\\nand more')",
    "on the way": WANDB.replace(
        'self.told["steps"].append([step, values])', "raise TimeoutError('no network')"
    ),
}


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory):
    """The files of the cell, trained without a tracker."""
    folder = tmp_path_factory.mktemp("alone")
    run(CELL, digits, folder)
    return files(folder)


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_a_tracker_that_fails_is_one_warning(digits, alone, tmp_path, fake, caplog, source):
    fake("wandb", source)
    with caplog.at_level(logging.WARNING, "cltools"):
        run(CELL, digits, tmp_path / "cell", tracker="wandb")
    assert caplog.messages == ["wandb fails (no network): training goes on without it"]
    assert files(tmp_path / "cell") == alone
