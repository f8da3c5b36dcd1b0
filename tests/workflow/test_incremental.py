"""What runs again after each kind of change: a test for every line of docs/incremental.md."""

import copy
import json
from pathlib import Path

import polars as pl
import pytest
import yaml
from commands import planned, snakemake
from typer.testing import CliRunner

from cltools.cli import app, partial
from cltools.config.experiment import load_experiment
from cltools.figures import figures_of
from cltools.layout import VERSIONS, tables_of
from cltools.runtime.sealed import write_json

CONFIG = {
    "experiment": "tiny",
    "datasets": {"photos": {"source": "folder", "path": "photos", "recipe": "digits", "seed": 0}},
    "base": {
        "dataset": "photos",
        "batch_size": 16,
        "projector_hidden": 16,
        "projector_dim": 8,
        "optimizer": "sgd",
        "horizon": 4,
        "epochs": 2,
        "checkpoints": [0],
    },
    "sweeps": {"temperature": {"vary": {"tau": [0.1, 0.5]}}},
    "merge": {"sweeps": ["temperature"], "points": 2},
    "surrogate": {"seeds": [0], "steps": 3, "classes": [2], "images": 20, "batch_sizes": [8]},
    "figures": {"dpi": 50},
}
FIGURES = len(figures_of(load_experiment(CONFIG)))
SHORT = {"embed": 2, "measure": 2, "theory": 2}
DRAWN = {"plot": FIGURES, "report": 1}
# One figure is of the surrogate alone, and every figure is of the plan.
TABLES = {"collect": 1, "claims": 1, "plot": FIGURES - 1, "report": 1}
PLAN = {"plan": 1, **TABLES, **DRAWN}


def changed(**settings):
    """The config as YAML with changed keys; base keys are changed one by one."""
    config = copy.deepcopy(CONFIG)
    config["base"] |= settings.pop("base", {})
    return yaml.safe_dump(config | settings, sort_keys=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The tiny experiment, run once; its images are noise, in a folder that can be moved."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("incremental")
    noise = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"photos/{name}/{number}.png")
    snakemake(folder, config=changed())
    return folder


def sweep(*taus):
    return {"sweeps": {"temperature": {"vary": {"tau": list(taus)}}}}


def dataset(**settings):
    return {"datasets": {"photos": CONFIG["datasets"]["photos"] | settings}}


OF_SURROGATE = {"surrogate": 1, "claims": 1, "plot": 1, "report": 1}
# Two of the figures exist for this table alone, a third shows it beside.
OF_MINIMISE = {"minimise": 1, "claims": 1, "plot": 1, "report": 1}
OF_REGULARITY = {"regularity": 1, "claims": 1, "plot": 1, "report": 1}  # beside the surrogate's
OF_NEW_CELLS = {"train": 2, **SHORT, "merge": 2, **PLAN}


@pytest.mark.parametrize(
    ("change", "jobs"),
    [
        ({}, {}),
        (sweep(0.1, 0.5, 1.0),
         {"train": 1, "embed": 1, "measure": 1, "theory": 1, "merge": 1, **PLAN}),
        (sweep(0.1), PLAN),
        ({"base": {"epochs": 3}}, OF_NEW_CELLS),
        ({"base": {"epochs": 1}}, OF_NEW_CELLS),
        ({"base": {"horizon": 5}}, OF_NEW_CELLS),
        ({"base": {"lr": 0.2}}, OF_NEW_CELLS),
        ({"base": {"threads": 2}}, OF_NEW_CELLS),
        ({"figures": {"dpi": 60}}, DRAWN),
        ({"figures": {"font_size": 9, "width": 6.3, "footnote": False}}, DRAWN),
        ({"measure": {"full_at": "all"}}, {**SHORT, **TABLES}),
        ({"embedding_type": "float16"}, {**SHORT, **TABLES}),
        ({"recalibrate_batchnorm": True}, {**SHORT, **TABLES}),
        ({"embedding_precision": "training"}, {**SHORT, **TABLES}),
        ({"workers": 3}, {}),
        ({"keep_embeddings": True}, {**SHORT, **TABLES}),
        ({"theory": {"delta": 0.1}}, {"theory": 2, **TABLES}),
        ({"merge": {"sweeps": ["temperature"], "points": 3}}, {"merge": 2, **TABLES}),
        ({"layers": {"sweeps": ["temperature"]}}, {"layers": 2, **TABLES}),
        ({"surrogate": CONFIG["surrogate"] | {"steps": 4}}, OF_SURROGATE),
        ({"minimise": {"seeds": [0]}}, OF_MINIMISE),
        ({"regularity": {"steps": 2}}, OF_REGULARITY),
        (dataset(path="elsewhere"), {}),
        (dataset(seed=1), {"prepare": 1, **OF_NEW_CELLS}),
        ({"experiment": "other"}, {**SHORT, "merge": 2, "surrogate": 1, **PLAN}),
        ({"cells_per_job": 2}, {"embed": 1, "measure": 1, "theory": 1, "merge": 1, **TABLES}),
        ({"gpus_per_cell": 2}, {}),
        ({"gpus_per_cell": 2, "share": "batch", "save_every_seconds": 900}, {}),
        ({"tracker": "wandb"}, {}),
        ({"cells_per_gpu": 3}, {}),
        ({"gpus_per_cell": 4, "nodes_per_cell": 2}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_a_changed_config(finished, change, jobs):
    assert planned(finished, changed(**change)) == jobs


def test_other_words_for_the_same(finished):
    text = changed()
    assert planned(finished, "# A comment\n" + text.replace("- 0.1\n", "- 1.0e-1\n")) == {}
    assert "1.0e-1" in text.replace("- 0.1\n", "- 1.0e-1\n")
    base = dict(reversed(CONFIG["base"].items()))
    config = {**dict(reversed(CONFIG.items())), "base": base}
    assert planned(finished, yaml.safe_dump(config, sort_keys=False)) == {}


AFTER = {
    "prepare": {"prepare": 1, "train": 2, **SHORT, "merge": 2, **TABLES},
    "train": {"train": 2, **SHORT, "merge": 2, **TABLES},
    "embed": {**SHORT, **TABLES},
    "measure": {**SHORT, **TABLES},
    "theory": {"theory": 2, **TABLES},
    "merge": {"merge": 2, **TABLES},
    "layers": {},  # not in this experiment
    "surrogate": OF_SURROGATE,
    "plan": PLAN,
    "collect": TABLES,
    "plot": DRAWN,
    "claims": {"claims": 1, "report": 1},
    "report": {"report": 1},
    "project": {},
    "minimise": {},  # not in this experiment, as is regularity
    "regularity": {},
}


@pytest.mark.parametrize("stage", VERSIONS)
def test_a_raised_version(finished, monkeypatch, stage):
    monkeypatch.setitem(VERSIONS, stage, VERSIONS[stage] + 1)
    assert planned(finished, changed()) == AFTER[stage]


def test_what_jobs_ask_for(finished):
    """Threads and memory of a job, and the bench that they come from."""
    write_json(finished / "bench.json", {"kinds": []})
    assert planned(finished, changed(bench="bench.json")) == {}
    threads = dict.fromkeys(("train", "embed", "measure"), 2)
    assert planned(finished, changed(), overwrite_threads=threads) == {}
    site = {"train": {"slurm_partition": "other"}, "plot": {"runtime": 7}}
    assert planned(finished, changed(), overwrite_resources=site) == {}


def test_touched_and_deleted_files(finished):
    (store,) = (finished / "results/stores").iterdir()
    for file in store.iterdir():
        file.touch()
    assert planned(finished, changed()) == {}
    for kept in (
        next(finished.glob("results/cells/*/trained-2epochs.json")),
        next(finished.glob("results/tiny/measured/*.json")),
        next(finished.glob("results/tiny/figures/*.pdf")),
    ):
        elsewhere = finished / "deleted"
        kept.rename(elsewhere)
        jobs = planned(finished, changed())
        elsewhere.rename(kept)
        assert jobs == ({"plot": 1, "report": 1} if kept.suffix == ".pdf" else {})


def test_measured_cells_are_not_embedded_again(finished):
    """In other batches, jobs go through the cells and take what is there."""
    weights = {path: path.stat().st_mtime_ns for path in finished.glob("results/cells/*/*/*")}
    assert any("measures" in path.parts for path in weights)
    snakemake(finished, "--until", "theory", config=changed(cells_per_job=2))
    now = {path: path.stat().st_mtime_ns for path in finished.glob("results/cells/*/*/*")}
    assert now == weights
    assert not list(finished.glob("results/cells/*/embeddings"))


def test_status_of_a_real_run(finished, monkeypatch):
    monkeypatch.chdir(finished)
    arguments = ["status", json.dumps(CONFIG), "--json"]
    report = json.loads(CliRunner().invoke(app, arguments).output)
    stages = ("train", "measure", "theory", "merge")
    assert report["counts"] == {stage: {"done": 2} for stage in stages}
    assert all(report["figures"].values())
    monkeypatch.setitem(VERSIONS, "measure", VERSIONS["measure"] + 1)
    report = json.loads(CliRunner().invoke(app, arguments).output)
    assert report["counts"]["train"] == {"done": 2}
    assert report["counts"]["measure"] == {"stale": 2}


def test_figures_of_what_is_done(finished, monkeypatch):
    """Of three cells two are done; their figures are those of an experiment of two."""
    monkeypatch.chdir(finished)
    config = {**CONFIG, **sweep(0.1, 0.5, 1.0)}
    done = CliRunner().invoke(app, ["partial", json.dumps(config)])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0] == "2 of 3 cells are measured, 2 have their theory, too"
    whole, part = Path("results/tiny"), Path("results/tiny/partial")
    for name in ("measures", "training_log", "theory"):
        assert pl.read_parquet(part / f"{name}.parquet").equals(
            pl.read_parquet(whole / f"{name}.parquet")
        )
    drawn = (part / "figures/alignment_temperature.csv").read_bytes()
    assert drawn == (whole / "figures/alignment_temperature.csv").read_bytes()
    none = CliRunner().invoke(app, ["partial", json.dumps({**CONFIG, **sweep(0.7)})])
    assert "no cell of tiny" in str(none.exception)


def test_figures_of_what_is_only_measured(finished, monkeypatch):
    """Of two measured cells one waits for its theory, then both do; bounds are of the others."""
    monkeypatch.chdir(finished)
    with_theory = {"one"}
    monkeypatch.setattr(
        partial, "figures_of", lambda *_: ["alignment_temperature", "bound_tightness"]
    )
    monkeypatch.setattr(
        partial,
        "tables_of",
        lambda experiment, manifest: {
            stage: table
            for stage, table in tables_of(experiment, manifest).items()
            if stage != "theory" or ("tau0.5" in str(manifest) and with_theory)
        },
    )
    output = Path("results/tiny/of-measures")
    base = {"base": {"set": {"tau": 0.5}, "vary": {"seed": [0]}}}  # for the figure of bounds
    config = {**CONFIG, "sweeps": {**CONFIG["sweeps"], **base}}
    arguments = ["partial", json.dumps(config), "--output", str(output)]
    first, *drawn = CliRunner().invoke(app, arguments).output.splitlines()
    assert first == "2 of 2 cells are measured, 1 have their theory, too"
    names = ("alignment_temperature", "bound_tightness")
    assert drawn == [str(output / f"figures/{name}.pdf") for name in names]
    cells = {
        folder: pl.read_parquet(folder / "measures.parquet")["cell"].n_unique()
        for folder in (output, output / "with-theory")
    }
    assert list(cells.values()) == [2, 1]
    with_theory.clear()
    *_, alignment, bounds = CliRunner().invoke(app, arguments).output.splitlines()
    assert alignment.endswith("alignment_temperature.pdf")
    assert bounds == "bound_tightness: waits for theory, which no measured cell has yet"
