"""Free embeddings under each objective end where P1's Theorem 2 says, or where it says nothing."""

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

from cltools.figures.order import summary
from cltools.maths.minimise import descent, minimise, nscl_minimum
from cltools.maths.whole_set import whole_set_losses
from cltools.runtime.errors import InputError
from cltools.stages import minimise as stage


def balanced(classes, per_class=5):
    return torch.arange(classes * per_class) % classes


def simplex(classes):
    """(C, C) unit rows with all cosines -1/(C - 1)."""
    return F.normalize(torch.eye(classes, dtype=torch.float64) - 1 / classes)


@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 4, 10])
def test_nscl_ends_in_an_etf(classes, tau):
    found = minimise("nscl", balanced(classes), classes, tau, seed=0)
    assert found.etf_deviation[-1] < 1e-3
    assert found.within_class_spread[-1] < 1e-6
    assert found.view_distance[-1] < 1e-6
    assert found.loss[-1] == pytest.approx(nscl_minimum(5, classes, tau), abs=1e-9)
    # It started elsewhere, and the trajectory ends in what is returned.
    assert found.within_class_spread[0] > 0.5
    assert len({len(column) for column in found[1:]}) == 1
    whole = whole_set_losses(found.z, balanced(classes), [tau])[tau]
    assert whole.nscl == pytest.approx(found.loss[-1], abs=1e-12)


@pytest.mark.parametrize("objective", ["scl", "ce"])
@pytest.mark.parametrize("classes", [2, 4])
def test_scl_and_ce_share_that_optimum(objective, classes):
    found = minimise(objective, balanced(classes), classes, 0.5, seed=0)
    assert found.etf_deviation[-1] < 1e-6  # in float32 no better than 1e-5
    assert found.within_class_spread[-1] < 1e-6


def test_cl_collapses_views_but_not_classes():
    found = minimise("dcl", balanced(4), 4, 0.5, seed=0)
    assert found.view_distance[-1] < 1e-6
    assert found.within_class_spread[-1] > 0.5


@pytest.mark.parametrize(
    ("objective", "tau"), [("nscl", 0.1), ("nscl", 3.0), ("scl", 1.0), ("ce", 1.0)]
)
def test_descent_is_a_flow_in_time(objective, tau):
    """Steps are small enough: the loss never rises, and half as long ones lead the same way."""
    steps = {"descent_steps": 30, "newton_calls": 1}
    found = minimise(objective, balanced(4), 4, tau, seed=0, **steps)
    steps["descent_steps"] = 60
    finer = minimise(objective, balanced(4), 4, tau, seed=0, descent_lr=0.1, **steps)
    assert (np.diff(found.loss[:31]) < 0).all()
    np.testing.assert_allclose(found.time[:31], finer.time[:61:2])
    np.testing.assert_allclose(
        found.within_class_spread[:31], finer.within_class_spread[:61:2], atol=0.05
    )
    assert np.isnan(found.time[31:]).all()


def test_no_point_is_below_the_minimum():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(2, 20, 4, generator=generator, dtype=torch.float64)
        z = F.normalize(simplex(4)[balanced(4)] + 10.0 ** (-seed / 4) * noise, dim=2)
        loss = whole_set_losses(z, balanced(4), [0.5])[0.5].nscl
        assert loss >= nscl_minimum(5, 4, 0.5) - 1e-12


def test_equal_seeds_give_equal_results():
    short = {"descent_steps": 3, "newton_calls": 1}
    runs = [minimise("nscl", balanced(3), 3, 0.5, seed, **short) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].z, runs[1].z)
    assert not torch.equal(runs[0].z, runs[2].z)
    assert len(runs[0].loss) <= 1 + 3 + 1


def test_on_two_points_nothing_moves():
    found = minimise("nscl", balanced(2), 1, 0.5, seed=0)
    assert found.loss[-1] == pytest.approx(found.loss[0])


@pytest.mark.parametrize("objective", ["nscl", "ce"])
def test_the_descent_alone_is_that_of_the_minimum(objective):
    alone = descent(objective, balanced(3), 3, 0.5, seed=1, steps=7)
    whole = minimise(objective, balanced(3), 3, 0.5, seed=1, descent_steps=7)
    for name in ("time", "loss", "etf_deviation", "within_class_spread", "view_distance"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(whole, name)[:8])
    assert alone.z.shape == (8, 2, *whole.z.shape[1:])
    stopped = minimise(objective, balanced(3), 3, 0.5, seed=1, descent_steps=7, newton_calls=0)
    assert torch.equal(alone.z[-1], stopped.z)


def test_what_does_not_fit_is_refused():
    labels = balanced(3)
    with pytest.raises(ValueError, match="unknown objective"):
        minimise("cl", labels, 3, 0.5, seed=0)
    with pytest.raises(ValueError, match="dimension"):
        minimise("nscl", labels, 0, 0.5, seed=0)
    with pytest.raises(ValueError, match="temperature"):
        minimise("nscl", labels, 3, 0.0, seed=0)
    with pytest.raises(ValueError, match="descent_lr"):
        minimise("nscl", labels, 3, 0.5, seed=0, descent_lr=0.0)
    with pytest.raises(ValueError, match="two classes"):
        minimise("nscl", labels + 1, 3, 0.5, seed=0)
    with pytest.raises(ValueError, match="classes ≥ 2"):
        nscl_minimum(5, 1, 0.5)


GRID = {
    "objectives": ["dcl", "nscl", "ce"],
    "classes": [2, 3],
    "dimensions": ["C", "C-1", "C/2", 3],
    "taus": [0.5, 1.0],
    "per_class": 3,
    "seeds": [0, 1],
    "descent_steps": 20,
}
RUN = ["objective", "classes", "dimension", "tau", "seed", "per_class"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    output = tmp_path_factory.mktemp("minimise") / "out.parquet"
    stage.run(settings=GRID, output=output)
    return pl.read_parquet(output)


def test_two_runs_of_the_stage_write_the_same_bytes(tmp_path):
    few = {**GRID, "classes": [3], "dimensions": ["C"], "taus": [0.5], "seeds": [1]}
    for name in "ab":
        stage.run(settings=few, output=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_stage_writes_every_run_of_the_grid_once(grid):
    assert grid.height == grid.select(*RUN, "iteration").n_unique()
    runs = grid.select(RUN).unique()
    # Four pairs of C and d, with d = 1 left out: (2, 2), (2, 3), (3, 3), (3, 2).
    assert runs.height == 4 * 2 * (2 * 2 + 1)
    assert runs.filter(pl.col("objective") == "ce")["tau"].null_count() == 8
    assert runs.filter(pl.col("objective") != "ce")["tau"].null_count() == 0
    assert set(zip(runs["classes"], runs["dimension"], strict=True)) == {
        (2, 2), (2, 3), (3, 3), (3, 2)
    }  # fmt: skip
    phases = grid.group_by(RUN).agg(
        (pl.col("phase") == "start").sum().alias("start"),
        (pl.col("phase") == "descent").sum().alias("descent"),
        (pl.col("phase") == "newton").sum().alias("newton"),
        pl.col("iteration").max().alias("last"),
    )
    assert (phases["start"] == 1).all()
    assert (phases["descent"] == 20).all()
    assert (phases["newton"] == phases["last"] - 20).all()
    assert (grid["time"].is_null() == (grid["phase"] == "newton")).all()
    # One start for all objectives and temperatures.
    start = grid.filter(pl.col("iteration") == 0)
    starts = start.group_by("classes", "dimension", "seed").agg(
        pl.col("within_class_spread").n_unique()
    )
    assert (starts["within_class_spread"] == 1).all()


def test_nscl_of_the_stage_reaches_the_etf_and_dcl_does_not(grid):
    table = summary(grid)
    assert table.height == 4 * (2 * 2 + 1)
    assert (table["runs"] == 2).all()
    nscl = table.filter(pl.col("objective") == "nscl", pl.col("dimension") >= pl.col("classes"))
    assert (nscl["reached"] == 1).all()
    assert (nscl["worst_excess"].abs() < 1e-9).all()
    assert nscl["halved_time"].null_count() == 0
    rest = table.filter(pl.col("objective") != "nscl")
    assert rest["worst_excess"].null_count() == rest.height
    dcl = table.filter(pl.col("objective") == "dcl")
    assert (dcl["reached"] == 0).all()
    assert dcl["halved_iteration"].null_count() == dcl.height


FEW = {"classes": [4], "taus": [0.5], "seeds": [0], "per_class": 2}


def test_minimum_loss_is_of_nscl_with_room_for_the_simplex_only(tmp_path):
    stage.run(settings={**FEW, "descent_steps": 1}, output=tmp_path / "out.parquet")
    known = pl.read_parquet(tmp_path / "out.parquet").drop_nulls("minimum_loss")
    assert set(known["objective"]) == {"nscl"}
    assert set(known["dimension"]) == {3, 4}
    assert set(known["minimum_loss"]) == {nscl_minimum(2, 4, 0.5)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": [1.0]}, r"minimise\.tau is unknown"),
        ({"objectives": ["cl"]}, r"minimise\.objectives\.0 is 'cl'"),
        ({"dimensions": ["C/3"]}, r"minimise\.dimensions\.0"),
        ({"dimensions": [1]}, r"minimise\.dimensions\.0 is 1, but must be at least 2"),
        ({"classes": [2], "dimensions": ["C-1", "C/2"]}, r"minimise\.dimensions .* nothing moves"),
        ({"taus": [0]}, r"minimise\.taus\.0 is 0"),
        ({"seeds": [0, 0]}, r"minimise\.seeds"),
        ({"per_class": 0}, r"minimise\.per_class"),
        ({"descent_steps": -1}, r"minimise\.descent_steps"),
        ({"descent_lr": 0}, r"minimise\.descent_lr"),
        ({"taus": [1e-300]}, r"minimise\.taus\.0 is 1e-300, but must be at least 1e-06"),
        ({**FEW, "descent_lr": 1e30}, "features hold NaN"),
    ],
)
def test_stage_refuses_bad_settings(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        stage.run(settings=settings, output=tmp_path / "out.parquet")
    assert not any(tmp_path.iterdir())


def trajectory(seed, spreads, etf, loss, objective="nscl", tau=0.5, minimum=1.0):
    """Rows of a run: start, three descent steps of time 0.1, one L-BFGS call."""
    assert len(spreads) == 5
    return {
        "objective": objective,
        "classes": 4,
        "dimension": 4,
        "tau": tau,
        "seed": seed,
        "per_class": 5,
        "iteration": range(5),
        "phase": ["start", "descent", "descent", "descent", "newton"],
        "minimum_loss": minimum,
        "time": [0.0, 0.1, 0.2, 0.3, None],
        "loss": [9.0] * 4 + [loss],
        "etf_deviation": [1.0] * 4 + [etf],
        "within_class_spread": spreads,
        "view_distance": [2.0] * 4 + [float(seed)],
    }


def test_summary_of_a_table_with_known_answer():
    runs = [
        trajectory(0, [0.8, 0.5, 0.4, 0.3, 0.0], 0.0, 1.0),  # at half is not below it
        trajectory(1, [0.8, 0.3, 0.5, 0.3, 0.0], 0.0, 1.25),  # the first time counts
        trajectory(2, [0.8, 0.8, 0.8, 0.8, 0.3], 0.5, 1.5),  # L-BFGS does not count
        trajectory(0, [0.8, 0.7, 0.6, 0.5, 2e-3], 0.0, 5.0, "ce", None, None),
        trajectory(1, [0.8, 0.7, 0.6, 0.3, 0.0], None, 5.0, "ce", None, None),
    ]
    table = pl.concat(
        pl.DataFrame(run).cast({"tau": pl.Float64, "minimum_loss": pl.Float64}) for run in runs
    )
    nscl, ce = summary(table).rows(named=True)
    assert nscl == {
        "objective": "nscl",
        "classes": 4,
        "dimension": 4,
        "tau": 0.5,
        "runs": 3,
        "reached": pytest.approx(2 / 3),
        "etf_deviation": 0.0,
        "within_class_spread": 0.0,
        "view_distance": 1.0,
        "worst_excess": 0.5,
        "halved_iteration": 3.0,
        "halved_time": pytest.approx(0.3),
    }
    assert ce["tau"] is None
    assert (ce["runs"], ce["reached"]) == (2, 0.0)  # one too spread, one without an angle
    assert ce["worst_excess"] is None
    assert ce["halved_iteration"] is None  # one of two never
