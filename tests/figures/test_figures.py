"""Figures: their numbers, their bytes, and what they say when rows are missing."""

import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tables as made_up
from extents import faults
from PIL import Image
from polars.testing import assert_frame_equal

from cltools.config.schema import schema
from cltools.config.sweeps import base_sweep
from cltools.figures import FIGURES, draw, papers_file
from cltools.figures.sheet import finish, panels
from cltools.figures.style import NEUTRAL, OBJECTIVES, OWN_LABELS, applied, look_of
from cltools.figures.tables import PAPERS, ExperimentTables, papers_rows
from cltools.objectives import names
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import write_json
from cltools.stages import plot as stage
from cltools.stages.plot import read_papers
from cltools.tidy import evenly

SEEDS = 3
STAGES = ("merge", "layers", "project", "surrogate", "minimise", "regularity")
SUFFIXES = ("pdf", "png", "csv", "txt")


@pytest.fixture(scope="module")
def wrong():
    """The faults of each figure that was saved last under its name (`extents.faults`)."""
    found, save = {}, stage.save

    def watched(figure, table, stem):
        save(figure, table, stem)
        figure.set_layout_engine("none")  # it is laid out
        found[stem.name] = faults(figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "save", watched)
        yield found


def plot(name, tables, sweeps, output, style, papers=(), reference="dcl"):
    """Draw a figure of an experiment with these sweeps."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        listed = [{"name": sweep, **about} for sweep, about in sweeps.items()]
        about = {"experiment": "made up", "reference": reference, "cells": {}, "sweeps": listed}
        write_json(plan, about)
        stage.run(name=name, plan=plan, tables=tables, output=output, style=style, papers=papers)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return made_up.write(tmp_path_factory.mktemp("tables"), seeds=SEEDS)


@pytest.fixture(scope="module")
def drawn(inputs, wrong, tmp_path_factory):
    """Every figure, drawn once; returns the folder."""
    folder = tmp_path_factory.mktemp("figures")
    for name in FIGURES:
        plot(name, inputs, made_up.SWEEPS, folder / name, {"dpi": 60})
        assert not wrong[name], f"{name} at 7 in"
    return folder


@pytest.fixture(scope="module")
def experiment(inputs):
    read = {table: pl.read_parquet(path) for table, path in inputs.items()}
    return ExperimentTables(made_up.SWEEPS, **read)


# At 7 inches, `drawn` looks at all figures; at 5 inches, those of another reference are looked at.
ROOM = [(name, width) for name, spec in FIGURES.items() for width in (3.3, 5)
        if width == 3.3 or "reference" not in spec.objectives]  # fmt: skip


@pytest.mark.parametrize(("name", "width"), ROOM)
def test_texts_and_panels_have_room(name, width, experiment):
    with applied({"width": width}):
        assert not faults(draw(name, experiment)[0])


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (lambda ax: ax.set_title("much too long " * 9, loc="left"), "leaves the canvas: much"),
        (lambda ax: ax.text(0.5, -0.3, "here", transform=ax.transAxes), "overlap: .*here"),
        (lambda ax: ax.figure.text(0.5, 0.5, "over it"), "lies on a panel.*: over it"),
        (lambda ax: ax.figure.add_axes((0.1, 0.1, 0.01, 0.2)), "a panel of 0.03"),
    ],
    ids=["off", "overlap", "on a panel", "no size"],
)
def test_planted_faults_are_found(plant, found):
    with applied({"width": 3.3}):
        sheet, ((ax,),) = panels(1, 1, height=1.5)
        ax.set(xlabel="here", xlim=(0, 1))
        finish(sheet, "A title", [], "A footnote")
        assert not faults(sheet)
        plant(ax)
        assert re.search(found, "\n".join(faults(sheet)))


def numbers(folder, name, **where):
    return pl.read_csv(folder / f"{name}.csv", infer_schema_length=None).filter(**where)


def test_registry_imports_neither_matplotlib_nor_polars():
    code = (
        "import sys, cltools.figures; sys.exit(bool({'matplotlib', 'polars'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_needs_the_sweep_that_varies_the_factor():
    sweeps = {"temperatures": {"label": "τ", "factors": ["tau", "seed"]}}
    assert [name for name, spec in FIGURES.items() if spec.needs(sweeps)] == [
        "alignment_temperature"
    ]
    trained = ["dcl", "nscl", "nscl:shuffled"]
    assert all(spec.needs(made_up.SWEEPS, STAGES, trained) for spec in FIGURES.values())
    assert not any(spec.needs({}) for spec in FIGURES.values())


def test_needs_the_stages_whose_work_it_shows():
    without = {name for name, spec in FIGURES.items() if not spec.needs(made_up.SWEEPS)}
    of_stages = {"merging", "features_plane", "surrogate_drift", "collapse_order"}
    of_stages |= {"layers_training", "layers_pairs"}
    of_labels = {"labels_negatives", "label_effect"}
    assert without == of_stages | of_labels | {"alignment_pairs"}
    assert not FIGURES["alignment_pairs"].needs(made_up.SWEEPS, objectives=["dcl", "nscl"])
    trained = ["dcl", "nscl:shuffled"]
    assert all(FIGURES[name].needs(made_up.SWEEPS, objectives=trained) for name in of_labels)
    assert FIGURES["merging"].needs(made_up.SWEEPS, ["merge"])
    assert FIGURES["surrogate_drift"].needs({}, ["surrogate"])
    assert FIGURES["surrogate_drift"].tables_of(["surrogate"]) == ["surrogate"]
    assert FIGURES["surrogate_drift"].tables_of(STAGES) == ["surrogate", "regularity"]


def test_figures_of_alignment_need_the_reference():
    trained = ["nt_xent", "nscl_with_positive"]
    about = {"sweeps": made_up.SWEEPS, "stages": STAGES, "objectives": trained}
    assert not FIGURES["alignment_training"].needs(**about)
    assert FIGURES["alignment_training"].needs(**about, reference="nt_xent")
    assert not FIGURES["losses_training"].needs(**about, reference="nt_xent")


OF_REFERENCE = [name for name, spec in FIGURES.items() if "reference" in spec.objectives]


@pytest.mark.parametrize("name", OF_REFERENCE)
def test_another_reference_takes_the_place_of_dcl(name, inputs, drawn, wrong, tmp_path):
    """The same numbers, under its name."""
    other = pl.read_parquet(inputs["measures"]).with_columns(
        pl.col("objective", "reference").replace("dcl", "nt_xent")
    )
    other.write_parquet(tmp_path / "measures.parquet")
    layers = pl.read_parquet(inputs["layers"]).with_columns(
        pl.col("objective", "reference").replace("dcl", "nt_xent")
    )
    layers.write_parquet(tmp_path / "layers.parquet")
    tables = {**inputs, "measures": tmp_path / "measures.parquet",
              "layers": tmp_path / "layers.parquet"}  # fmt: skip
    style = {"dpi": 60, "width": 5}
    plot(name, tables, made_up.SWEEPS, tmp_path / name, style, reference="nt_xent")
    assert not wrong[name]
    found, expected = numbers(tmp_path, name), numbers(drawn, name)
    assert sorted(found["value"].drop_nulls()) == sorted(expected["value"].drop_nulls())
    assert "dcl" not in found.select(pl.col(pl.String)).unpivot()["value"].to_list()


@pytest.mark.parametrize("factors", [["seed"], []])
def test_base_sweep_is_the_first_that_varies_the_seed_alone(factors):
    sweeps = {"t": {"factors": ["tau"]}, "a": {"factors": factors}, "b": {"factors": ["seed"]}}
    assert base_sweep(sweeps) == "a"
    assert base_sweep({"t": {"factors": ["tau", "seed"]}}) is None


def test_palette_has_a_color_and_a_marker_of_its_own_for_every_objective():
    rules = schema()["$defs"]["objective"]
    assert tuple(OBJECTIVES) == names()
    looks = [*OBJECTIVES.values(), NEUTRAL]
    for trait in ("label", "color", "marker"):
        assert len({getattr(look, trait) for look in looks}) == len(looks)
    assert sorted(OWN_LABELS) == sorted(rules["objective"])
    with_labels = [look_of(f"nscl:{kind}7") for kind in OWN_LABELS]
    assert len({look.color for look in [*looks, *with_labels]}) == len(looks) + len(OWN_LABELS)
    groups = [look_of(f"nscl:coarse{number}") for number in (2, 5, 10)]
    assert len({(look.label, look.marker) for look in groups}) == len(groups)


@pytest.mark.parametrize("name", FIGURES)
def test_drawn_again_gives_the_same_bytes(name, inputs, drawn, tmp_path):
    # Neither the order of the rows nor a table that the figure does not need may matter.
    again = {}
    for table in FIGURES[name].tables_of(inputs):
        again[table] = tmp_path / f"{table}.parquet"
        rows = pl.read_parquet(inputs[table])
        if table != "log":
            rows = rows.sample(fraction=1, shuffle=True, seed=1)
        rows.write_parquet(again[table])
    plot(name, again, made_up.SWEEPS, tmp_path / "again", {"dpi": 60})
    for suffix in SUFFIXES:
        first = (drawn / f"{name}.{suffix}").read_bytes()
        assert first == (tmp_path / f"again.{suffix}").read_bytes()
        assert len(first) > 100


def test_files_hold_no_date_and_no_version(drawn):
    for name in FIGURES:
        assert b"CreationDate" not in (drawn / f"{name}.pdf").read_bytes()
        assert b"Matplotlib" not in (drawn / f"{name}.pdf").read_bytes()
        assert b"Matplotlib" not in (drawn / f"{name}.png").read_bytes()


def test_alignment_training_has_the_known_means_and_deviations(drawn):
    for objective in ("nscl", "scl", "ce"):
        where = {"objective": objective, "split": "test", "epoch": 50.0}
        rows = numbers(drawn, "alignment_training", **where)
        rows = rows.filter(pl.col("metric") != "cka_to_init")
        cka = made_up.alignment(made_up.cell(), objective, 50)
        means = dict(rows.select("variant", "mean").iter_rows())
        assert means == pytest.approx(
            {
                "cosine_biased": cka,
                "cosine_debiased": cka - 0.02 * made_up.progress(50),
                "pearson_cosine": 1 - 0.8 * (1 - cka),
            }
        )
        # Three seeds, each one SPREAD further than the last: that is their deviation.
        assert rows.filter(variant="cosine_biased")["sd"].to_list() == pytest.approx(
            [made_up.SPREAD] * SEEDS
        )
        assert set(rows["seeds"]) == {SEEDS}


@pytest.mark.parametrize(
    ("name", "column", "values", "arms"),
    [
        ("alignment_classes", "classes", [2, 4, 6, 8, 10], ["matched steps", "matched epochs"]),
        ("alignment_temperature", "tau", [0.1, 0.5, 1.0], ["temperature"]),
        (
            "alignment_batch_size",
            "batch_size",
            [64, 128, 256],
            ["learning rate ∝ B", "learning rate ∝ √B"],
        ),
    ],
)
def test_alignment_against_a_factor(name, column, values, arms, drawn):
    rows = numbers(drawn, name, metric="cka", objective="nscl")
    assert rows["arm"].unique(maintain_order=True).to_list() == arms
    for rule, arm in zip(("linear", "sqrt"), arms, strict=False):
        changed = {"lr_rule": rule} if column == "batch_size" else {}
        means = rows.filter(arm=arm).unique(column).sort(column)["mean"].to_list()
        wanted = [
            made_up.alignment(made_up.cell(**{column: value}, **changed), "nscl", 200)
            for value in values
        ]
        assert means == pytest.approx(wanted)
    control = numbers(drawn, name, metric="cka_to_init")
    assert set(control["objective"]) == {"dcl", "nscl", "scl", "ce"}


def test_alignment_of_two_schedules_during_training(drawn):
    rows = numbers(drawn, "alignment_schedules", objective="nscl")
    for schedule in ("per_step", "constant"):
        means = rows.filter(lr_schedule=schedule).select("epoch", "mean").unique().sort("epoch")
        cell = made_up.cell(lr_schedule=schedule)
        wanted = [made_up.alignment(cell, "nscl", epoch) for epoch in made_up.EPOCHS]
        assert means["mean"].to_list() == pytest.approx(wanted)


def test_gap_lies_between_the_untrained_gap_and_the_bound(drawn):
    rows = numbers(drawn, "gap_classes", arm="matched steps", variant="tau_1", classes=10)
    means = dict(rows.select("quantity", "mean").iter_rows())
    assert means["gap, untrained"] == pytest.approx(0.10536, abs=1e-5)
    assert means["bound"] == pytest.approx(0.59939, abs=1e-5)
    assert means["gap, trained"] == pytest.approx(0.6 * 0.10536 + 0.4 * 0.59939, abs=1e-4)


def test_losses_training_keeps_differences_through_smoothing(drawn):
    rows = numbers(drawn, "losses_training", model="dcl")
    wide = rows.pivot("quantity", index="epoch", values="mean")
    last = wide.sort("epoch").row(-1, named=True)
    assert last["epoch"] == made_up.EPOCHS[-1]
    assert last["dcl loss"] - last["nscl loss"] == pytest.approx(0.4, abs=0.01)
    assert last["nscl loss + bound"] - last["nscl loss"] == pytest.approx(1.9552, abs=1e-3)


def test_weights_and_representations(drawn):
    rows = numbers(drawn, "weights_representations", objective="nscl", epoch=200.0)
    means = dict(rows.select("quantity", "mean").iter_rows())
    assert means == pytest.approx({"weight gap": 0.88, "1 - CKA": made_up.DRIFT["nscl"]})


def test_downstream(drawn):
    rows = numbers(drawn, "downstream", split="test", metric="linear_probe")
    means = dict(rows.select("objective", "mean").iter_rows())
    assert means == pytest.approx(made_up.ACCURACY)


def test_labels_negatives(drawn):
    """Every point stands at the share that its labels drop; the second DCL drops none."""
    rows = numbers(drawn, "labels_negatives", metric="cka")
    centre = made_up.SPREAD * (SEEDS - 1) / 2
    expected = {
        o: (share, 1 - drift + centre) for o, (drift, share) in made_up.CONTROLS.items()
    } | {"nscl": (0.1, made_up.alignment(made_up.cell(), "nscl", 200))}
    found = {o: x for o, *x in rows.select("objective", "share", "mean").unique().iter_rows()}
    assert found.keys() == expected.keys()
    for objective, point in expected.items():
        assert found[objective] == pytest.approx(point)


def test_label_effect_is_paired_by_seed(drawn):
    rows = numbers(drawn, "label_effect", quantity="true − shuffled labels", factor="tau")
    for tau in (0.1, 0.5, 1.0):
        # The made-up controls do not depend on τ. A seed adds the same to both, but for a shift.
        cka = made_up.alignment(made_up.cell(tau=tau), "nscl", 200)
        centre = made_up.SPREAD * (SEEDS - 1) / 2
        effect = rows.filter(x=tau)
        expected = cka - (1 - made_up.CONTROLS["nscl:shuffled"][0]) - centre
        assert effect["value"].to_list() == pytest.approx([expected] * SEEDS)
    assert set(numbers(drawn, "label_effect")["factor"]) == {"epoch", "tau", "classes"}
    assert set(numbers(drawn, "label_effect")["objective"]) == {"nscl", "nscl:shuffled", "dcl_twin"}


@pytest.mark.parametrize("name", [name for name, spec in FIGURES.items() if not spec.own_labels])
def test_other_figures_leave_out_labels_of_their_own(name, drawn):
    text = (drawn / f"{name}.csv").read_text()
    assert "nscl:" not in text


def test_alignment_coupling(drawn):
    rows = numbers(drawn, "alignment_coupling", objective="nscl", variant="cosine_biased")
    means = dict(rows.filter(metric="cka").select("coupling", "mean").iter_rows())
    assert means == pytest.approx(
        {
            level: made_up.alignment(made_up.cell(coupling=level), "nscl", 200)
            for level in ("init + batches + views", "init", "nothing")
        }
    )


def test_bound_tightness(drawn):
    rows = {row["quantity"]: row for row in numbers(drawn, "bound_tightness").iter_rows(named=True)}
    cases = len(made_up.cells(SEEDS))
    assert (rows["gap"]["claimed"], rows["gap"]["violated"]) == (cases, 0)
    assert (rows["drift"]["claimed"], rows["drift"]["violated"]) == (cases, cases)
    other = rows["drift_not_comparable"]
    assert (other["cases"], other["claimed"], other["violated"]) == (cases, 0, 0)
    assert other["median_orders"] == pytest.approx(-1)
    assert rows["gap"]["median_orders"] == pytest.approx(1)
    assert rows["drift"]["median_orders"] == pytest.approx(-1)


def test_nscl_losses(drawn):
    rows = numbers(drawn, "nscl_losses", metric="authors_nscl_loss", split="test", epoch=50.0)
    means = dict(rows.select("objective", "mean").iter_rows())
    assert means == pytest.approx({o: made_up.nscl_loss(o, 50) for o in ("dcl", "nscl")})


def test_cdnv_training(drawn):
    rows = numbers(drawn, "cdnv_training", split="train", epoch=200.0, variant="directional")
    assert set(rows["features"]) == {"h", "z"}
    middle = rows.filter(seed=1, features="h")  # of three seeds, the one without deviation
    values = dict(middle.select("objective", "value").iter_rows())
    assert values == pytest.approx({o: 0.3 * (1 - a) for o, a in made_up.ACCURACY.items()})


def test_few_shot_error_of_z(drawn):
    rows = numbers(drawn, "few_shot_z", objective="nscl", seed=1, quantity="error")
    errors = rows.filter(ways="all_way", probe="few_shot_nccc").select("shots", "value")
    expected = {m: made_up.few_shot_error("nscl", m, "z") for m in made_up.SHOTS}
    assert dict(errors.iter_rows()) == pytest.approx(expected)


def test_few_shot_error_bound_and_limit(drawn):
    """Two classes: bound 10 / shots, limit 4 times the directional CDNV; all ten: 9 times that."""
    rows = numbers(drawn, "few_shot", objective="nscl", seed=1)
    two = rows.filter(ways="two_way", probe="few_shot_nccc")
    errors = dict(two.filter(quantity="error").select("shots", "value").iter_rows())
    assert errors == pytest.approx({m: made_up.few_shot_error("nscl", m) for m in made_up.SHOTS})
    bounds = dict(two.filter(quantity="bound").select("shots", "value").iter_rows())
    assert bounds == pytest.approx({m: 10 / m for m in made_up.SHOTS})
    limits = rows.filter(quantity="bound, limit")
    limit = 4 * 0.3 * (1 - made_up.ACCURACY["nscl"])
    assert dict(limits.select("ways", "value").iter_rows()) == pytest.approx(
        {"two_way": limit, "all_way": 9 * limit}
    )
    assert len(rows.filter(quantity="error", ways="two_way", shots=1)) == 2  # one for each probe
    # A linear probe has no such bound.
    assert set(rows.filter(probe="few_shot_linear_probe")["quantity"]) == {"error"}


def test_alignment_classes_epochs(drawn):
    rows = numbers(drawn, "alignment_classes_epochs", arm="matched epochs", split="test", epoch=50)
    means = dict(rows.select("classes", "mean").iter_rows())
    assert means == pytest.approx(
        {c: made_up.alignment(made_up.cell(classes=c), "nscl", 50) for c in (2, 4, 6, 8, 10)}
    )


def test_a_heat_map_of_equally_long_runs_counts_steps(tmp_path):
    """And shows no checkpoint that one number of classes alone has."""
    of_2, of_10 = (made_up.cell(sweeps=["c"], classes=c) for c in (2, 10))
    long = made_up.measures([of_2], (0, 400)).with_columns(step=pl.col("step") // 2)
    pl.concat([long, made_up.measures([of_10], (0, 20, 200))]).write_parquet(tmp_path / "m.parquet")
    table = {"measures": tmp_path / "m.parquet"}
    sweeps = {"c": {"label": "equal steps", "factors": ["classes"]}}
    plot("alignment_classes_epochs", table, sweeps, tmp_path / "f", {})
    assert set(numbers(tmp_path, "f")["step"]) == {0, 1200}


def test_class_draws_of_unequal_size_share_a_mean(tmp_path):
    """At the same step they are at different epochs."""
    cells = [made_up.cell(sweeps=["c"], classes=c, seed=s) for c in (2, 10) for s in (0, 1)]
    made = made_up.measures(cells, (0, 200))
    longer = pl.when(classes=2).then(0.8 + 0.1 * pl.col("seed")).otherwise(1.0)
    made = made.with_columns(epoch=pl.col("epoch") * longer)
    made.write_parquet(tmp_path / "m.parquet")
    sweeps = {"c": {"label": "equal steps", "factors": ["classes", "seed"]}}
    plot("alignment_classes_epochs", {"measures": tmp_path / "m.parquet"}, sweeps,
         tmp_path / "f", {})  # fmt: skip
    assert set(numbers(tmp_path, "f")["seeds"]) == {2}


def test_residual_alignment(drawn):
    rows = numbers(drawn, "residual_alignment", split="test", objective="ce")
    means = dict(rows.select(pl.concat_str("measure", "kind", separator=" "), "mean").iter_rows())
    cka = 1 - made_up.DRIFT["ce"]
    rsa = 1 - 0.8 * made_up.DRIFT["ce"]
    assert means == pytest.approx(
        {"CKA plain": cka, "CKA residual": cka - 0.1, "CKA null": cka / 2,
         "RSA plain": rsa, "RSA residual": rsa - 0.1, "RSA null": rsa / 2}
    )  # fmt: skip


def test_merging(drawn):
    rows = numbers(drawn, "merging", split="test", metric="merged_nccc")
    assert dict(rows.select("weight", "mean").iter_rows()) == pytest.approx(
        {0.0: 0.8, 0.5: 0.9, 1.0: 0.8}
    )


def test_alignment_pairs(drawn):
    wanted = {"metric": "cka", "variant": "residual_debiased"}
    rows = numbers(drawn, "alignment_pairs", **wanted)
    assert len(rows.unique(["objective", "reference"])) == 6  # pairs of four objectives
    row = rows.filter(objective="ce", reference="scl")
    assert row["mean"].to_list() == pytest.approx([made_up.pair_cka("scl", "ce") - 0.1] * SEEDS)


def test_pairs_that_were_not_trained_together_are_named(inputs, tmp_path):
    measures = pl.read_parquet(inputs["measures"])
    apart = ~((pl.col("reference") == "scl") & (pl.col("objective") == "ce"))
    measures.filter(apart).write_parquet(tmp_path / "m.parquet")
    with pytest.raises(InputError, match="no cell with both scl and ce"):
        plot("alignment_pairs", {"measures": tmp_path / "m.parquet"}, made_up.SWEEPS,
             tmp_path / "x", {})  # fmt: skip


def test_layers(drawn):
    last = made_up.EPOCHS[-1]
    for layer, expected in ((0, 1.0), (4, made_up.layer_cka("nscl", 4, 4))):
        named = made_up.LAYERS[layer]
        rows = numbers(drawn, "layers_training", metric="cka", objective="nscl", features=named)
        assert rows.filter(epoch=last)["mean"].to_list() == pytest.approx([expected / 2] * SEEDS)
        pair = {"features": "z", "reference_features": named}
        found = numbers(drawn, "layers_pairs", objective="nscl", **pair)
        value = made_up.layer_cka("nscl", layer, 4) / 2
        assert found["mean"].to_list() == pytest.approx([value] * SEEDS)
    start = numbers(drawn, "layers_training", metric="cka_to_init", objective="dcl")
    assert start.filter(epoch=0)["mean"].unique().to_list() == [1]


def test_nothing_merged_is_said(inputs, tmp_path):
    measures = pl.read_parquet(inputs["measures"])
    unmerged = ~pl.col("metric").str.starts_with("merged")
    measures.filter(unmerged).write_parquet(tmp_path / "m.parquet")
    with pytest.raises(InputError, match=r"add it to merge\.sweeps"):
        plot("merging", {"measures": tmp_path / "m.parquet"}, made_up.SWEEPS, tmp_path / "f", {})


def test_alignment_architectures(drawn):
    rows = numbers(drawn, "alignment_architectures", metric="cka", objective="nscl")
    means = dict(rows.select("architecture", "mean").iter_rows())
    assert means == pytest.approx(
        {
            name: made_up.alignment(made_up.cell(architecture=name), "nscl", 200)
            for name in ("small_cnn", "small_vit")
        }
    )
    assert rows["seeds"].to_list() == [SEEDS] * 2 * SEEDS


def test_kinds_of_projectors_are_shown_with_h_and_z():
    kinds = ("small_cnn", "small_cnn, no projector")
    cells = [made_up.cell(architecture=kind, sweeps=["projector"]) for kind in kinds]
    of_h = made_up.measures(cells, epochs=(0, 200))
    of_z = of_h.filter(pl.col("metric").is_in(["cka", "rsa"])).with_columns(
        features=pl.lit("z"), value=pl.col("value") / 2
    )
    sweeps = {"projector": {"label": "projector", "factors": ["projector_layers", "seed"]}}
    tables = ExperimentTables(sweeps, measures=pl.concat([of_h, of_z]))
    figure, plotted = draw("alignment_architectures", tables)
    assert list(figure.names.values()) == ["cka", "rsa", "cka_z", "rsa_z"]
    ticks = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert ticks == ["digits\nsmall_cnn", "digits\nsmall_cnn\nno projector"]
    for kind in kinds:
        one = plotted.filter(architecture=kind, metric="cka", objective="nscl")
        h = made_up.alignment(made_up.cell(), "nscl", 200)
        assert dict(one.select("features", "mean").iter_rows()) == pytest.approx(
            {"h": h, "z": h / 2}
        )
    assert len(plotted) == len(plotted.unique(["architecture", "features", "metric", "objective"]))


def test_collapse_geometry(drawn):
    """Networks, and free embeddings of the largest C and d at the networks' temperature."""
    rows = numbers(drawn, "collapse_geometry", objective="scl")
    angles = rows.filter(metric="class_mean_angle", epoch=200.0)
    of_h = angles.filter(features="h")
    assert of_h["mean"].to_list() == pytest.approx([made_up.SIMPLEX_ANGLE] * 2 * SEEDS)
    assert len(angles) == 2 * len(of_h)
    start = rows.filter(metric="etf_deviation", epoch=0.0, features="h")
    assert start["mean"].to_list() == pytest.approx([1.2] * SEEDS)
    free = rows.filter(pl.col("iteration").is_not_null())
    assert set(free.select("classes", "dimension", "tau").rows()) == {(10, 10, 0.5)}
    assert free["within_class_spread"].to_list() == pytest.approx(
        [0.9 * 0.499 ** (iteration / 2) for iteration in range(14)]
    )


def test_collapse_geometry_of_networks_alone(inputs, tmp_path):
    plot("collapse_geometry", {"measures": inputs["measures"]}, made_up.SWEEPS, tmp_path / "f", {})
    assert "iteration" not in numbers(tmp_path, "f").columns


def test_class_means_space(drawn):
    """Directions whose cosines are those of the table, with no third axis more than needed."""
    rows = numbers(drawn, "class_means_space", objective="nscl", epoch=200.0).sort("class")
    cosine = 1 + (made_up.SIMPLEX_COSINE - 1) * made_up.ACCURACY["nscl"]
    points = rows.select("x", "y", "z").to_numpy()
    # Four equal cosines off -1/3 need a fourth dimension: the common direction, which is left out.
    common = (1 + 3 * cosine) / 4
    assert points @ points.T == pytest.approx((1 - cosine) * np.eye(4) + cosine - common)
    deviation = made_up.COLLAPSE["etf_deviation", "gram"] * (1 - made_up.ACCURACY["nscl"])
    assert set(rows["deviation"].round(9)) == {round(deviation * math.exp(-made_up.SPREAD), 9)}


def test_class_means_space_needs_four_classes():
    spec = FIGURES["class_means_space"]
    sweep = {"label": "C", "factors": ["classes"]}
    assert not spec.needs({"c": {**sweep, "classes": [2, 10]}})
    assert spec.needs({"c": {**sweep, "classes": [2, 4]}})
    assert not spec.needs({"base": {"label": "", "factors": ["seed"], "classes": [4]}})


def test_evenly():
    assert evenly([3, 1, 2, 1], 4) == [1, 2, 3]
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    assert evenly([5], 4) == [5]


def test_collapse_order(drawn):
    rows = numbers(drawn, "collapse_order", classes=10)
    assert set(rows["dimension"]) == {10}
    halved = rows.filter(pl.col("tau").is_null() | (pl.col("tau") == 0.5))
    times = dict(halved.select("objective", "halved_time").iter_rows())
    assert times.pop("dcl") is None
    assert times == pytest.approx({"scl": 0.2, "nscl": 0.4, "ce": 0.8})
    # From the start on, and as a share of it; the quasi-Newton method has no time.
    ce = rows.filter(objective="ce")
    assert ce["value"].to_list() == pytest.approx([0.499 ** (i / 8) for i in range(13)])


def test_surrogate_drift(drawn):
    rows = numbers(drawn, "surrogate_drift", of="surrogate", tau=0.5, sum_lr=100.0)
    values = {row["quantity"]: row["value"] for row in rows.filter(batch_size=64).to_dicts()}
    assert values == pytest.approx(
        {"distance": 0.0, "bound, realised": 2.0, "bound, stated": math.log10(200)}
    )
    assert set(rows.filter(batch_size=16)["quantity"]) == {"distance", "bound, realised"}
    of = numbers(drawn, "surrogate_drift", quantity="distance", step=2)
    apart = {row["of"]: row["value"] for row in of.filter(pl.col("of") != "surrogate").to_dicts()}
    assert apart == pytest.approx({"network": 1.0, "its surrogate": -2.0})
    moved = numbers(drawn, "surrogate_drift", quantity="distance from the start", step=1)
    assert dict(moved.select("of", "value").iter_rows()) == pytest.approx(
        {"network": 1.0, "its surrogate": -1.0}
    )


def papers(tmp_path, **changes):
    """A file with one number of a paper, of the made-up base cell."""
    row = dict.fromkeys(PAPERS.columns, "") | {
        "figure": "P9 Fig. 1", "dataset": "digits", "architecture": "small_cnn",
        "objective": "nscl", "metric": "cdnv", "variant": "pairs", "split": "test",
        "features": "h", "epoch": 20, "value": 0.7, "tolerance": 0.1,
    }  # fmt: skip
    pl.DataFrame([row | changes]).write_csv(tmp_path / "p.csv")
    return [tmp_path / "p.csv"]


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, True),
        ({"dataset": "cifar10"}, False),
        ({"architecture": "resnet50 ×1"}, False),
        ({"factor": "tau", "factor_value": "1"}, False),
        ({"factor": "framework", "factor_value": "moco"}, False),
        ({"epoch": 300}, False),  # beyond the end of our runs
        ({"epoch": ""}, False),
        ({"metric": "cka"}, False),
    ],
)
def test_numbers_of_the_papers_stand_beside_equal_cells_alone(change, shown, tmp_path):
    cells = made_up.measures([made_up.cell()], epochs=(0, 200))
    beside = ExperimentTables(made_up.SWEEPS, papers=read_papers(papers(tmp_path, **change)))
    found = papers_rows(beside, cells, metric="cdnv")
    assert found["epoch"].to_list() == [20] * shown


def test_the_papers_numbers_of_moco_stand_beside_moco(tmp_path):
    cells = made_up.measures([made_up.cell(framework="moco")], epochs=(0, 200))
    for change, shown in (({"factor": "framework", "factor_value": "moco"}, True), ({}, False)):
        beside = ExperimentTables(made_up.SWEEPS, papers=read_papers(papers(tmp_path, **change)))
        assert papers_rows(beside, cells)["epoch"].to_list() == [20] * shown


def test_numbers_of_the_papers_are_in_the_csv(inputs, tmp_path):
    plot("cdnv_training", inputs, made_up.SWEEPS, tmp_path / "f", {"dpi": 60}, papers(tmp_path))
    (theirs,) = numbers(tmp_path, "f").drop_nulls("figure").to_dicts()
    assert (theirs["epoch"], theirs["value"], theirs["mean"]) == (20, 0.7, None)


def test_numbers_of_the_papers_that_cannot_be_read(inputs, tmp_path):
    with pytest.raises(InputError, match=r"the papers' numbers cannot be read from .*csv"):
        plot("cdnv_training", inputs, made_up.SWEEPS, tmp_path / "f", {}, [tmp_path / "no.csv"])


def test_all_numbers_of_the_papers_can_be_read():
    for path in (papers_file(name) for spec in FIGURES.values() for name in spec.papers):
        table = read_papers([path])
        assert len(table) == len(path.read_text().splitlines()) - 1
        assert table.null_count().sum_horizontal().item() == 0


def test_features_plane(drawn):
    """Six of seven checkpoints, the first and the last among them; points as they came."""
    rows = numbers(drawn, "features_plane", objective="ce")
    epochs = rows["epoch"].unique().sort().to_list()
    assert len(epochs) == 6
    assert (epochs[0], epochs[-1]) == (0, 50)
    last = rows.filter(epoch=50.0)
    assert last["x"].to_list() == pytest.approx([-1, 0.9, -0.8, 0.7, -0.6, 0.5])
    assert last["class"].to_list() == [0, 1] * 3


def test_pictures_of_a_cell_without_measures(inputs, tmp_path):
    other = pl.read_parquet(inputs["project"]).with_columns(cell=pl.lit("gone"))
    other.write_parquet(tmp_path / "p.parquet")
    tables = inputs | {"project": tmp_path / "p.parquet"}
    with pytest.raises(InputError, match="run `cltools project` again"):
        plot("features_plane", tables, made_up.SWEEPS, tmp_path / "f", {})


def test_one_seed_has_no_deviation(tmp_path):
    inputs = made_up.write(tmp_path, seeds=1)
    for name in ("downstream", "losses_training"):
        plot(name, inputs, made_up.SWEEPS, tmp_path / name, {"dpi": 60})
        rows = numbers(tmp_path, name)
        assert rows["sd"].null_count() == len(rows)
        assert set(rows["seeds"]) == {1}


def test_missing_seeds_and_nan_are_drawn_without(inputs, tmp_path):
    measures = pl.read_parquet(inputs["measures"])
    gone = (pl.col("objective") == "scl") & (pl.col("seed") == 2)
    nan = (pl.col("objective") == "ce") & (pl.col("seed") == 1)
    partial = measures.filter(~gone).with_columns(
        value=pl.when(nan).then(float("nan")).otherwise("value")
    )
    partial.write_parquet(tmp_path / "partial.parquet")
    table = {"measures": tmp_path / "partial.parquet"}
    plot("downstream", table, made_up.SWEEPS, tmp_path / "f", {})
    rows = numbers(tmp_path, "f").unique("objective")
    seeds = dict(rows.select("objective", "seeds").iter_rows())
    assert seeds == {"dcl": 3, "nscl": 3, "scl": 2, "ce": 2}


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("nscl_losses", "authors_nscl_loss"),
        ("alignment_architectures", "rsa"),
        ("collapse_geometry", "class_mean_angle"),
        ("cdnv_training", "cdnv"),
        ("few_shot", "few_shot_linear_probe_two_way"),
        ("alignment_classes_epochs", "cka"),
        ("residual_alignment", "rsa_null"),
        ("alignment_training", "rsa"),
        ("alignment_classes", "cka_to_init"),
        ("gap_classes", "gap_bound"),
        ("weights_representations", "weight_gap"),
        ("downstream", "nccc"),
    ],
)
def test_a_missing_metric_is_named(name, metric, inputs, tmp_path):
    measures = pl.read_parquet(inputs["measures"]).filter(pl.col("metric") != metric)
    measures.write_parquet(tmp_path / "less.parquet")
    less = inputs | {"measures": tmp_path / "less.parquet"}
    with pytest.raises(InputError, match=f"metric {metric}"):
        plot(name, less, made_up.SWEEPS, tmp_path / "f", {})
    assert [path.name for path in tmp_path.iterdir()] == ["less.parquet"]


def test_a_missing_network_is_named(inputs, tmp_path):
    log = pl.read_parquet(inputs["log"]).filter(pl.col("model") != "nscl")
    log.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match="nscl network"):
        plot("losses_training", {"log": tmp_path / "log.parquet"}, made_up.SWEEPS, tmp_path, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "portrait"}, "no figure is called 'portrait'"),
        ({"tables": {"measures": Path("nowhere.parquet")}}, "run `cltools collect` first"),
        ({"tables": {}}, "needs the table of `cltools collect`: give it with --measures"),
        ({"sweeps": {}}, "needs a sweep that varies only the seed"),
        ({"sweeps": {"new": {"label": "", "factors": ["seed"]}}}, "no cell of sweep 'new'"),
        ({"style": {"color": 1}}, "unknown figure style key 'color'"),
        ({"style": {"dpi": -1}}, "dpi must be a positive number"),
        ({"style": {"width": 1}}, r"width must be from 2\.5 to 20 inches, not 1"),
        ({"style": {"title": "no"}}, "title must be true or false"),
        ({"style": {"panels": ["nccc"]}}, "panels must give a list of panels for each figure"),
        ({"style": {"panels": {"portrait": ["a"]}}}, "no figure is called 'portrait'"),
        (
            {"style": {"panels": {"downstream": ["face"]}}},
            "no panel 'face': choose from linear_probe, nccc",
        ),
    ],
)
def test_wrong_requests(change, message, inputs, tmp_path):
    right = {
        "name": "downstream",
        "tables": inputs,
        "sweeps": made_up.SWEEPS,
        "output": tmp_path / "f",
        "style": {},
    }
    with pytest.raises(InputError, match=message):
        plot(**right | change)


def test_style_keys_change_the_picture_but_not_the_numbers(inputs, drawn, tmp_path):
    style = {"dpi": 60, "width": 10.5, "font_size": 10, "title": False, "footnote": False}
    plot("downstream", inputs, made_up.SWEEPS, tmp_path / "wide", style)
    paths = drawn / "downstream.png", tmp_path / "wide.png"
    (width, height), (wide, low) = [Image.open(path).size for path in paths]
    assert (width, wide) == (420, 630)
    assert low < height
    assert_frame_equal(numbers(tmp_path, "wide"), numbers(drawn, "downstream"))
    caption = (tmp_path / "wide.txt").read_text()
    assert caption == (drawn / "downstream.txt").read_text()
    assert caption.startswith("Accuracy of two classifiers on the features of each objective. ")
    assert "chance is 10 %" in caption


def test_the_style_chooses_panels(experiment):
    with applied(
        {"panels": {"alignment_training": ["rsa_test", "cka_test"]}}, "alignment_training"
    ):
        figure = draw("alignment_training", experiment)[0]
        titles = [ax.get_title("left") for ax in figure.axes]
        assert titles == ["CKA with DCL, test images", "RSA with DCL, test images"]
        assert len({round(ax.get_position().y0, 6) for ax in figure.axes}) == 1  # side by side
        assert all(ax.get_xlabel() for ax in figure.axes)


def test_a_sweep_over_two_factors_gets_an_arm_for_each_value_of_the_other(tmp_path):
    grid = [
        made_up.cell(sweeps=["grid"], tau=tau, classes=c) for tau in (0.1, 1.0) for c in (2, 10)
    ]
    made_up.measures(grid, epochs=(0, 200)).write_parquet(tmp_path / "m.parquet")
    table = {"measures": tmp_path / "m.parquet"}
    sweeps = {"grid": {"label": "grid", "factors": ["tau", "classes"]}}
    plot("alignment_classes", table, sweeps, tmp_path / "f", {})
    assert set(numbers(tmp_path, "f")["arm"]) == {"τ = 0.1", "τ = 1"}
    assert set(numbers(tmp_path, "f")["seeds"]) == {1}


def test_cells_that_only_a_hidden_setting_tells_apart_are_not_averaged(tmp_path):
    grid = [made_up.cell(sweeps=["t"], tau=0.1, lr=lr) for lr in (0.1, 0.3)]
    made_up.measures(grid, epochs=(0, 200)).write_parquet(tmp_path / "m.parquet")
    table = {"measures": tmp_path / "m.parquet"}
    sweeps = {"t": {"label": "t", "factors": ["tau", "lr"]}}
    with pytest.raises(InputError, match="a figure cannot tell"):
        plot("alignment_temperature", table, sweeps, tmp_path / "f", {})
