"""Tables of an experiment, and curves of made-up ones whose means are known."""

import polars as pl
import pytest
import tables

import cltools
from cltools.layout import ExperimentFolder, of_experiment
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import write_json, write_table

SEEDS = range(3)
SWEEPS = {"sweeps": ["base", "temperature"]}
CELLS = [tables.cell(seed=seed, **SWEEPS) for seed in SEEDS]
CELLS += [tables.cell(seed=seed, sweeps=["temperature"], tau=0.1) for seed in SEEDS]
CELLS += [tables.cell(seed=seed, sweeps=["batch"], batch_size=64) for seed in SEEDS]
MEASURES = tables.measures(CELLS, epochs=(0, 10, 200))


@pytest.fixture
def folder(tmp_path):
    """An experiment with a table of measures and none of theory."""
    of = ExperimentFolder(tmp_path / "mine")
    of.path.mkdir()
    write_json(of.plan, {"experiment": "mine", "reference": "dcl", "cells": {}, "sweeps": {}})
    write_table(of.table("measures"), MEASURES, of_experiment("measures", of.plan))
    return of


def test_a_table_is_read_from_folder_or_file(folder):
    assert cltools.read_results(folder.path).equals(MEASURES)
    file = folder.table("measures")
    assert cltools.read_results(str(file)).equals(MEASURES)
    elsewhere = folder.path.parent / "copy.parquet"
    file.rename(elsewhere)
    assert cltools.read_results(elsewhere).equals(MEASURES)


def test_pandas_reads_it_too(folder):
    pandas = pytest.importorskip("pandas")
    file = pandas.read_parquet(folder.table("measures"))
    frame = cltools.read_results(folder.path).to_pandas()
    pandas.testing.assert_frame_equal(file, frame)
    assert list(frame["value"]) == MEASURES["value"].to_list()


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda of: damage(of.table("measures")), "is damaged"),
        (lambda of: write_json(of.plan, {"experiment": "mine", "reference": "scl", "cells": {},
                                         "sweeps": {}}), "is of another plan than expected"),
        (lambda of: of.table("measures").unlink(), "does not exist: run `cltools collect` first"),
        (lambda of: of.plan.unlink(), "plan.json does not exist: run `cltools plan` first"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_as_written_is_refused(folder, spoil, sentence):
    spoil(folder)
    with pytest.raises(InputError, match=sentence):
        cltools.read_results(folder.path)


def test_what_cannot_be_read_is_said(folder):
    with pytest.raises(InputError, match=r"theory\.parquet does not exist: run `cltools collect`"):
        cltools.read_results(folder.path, "theory")
    with pytest.raises(InputError, match="nothing is no folder: give that of an experiment"):
        cltools.read_results(folder.path / "nothing")
    with pytest.raises(ValueError, match="no table is called 'mesures': choose from measures, "):
        cltools.read_results(folder.path, "mesures")
    damage(folder.table("measures"))
    with pytest.raises(InputError, match="is damaged"):
        cltools.read_results(folder.table("measures"))


def test_a_curve_over_seeds():
    found = cltools.curve(MEASURES, "cka", "nscl", sweep="base", variant="cosine_biased")
    assert found.columns == ["objective", "epoch", "mean", "low", "high", "seeds"]
    expected = [tables.alignment(CELLS[0], "nscl", epoch) for epoch in (0, 10, 200)]
    assert found["mean"].to_list() == pytest.approx(expected)
    # The sd of three seeds that are SPREAD apart; at epoch 0 all are equal.
    expected = [0, tables.SPREAD, tables.SPREAD]
    assert (found["high"] - found["mean"]).to_list() == pytest.approx(expected)
    assert (found["mean"] - found["low"]).to_list() == pytest.approx(expected)
    assert found["seeds"].to_list() == [3, 3, 3]
    debiased = cltools.curve(MEASURES, "cka", "nscl", sweep="base")
    assert debiased["mean"].to_list()[-1] == pytest.approx(found["mean"].to_list()[-1] - 0.02)


def test_a_curve_against_a_setting():
    found = cltools.curve(MEASURES, "rsa", ["nscl", "ce"], x="tau", sweep="temperature")
    assert found.select("objective", "tau").rows() == [
        ("ce", 0.1), ("ce", 0.5), ("nscl", 0.1), ("nscl", 0.5),
    ]  # fmt: skip
    expected = 1 - 0.8 * (1 - tables.alignment(CELLS[3], "nscl", 200))
    assert found["mean"][2] == pytest.approx(expected)


def test_cells_that_differ_are_told_apart():
    found = cltools.curve(MEASURES, "cka", "nscl", x="step")
    assert set(found["setting"]) == {"τ = 0.5, B = 256", "τ = 0.1, B = 256", "τ = 0.5, B = 64"}
    one = cltools.curve(MEASURES, "cka", "nscl", tau=0.5, batch_size=[64, 32])
    assert "setting" not in one.columns
    single = cltools.curve(MEASURES, "cka", "nscl", sweep="base", seed=0)
    assert single["low"].null_count() == len(single) == 3


def test_several_splits_are_told_apart():
    found = cltools.curve(MEASURES, "cka", "nscl", sweep="base", split=["train", "test"])
    assert found.columns[:3] == ["objective", "split", "epoch"]
    assert found["seeds"].to_list() == [3] * 6


def test_rows_without_split_or_features():
    found = cltools.curve(MEASURES, "weight_gap", sweep="base")
    assert found["objective"].unique().sort().to_list() == ["ce", "nscl", "scl"]


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"metric": "CKA"}, ValueError, r"no metric 'CKA': see results\['metric'\]"),
        ({"metric": "cka", "spilt": "test"}, ValueError, "no column spilt"),
        ({"metric": "cka", "x": "B"}, ValueError, "no column B"),
        (
            {"metric": "dcl_loss"},
            ValueError,
            r"\(tau_1, training_tau\): choose one, as variant='tau_1'",
        ),
        ({"metric": "cka", "tau": 7}, InputError, "no finite measure has metric cka, tau 7"),
        ({"metric": "cka", "sweep": "none"}, InputError, "hold no cell of sweep 'none'"),
    ],
)
def test_what_no_curve_is_of_is_said(arguments, kind, sentence):
    with pytest.raises(kind, match=sentence):
        cltools.curve(MEASURES, **arguments)


def test_a_table_without_cells_has_no_curves():
    with pytest.raises(ValueError, match="no column cell, class_draw, epoch"):
        cltools.curve(pl.DataFrame({"metric": ["cka"], "objective": "nscl", "value": 1.0}), "cka")
