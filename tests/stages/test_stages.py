"""The command line end to end on real digits, and what it says when something is wrong."""

import json
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import dictionary
import numpy as np
import polars as pl
import pytest
import torch
import xarray as xr
from commands import cltools
from small import small_config
from waiting import HANGS, wait_until

from cltools import measurements
from cltools.config.cells import canonical_cell, resolve_cell
from cltools.layout import Embeddings, MeasureSettings
from cltools.maths.alignment import alignment
from cltools.runtime.files import only_process
from cltools.runtime.sealed import read_json, write_json
from cltools.stages import embed, measure
from cltools.stages.measure import measure_cell


@pytest.fixture(scope="module")
def made(tmp_path_factory, digits):
    """An experiment of one cell, made by the stage commands alone."""
    folder = tmp_path_factory.mktemp("by hand")
    config = small_config(
        images_per_class=15, test_images_per_class=10, batch_size=30, projector_hidden=16,
        projector_dim=8,
    )  # fmt: skip
    (folder / "config.yaml").write_text(config)
    cltools("plan", folder / "config.yaml", "--output", folder / "plan.json")
    plan = json.loads((folder / "plan.json").read_text())
    ((identity, entry),) = plan["cells"].items()
    store, definition = folder / "store", '{"source": "digits"}'
    cltools("prepare", "--name", entry["cell"]["dataset"], "--definition", definition,
            "--store", store)  # fmt: skip
    manifest = folder / "cell" / "trained-2epochs.json"
    cltools("train", "--cell", canonical_cell(entry["cell"]), "--store", store,
            "--run", folder / "cell/run", "--manifest", manifest)  # fmt: skip
    cltools("embed", manifest, "--store", store, "--done", folder / "embedded.json")
    cltools("measure", manifest, "--done", folder / "measured.json", "--full-at", "all")
    cltools("theory", manifest, "--measured", folder / "measured.json", "--store", store,
            "--done", folder / "theory.json", "--settings", '{"power_iterations": 3}')  # fmt: skip
    cltools("merge", manifest, "--store", store, "--done", folder / "merged.json",
            "--settings", '{"points": 3}')  # fmt: skip
    lists = [folder / f"{stage}.json" for stage in ("measured", "merged", "theory")]
    cltools("collect", *lists, "--plan", folder / "plan.json", "--measures",
            folder / "measures.parquet", "--log", folder / "log.parquet", "--theory",
            folder / "theory.parquet")  # fmt: skip
    assert json.loads(manifest.read_text())["id"] == identity
    return folder


def test_figures_by_hand(made):
    cltools("plot", "alignment_training", "--plan", made / "plan.json",
            "--measures", made / "measures.parquet", "--output", made / "figure")  # fmt: skip
    for ending in ("pdf", "png", "csv", "txt"):
        assert (made / f"figure.{ending}").stat().st_size > 0


def test_measures(made):
    table = pl.read_parquet(made / "measures.parquet")
    assert table["cell"].n_unique() == 1
    assert table["sweeps"].to_list()[0] == ["base"]
    start = table.filter(pl.col("step") == 0)
    same = start.filter(pl.col("metric").is_in(["cka", "rsa"]), pl.col("features") == "h")
    # Splits, pairs, variants; rank correlation is with DCL only.
    assert len(same) == 2 * 6 * 8 + 2 * 3
    # Before training all encoders are one encoder.
    assert same["value"].to_list() == pytest.approx([1.0] * len(same))
    assert start.filter(pl.col("metric") == "weight_gap")["value"].to_list() == [0.0] * 3
    end = table.filter(pl.col("step") == 10)
    pairs = end.filter(
        (pl.col("metric") == "rsa") & (pl.col("split") == "test") & (pl.col("features") == "h")
    )
    assert set(zip(pairs["reference"], pairs["objective"], strict=True)) == {
        ("dcl", "nscl"), ("dcl", "scl"), ("dcl", "ce"), ("nscl", "scl"), ("nscl", "ce"),
        ("scl", "ce"),
    }  # fmt: skip
    assert (end.filter(pl.col("metric") == "weight_gap")["value"] > 0).all()
    gap = end.filter(pl.col("metric") == "gap").sort("variant", "split", "objective")
    bound = end.filter(pl.col("metric") == "gap_bound").sort("variant", "split", "objective")
    assert (gap["value"] > 0).all()
    assert (gap["value"] <= bound["value"]).all()
    accuracies = table.filter(pl.col("metric").is_in(["nccc", "linear_probe", "knn"]))
    assert accuracies["value"].is_between(0, 1).all()
    assert set(accuracies["n"]) == {150, 100}
    keys = ["step", "split", "objective", "reference", "features", "metric", "variant"]
    assert not table.select(keys).is_duplicated().any()


@pytest.mark.parametrize("name", ["measures", "log", "theory"])
def test_all_that_tables_hold_is_described(made, name):
    assert dictionary.missing(name, pl.read_parquet(made / f"{name}.parquet")) == []


def test_measured_against_another_reference(made, tmp_path):
    """All that compares with one objective compares with this one; the rest stays as it is."""
    cell = tmp_path / "cell"
    shutil.copytree(made / "cell", cell)
    manifest = cell / "trained-2epochs.json"
    usual, other = (
        pl.read_parquet(measure_cell(manifest, MeasureSettings("last", name)))
        for name in ("dcl", "scl")
    )
    compared = ("weight_gap", "weight_angle", "similarity_gap", "cka_null", "rsa_error",
                "representation_angle", "cka_lower_bound")  # fmt: skip
    for metric in compared:
        pairs = other.filter(metric=metric).select("reference", "objective").unique()
        assert set(pairs.rows()) == {("scl", o) for o in ("dcl", "nscl", "ce")}, metric
    for metric in ("cka", "rsa"):
        pairs = other.filter(metric=metric, features="h").filter(
            pl.any_horizontal(pl.col("reference", "objective") == "scl")
        )
        assert set(pairs["reference"]) == {"scl"}
        assert set(other.filter(pl.col("ci_low").is_finite(), metric=metric)["reference"]) == {
            "scl"
        }
    same = ["cka_to_init", "gap", "nccc", "cdnv"]
    assert usual.filter(pl.col("metric").is_in(same)).equals(
        other.filter(pl.col("metric").is_in(same))
    )
    done = ("--done", tmp_path / "done.json")
    error = cltools("measure", manifest, *done, "--reference", "nscli", code=2)
    assert "--reference nscli is no objective: choose one of dcl, nscl" in error


def test_intervals_nulls_and_bounds(made):
    """Values lie in their intervals, above the corollaries' bounds where these claim something."""
    table = pl.read_parquet(made / "measures.parquet").filter(
        (pl.col("step") == 10) & (pl.col("features") == "h") & (pl.col("reference") == "dcl")
    )
    papers = table.filter(pl.col("variant").is_in(["cosine_biased", "pearson_cosine"]))
    with_interval = papers.filter(pl.col("metric").is_in(["cka", "rsa"]))
    assert len(with_interval) == 2 * 3 * 2
    assert (with_interval["ci_low"] < with_interval["ci_high"]).all()
    for metric, variant in (("cka", "cosine_biased"), ("rsa", "pearson_cosine")):
        keys = ["split", "objective"]
        value = table.filter(pl.col("metric") == metric, pl.col("variant") == variant)
        bound = table.filter(pl.col("metric") == f"{metric}_lower_bound")
        both = bound.join(value, on=keys)
        claimed = both.filter(pl.col("value").is_finite())
        assert (claimed["value"] <= claimed["value_right"] + 1e-9).all()
        null = table.filter(pl.col("metric") == f"{metric}_null", pl.col("variant") == variant)
        above = value.join(null, on=keys)
        assert (above["value"] >= above["value_right"]).all()


def test_every_family_of_measures_has_rows(made):
    table = pl.read_parquet(made / "measures.parquet").filter(pl.col("step") == 10)
    found = set(table.select("metric", "variant").unique().iter_rows())
    assert found > {
        ("rsa", "spearman_cosine"), ("rsa_error", "spearman_cosine"),
        ("rsa_mantel_p", "pearson_cosine"), ("gap_clustered_labels", "tau_1"),
        ("batch_gap", "training_tau"), ("authors_gap", "tau_1"), ("nc3", "head"), ("nc4", "head"),
        ("class_mean_angle", "smallest"), ("weight_angle", "from_init"),
        ("weight_gap_layer", "encoder.conv1.weight"), ("representation_angle", "similarities"),
        ("few_shot_linear_probe_two_way", "shots_5"), ("merged_nccc", "lambda_0.50"),
        ("few_shot_nccc_one_split_all_way", "shots_5"),
    }  # fmt: skip
    with_interval = table.filter(pl.col("ci_low").is_not_null(), pl.col("ci_low").is_not_nan())
    assert set(with_interval["metric"]) >= {"cka", "rsa", "cdnv", "nccc", "linear_probe", "knn"}
    assert (with_interval["ci_low"] <= with_interval["ci_high"]).all()
    # 15 images per class allow no 20 shots: NaN, not an error.
    assert table.filter(variant="shots_20")["value"].is_nan().all()


def test_cosines_of_class_means_are_those_of_the_angles(made):
    table = pl.read_parquet(made / "measures.parquet").filter(step=10, split="test", objective="ce")
    table = table.filter(features="h")
    cosines = table.filter(metric="class_mean_cosine")
    classes = {label for v in cosines["variant"] for label in v.split("_")[1:]}
    assert len(cosines) == len(classes) * (len(classes) - 1) / 2
    angles = cosines["value"].arccos() * (180 / np.pi)
    for variant, found in (("smallest", angles.min()), ("mean", angles.mean())):
        (expected,) = table.filter(metric="class_mean_angle", variant=variant)["value"]
        assert found == pytest.approx(expected)


def test_theory(made):
    table = pl.read_parquet(made / "theory.parquet")
    assert set(table["quantity"]) == {
        "gap", "gap_shuffled_labels", "gap_unbalanced_labels", "gap_clustered_labels", "batch_gap",
        "cka", "rsa", "centring", "few_shot_error_all_way", "few_shot_error_two_way",
        "few_shot_error_from_train_all_way", "few_shot_error_from_train_two_way",
        "drift_not_comparable",
        "batch_composition", "reweighting", "smoothness_of_gradient", "smoothness",
        "gradient_norm", "weight_distance",
    }  # fmt: skip
    proved = table.filter(pl.col("kind") == "bound")
    assert proved["holds"].drop_nulls().all()
    assert proved["holds"].drop_nulls().len() > 200
    assert table.filter(pl.col("kind") == "estimate")["holds"].is_null().all()
    keys = ["step", "split", "objective", "features", "quantity", "variant", "side"]
    assert not table.select(keys).is_duplicated().any()
    # The drift's bound grows with the sum of learning rates, and is measured on the same rows.
    drift = table.filter(
        quantity="drift_not_comparable", variant="stated", split="test", features="z"
    )
    assert drift.sort("step")["log10_bound"].is_sorted()
    measures = pl.read_parquet(made / "measures.parquet")
    gap = measures.filter(
        pl.col("metric") == "similarity_gap", pl.col("variant") == "frobenius",
        pl.col("objective") == "nscl", pl.col("split") == "test", pl.col("features") == "z",
    )  # fmt: skip
    both = drift.join(gap, on="step")
    assert len(both) == 1
    assert both["measured"].to_list() == both["value"].to_list()
    batch = table.filter(quantity="batch_composition")
    assert batch["holds"].all()


def test_drift_with_momentum_is_not_comparable(made):
    """Momentum is 0.9: nothing is claimed, and the longer steps have a number of their own."""
    drift = pl.read_parquet(made / "theory.parquet").filter(quantity="drift_not_comparable")
    assert set(drift["kind"]) == {"not_comparable"}
    assert drift["holds"].is_null().all()
    keys = ["variant", "split", "features"]
    assert set(drift.select(keys).iter_rows()) == {
        (variant, split, features)
        for variant in ("stated", "realised", "effective_step")
        for split in ("train", "test")
        for features in ("h", "z")
    }
    log = pl.read_parquet(made / "log.parquet")
    # exp(Ση / (2 τ² B)) Ση …: how much larger it is with 10 Ση, for τ = 0.5 and B = 30.
    grown = 9 * log["sum_lr"].max() / (2 * 0.5**2 * 30 * np.log(10)) + 1
    by_variant = drift.pivot("variant", index=keys[1:], values="log10_bound")
    more = (by_variant["effective_step"] - by_variant["stated"]).to_numpy()
    assert more == pytest.approx(grown)


def theory_of(cell, store, folder, *options):
    """The table of a cell that is trained, embedded and measured in this folder."""
    manifest, place = folder / "t.json", ["--store", store]
    cltools("train", "--cell", json.dumps(cell), *place, "--run", folder / "run",
            "--manifest", manifest)  # fmt: skip
    cltools("embed", manifest, *place, "--done", folder / "e.json")
    cltools("measure", manifest, "--done", folder / "m.json")
    cltools("theory", manifest, *place, "--measured", folder / "m.json", "--done",
            folder / "th.json", *options)  # fmt: skip
    (path,) = json.loads((folder / "th.json").read_text())["tables"].values()
    return pl.read_parquet(path)


@pytest.mark.parametrize(
    ("settings", "comparable"),
    [
        ({"momentum": 0.0, "weight_decay": 0.0}, True),
        ({"momentum": 0.0, "weight_decay": 0.1}, False),
        pytest.param(
            {"momentum": 0.0, "weight_decay": 0.0, "optimizer": "lars"},
            False,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_drift_of_z_under_plain_sgd_is_comparable(digits, tmp_path, settings, comparable):
    cell = {"dataset": "digits", "recipe": "digits", "optimizer": "sgd", "horizon": "2 steps",
            "images_per_class": 8, "test_images_per_class": 8, "batch_size": 16,
            "projector_hidden": 8, "projector_dim": 4, "objectives": ["dcl", "nscl"],
            "checkpoints": [], **settings}  # fmt: skip
    table = theory_of(cell, digits, tmp_path, "--settings", '{"curvature_images": 4}')
    table = table.filter(source="P2 Theorem 1")
    found = table.filter(quantity="drift").select("split", "features", "kind", "variant").rows()
    ours = ("train", "z", "network")
    expected = {(*ours, "stated"), (*ours, "realised")} if comparable else set()
    assert set(found) == expected
    assert len(found) == len(expected)
    assert not table.filter(quantity="drift")["holds"].is_null().any()
    rest = table.filter(pl.col("quantity") != "drift")
    assert set(rest["quantity"]) == {"drift_not_comparable"}
    assert set(rest["variant"]) == {"stated", "realised"}  # no momentum


def test_theory_is_made_once_and_refuses_what_it_cannot_use(made, tmp_path):
    manifest = made / "cell/trained-2epochs.json"
    (path,) = (made / "cell/theory").glob("*.parquet")
    before = path.stat().st_mtime_ns
    again = ["theory", manifest, "--measured", made / "measured.json", "--store", made / "store",
             "--done", tmp_path / "t.json", "--settings"]  # fmt: skip
    cltools(*again, '{"power_iterations": 3}')
    assert path.stat().st_mtime_ns == before
    cltools(*again, '{"power_iterations": 3, "curvature_images": 4}')
    (other,) = set((made / "cell/theory").glob("*.parquet")) - {path}
    smoothness = [pl.read_parquet(p).filter(quantity="smoothness") for p in (path, other)]
    other.unlink()
    assert smoothness[0]["measured"].to_list() != smoothness[1]["measured"].to_list()
    assert "config key theory.delta is 1, but must be less than 1" in cltools(
        *again, '{"delta": 1}', code=2
    )
    write_json(tmp_path / "m.json", {"tables": {}})
    message = cltools("theory", manifest, "--measured", tmp_path / "m.json", "--store",
                      made / "store", "--done", tmp_path / "t2.json", code=2)  # fmt: skip
    assert "lacks the cell" in message
    assert not (tmp_path / "t2.json").exists()
    message = cltools("collect", made / "measured.json", "--plan", made / "plan.json",
                      "--measures", tmp_path / "m.parquet", "--log", tmp_path / "l.parquet",
                      "--theory", tmp_path / "t.parquet", code=2)  # fmt: skip
    assert "lacks its table: run `cltools theory`" in message


def test_theory_of_a_cell_without_nscl(digits, tmp_path):
    cell = {"dataset": "digits", "recipe": "digits", "optimizer": "sgd", "horizon": "2 steps",
            "images_per_class": 8, "test_images_per_class": 8, "batch_size": 16,
            "projector_hidden": 8, "projector_dim": 4, "objectives": ["dcl", "scl"],
            "checkpoints": []}  # fmt: skip
    found = set(theory_of(cell, digits, tmp_path)["quantity"])
    assert {"gap", "cka", "few_shot_error_all_way"} <= found
    assert not {"drift", "reweighting"} & found


def test_recalibrated_embeddings_lie_apart(made, tmp_path):
    shutil.copytree(made / "cell", tmp_path / "cell")
    manifest = tmp_path / "cell/trained-2epochs.json"
    measure = ["measure", manifest, "--done", tmp_path / "m.json", "--recalibrated"]
    assert "run `cltools embed --recalibrate`" in cltools(*measure, code=2)
    cltools("embed", manifest, "--store", made / "store", "--done", tmp_path / "e.json",
            "--recalibrate")  # fmt: skip
    cltools(*measure, "--discard-embeddings")
    assert (tmp_path / "cell/embeddings").exists()
    assert not (tmp_path / "cell/embeddings-recalibrated").exists()
    (path,) = json.loads((tmp_path / "m.json").read_text())["tables"].values()
    other = pl.read_parquet(path).filter(metric="nccc", split="test")
    plain = pl.read_parquet(made / "measures.parquet").filter(metric="nccc", split="test")
    assert other["value"].to_list() != plain["value"].to_list()


def test_embeddings(made):
    with xr.open_dataset(made / "cell/embeddings/step-0000010.nc", engine="h5netcdf") as data:
        assert data.objective.values.tolist() == ["dcl", "nscl", "scl", "ce"]
        assert data.h.dims == ("objective", "sample", "feature")
        assert data.z_views.shape == (4, 2, 250, 8)
        assert np.allclose(np.linalg.norm(data.z.values, axis=2), 1, atol=1e-5)
        test = data.isel(sample=data.split == "test")
        values = alignment({o: test.h.sel(objective=o).values for o in ("dcl", "nscl")})
    table = pl.read_parquet(made / "measures.parquet").filter(
        (pl.col("metric") == "rsa") & (pl.col("step") == 10) & (pl.col("split") == "test")
        & (pl.col("features") == "h") & (pl.col("objective") == "nscl")
        & (pl.col("variant") == "pearson_cosine")
    )  # fmt: skip
    assert table["value"].item() == values["dcl", "nscl"]["rsa", "pearson_cosine"]


def test_embeddings_that_are_kept(made, tmp_path):
    """Another experiment with the same cell does not discard them."""
    cell = shutil.copytree(made / "cell", tmp_path / "cell")
    manifest = cell / "trained-2epochs.json"
    files = sorted((cell / "embeddings").iterdir())
    embed.run(
        manifests=[manifest],
        stores=[made / "store"],
        done=tmp_path / "e.json",
        device="cpu",
        keep=True,
    )
    measure.run(
        manifests=[manifest],
        done=tmp_path / "m.json",
        settings=MeasureSettings("all"),
        discard_embeddings=True,
    )
    assert [file for file in sorted((cell / "embeddings").iterdir()) if file.suffix] == files
    (cell / "embeddings/kept").unlink()
    measure.run(
        manifests=[manifest],
        done=tmp_path / "m.json",
        settings=MeasureSettings("all"),
        discard_embeddings=True,
    )
    assert not (cell / "embeddings").exists()


def test_measuring_goes_on_where_it_was_killed(made, tmp_path, monkeypatch):
    """To the same bytes; what was measured is not measured again, and nothing is left behind."""
    cell = shutil.copytree(made / "cell", tmp_path / "cell")
    whole = next((cell / "measures").iterdir())
    content = whole.read_bytes()
    whole.unlink()
    measured, downstream_rows = [], measurements.downstream_rows

    def rows(*arguments):
        measured.append(1)
        if len(measured) == 3:
            raise KeyboardInterrupt
        yield from downstream_rows(*arguments)

    monkeypatch.setattr(measurements, "downstream_rows", rows)
    with pytest.raises(KeyboardInterrupt):
        measure_cell(cell / "trained-2epochs.json", MeasureSettings("all"))
    assert not whole.exists()
    assert measure_cell(cell / "trained-2epochs.json", MeasureSettings("all")) == whole
    assert len(measured) == 5  # h and z of two checkpoints, and the h that was interrupted
    assert whole.read_bytes() == content
    assert list((cell / "measures").iterdir()) == [whole]


def test_measuring_goes_on_within_a_checkpoint(made, tmp_path, monkeypatch):
    """Every unit is measured once, whatever was killed; the last one begins anew."""
    cell = shutil.copytree(made / "cell", tmp_path / "cell")
    whole = next((cell / "measures").iterdir())
    content = whole.read_bytes()
    whole.unlink()
    monkeypatch.setattr(measure, "SECONDS_BETWEEN_SAVES", 0)
    calls = Counter()

    def counted(name, function, killed):
        def rows(*arguments, **options):
            calls[name] += 1
            if killed and calls[name] == 1:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return rows

    killed = ("loss_rows", "angle_rows", "null_rows", "weight_rows")
    families = [name for name in measurements.__all__ if name.endswith("_rows")]
    families.remove("layer_rows")  # of another stage
    for name in families:
        function = counted(name, getattr(measurements, name), name in killed)
        monkeypatch.setattr(measurements, name, function)
    for _ in killed:
        with pytest.raises(KeyboardInterrupt):
            measure_cell(cell / "trained-2epochs.json", MeasureSettings("all"))
        assert not whole.exists()
    assert measure_cell(cell / "trained-2epochs.json", MeasureSettings("all")) == whole
    steps = 2
    for name in families:
        of_splits = 1 if name in ("dropped_rows", "weight_rows") else 2
        features = 2 if name in ("alignment_rows", "corollary_rows", "geometry_rows", "angle_rows",
                                 "downstream_rows") else 1  # fmt: skip
        of_splits = 1 if name == "downstream_rows" else of_splits
        assert calls[name] == steps * of_splits * features + (name in killed), name
    assert whole.read_bytes() == content
    assert list((cell / "measures").iterdir()) == [whole]


def test_half_precision_embeddings(made, tmp_path):
    shutil.copytree(made / "cell", tmp_path / "cell")
    manifest = tmp_path / "cell/trained-2epochs.json"
    cltools("embed", manifest, "--store", made / "store", "--done", tmp_path / "e.json",
            "--dtype", "float16")  # fmt: skip
    shutil.rmtree(tmp_path / "cell/measures")
    cltools("measure", manifest, "--done", tmp_path / "m.json", "--dtype", "float16",
            "--discard-embeddings")  # fmt: skip
    # Those of the other type, another experiment's, are still there.
    assert not (tmp_path / "cell/embeddings-float16").exists()
    assert (tmp_path / "cell/embeddings").exists()
    half = pl.read_parquet(next((tmp_path / "cell/measures").glob("*.parquet")))
    full = pl.read_parquet(made / "measures.parquet")
    keys = ["step", "split", "objective", "reference", "features", "metric", "variant"]
    both = half.join(full, on=keys, nulls_equal=True)
    alignments = both.filter(pl.col("metric").is_in(["cka", "rsa"]))
    assert len(alignments) > 100
    assert (alignments["value"] - alignments["value_right"]).abs().max() < 1e-3


def test_embeddings_in_the_precision_of_training(made, tmp_path):
    """They have a folder and a table of their own; a CPU makes the same values."""
    cell = shutil.copytree(made / "cell", tmp_path / "cell")
    manifest = cell / "trained-2epochs.json"
    (known,) = (cell / "measures").iterdir()
    measuring = ("measure", manifest, "--done", tmp_path / "m.json", "--precision", "training")
    assert "run `cltools embed --precision training`" in cltools(*measuring, code=2)
    cltools("embed", manifest, "--store", made / "store", "--done", tmp_path / "e.json",
            "--precision", "training")  # fmt: skip
    for file in (cell / "embeddings").glob("*.nc"):
        plain, other = (
            xr.load_dataset(cell / folder / file.name)
            for folder in ("embeddings", "embeddings-precision-of-training")
        )
        assert json.loads(other.attrs.pop("cltools"))["precision"] == "training"
        assert "precision" not in json.loads(plain.attrs.pop("cltools"))
        xr.testing.assert_identical(plain, other)
    cltools(*measuring, "--full-at", "all")
    (table,) = set((cell / "measures").iterdir()) - {known}
    assert pl.read_parquet(table).equals(pl.read_parquet(known))


def test_the_precision_on_a_gpu(monkeypatch):
    entered = []

    def autocast(kind, dtype, enabled):
        entered.append((kind, dtype, enabled))
        return nullcontext()

    monkeypatch.setattr(torch, "autocast", autocast)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for device, trained, precision, bfloat16, tf32 in (
        (gpu, "bfloat16", "training", True, False),
        (gpu, "tf32", "training", False, True),
        (gpu, "float32", "training", False, False),
        (gpu, "bfloat16", "float32", False, False),
        (cpu, "bfloat16", "training", False, False),
        (cpu, "tf32", "training", False, False),
    ):
        entered.clear()
        with embed._precision({"precision": trained}, Embeddings(precision=precision), device):
            assert [flag.allow_tf32 for flag in flags] == ([True, True] if tf32 else before)
        assert entered == [(device.type, torch.bfloat16, bfloat16)]
        assert [flag.allow_tf32 for flag in flags] == before


def damaged(made, tmp_path, name):
    """A copy of the cell with one file cut in half."""
    shutil.copytree(made / "cell", tmp_path / "cell")
    path = tmp_path / "cell" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return tmp_path / "cell/trained-2epochs.json"


def test_truncated_weights(made, tmp_path):
    manifest = damaged(made, tmp_path, "run/weights/dcl-0000010.safetensors")
    (tmp_path / "cell/embeddings/step-0000010.nc").unlink()
    message = cltools("embed", manifest, "--store", made / "store", "--done", tmp_path / "e.json",
                      code=2)  # fmt: skip
    assert "dcl-0000010.safetensors is damaged" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "e.json").exists()


def test_truncated_embeddings_and_manifest(made, tmp_path):
    manifest = damaged(made, tmp_path, "embeddings/step-0000010.nc")
    (tmp_path / "cell/measures").rename(tmp_path / "away")
    message = cltools("measure", manifest, "--done", tmp_path / "m.json", code=2)
    assert re.search(
        r"step-0000010.nc is damaged .*: run `cltools embed` on this cell again", message
    )
    cltools("embed", manifest, "--store", made / "store", "--done", tmp_path / "e.json")
    cltools("measure", manifest, "--done", tmp_path / "m.json")
    manifest.write_text(manifest.read_text()[:100])
    message = cltools("measure", manifest, "--done", tmp_path / "m.json", code=2)
    assert "trained-2epochs.json is damaged" in message


def test_another_store(made, tmp_path):
    manifest = made / "cell/trained-2epochs.json"
    cltools("prepare", "--name", "other", "--definition", '{"source": "digits"}',
            "--store", tmp_path / "other")  # fmt: skip
    message = cltools("embed", manifest, "--store", tmp_path / "other", "--done",
                      tmp_path / "e.json", code=2)  # fmt: skip
    assert "but the stores given hold 'other'" in message
    name = json.loads(manifest.read_text())["cell"]["dataset"]
    cltools("prepare", "--name", name, "--definition", '{"source": "digits", "seed": 5}',
            "--store", tmp_path / "redrawn")  # fmt: skip
    message = cltools("embed", manifest, "--store", tmp_path / "redrawn", "--done",
                      tmp_path / "e.json", code=2)  # fmt: skip
    assert "holds other images" in message


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"taus": 0.5}, "config key cell.taus is unknown: did you mean tau?"),
        ({"tau": 0}, "config key cell.tau is 0, but must be greater than 0"),
        ({"batch_size": 5000}, "batch_size is 5000, but the training set of this cell has 1438"),
        ({"classes": 11}, "has 10 classes"),
        ({"test_images_per_class": 500}, "test images, but 500 per class are needed"),
    ],
)
def test_wrong_settings(digits, tmp_path, settings, sentence):
    cell = {"dataset": "digits", "recipe": "digits", "horizon": 2, **settings}
    message = cltools("train", "--cell", json.dumps(cell), "--store", digits, "--run",
                      tmp_path / "run", "--manifest", tmp_path / "t.json", code=2)  # fmt: skip
    assert sentence in message
    assert "Traceback" not in message
    assert not (tmp_path / "t.json").exists()


def test_wrong_command_lines(digits, tmp_path):
    place = ["--store", digits, "--run", tmp_path / "run", "--manifest", tmp_path / "t.json"]
    assert "neither JSON nor a readable file" in cltools(
        "train", "--cell", "nothing.json", *place, code=2
    )
    assert "not valid JSON" in cltools("train", "--cell", "{'a': 1}", *place, code=2)
    cell = canonical_cell(resolve_cell({"dataset": "digits", "recipe": "digits", "horizon": 2}))
    assert "--until" in cltools("train", "--cell", cell, "--until", "soon", *place, code=2)
    assert "not available here" in cltools(
        "train", "--cell", cell, "--device", "cuda:77", *place, code=2
    )
    broken = tmp_path / "images" / "cat"
    broken.mkdir(parents=True)
    for number in range(3):
        (broken / f"{number}.png").write_bytes(b"no image")
    definition = json.dumps({"source": "folder", "path": str(tmp_path / "images")})
    message = cltools("prepare", "--name", "x", "--definition", definition, "--store",
                      tmp_path / "store", code=2)  # fmt: skip
    assert ".png" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "store/store.json").exists()


def test_a_cell_that_another_process_measures_is_waited_for(made, tmp_path, caplog):
    shutil.copytree(made / "cell", tmp_path / "cell")
    shutil.rmtree(tmp_path / "cell/measures")
    given = {"manifests": [tmp_path / "cell/trained-2epochs.json"], "done": tmp_path / "m.json"}
    caplog.set_level("INFO", "cltools")
    with ThreadPoolExecutor(1) as pool:
        with only_process(tmp_path / "cell"):
            measuring = pool.submit(measure.run, **given)
            wait_until(lambda: "waiting for its end" in caplog.text, "the second process")
            assert not list(tmp_path.glob("cell/measures/*.parquet"))
        measuring.result(HANGS)
    (table,) = read_json(given["done"], made_by="cltools measure")["tables"].values()
    assert Path(table).exists()
