"""The shipped configs do what their headers say; the papers' numbers are fit to compare with."""

import csv
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from places import ROOT
from waiting import HANGS

from cltools import measurements as m
from cltools.config.durations import Duration
from cltools.config.experiment import load_experiment, read_config

CONFIG = ROOT / "config"
PAPER, LAPTOP = sorted(CONFIG.glob("paper/*.yaml")), sorted(CONFIG.glob("laptop/*.yaml"))
SHIPPED = [*sorted(CONFIG.glob("*.yaml")), *PAPER, *LAPTOP]
EXPECTED = sorted(ROOT.glob("cltools/figures/papers/*.csv"))
COLUMNS = [
    "figure", "dataset", "architecture", "objective", "reference", "metric", "variant", "split",
    "features", "epoch", "factor", "factor_value", "value", "tolerance", "source", "note",
]  # fmt: skip
# Metric, or how its name begins -> least and largest value that makes sense.
RANGES = {
    "authors_dcl_loss": (4, 12),
    "authors_nscl_loss": (4, 12),
    "authors_gap": (0, 1.1),
    "gap_bound": (0, 21),
    "gap": (0, 0.7),
    "cdnv": (0, 50),
    "cka": (0, 1),
    "rsa": (-1, 1),
    "correlation": (-1, 1),
    "nccc": (0, 1),
    "linear_probe": (0, 1),
    "few_shot_error": (0, 100),
    "few_shot": (0, 1),
    "weight_gap": (0, 2),
    "weight_angle": (0, 180),
    "representation_angle": (0, 180),
}


def comment(path):
    """What a config begins with, in one line."""
    return path.read_text().split("\nexperiment:")[0].replace("\n# ", " ")


def header(path, key):
    """The values of the line `# key: a; b` in that comment."""
    lines = re.findall(rf"^# {key}: (.+)$", path.read_text(), re.M)
    return [value.strip() for line in lines for value in line.split(";")]


def cells(path):
    return set(load_experiment(read_config(path)).plans)


def expected(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.stem)
def test_the_papers_numbers(path):
    rows = expected(path)
    assert rows
    assert list(rows[0]) == COLUMNS
    for row in rows:
        value, tolerance = float(row["value"]), float(row["tolerance"])
        metric = next(name for name in RANGES if row["metric"].startswith(name))
        low, high = RANGES[metric]
        assert low <= value <= high, row
        assert math.isfinite(tolerance), row
        assert tolerance > 0, row
        assert row["split"] in ("", "train", "test"), row
        assert row["features"] in ("", "h", "z"), row
        assert re.fullmatch(r"(\d+(-\d+)?)?", row["epoch"]), row
        assert row["factor"].count(";") == row["factor_value"].count(";"), row
        assert bool(row["factor"]) == bool(row["factor_value"]), row
        assert row["source"], row


def test_they_are_named_like_our_measures():
    """Metric and variant are names of our table, but for those that the README lists."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 8)
    features = {name: rng.normal(size=(16, 3)).astype("float32") for name in ("dcl", "nscl")}
    z = {name: one / np.linalg.norm(one, axis=1, keepdims=True) for name, one in features.items()}
    views = {name: np.stack([one, one[::-1]]) for name, one in z.items()}
    weights = {name: {"encoder.w.weight": one} for name, one in features.items()}
    sets = (features, labels, features, labels)
    of = m.Representations(features, labels)
    rows = [
        *m.alignment_rows(of),
        *m.corollary_rows(of),
        *m.geometry_rows(of),
        *m.loss_rows(views, labels, 0.5),
        *m.batch_loss_rows(views, z, labels, 0.5, 8),
        *m.weight_rows(weights, {"encoder.w.weight": features["dcl"] - 1}),
        *m.downstream_rows(*sets, full=True),
    ]
    ours = {(row["metric"], row["variant"]) for row in rows}
    others = ("authors_nscl_loss_plus_bound", "correlation", "few_shot_error_two_way_bound")
    for path in EXPECTED:
        for row in expected(path):
            metric, variant = row["metric"], row["variant"]
            if metric in others or variant in ("", "tau_0.1", "tau_0.5"):
                continue
            if variant.startswith("shots"):  # theirs go further
                variant = "shots_5"
            assert (metric, variant) in ours, row


def test_no_number_stands_twice():
    said = [c for c in COLUMNS if c not in ("value", "tolerance", "note")]
    keys = [tuple(row[c] for c in said) for path in EXPECTED for row in expected(path)]
    assert len(keys) > 2000
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_headers_say_how_many_cells_there_are(path):
    assert header(path, "cells") == [str(len(cells(path)))]


@pytest.mark.parametrize("path", [*PAPER, *LAPTOP], ids=lambda path: path.stem)
def test_an_experiment_is_named_as_its_file(path):
    prefix = "laptop_" if path in LAPTOP else ""
    assert read_config(path)["experiment"] == prefix + path.stem


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_configs_say_what_to_expect_and_what_they_need(path):
    text = comment(path)
    for word in ("Expect ", "Needs ", " GB "):
        assert word in text
    for name in re.findall(r"\w+\.(?:csv|yaml)", text):
        assert name in {file.name for file in (*PAPER, *EXPECTED)}, name
    figures = {row["figure"] for file in EXPECTED for row in expected(file)}
    assert set(header(path, "reproduces")) <= figures


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_networks_are_measured_at_the_epochs_of_the_papers_numbers(path):
    """Of its figures, data sets and framework; further τ have a line in the header."""
    plans = load_experiment(read_config(path)).plans.values()
    kept = set()
    for plan in plans:
        stops = (*map(Duration.parse, plan.cell["checkpoints"]), plan.until)
        kept |= {stop.count for stop in stops if stop.unit == "epochs" and stop <= plan.until}
    figures, data = header(path, "reproduces"), read_config(path)["datasets"]
    moco = [plan.cell["framework"] == "moco" for plan in plans]
    rows = [row for file in EXPECTED for row in expected(file)]
    shown = [
        row for row in rows
        if row["figure"] in figures and row["dataset"] in data and row["factor"] != "tau"
        and (row["factor"] == "framework") in moco
    ]  # fmt: skip
    assert {int(row["epoch"]) for row in shown if row["epoch"].isdecimal()} <= kept


def test_every_figure_of_the_papers_has_a_config():
    figures = {row["figure"] for file in EXPECTED for row in expected(file)}
    assert figures == {figure for path in PAPER for figure in header(path, "reproduces")}
    data = {row["dataset"] for file in EXPECTED for row in expected(file)} - {""}
    assert data == {name for path in PAPER for name in read_config(path)["datasets"]}


def test_paper_configs_share_their_cells():
    """All are compiled and in bfloat16, which belongs to a cell."""
    plans = [plan for path in PAPER for plan in load_experiment(read_config(path)).plans.values()]
    kinds = {(plan.cell["precision"], plan.cell["compile"]) for plan in plans}
    assert kinds == {("bfloat16", True)}
    folder = PAPER[0].parent

    def shared(one, other):
        return len(cells(folder / f"{one}.yaml") & cells(folder / f"{other}.yaml"))

    for data in ("cifar10", "mini_imagenet"):
        assert shared(f"p1_umap_{data}", f"p1_training_{data}") == 1
        assert shared(f"p2_batch_size_{data}", f"p2_training_{data}") == 1
    for data in ("cifar10", "cifar100", "mini_imagenet"):
        assert shared(f"p1_classes_{data}", f"p1_training_{data}") == 1
    for data in ("cifar10", "cifar100", "tiny_imagenet", "mini_imagenet"):
        assert shared(f"p2_temperature_{data}", f"p2_training_{data}") == 1
    for data in ("cifar10", "tiny_imagenet", "mini_imagenet"):
        assert shared(f"p2_classes_{data}", f"p2_training_{data}") == 1
    for data in ("cifar10", "cifar100"):
        assert shared(f"coupling_{data}", "p2_architectures") == 1


def test_cells_that_share_a_run_can_stop_where_it_kept_its_weights():
    """A run that another config took further serves only stops that are checkpoints."""
    stops = {}
    for path in PAPER:
        for cell, plan in load_experiment(read_config(path)).plans.items():
            stops.setdefault(cell, []).append(plan)
    for plans in stops.values():
        furthest = max(plan.until for plan in plans)
        for plan in plans:
            assert plan.until == furthest or str(plan.until) in plan.cell["checkpoints"]


def test_laptop_configs_share_their_cells():
    """So that those with a seed or three take an hour or so on two cores, all together."""
    alone = ("digits", "labels_cifar10", "long", "projector")
    every = [cells(path) for path in LAPTOP if path.stem not in alone]
    assert len(set.union(*every)) <= 60 < sum(map(len, every))


@pytest.mark.parametrize("path", [PAPER[-1], LAPTOP[-1]], ids=lambda path: path.stem)
def test_the_workflow_plans_them_without_their_images(path, tmp_path):
    command = [sys.executable, "-m", "snakemake", "--snakefile", CONFIG.parent / "Snakefile"]
    command += ["--directory", tmp_path, "--configfile", path, "--cores", "2", "--dry-run"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^train +{len(cells(path))}$", done.stdout + done.stderr, re.M)
