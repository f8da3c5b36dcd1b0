"""What Snakemake runs, counted by rule, after each kind of change."""

import copy
import json
import re
import shlex
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml
from commands import STAGES, cltools, planned, snakemake
from places import ROOT

from cltools.cluster.estimates import kind_of
from cltools.config.experiment import load_experiment
from cltools.runtime.sealed import write_json

CONFIG = {
    "experiment": "tiny",
    "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
    "base": {
        "dataset": "digits",
        "images_per_class": 15,
        "test_images_per_class": 10,
        "batch_size": 50,
        "projector_hidden": 16,
        "projector_dim": 8,
        "optimizer": "sgd",
        "horizon": 4,
        "epochs": 2,
        "checkpoints": [0],
    },
    "sweeps": {
        "temperature": {"vary": {"tau": [0.1, 0.5], "seed": [0, 1]}},
        "base": {"vary": {"seed": [0, 1]}},
    },
    "cells_per_job": 3,
    "figures": {"dpi": 50},
}


def changed(**settings):
    return {**copy.deepcopy(CONFIG), **settings}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The tiny experiment, run once from nothing to its figures."""
    folder = tmp_path_factory.mktemp("work flow")
    snakemake(folder, config=CONFIG)
    return folder


def test_all_is_there(finished):
    figures = finished / "results/tiny/figures"
    names = {path.stem for path in figures.iterdir()}
    assert names == {
        "alignment_training", "alignment_temperature", "losses_training",
        "weights_representations", "bound_tightness", "downstream", "residual_alignment",
        "nscl_losses", "cdnv_training", "few_shot", "few_shot_z", "collapse_geometry",
        "alignment_pairs",
    }  # fmt: skip
    for name in names:
        assert all(
            (figures / f"{name}.{ending}").exists() for ending in ("pdf", "png", "csv", "txt")
        )
    assert pl.read_parquet(finished / "results/tiny/claims.parquet").height > 0
    assert (finished / "results/tiny/claims.md").exists()
    plan = json.loads((finished / "results/tiny/plan.json").read_text())
    assert [sweep["name"] for sweep in plan["sweeps"]] == list(CONFIG["sweeps"])
    logs = finished / "results/logs"
    assert len(list((logs / "train").iterdir())) == 4
    assert len(list((finished / "results/benchmarks/train").iterdir())) == 4


def test_nothing_to_be_done(finished):
    assert "Nothing to be done" in snakemake(finished, config=CONFIG)
    assert planned(finished, CONFIG) == {}


def test_a_new_temperature_trains_its_seeds_only(finished):
    sweeps = copy.deepcopy(CONFIG["sweeps"])
    sweeps["temperature"]["vary"]["tau"].append(0.2)
    jobs = planned(finished, changed(sweeps=sweeps))
    assert jobs["train"] == 2
    assert "prepare" not in jobs


def test_a_dropped_temperature_trains_nothing(finished):
    sweeps = {"base": CONFIG["sweeps"]["base"]}
    assert "train" not in planned(finished, changed(sweeps=sweeps))


def test_a_figure_style_replots_only(finished):
    jobs = planned(finished, changed(figures={"dpi": 60}))
    assert jobs == {"plot": 13, "report": 1}


def test_the_order_of_keys_changes_nothing(finished):
    base = dict(reversed(list(CONFIG["base"].items())))
    assert planned(finished, changed(base=base)) == {}


def test_measuring_more_trains_nothing(finished):
    jobs = planned(finished, changed(measure={"full_at": "all"}))
    assert jobs.keys() == {"embed", "measure", "theory", "collect", "plot", "claims", "report"}


def test_other_settings_of_the_theory_train_and_measure_nothing(finished):
    jobs = planned(finished, changed(theory={"delta": 0.1}))
    assert jobs.keys() == {"theory", "collect", "plot", "claims", "report"}


def test_merging_and_simulations_are_added_to_what_is_there(finished, tmp_path):
    more = changed(
        merge={"sweeps": ["base"], "points": 2},
        layers={"sweeps": ["base"]},
        project={"images_per_class": 5},
        surrogate={"seeds": [0], "steps": 3, "classes": [2], "images": 20, "batch_sizes": [8]},
        minimise={"seeds": [0], "classes": [2], "taus": [1.0], "objectives": ["nscl"]},
        regularity={"set": {"batch_size": 16}, "steps": 2, "reference_images": 16},
    )
    there = shutil.copytree(finished, tmp_path / "a copy")
    new = {"merge": 1, "layers": 1, "project": 1, "surrogate": 1, "minimise": 1, "regularity": 1,
           "collect": 1}  # fmt: skip
    drawn = {"plot": 19, "claims": 1, "report": 1}
    assert planned(there, more) == new | drawn
    names = ("merging", "features_plane", "surrogate_drift", "collapse_order", "layers_pairs")
    figures = [f"results/tiny/figures/{name}.pdf" for name in names]
    snakemake(there, *figures, config=more)
    folder = there / "results/tiny"
    for stage in ("surrogate", "minimise", "regularity", "theory", "layers"):
        assert pl.read_parquet(folder / f"{stage}.parquet").height > 0
    merged = pl.read_parquet(folder / "measures.parquet").filter(metric="merged_nccc")
    assert set(merged["variant"]) == {"lambda_0.00", "lambda_1.00"}
    # Two of the others are of the log and of the theory, which did not change.
    assert planned(there, more) == drawn | {"plot": 19 - len(figures) - 2}
    # Without them again, what the cells need is there.
    assert planned(there, CONFIG).keys() == {"collect", "plot", "claims", "report"}


def test_another_seed_of_the_images_is_another_data_set(finished):
    datasets = {"digits": {"source": "digits", "recipe": "digits", "seed": 1}}
    jobs = planned(finished, changed(datasets=datasets))
    assert jobs["prepare"] == 1
    assert jobs["train"] == 4


def test_another_experiment_shares_the_cells(finished):
    jobs = planned(finished, changed(experiment="other"))
    assert "train" not in jobs
    assert jobs["collect"] == 1


def asked_for(text, rule):
    """The resources of a rule's jobs that Snakemake printed: a set of (minutes, MB)."""
    jobs = re.findall(rf"^(?:local)?rule {rule}:\n(?: .*\n)*? +resources: (.*)$", text, re.M)
    found = [dict(part.split("=") for part in job.split(", ")) for job in jobs]
    return {(int(job["runtime"]), int(job["mem_mb"])) for job in found}


def test_jobs_ask_for_what_was_benched(finished):
    """A bench file changes what jobs ask for, and runs nothing again."""
    config = changed(bench="bench.json")
    plans = load_experiment(config).plans.values()
    costs = {"steps_per_epoch": 3, "seconds_per_step": 10, "seconds_per_epoch": 0,
             "seconds_per_save": 0, "seconds_per_embedding": 60, "memory_mb": 1000,
             "gpu_memory_mb": None, "weights_mb": 1, "state_mb": 1, "embedding_mb": 0}  # fmt: skip
    (kind,) = {json.dumps(kind_of(plan.cell)) for plan in plans}

    def bench(**changes):
        content = {"kinds": [{"kind": json.loads(kind), "costs": {**costs, **changes}}]}
        write_json(finished / "bench.json", content)
        return snakemake(finished, "--dry-run", "--forceall", config=config)

    first = bench()  # two epochs of 30 seconds; two checkpoints of three cells, or of one, embedded
    assert asked_for(first, "train") == {(10 + 2, 2000)}
    embedding = asked_for(first, "embed")
    assert {minutes for minutes, _ in embedding} == {10 + 3, 10 + 9}
    assert all(2000 <= memory < 2020 for _, memory in embedding)  # and the networks
    assert asked_for(bench(memory_mb=2000), "train") == {(12, 3500)}
    assert planned(finished, config) == {}
    write_json(finished / "bench.json", {})
    message = snakemake(finished, "--dry-run", config=config, code=2)
    assert "Error: bench.json is not a file of `cltools bench`" in message
    assert "Traceback" not in message


def test_a_second_attempt_asks_for_more(tmp_path):
    config = changed(base={**CONFIG["base"], "classes": 12}, sweeps={"base": {}})
    text = snakemake(tmp_path, "--retries", "1", "--printshellcmds", config=config, code=1)
    (first, second) = sorted(asked_for(text, "train"))
    assert second == (2 * first[0], 2 * first[1])


def test_raising_epochs_continues(finished):
    config = changed(base={**CONFIG["base"], "epochs": 3})
    assert planned(finished, config)["train"] == 4
    before = next((finished / "results/cells").glob("*tau0.5*seed0*/run/weights/dcl-0000000*"))
    written = before.stat().st_mtime_ns
    cell = before.parents[2]
    snakemake(finished, str(cell.relative_to(finished) / "trained-3epochs.json"), config=config)
    assert before.stat().st_mtime_ns == written
    log = finished / f"results/logs/train/{cell.name}-3epochs.log"
    assert "resumed at step 6 of 9" in log.read_text()
    assert planned(finished, CONFIG) == {}  # lowering it again does nothing


def test_several_gpus_train_nothing_again(finished, tmp_path):
    """Their number starts other processes."""
    config = changed(gpus_per_cell=2)
    assert planned(finished, config) == {}
    one = snakemake(tmp_path, "--dry-run", "--printshellcmds", config=CONFIG)
    assert len(re.findall(r"Shell command: logged \S+ cltools train --cell ", one)) == 4
    two = snakemake(tmp_path, "--dry-run", "--printshellcmds", config=config)
    assert two.count("torchrun --standalone --nproc-per-node 2 -m -- cltools.cli train --cell") == 4
    assert len(re.findall("resources: .*gpu=2", two)) == 4


def test_several_nodes_need_slurm(tmp_path):
    config = changed(gpus_per_cell=4, nodes_per_cell=2)
    message = snakemake(tmp_path, config=config, code=2)
    assert (
        "Error: config key nodes_per_cell is 2, but only Slurm starts a cell on several" in message
    )
    assert "Traceback" not in message


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory):
    """The manifest of the first cell, trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    target = f"results/cells/{next(iter(load_experiment(CONFIG).plans))}/trained-2epochs.json"
    snakemake(folder, target, config=CONFIG)
    return folder, target


@pytest.mark.slow
@pytest.mark.parametrize("share", ["batch", "auto"])
def test_several_gpus_train_a_cell_together(of_one_process, tmp_path, share):
    alone, target = of_one_process
    snakemake(tmp_path, target, config=changed(gpus_per_cell=2, share=share))
    parts = {"batch": 2, "auto": 1}[share]
    assert json.loads((tmp_path / target).read_text())["trained_by"] == {"0": parts}
    same = (tmp_path / target).read_bytes() == (alone / target).read_bytes()
    assert same == (share == "auto")


def test_a_configfile_stands_alone(tmp_path):
    """The default experiment's sweeps are not merged into a config that is given."""
    text = snakemake(tmp_path, "--dry-run", config=CONFIG)
    assert "tiny" in text
    assert "quickstart" not in text
    assert planned(tmp_path, CONFIG)["train"] == 4


def test_a_wrong_config_is_one_sentence(tmp_path):
    config = changed(base={**CONFIG["base"], "taus": 1})
    text = snakemake(tmp_path, "--dry-run", config=config, code=2)
    assert "config key base.taus is unknown: did you mean tau?" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("sweeps: {other: {}}", "the key sweeps stands in line"),
        ("theory: {no: 1}", "YAML reads the key no as false: put it in quotes"),
    ],
)
def test_what_snakemake_reads_in_silence_is_one_sentence(more, message, tmp_path):
    text = yaml.safe_dump(CONFIG, sort_keys=False) + more
    said = snakemake(tmp_path, "--dry-run", config=text, code=2)
    line = len(text.splitlines())
    assert f"Error: config file {tmp_path / 'config.yaml'}, line {line}: {message}" in said
    assert "Traceback" not in said


def test_what_snakemake_itself_does_with_a_config_is_not_done_by_plan(tmp_path):
    """As docs/limits.md says: a traceback of its own, and code that a config holds."""
    folder, latin, code = (tmp_path / name for name in ("folder", "latin.yaml", "code.yaml"))
    folder.mkdir()
    latin.write_bytes("experiment: é".encode("latin-1"))
    code.write_text(
        yaml.safe_dump({"__use_yte__": True, "__definitions__": ["print('code ran')"], **CONFIG})
    )
    for path, traceback, sentence in (
        (folder, "IsADirectoryError", "is a folder"),
        (latin, "UnicodeDecodeError", "line 1: this is not UTF-8"),
    ):
        assert traceback in snakemake(tmp_path, "--dry-run", "--configfile", path, code=1)
        assert sentence in cltools("plan", path, code=2)
    assert "code ran" in snakemake(tmp_path, "--dry-run", "--configfile", code)
    said = cltools("plan", code, code=2)
    assert "is unknown" in said
    assert not re.search("^code ran", said, re.M)


def test_numbers_of_the_command_line_are_numbers(tmp_path):
    """Also those in braces, which Snakemake takes for text."""
    given = "base={horizon: 5, tau: 0.2}"
    cells = load_experiment(changed(base={**CONFIG["base"], "horizon": 5, "tau": 0.2})).plans
    text = snakemake(tmp_path, "--dry-run", "--config", given, config=CONFIG)
    assert set(re.findall(r"results/cells/([^/]+)/trained-", text)) == set(cells)
    said = snakemake(tmp_path, "--dry-run", "--config", "base={tau: 010}", config=CONFIG, code=2)
    assert "Error: --config base, line 1: YAML reads 010 as the number 8" in said
    assert "Traceback" not in said


def test_what_is_wrong_is_said_on_the_console(tmp_path):
    text = snakemake(tmp_path, config=changed(base={**CONFIG["base"], "classes": 12}), code=1)
    assert "has 10 classes, but classes is 12: use at most 10" in text


def test_lint(tmp_path):
    """Snakemake's own lint, but for its demand for a conda or container line per rule."""
    text = snakemake(tmp_path, "--lint", config=CONFIG, code=1)
    complaints = {line.strip() for line in text.splitlines() if line.strip().startswith("* ")}
    assert complaints == {"* Specify a conda environment or container for each rule.:"}


def test_settings_reach_the_shell_quoted(tmp_path):
    """A path is data, not shell."""
    datasets = {"digits": {"source": "folder", "path": "$(touch pwned)'; touch pwned; '",
                           "recipe": "digits"}}  # fmt: skip
    snakemake(tmp_path, config=changed(datasets=datasets), code=1)
    assert not (tmp_path / "pwned").exists()


NASTY = "a b;touch pwned'$(touch pwned)&"


@pytest.fixture
def nasty(tmp_path):
    """A copy of the workflow in a folder whose name a shell would take apart."""
    for name in ("workflow", "config"):
        shutil.copytree(ROOT / name, tmp_path / NASTY / name)
    return shutil.copy(ROOT / "Snakefile", tmp_path / NASTY)


def printed_commands(folder, *arguments):
    """The words of every command that a dry run prints."""
    folder.mkdir()
    text = snakemake(folder, "--dry-run", "--printshellcmds", *arguments, config=EVERY_STAGE)
    return [shlex.split(line) for line in re.findall("^Shell command: (logged .*)$", text, re.M)]


EVERY_STAGE = changed(
    merge={"sweeps": ["base"]}, layers={"sweeps": ["base"]}, project={}, surrogate={},
    minimise={}, regularity={},
)  # fmt: skip


def test_paths_are_single_words(tmp_path, nasty):
    """The same words as elsewhere."""
    usual = printed_commands(tmp_path / "usual")
    assert {words[3] for words in usual} == {"plan", *STAGES} - {"embed_model", "export"}
    given = printed_commands(tmp_path / f"work {NASTY}", "--snakefile", nasty)
    assert sorted(given) == sorted(usual)
    papers = {word for words in given for word in words if word.endswith(".csv")}
    assert papers
    assert all(Path(path).exists() for path in papers)


def test_figures_are_drawn_in_any_folder(tmp_path, nasty, finished):
    there = shutil.copytree(finished, tmp_path / f"work {NASTY}")
    figure = there / "results/tiny/figures/downstream.pdf"
    before = figure.stat().st_mtime_ns
    snakemake(there, figure.relative_to(there), "--force", "--snakefile", nasty, config=CONFIG)
    assert figure.stat().st_mtime_ns > before
    assert not list(tmp_path.rglob("pwned"))
