"""Claims: the statistics behind them, their verdicts on made-up tables, and what is written."""

import csv
import math
import re
import subprocess
import sys
from itertools import product

import numpy as np
import polars as pl
import pytest
import tables as made_up
import yaml
from places import ROOT
from scipy import stats

import cltools.claims as c
from cltools.claims import statistics
from cltools.claims.evaluate import NO_ROWS, UNTESTED, evaluate, over_arms, over_parts
from cltools.claims.report import because, in_sweeps
from cltools.claims.words import counted, sentence
from cltools.figures import FIGURES
from cltools.maths import evidence as ev
from cltools.maths.evidence import FAILS, HOLDS, UNDECIDED, Region
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import write_json
from cltools.stages import claims as stage

EXPECTED = ROOT / "cltools/figures/papers"
ALL = {claim.id: claim for claim in c.load_claims().claims}
BY_SEEDS = [name for name, claim in ALL.items() if claim.tests[0].kind != "bound"]
BOUNDS = [name for name in ALL if name not in BY_SEEDS]

# ---- sign tests and many claims -----------------------------------------------------------------

EFFECTS = np.array([0.12, 0.31, 0.18, 0.25, -0.02, 0.2, 0.22])


def sign_p(agree, seeds):
    return stats.binomtest(agree, seeds, alternative="greater").pvalue


@pytest.mark.parametrize(("border", "above"), [(0.0, 6), (0.2, 3), (0.5, 0)])
def test_one_sided_p_is_that_of_the_sign_test(border, above):
    """An effect on the border (0.2) counts for neither side."""
    on = sum(effect == border for effect in EFFECTS)
    found = ev.evidence(EFFECTS, Region(low=border))
    assert (found.seeds, found.inside, found.median) == (7, above, 0.2)
    assert found.p_inside == pytest.approx(sign_p(above, 7))
    assert found.p_outside == pytest.approx(sign_p(7 - above - on, 7))
    below = ev.evidence(EFFECTS, Region(high=border))
    assert (below.p_inside, below.p_outside) == (found.p_outside, found.p_inside)


def test_equivalence_is_two_one_sided_tests():
    found = ev.evidence(EFFECTS, Region(-0.1, 0.24))
    assert found.inside == 5
    assert found.p_inside == pytest.approx(max(sign_p(7, 7), sign_p(5, 7)))
    # Outside it may lie on either side: twice the smaller p, here of a median beyond 0.1.
    beyond = ev.evidence(EFFECTS, Region(-0.1, 0.1))
    assert beyond.p_outside == pytest.approx(2 * sign_p(6, 7))


def test_the_interval_is_one_between_effects():
    """Of ten effects the second ones from both ends cover the median with 97.9 %."""
    found = ev.evidence(np.arange(10.0), Region(low=-1))
    assert ev.interval(found, 0.05) == (1, 8)
    assert ev.interval(found, 0.02) == (0, 9)
    assert ev.interval(found, 0.11) == (2, 7)
    assert np.isnan(ev.interval(found, 0.001)).all()
    # A median outside the region: two parts with two borders each are four chances to reject.
    outside = ev.evidence(np.arange(10.0), Region(-2, -1))
    assert ev.interval(outside, 0.11, 2) == ev.interval(found, 0.11 / 4) == (1, 8)


@pytest.mark.parametrize("law", ["normal", "exponential", "lognormal"])
def test_intervals_cover_the_median_of_skewed_effects_too(law):
    rng = np.random.default_rng(4)
    median = {"normal": 0, "exponential": math.log(2), "lognormal": 1}[law]
    draws, covered = 1000, 0
    for effects in getattr(rng, law)(size=(draws, 9)):
        low, high = ev.interval(ev.evidence(effects, Region(low=-1)), 0.1)
        covered += low < median < high
    exact = 1 - 2 * stats.binom.cdf(1, 9, 0.5)  # 96 %
    assert abs(covered / draws - exact) < 4 * math.sqrt(exact * (1 - exact) / draws)


def test_the_least_number_of_seeds_is_that_which_decides():
    for level in (0.5, 0.05, 0.01, 0.05 / 26):
        least = ev.least_seeds(level)
        for seeds, decides in ((least - 1, False), (least, True)):
            found = ev.evidence(np.arange(1.0, seeds + 1), Region(low=0))
            assert (ev.p_of_all([found]) <= level) == decides
            assert (ev.verdict(found, level) == HOLDS) == decides
    assert ev.least_seeds(0.05) == 6


def test_one_seed_and_equal_effects_say_nothing():
    for effects in ([5.0], [5.0] * 8, [0.1 + 0.2, *[0.3] * 7], [0.0] * 8):
        found = ev.evidence(effects, Region(low=-1))
        assert not found.decidable
        assert (found.p_inside, found.p_outside) == (1, 1)
        assert ev.verdict(found, 0.05) == UNDECIDED
    for wrong in ([], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="finite effects"):
            ev.evidence(wrong, Region(low=0))
    with pytest.raises(ValueError, match="border"):
        ev.evidence([1.0], Region())


def test_an_effect_too_small_to_matter_refutes_a_claim():
    near = np.linspace(-0.02, 0.03, 12)  # on both sides of the border, all below 0.05
    assert ev.verdict(ev.evidence(near, Region(low=0)), 0.05) == UNDECIDED
    found = ev.evidence(near, Region(low=0, matters=0.05))
    assert found.p_outside == pytest.approx(sign_p(12, 12))
    assert ev.verdict(found, 0.05) == FAILS
    assert ev.verdict(ev.evidence(-near, Region(high=0, matters=0.05)), 0.05) == FAILS
    # Refuting is a chance for every part, so this takes the wider interval.
    assert ev.interval(found, 0.05, 2) == ev.interval(ev.evidence(near, Region(low=0)), 0.025)
    # A small effect that is certainly above the border holds, and so does a large one.
    for shift in (0.021, 1):
        assert ev.verdict(ev.evidence(near + shift, Region(low=0, matters=0.05)), 0.05) == HOLDS
    wide = ev.evidence(3 * near, Region(low=0, matters=0.05))
    assert ev.verdict(wide, 0.01) == UNDECIDED
    with pytest.raises(ValueError, match="two borders"):
        ev.evidence(near, Region(-1, 1, 0.1))


@pytest.mark.parametrize("median", [0.0, 1.0])
def test_neither_border_of_what_matters_is_crossed_too_often(median):
    """A median of 0 is not above 0, and one that is just large enough is not too small."""
    rng = np.random.default_rng(8)
    wrong = 0
    for effects in rng.normal(median, 1, (2000, 8)):
        found = ev.verdict(ev.evidence(effects, Region(low=0, matters=1.0)), 0.05)
        wrong += found == (FAILS if median else HOLDS)
    assert wrong / 2000 < 0.025 + 3 * math.sqrt(0.025 * 0.975 / 2000)


def test_holm():
    p = [0.01, 0.04, 0.03, 0.005]
    assert ev.holm_p(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # The third smallest fails at 0.05 / 2, and so the fourth is not tested at 0.05.
    assert ev.holm_levels(p) == pytest.approx([0.05 / 3, 0.025, 0.025, 0.0125])
    with pytest.raises(ValueError, match="need p"):
        ev.holm_levels([1.2])


def test_benjamini_hochberg():
    p = [0.01, 0.2, 0.03, 0.035]
    # The second smallest is above 0.025, but the third is below 0.0375: three are decided.
    assert ev.bh_p(p) == pytest.approx([0.04, 0.2, 0.14 / 3, 0.14 / 3])
    assert ev.bh_levels(p) == pytest.approx([0.0375, 0.05, 0.0375, 0.0375])
    assert ev.bh_levels([0.3, 0.4]) == pytest.approx([0.025, 0.025])
    assert ev.bh_levels([0.01, 0.05]) == pytest.approx([0.05, 0.05])
    assert len(ev.bh_levels([])) == len(ev.bh_p([])) == 0
    with pytest.raises(ValueError, match="need p"):
        ev.bh_levels([0.1], 1)


def draws(rng, claims, parts, seeds, mean=0.0, matters=0.0):
    """Evidence of made-up claims that say that medians are above 0."""
    x = rng.normal(mean, 1, (claims, parts, seeds))
    region = Region(low=0, matters=matters)
    return [[ev.evidence(one, region) for one in claim] for claim in x]


@pytest.mark.parametrize("matters", [0.0, 0.5])
@pytest.mark.parametrize(("levels", "adjusted"), [(ev.holm_levels, ev.holm_p),
                                                  (ev.bh_levels, ev.bh_p)])  # fmt: skip
def test_intervals_decide_exactly_where_p_is_below_its_level(levels, adjusted, matters):
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(60):
        mean = rng.choice([-3, 0, 3], (6, 1, 1))
        family = draws(rng, 6, 2, 7, mean, matters)
        p = np.array([ev.p_of_all(parts) for parts in family])
        for parts, one, level in zip(family, p, levels(p, 0.2), strict=True):
            verdict = over_parts(ev.verdict(part, level, len(parts)) for part in parts)
            assert (verdict != UNDECIDED) == (one <= level)
            decided += verdict != UNDECIDED
        assert ((adjusted(p) <= 0.2) == (p <= levels(p, 0.2))).all()
    assert 50 < decided < 340


@pytest.mark.parametrize("law", ["normal", "exponential", "lognormal", "own class draws"])
def test_skewed_effects_are_not_decided_more_often(law):
    """Five primary claims with their medians on the border; benchmarks/claims.py does more."""
    rng = np.random.default_rng(5)
    shape = 400, 5, 8
    effects = {
        "normal": lambda: rng.normal(size=shape),
        "exponential": lambda: rng.exponential(size=shape) - math.log(2),
        "lognormal": lambda: rng.lognormal(size=shape) - 1,
        "own class draws": lambda: rng.normal(size=shape) + 2 * rng.normal(size=(400, 1, 8)),
    }[law]()
    wrong = 0
    for experiment in effects:
        p = [ev.p_of_all([ev.evidence(one, Region(low=0))]) for one in experiment]
        wrong += (p <= ev.holm_levels(p)).any()
    assert 0 < wrong / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_few_of_the_decided_further_claims_are_wrong():
    rng = np.random.default_rng(6)
    true, shares, found = 16, [], []
    for _ in range(100):
        p = [ev.p_of_all(claim) for claim in draws(rng, true, 1, 8, 2.0) + draws(rng, 10, 1, 8)]
        decided = p <= ev.bh_levels(p)
        shares.append(decided[true:].sum() / max(1, decided.sum()))
        found.append(decided[:true].mean())
    assert 0 < np.mean(shares) < 0.05
    assert np.mean(found) > 0.7


def test_eight_seeds_find_an_effect_of_two_standard_deviations():
    rng = np.random.default_rng(7)
    p = np.array([ev.p_of_all(claim) for claim in draws(rng, 1000, 1, 8, 2.0)])
    exact = stats.norm.cdf(2) ** 8  # that all eight agree: 0.83
    assert exact > 0.8
    assert abs((p <= 0.05).mean() - exact) < 4 * math.sqrt(exact * (1 - exact) / 1000)


@pytest.mark.parametrize("parts", [1, 3])
def test_planted_nulls_are_rarely_decided(parts):
    """Of 15 claims whose medians are 0, in one of 20 experiments at most is any decided at all."""
    rng = np.random.default_rng(1)
    experiments, corrected, plain = 400, 0, 0
    for _ in range(experiments):
        p = [ev.p_of_all(claim) for claim in draws(rng, 15, parts, 12)]
        corrected += (p <= ev.holm_levels(p)).any()
        plain += min(p) <= 0.05
    assert corrected / experiments < 0.05 + 3 * math.sqrt(0.05 * 0.95 / experiments)
    assert plain / experiments > 0.1  # so that the correction has something to correct


def test_a_real_effect_is_found_among_nulls():
    rng = np.random.default_rng(2)
    claims = draws(rng, 15, 1, 10) + draws(rng, 1, 1, 10, mean=30)
    p = [ev.p_of_all(claim) for claim in claims]
    assert p[-1] <= ev.holm_levels(p)[-1]
    assert p[-1] <= ev.bh_levels(p)[-1]


def test_over_parts_and_arms():
    assert over_parts([HOLDS, HOLDS]) == HOLDS
    assert over_parts([HOLDS, FAILS, UNTESTED]) == FAILS
    assert over_parts([HOLDS, UNDECIDED]) == UNDECIDED
    assert over_parts([HOLDS, UNTESTED]) == UNDECIDED
    assert over_parts([UNTESTED]) == UNTESTED
    assert over_arms([HOLDS, UNDECIDED, UNTESTED]) == HOLDS
    assert over_arms([HOLDS, FAILS]) == FAILS
    assert over_arms([UNDECIDED, UNTESTED]) == UNDECIDED
    assert over_arms([]) == UNTESTED


# ---- the statistics, by hand --------------------------------------------------------------------


def rows(*values, **columns):
    """A table of one row a value, with the columns that a test may read."""
    n = len(values)
    plain = {"cell": "a", "seed": 0, "step": 6, "epoch": 1.0, "objective": "nscl", "classes": 10}
    made = {k: v if isinstance(v, list) else [v] * n for k, v in {**plain, **columns}.items()}
    return pl.DataFrame({**made, "value": list(map(float, values))})


def test_of(kind, **spec):
    return c.Test(label="", kind=kind, **spec)


test_of.__test__ = False


def test_level_averages_the_rows_of_a_seed():
    found = statistics.level(rows(1, 3, 10, math.nan, seed=[0, 0, 1, 1]), test_of("level"))
    assert found.values.tolist() == [2, 10]


def test_difference_is_within_seeds():
    table = rows(5, 1, 7, 2, 9, seed=[0, 0, 1, 1, 2], objective=["nscl", "scl"] * 2 + ["nscl"])
    pair = ({"objective": "nscl"}, {"objective": "scl"})
    found = statistics.difference(table, test_of("difference", terms=pair))
    assert found.values.tolist() == [4, 5]  # the third seed lacks SCL


@pytest.mark.parametrize(("take", "chosen"), [("smallest", min), ("largest", max)])
def test_a_difference_takes_one_of_several_as_a_loop_does(take, chosen):
    """Draws of classes of a pair are averaged; then one pair of each seed counts."""
    rng = np.random.default_rng(5)
    index = [(s, o, r, d) for s in range(3) for o in "abc" for r in "xy" for d in range(2)]
    values = rng.normal(size=len(index))
    names = ("seed", "objective", "reference", "class_draw")
    table = rows(*values, **dict(zip(names, map(list, zip(*index, strict=True)), strict=True)))
    term = {"objective": ["a", "b"], "reference": ["x", "y"], "take": take}
    test = test_of("difference", terms=({"objective": "c"}, term))
    value = dict(zip(index, values, strict=True))
    expected = []
    for s in range(3):
        of_c = [value[s, "c", r, d] for r in "xy" for d in range(2)]
        pairs = [(value[s, o, r, 0] + value[s, o, r, 1]) / 2 for o in "ab" for r in "xy"]
        expected.append(sum(of_c) / 4 - chosen(pairs))
    found = statistics.difference(table, test)
    assert found.values == pytest.approx(expected)
    assert found.rows == len(index)

    without_one = table.filter(~((pl.col("seed") == 1) & (pl.col("objective") == "a")))
    assert statistics.difference(without_one, test).values == pytest.approx(expected[::2])
    nobody = statistics.difference(table.filter(pl.col("objective") != "a"), test)
    assert len(nobody.values) == 0


def test_change_is_from_step_0_to_the_last():
    table = rows(1, 5, 4, 2, 2, 8, seed=[0] * 3 + [1] * 3, cell=["a"] * 3 + ["b"] * 3,
                 step=[0, 6, 12, 0, 6, 18])  # fmt: skip
    assert statistics.change(table, test_of("change")).values.tolist() == [3, 6]


def test_share_is_of_the_second_term_s_decrease():
    table = rows(9, 5, 8, 3, 4, 3, 4, 4, 5, 2, 3, 4,
                 seed=[0] * 4 + [1] * 4 + [2] * 4, cell=["a"] * 4 + ["b"] * 4 + ["c"] * 4,
                 step=[0, 6] * 6, objective=["dcl", "dcl", "nscl", "nscl"] * 3)  # fmt: skip
    pair = ({"objective": "dcl"}, {"objective": "nscl"})
    found = statistics.share(table, test_of("share", terms=pair))
    assert found.values.tolist() == pytest.approx([4 / 5])  # nothing falls, or the loss grows
    assert found.rows == 12


def test_trend_is_the_slope_for_a_doubling():
    table = rows(1, 2, 3, 5, 2, 1, seed=[0, 0, 0, 1, 1, 1], classes=[2, 4, 8, 2, 4, 8])
    found = statistics.trend(table, test_of("trend", x="classes"))
    assert found.values.tolist() == pytest.approx([1, -2])
    assert (found.levels, found.left_out) == (3, 0)
    one = statistics.trend(rows(1, 2, seed=[0, 1]), test_of("trend", x="classes"))
    assert (len(one.values), one.levels, one.left_out) == (0, 1, 0)


def test_a_trend_leaves_out_seeds_that_lack_values_of_x():
    """The second seed has a slope too, but over other values of C."""
    table = rows(1, 2, 3, 5, 1, 4, seed=[0, 0, 0, 1, 1, 2], classes=[2, 4, 8, 2, 8, 4])
    found = statistics.trend(table, test_of("trend", x="classes"))
    assert found.values.tolist() == pytest.approx([1])
    assert (found.levels, found.left_out) == (3, 2)


def test_correlation_needs_three_points():
    table = rows(1, 2, 4, 2, 4, 8, 1, 2, 5, 6, metric=["a"] * 3 + ["b"] * 3 + ["a"] * 2 + ["b"] * 2,
                 epoch=[0.0, 1.0, 2.0] * 2 + [0.0, 1.0] * 2,
                 seed=[0] * 6 + [1] * 4)  # fmt: skip
    pair = ({"metric": "a"}, {"metric": "b"})
    found = statistics.correlation(table, test_of("correlation", terms=pair, along="epoch"))
    assert found.values.tolist() == pytest.approx([1])
    assert found.levels == 3


def trajectory(objective, times, spread, seed=0, tau=1.0):
    return pl.DataFrame({
        "objective": objective, "classes": 4, "dimension": 4, "tau": tau, "seed": seed,
        "iteration": range(len(times)), "time": times, "within_class_spread": spread,
    }, schema_overrides={"tau": pl.Float64})  # fmt: skip


def test_halving_compares_times_and_counts_who_never_gets_there_as_last():
    table = pl.concat([
        trajectory("nscl", [0.0, 1.0, 10.0], [0.8, 0.5, 0.3]),
        trajectory("scl", [0.0, 0.1, 10.0], [0.8, 0.39, 0.1]),
        trajectory("ce", [0.0, 5.0, 100.0], [0.8, 0.7, 0.6], tau=None),
    ])  # fmt: skip
    spec = {"table": "minimise", "column": "within_class_spread", "clock": "time"}
    pair = ({"objective": "nscl"}, {"objective": "scl"})
    found = statistics.halving(table, test_of("halving", terms=pair, **spec))
    assert found.values.tolist() == pytest.approx([2])
    pair = ({"objective": "ce"}, {"objective": "nscl"})
    found = statistics.halving(table, test_of("halving", terms=pair, **spec))
    assert found.values.tolist() == pytest.approx([1])


def test_violations_are_counted_up_to_rounding():
    table = pl.DataFrame({"measured": [1.0, 2.0, 3.0, math.nan, 4.0], "seed": [0, 0, 1, 1, 1],
                          "bound": [1.0, 2.5, 2.9, 1.0, None]})  # fmt: skip
    found = statistics.violations(table, test_of("bound", value="measured", upper="bound"))
    assert (found.rows, found.violations, found.seeds) == (3, 1, 2)
    assert found.margin == pytest.approx(-0.1)
    table = table.with_columns(bound=pl.col("measured") - 1e-7)
    found = statistics.violations(table, test_of("bound", value="measured", upper="bound"))
    assert found.violations == 0
    both = test_of("bound", value="measured", lower="1.5", upper="3.5")
    assert statistics.violations(table, both).violations == 2


def test_rows_of_a_run_are_taken_before_others_are_dropped():
    """A metric that the last step lacks has no value at the last step."""
    table = rows(1, 2, 3, metric=["a", "a", "b"], step=[0, 6, 12], epoch=[0.0, 1.0, 2.0])

    def taken(**spec):
        spec = {"where": {"metric": "a"}} | spec
        return statistics.select(table, test_of("level", **spec))["value"].to_list()

    assert taken() == []
    assert taken(until_epoch=1) == [2]
    assert taken(at="start") == [1]
    assert taken(at="all") == [1, 2]
    assert taken(at="trained") == [2]
    assert taken(at="all", only="epoch > 0.5 and value < 3") == [2]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"where": {"flavour": "a"}}, "asks for column flavour, which its table lacks"),
        ({"value": "no_such"}, "level test on table measures cannot be evaluated"),
        ({"only": "no_such > 1"}, "level test on table measures cannot be evaluated"),
    ],
)
def test_a_claim_that_does_not_fit_its_table(spec, sentence):
    table = rows(1, 2)
    with pytest.raises(InputError, match=sentence):
        statistics.level(
            statistics.select(table, test_of("level", **spec)), test_of("level", **spec)
        )


# ---- every claim, both ways ---------------------------------------------------------------------

SWEEPS = {
    **made_up.SWEEPS,
    "architecture": {"label": "architecture", "factors": ["architecture", "seed"]},
}
LEVELS = {"classes": [2, 5, 10], "tau": [0.1, 0.5, 1.0], "batch_size": [64, 128, 256]}
SWEEP_OF = {
    None: "base", "classes": "classes_epochs", "tau": "temperature", "batch_size": "batch",
    "architecture": "architecture",
}  # fmt: skip
SEEDS = range(8)
POINTS = {"epoch": [0.0, 20.0, 60.0, 150.0, 300.0], "classes": [2, 5, 10, 20, 40],
          "tau": [0.1, 0.2, 0.5, 1.0, 2.0], "batch_size": [32, 64, 128, 256, 512],
          "variant": [f"best_shots_{m}" for m in (1, 5, 10, 20, 50)]}  # fmt: skip
# Two orthonormal vectors of mean 0: combined, they have any correlation. The first falls.
U, V = np.linalg.qr(np.vander(np.arange(5.0), 3, increasing=True))[0].T[1:]
U *= -np.sign(U[-1] - U[0])
# The value that an expression of a claim makes into y.
INVERSE = {
    "value": lambda y, row: y,
    "log10(value)": lambda y, row: 10**y,
    "log2(value)": lambda y, row: 2**y,
    "abs(value / ln(classes / (classes - 1.0)) - 1)": lambda y, row: (
        (1 + y) * math.log(row["classes"] / (row["classes"] - 1))
    ),
}
# The column that an expression of a claim's term makes into y, and its value.
COLUMNS = {
    "bound": lambda y: {"bound": y},
    "measured": lambda y: {"measured": y},
    "log10_bound": lambda y: {"log10_bound": y},
    "log10(measured / train_images)": lambda y: {"measured": 1440 * 10**y, "train_images": 1440},
}
# Of every bound: columns that keep it, and what breaks it.
INEQUALITY = {"side": "upper", "measured": 0.5, "bound": 1.0}
LOWER = {"side": "lower", "measured": 0.5, "bound": 0.0}
CASES = {
    "gap_bounded": ([INEQUALITY, LOWER], {"measured": -0.1}),
    "gap_bounded_in_training": ([{"dcl": 2.0, "nscl": 1.5, "gap_bound": 0.6}], {"dcl": 2.2}),
    "gap_bounded_any_labels": ([LOWER, INEQUALITY], {"bound": 0.4}),
    "free_nscl_minimisers": (
        [{"view_distance": 1e-9, "within_class_spread": 1e-9, "etf_deviation": 1e-5,
          "loss": 1.0, "minimum_loss": 1.0}],
        {"etf_deviation": 0.1},
    ),
    "few_shot_bound": ([INEQUALITY], {"measured": 1.1}),
    "surrogate_theorem": (
        [{"gradient_gap": 0.1, "gradient_gap_bound": 0.2, "distance": 1.0, "step_bound": 1.1,
          "log10_bound_realised": 3.0}],
        {"step_bound": 0.9},
    ),
    "surrogate_theorem_for_networks": (
        [{"touched_distance": 9.0, "log10_bound": 1.0, "images": 64}], {"touched_distance": 11.0},
    ),
    "networks_follow_surrogate": ([{"amplification_cosine": 0.95}], {"amplification_cosine": 0.85}),
    "cka_corollary": ([{**LOWER, "variant": "corollary"}], {"bound": 0.6}),
    "rsa_corollary": ([{**LOWER, "variant": "corollary"}], {"bound": 0.6}),
}  # fmt: skip


def one_of(where):
    """A row's columns from conditions: of several values the first."""
    return {k: v[0] if isinstance(v, list) else v for k, v in where.items()}


def rows_of_term(term):
    """The columns of rows that a term needs: with `take`, of all combinations of its values."""
    if "take" not in term:
        return [one_of(term)]
    listed = {k: v if isinstance(v, list) else [v] for k, v in term.items() if k != "take"}
    return [dict(zip(listed, values, strict=True)) for values in product(*listed.values())]


def cell_of(test, seed, where, **changed):
    known = made_up.cell()
    from_where = {k: v for k, v in where.items() if k in known}
    return made_up.cell(seed=seed, sweeps=[SWEEP_OF[test.sweep]], **{**changed, **from_where})


def at_epoch(epoch):
    return {"step": round(6 * epoch), "epoch": float(epoch)}


def terms_in_order(tests, effect):
    """y of every term of pairs, which differ by `effect` at least."""
    y = {}
    for test in reversed(tests):
        first, second = (
            tuple(tuple(sorted(row.items())) for row in rows_of_term(t)) for t in test.terms
        )
        if second not in y:
            y[second] = y[first] - effect if first in y else 0.5
        y.setdefault(first, y[second] + effect)
    return y


def effects_of(test, outcome, seeds):
    """Effects of seeds for which the verdict is `outcome`: mean half a step inside, or outside.

    Or the effects themselves.
    """
    if isinstance(outcome, dict):
        return {seed: outcome[seed] for seed in seeds}
    low, high = test.region
    if test.kind == "correlation":
        low, high, step = math.atanh(low), math.inf, 1.0
    else:
        step = 0.05
    border = high if math.isfinite(high) else low
    out = 1 if math.isfinite(high) else -1
    mean = {HOLDS: border - out * step, FAILS: border + out * step, UNDECIDED: border}[outcome]
    noise = {UNDECIDED: 0.4}.get(outcome, 0.02) * step
    found = {s: mean + noise * (s - (len(seeds) - 1) / 2) for s in seeds}
    return {s: math.tanh(e) for s, e in found.items()} if test.kind == "correlation" else found


def rows_by_seed(claim, outcome, seeds=SEEDS):
    """Rows of a claim's table under which every part of it has this outcome."""
    groups = {}
    for test in claim.tests:
        key = (test.kind, tuple(sorted((k, str(v)) for k, v in test.where.items())))
        groups.setdefault(key, []).append(test)
    found = []
    for (kind, key), tests in groups.items():
        test, where = tests[0], one_of(tests[0].where)
        if kind == "share":
            continue  # it reads the rows of a correlation, made below
        of_share = groups.get(("share", key))
        shares = effects_of(of_share[0], outcome, seeds) if of_share else {}
        end = at_epoch(max(300, test.from_epoch))
        for seed, effect in effects_of(test, outcome, seeds).items():
            if of_share:
                made = make_correlation(tests, effect, shares[seed])
            else:
                made = MAKERS[kind](tests, effect)
            for y, more in made:
                columns = {**where, **more}
                changed = {k: v for k, v in more.items() if k in made_up.cell()}
                row = {**cell_of(test, seed, columns, **changed), **end, **columns}
                inverse = INVERSE[test.value] if test.kind != "halving" else INVERSE["value"]
                found.append({**row, "value": inverse(y, row)})
    return found


def make_level(tests, effect):
    test = tests[0]
    at = at_epoch(0 if test.at == "start" else 300)
    for level in LEVELS.get(test.sweep, [None]):
        yield effect, at | ({} if level is None else {test.sweep: level})


def make_difference(tests, effect):
    for term, y in terms_in_order(tests, effect).items():
        for row in term:
            yield y, dict(row)


def make_change(tests, effect):
    yield 0.5, at_epoch(0)
    yield 0.5 + effect, at_epoch(300)


def make_trend(tests, effect):
    x = tests[0].x
    for value in LEVELS.get(x, [20, 50, 150, 300]):
        point = at_epoch(value) if x == "epoch" else {x: value}
        yield 0.5 + effect * math.log2(value), point


def make_correlation(tests, effect, share=None):
    """Two series with this correlation; the first falls by this `share` of what the other does."""
    test = tests[0]
    others = effect * U + math.sqrt(1 - effect**2) * V
    if share is not None:
        others *= (U[-1] - U[0]) / (others[-1] - others[0]) / share
    for y, other, place in zip(U, others, POINTS[test.along], strict=True):
        point = at_epoch(place) if test.along == "epoch" else {test.along: place}
        if "value" in test.terms[0]:
            first, second = (term["value"] for term in test.terms)
            yield 0.0, point | COLUMNS[first](y) | COLUMNS[second](other)
        else:
            for term, value in zip(test.terms, (y, other), strict=True):
                yield value, point | one_of(term)


def make_halving(tests, effect):
    for (term,), y in terms_in_order(tests, effect).items():
        for iteration, (time, spread) in enumerate([(0.0, 1.0), (10**y, 0.4), (1e6, 0.1)]):
            yield 0.0, dict(term) | {
                "phase": "descent", "dimension": 10, "iteration": iteration, "time": time,
                "within_class_spread": spread, "tau": 1.0,
            }  # fmt: skip


MAKERS = {
    "level": make_level,
    "difference": make_difference,
    "change": make_change,
    "trend": make_trend,
    "correlation": make_correlation,
    "halving": make_halving,
}


def rows_of_bound(claim, broken, seeds=SEEDS):
    kept, breaks = CASES[claim.id]
    where = one_of(claim.tests[0].where)
    plain = {"classes": 10, "dimension": 10, "tau": 1.0, "iteration": 0, **at_epoch(300)}
    found = []
    for seed in seeds:
        for case in kept:
            found.append({**cell_of(claim.tests[0], seed, where), **plain, **where, **case})
    return [*found, {**found[-1], **breaks}] if broken else found


def table_of(rows):
    empty = {"reference": "", "features": "", "split": "", "objective": "", "metric": "",
             "variant": "", "quantity": "", "source": "", "side": "upper"}  # fmt: skip
    return pl.DataFrame([{**empty, **row} for row in rows], infer_schema_length=None)


def judged(claim, rows, error_rate=0.05):
    """The table of verdicts on one claim from the rows of its table."""
    tables = {claim.tests[0].table: table_of(rows)}
    return evaluate(c.Claims(error_rate, (claim,)), tables, SWEEPS)


def verdict_on(claim, rows):
    (found,) = set(judged(claim, rows)["verdict"])
    return found


@pytest.mark.parametrize("outcome", [HOLDS, FAILS, UNDECIDED])
@pytest.mark.parametrize("name", BY_SEEDS)
def test_a_claim_about_seeds(name, outcome):
    claim = ALL[name]
    table = judged(claim, rows_by_seed(claim, outcome))
    assert set(table["verdict"]) == {outcome}, table
    assert set(table["part_verdict"]) == {outcome}
    assert set(table["seeds"]) == {len(SEEDS)}
    assert set(table["inside"]) == {{HOLDS: 8, FAILS: 0, UNDECIDED: 4}[outcome]}
    assert len(table) == len(claim.tests)
    for row in table.iter_rows(named=True):
        assert row["low"] < row["effect"] < row["high"]


@pytest.mark.parametrize("name", [n for n in BY_SEEDS if any(t.matters for t in ALL[n].tests)])
def test_an_effect_that_is_too_small_to_matter(name):
    claim = ALL[name]
    assert all(test.matters for test in claim.tests)
    assert all(0 in test.region for test in claim.tests)
    around = [(-1) ** seed * claim.tests[0].matters / (5 + seed) for seed in SEEDS]
    rows = rows_by_seed(claim, dict(zip(SEEDS, around, strict=True)))
    table = judged(claim, rows)
    assert set(table["verdict"]) == {FAILS}, table
    assert all("if there is an effect, it is smaller than" in reason for reason in table["reason"])


@pytest.mark.parametrize("name", BY_SEEDS)
@pytest.mark.parametrize("outcome", [HOLDS, FAILS])
@pytest.mark.parametrize("seeds", [1, 5])
def test_few_seeds_never_decide(name, outcome, seeds):
    claim = ALL[name]
    table = judged(claim, rows_by_seed(claim, outcome, range(seeds)))
    assert set(table["verdict"]) == {UNDECIDED}
    assert table["p"].is_null().all()
    agree = seeds * (outcome == HOLDS)
    for row in table.iter_rows(named=True):
        if seeds > 1:
            assert row["reason"].startswith(f"{agree} of 5 seeds agree; at least 6 are needed")
        else:
            word = "agrees" if agree else "disagrees"
            assert row["reason"] == f"the one seed {word}; at least 6 are needed"


@pytest.mark.parametrize("name", ALL)
def test_without_rows_a_claim_is_not_tested(name):
    claim = ALL[name]
    assert set(evaluate(c.Claims(0.05, (claim,)), {}, SWEEPS)["verdict"]) == {UNTESTED}
    made = rows_of_bound(claim, False) if name in BOUNDS else rows_by_seed(claim, HOLDS)
    others = [
        {**row, "metric": "another", "quantity": "another", "source": "another",
         "objective": "another", "variant": "another", "nscl": math.nan,
         "gradient_gap": math.nan, "distance": math.nan, "amplification_cosine": math.nan}
        for row in made
    ]  # fmt: skip
    table = judged(claim, others)
    assert set(table["verdict"]) == {UNTESTED}
    assert set(table["reason"]) == {NO_ROWS}


@pytest.mark.parametrize(
    "name", [n for n in BY_SEEDS if ALL[n].tests[0].sweep and not ALL[n].tests[0].base_too]
)
def test_without_its_sweep_a_claim_is_not_tested(name):
    claim = ALL[name]
    tables = {claim.tests[0].table: table_of(rows_by_seed(claim, HOLDS))}
    table = evaluate(c.Claims(0.05, (claim,)), tables, {"base": SWEEPS["base"]})
    assert set(table["reason"]) == {f"no sweep varies {claim.tests[0].sweep}"}


@pytest.mark.parametrize(
    "name", [n for n in BY_SEEDS if any("epochs" in test.needs for test in ALL[n].tests)]
)
def test_short_runs_do_not_test_claims_about_long_ones(name):
    short = [
        {**row, "epoch": row["epoch"] / 20 if row["epoch"] > 60 else row["epoch"]}
        for row in rows_by_seed(ALL[name], HOLDS)
    ]
    table = judged(ALL[name], short)
    assert set(table["verdict"]) == {UNTESTED}
    assert table["reason"].str.contains("epochs").all()


@pytest.mark.parametrize(
    "name", [n for n in BY_SEEDS if any(t.kind == "trend" for t in ALL[n].tests)]
)
def test_two_values_make_no_trend(name):
    claim = ALL[name]
    x = claim.tests[0].x
    made = rows_by_seed(claim, HOLDS)
    two = [row for row in made if row[x] in sorted({row[x] for row in made})[-2:]]
    table = judged(claim, two)
    assert set(table["verdict"]) == {UNTESTED}
    assert set(table["reason"]) == {f"2 values of {x}; at least 3 are needed"}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_claim_about_a_bound(name):
    claim = ALL[name]
    table = judged(claim, rows_of_bound(claim, broken=False))
    assert set(table["verdict"]) == {HOLDS}
    assert table["violations"].sum() == 0
    assert (table["effect"] > 0).all()
    table = judged(claim, rows_of_bound(claim, broken=True))
    assert set(table["verdict"]) == {FAILS}
    assert table["violations"].sum() == 1
    assert table["effect"].min() < 0


@pytest.mark.parametrize("name", BOUNDS)
def test_only_what_is_proved_needs_no_seeds(name):
    claim = ALL[name]
    one_seed = rows_of_bound(claim, broken=False, seeds=[0])
    assert verdict_on(claim, one_seed) == (HOLDS if claim.tests[0].proved else UNDECIDED)
    assert verdict_on(claim, rows_of_bound(claim, broken=True, seeds=[0])) == FAILS


def test_minimisers_are_those_that_reached_the_least_loss():
    claim = ALL["free_nscl_minimisers"]
    local = rows_of_bound(claim, broken=True)
    local[-1]["loss"] += 0.1
    assert verdict_on(claim, local) == HOLDS
    assert verdict_on(claim, local[-1:]) == UNTESTED


def test_theorem_1_for_networks_leaves_out_bounds_that_say_nothing():
    """Two matrices of 64 × 128 cosines are at most 2 sqrt(2) · 64 = 181 apart."""
    claim = ALL["surrogate_theorem_for_networks"]
    (row,) = rows_of_bound(claim, broken=False, seeds=[0])
    for log10_bound in (math.log10(182), math.inf):
        assert verdict_on(claim, [{**row, "log10_bound": log10_bound}]) == UNTESTED
    beyond = {"log10_bound": math.log10(180), "touched_distance": 180.5}
    assert verdict_on(claim, [{**row, **beyond}]) == FAILS


def test_theorem_1_for_networks_reads_neither_untouched_entries_nor_other_tables():
    claim = ALL["surrogate_theorem_for_networks"]
    rows = [{**row, "real_distance": 100.0} for row in rows_of_bound(claim, broken=False)]
    tables = {"regularity": table_of(rows), "theory": made_up.theory()}
    (found,) = set(evaluate(c.Claims(0.05, (claim,)), tables, SWEEPS)["verdict"])
    assert found == HOLDS
    del tables["regularity"]
    (found,) = set(evaluate(c.Claims(0.05, (claim,)), tables, SWEEPS)["verdict"])
    assert found == UNTESTED


def test_the_length_of_a_network_s_step_decides_nothing():
    claim = ALL["networks_follow_surrogate"]
    rows = [{**row, "amplification": 1000.0} for row in rows_of_bound(claim, broken=False)]
    assert verdict_on(claim, rows) == HOLDS


# ---- what a claim must tell apart ---------------------------------------------------------------


def rows_of_claim(claim, seed, y, part=0, epoch=300, **columns):
    """One row that a part of a claim reads, with this value."""
    test = claim.tests[part]
    about = {**one_of(test.where), **columns}
    changed = {k: v for k, v in about.items() if k in made_up.cell()}
    return {**cell_of(test, seed, about, **changed), **at_epoch(epoch), **about, "value": y}


@pytest.mark.parametrize(
    ("gap", "verdict"),
    [
        (lambda c: 1.5 / c, HOLDS),
        (lambda c: math.log(c / (c - 1)), FAILS),  # before training
        (lambda c: 1 / math.sqrt(c), FAILS),
        (lambda c: 1 / c**2, FAILS),
    ],
)
def test_a_gap_that_falls_in_another_way_does_not_follow_the_bound(gap, verdict):
    claim, classes = ALL["gap_follows_bound"], np.array([2, 4, 6, 8, 10])
    gaps = np.array([gap(c) for c in classes])
    bounds = np.log1p(math.e**2 / (classes - 1))
    assert np.corrcoef(gaps, bounds)[0, 1] > 0.95  # which all of them pass
    made = [
        rows_of_claim(claim, seed, y * float(c) ** (0.001 * seed), classes=int(c))
        for seed in SEEDS
        for c, y in zip(classes, gaps, strict=True)
    ]
    table = judged(claim, made)
    assert set(table["verdict"]) == {verdict}
    if verdict == HOLDS:
        assert table["effect"].to_list() == pytest.approx([-0.9965])


def test_losses_that_barely_fall_do_not_agree():
    """At the end they are within 0.15 nats, but DCL's network has gone half the way only."""
    claim = ALL["nscl_loss_agrees"]

    def made(to):
        return [
            rows_of_claim(claim, seed, 7.5 - (0.2 + 0.001 * seed) * way * done, epoch=epoch,
                          objective=objective)
            for seed in SEEDS
            for objective, way in (("dcl", to + 0.001 * seed), ("nscl", 1.0))
            for epoch, done in ((0, 0.0), (20, 0.6), (300, 1.0))
        ]  # fmt: skip

    assert judged(claim, made(0.95))["part_verdict"].to_list()[0] == HOLDS
    assert judged(claim, made(0.5))["part_verdict"].to_list()[0] == FAILS


@pytest.mark.parametrize("name", ["nscl_closest", "nscl_closest_within_classes"])
@pytest.mark.parametrize(("early", "verdict"), [(0.75, HOLDS), (0.5, FAILS)])
def test_all_checkpoints_of_the_first_1000_epochs_count(name, early, verdict):
    """Neither the last one alone, nor the start, where all are the same, nor later ones."""
    claim = ALL[name]
    nscl = {0: 1.0, 20: early, 60: early, 150: early, 1000: 0.9, 1200: 0.0}
    made = [
        rows_of_claim(claim, seed, y + 0.001 * seed * (one == "nscl"), part, epoch, objective=one)
        for seed in SEEDS
        for part in (0, 2)  # CKA and RSA
        for epoch in nscl
        for one, y in (("nscl", nscl[epoch]), ("scl", 0.7 * (epoch > 0)), ("ce", 0.7))
    ]
    assert verdict_on(claim, made) == verdict


def test_cells_of_the_sweep_over_tau_and_of_the_base_show_ce_closer_than_scl():
    claim = ALL["ce_closer_than_scl"]
    swept = rows_by_seed(claim, HOLDS)
    assert {row["tau"] for row in swept} == {0.1}
    table = judged(claim, swept)
    assert dict(table.select("sweep", "verdict").iter_rows()) == {"temperature": HOLDS}
    base = [{**row, "sweeps": ["base"], "cell": row["cell"] + "-b"} for row in
            rows_by_seed(claim, FAILS)]  # fmt: skip
    table = judged(claim, swept + base)
    assert dict(table.select("sweep", "arm_verdict").iter_rows()) == {
        "base": FAILS, "temperature": HOLDS,
    }  # fmt: skip
    others = [{**row, "tau": 0.5} for row in swept + base]
    assert set(judged(claim, others)["reason"]) == {NO_ROWS}


def test_the_start_shows_nothing_of_the_losses_of_the_authors():
    """A run that has no other checkpoint until epoch 300; there the networks are still the same."""
    claim = ALL["authors_losses_aligned"]
    start = [{**row, **at_epoch(0), "value": 1.0} for row in rows_by_seed(claim, HOLDS)]
    later = [{**row, **at_epoch(1200), "value": 0.5} for row in start]
    assert verdict_on(claim, start + later) == UNTESTED
    assert verdict_on(claim, start + later + rows_by_seed(claim, FAILS)) == FAILS


def test_the_few_shot_bound_is_not_claimed_for_labeled_training_images():
    claim = ALL["few_shot_bound"]
    kept = rows_of_bound(claim, broken=False)
    from_train = [
        {**row, "quantity": "few_shot_error_from_train_all_way", "measured": 1.1} for row in kept
    ]
    table = judged(claim, kept + from_train)
    assert table.select("verdict", "rows").rows() == [(HOLDS, len(kept))]
    assert verdict_on(claim, from_train) == UNTESTED
    two_way = [{**row, "quantity": "few_shot_error_two_way", "measured": 1.1} for row in kept]
    assert verdict_on(claim, two_way) == FAILS


def test_a_pair_that_only_noise_tells_apart_does_not_diverge():
    """Its weights are at a larger angle than its representations, as those of any two networks."""
    claim, rng = ALL["paths_diverge"], np.random.default_rng(1)
    made = [
        rows_of_claim(claim, seed, middle + rng.normal(), part, objective=objective)
        for seed in range(20)
        for objective in ("nscl", "dcl_twin")
        for part, middle in ((0, 85.0), (1, 28.0))
    ]
    assert verdict_on(claim, made) == UNDECIDED
    further = [
        {**row, "value": row["value"] + (5 if row["metric"] == "weight_angle" else -5)}
        if row["objective"] == "nscl" else row
        for row in made
    ]  # fmt: skip
    assert verdict_on(claim, further) == HOLDS


@pytest.mark.parametrize(
    ("gap", "verdict"),
    [
        (lambda epoch: 0.9 * -math.expm1(-epoch / 50), HOLDS),
        (lambda epoch: 0.01 * math.exp(0.02 * epoch), FAILS),
        (lambda epoch: 0.003 * epoch, FAILS),
    ],
)
def test_a_weight_gap_that_keeps_growing_does_not_level_off(gap, verdict):
    claim = ALL["weight_gap_levels_off"]
    made = [
        rows_of_claim(claim, seed, gap(epoch) * epoch ** (0.001 * seed), epoch=epoch)
        for seed in SEEDS
        for epoch in (1, 20, 50, 100, 200, 300)
    ]
    assert verdict_on(claim, made) == verdict


@pytest.mark.parametrize(("power", "verdict"), [(-0.5, HOLDS), (0.5, FAILS)])
def test_more_images_are_no_larger_drift(power, verdict):
    """The norm grows with the number of images, and so with C, in both cases."""
    claim = ALL["drift_follows_bound_over_classes"]
    made = [
        rows_of_claim(claim, seed, 0.0, classes=c, train_images=100 * c, log10_bound=-math.log10(c),
                      measured=100 * c ** (1 + power + 0.001 * seed * (c == 5)))
        for seed in SEEDS
        for c in (2, 5, 10)
    ]  # fmt: skip
    assert verdict_on(claim, made) == verdict


def test_seeds_without_all_values_of_x_are_named():
    claim = ALL["gap_falls_with_classes"]
    made = rows_by_seed(claim, HOLDS)
    some = [row for row in made if row["seed"] < 6 or row["classes"] > 2]
    table = judged(claim, some)
    assert table.select("verdict", "seeds", "reason").rows() == [
        (HOLDS, 6, "left out: 2 seeds without all values of classes; "
         "one draw of classes: seeds say nothing of other draws"),
    ]  # fmt: skip
    none = [row for row in made if row["classes"] != (2, 5, 10)[row["seed"] % 3]]
    assert judged(claim, none).select("verdict", "reason").rows() == [
        (UNTESTED, "left out: 8 seeds without all values of classes")
    ]


# ---- many claims, parts and arms ----------------------------------------------------------------


def plain_claim(name, primary=False, **spec):
    test = {"label": name, "where": {"metric": name}, "region": (0.0, math.inf)} | spec
    tests = (c.Test(kind="level", **test),)
    return c.Claim(name, "It is.", "P1", "losses_training", "", (), tests, primary)


UP = [0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03, 1.04]
DOWN = [-value for value in UP]


def plain_rows(metric, values, **columns):
    return [
        {**made_up.cell(seed=seed), **at_epoch(300), "metric": metric, "value": value, **columns}
        for seed, value in enumerate(values)
    ]


def test_the_correction_bites():
    """Six seeds decide a claim alone, but not among nine without an effect; twelve do."""
    names = [f"null_{i}" for i in range(9)]
    rng = np.random.default_rng(3)
    made = plain_rows("weak", UP[:6]) + plain_rows("strong", np.linspace(0.9, 1, 12))
    made += [row for name in names for row in plain_rows(name, rng.normal(0, 1, 10))]
    tables = {"measures": table_of(made)}

    def judge(*chosen):
        return evaluate(c.Claims(0.05, chosen), tables, SWEEPS)

    def verdicts(table):
        return dict(table.select("claim", "verdict").iter_rows())

    others = [plain_claim(name) for name in ("strong", *names)]
    assert verdicts(judge(plain_claim("weak")))["weak"] == HOLDS
    table = judge(plain_claim("weak"), *others)
    assert verdicts(table)["weak"] == UNDECIDED
    assert verdicts(table)["strong"] == HOLDS
    weak = table.row(0, named=True)
    assert (weak["family"], weak["p_holm"], weak["low"]) == ("further", None, None)
    assert weak["reason"] == "6 of 6 seeds agree; at least 8 are needed"
    assert weak["p_bh"] == pytest.approx(11 / 2 * 2 / 2**6)

    # Further claims do not count for a primary one, whose error rate is its own.
    table = judge(plain_claim("weak", primary=True), *others)
    assert verdicts(table)["weak"] == verdicts(table)["strong"] == HOLDS
    weak = table.row(0, named=True)
    assert (weak["family"], weak["p_bh"]) == ("primary", None)
    assert weak["p"] == weak["p_holm"] == pytest.approx(2 / 2**6)
    assert (weak["low"], weak["high"], weak["level"]) == (UP[0], UP[5], 0.95)
    # With Holm's method a second primary claim counts, even if it is decided itself.
    table = judge(*(plain_claim(n, primary=True) for n in ("weak", "strong", "null_0")))
    assert verdicts(table) == {"weak": UNDECIDED, "strong": HOLDS, "null_0": UNDECIDED}


def test_more_seeds_than_the_error_rate_asks_for():
    """A claim may ask for more seeds; without a smaller error rate, it cannot ask for fewer."""
    rows = plain_rows("a", UP[:6])
    assert verdict_on(plain_claim("a", needs={"seeds": 2}), rows) == HOLDS
    table = judged(plain_claim("a", needs={"seeds": 7}), rows)
    assert table["reason"].to_list() == ["6 of 6 seeds agree; at least 7 are needed"]
    assert set(judged(plain_claim("a"), rows, 0.01)["verdict"]) == {UNDECIDED}
    assert set(judged(plain_claim("a"), rows[:5], 0.1)["verdict"]) == {HOLDS}


def test_equal_effects_are_not_independent_evidence():
    table = judged(plain_claim("a"), plain_rows("a", [1.0] * 8))
    assert table["reason"].to_list() == ["no spread over seeds"]
    assert set(table["verdict"]) == {UNDECIDED}


@pytest.mark.parametrize(
    ("draws", "note"),
    [
        ([[0]] * 8, "one draw of classes: seeds say nothing of other draws"),
        ([[0, 1]] * 8, "the same 2 draws of classes: seeds say nothing of other draws"),
        ([[seed] for seed in range(8)], ""),
    ],
)
def test_a_claim_about_classes_says_whether_seeds_share_their_classes(draws, note):
    found = [
        {**row, **made_up.cell(seed=seed, class_draw=draw, sweeps=["classes_epochs"])}
        for seed, row in enumerate(plain_rows("a", UP))
        for draw in draws[seed]
    ]
    table = judged(plain_claim("a", sweep="classes"), found)
    assert table["reason"].to_list() == [note]
    assert set(table["verdict"]) == {HOLDS}
    one = judged(plain_claim("a", sweep="classes"), found[:1])
    assert one["reason"].to_list() == ["the one seed agrees; at least 6 are needed"]


def test_one_part_that_fails_refutes_the_claim():
    tests = tuple(plain_claim(name).tests[0] for name in ("a", "b"))
    claim = c.Claim("both", "Both.", "P1", "losses_training", "", (), tests)
    table = judged(claim, plain_rows("a", UP) + plain_rows("b", DOWN))
    assert table["part_verdict"].to_list() == [HOLDS, FAILS]
    assert set(table["verdict"]) == {FAILS}
    table = judged(claim, plain_rows("a", UP))  # the other part has no rows
    assert table["part_verdict"].to_list() == [HOLDS, UNTESTED]
    assert set(table["verdict"]) == {UNDECIDED}


def test_every_sweep_and_data_set_is_an_arm_of_its_own():
    claim = plain_claim("a", sweep="tau")
    here = plain_rows("a", UP, sweeps=["temperature"])
    there = plain_rows("a", DOWN, sweeps=["temperature"], dataset="others")
    for row in there:
        row["cell"] += "-others"
    table = judged(claim, here)
    assert set(table["verdict"]) == {HOLDS}
    table = judged(claim, here + there)
    assert dict(table.select("dataset", "arm_verdict").iter_rows()) == {
        "digits": HOLDS, "others": FAILS,
    }  # fmt: skip
    assert set(table["verdict"]) == {FAILS}
    assert in_sweeps(table) == "in 1 of 2 sweeps"
    assert in_sweeps(table[:1]) == ""


def test_cells_of_other_sweeps_are_not_mixed_in():
    """The base sweep is read alone, and its cells do not count twice."""
    claim = plain_claim("a")
    base = plain_rows("a", [1.0, 1.1, 0.9], sweeps=["base", "temperature"])
    others = plain_rows("a", [-9.0, -9.1, -8.9], sweeps=["temperature"], tau=0.1)
    table = judged(claim, base + others)
    assert table["effect"].to_list() == pytest.approx([1.0])
    assert table["rows"].to_list() == [3]


def test_cells_that_only_a_hidden_setting_tells_apart_are_not_averaged():
    claim = plain_claim("a")
    twice = plain_rows("a", [1.0, 1.1, 0.9])
    twice += [{**row, "cell": row["cell"] + "-other"} for row in twice[:1]]
    with pytest.raises(InputError, match=r"cannot tell .* apart"):
        judged(claim, twice)


def test_why_a_claim_has_its_verdict():
    """What all parts have in common is said once; a single seed's effect, too."""
    tests = tuple(plain_claim(name).tests[0] for name in ("a", "b"))
    claim = c.Claim("both", "Both.", "P1", "losses_training", "", (), tests)

    def words(a, b):
        return because(judged(claim, plain_rows("a", a) + plain_rows("b", b)))

    assert words(UP[:2], UP[1:3]) == (
        "A: 0.97; claimed: above 0. B: 0.98; claimed: above 0. "
        "2 of 2 seeds agree; at least 6 are needed."
    )
    assert words(UP[:2], [-1.0, 1.0]) == (
        "A: 0.97; claimed: above 0. 2 of 2 seeds agree; at least 6 are needed. "
        "B: 0.00; claimed: above 0. 1 of 2 seeds agree; at least 6 are needed."
    )
    assert words(UP[:1], DOWN[:1]) == (
        "A: 0.97; claimed: above 0. The one seed agrees; at least 6 are needed. "
        "B: −0.97; claimed: above 0. The one seed disagrees; at least 6 are needed."
    )
    assert words(UP, UP) == (
        "A: 1.00 (0.97 to 1.04); claimed: above 0. B: 1.00 (0.97 to 1.04); claimed: above 0."
    )


@pytest.mark.parametrize(
    ("reading", "region", "numbers", "words"),
    [
        ("The gap grew by {value} nats", (0, math.inf), (0.0795, 0.0755, 0.0846),
         "The gap grew by 0.080 nats (0.075 to 0.085); claimed: above 0."),
        ("It is {ratio} times as large", (-math.inf, 0), (-0.335, -0.353, -0.313),
         "It is 0.46 times as large (0.44 to 0.49); claimed: below 1."),
        ("It is off by {percent} %", (-math.inf, 0.1), (0.0028, None, None),
         "It is off by 0.28 %; claimed: below 10 %."),
        ("Accuracy changes by {points} points", (-math.inf, 0.05), (0.0666, 0.0507, 0.0819),
         "Accuracy changes by +6.66 points (5.07 to 8.19); claimed: below 5 points."),
        ("Accuracy is {more_points}", (0, math.inf), (-0.0097, -0.0306, -0.0028),
         "Accuracy is 0.97 percentage points lower (−3.06 to −0.28); claimed: higher."),
        ("CKA is {more}", (-0.05, 0.05), (-0.00131, -0.00889, 0.00735),
         "CKA is 0.001 lower (−0.009 to 0.007); claimed: −0.05 to 0.05."),
        ("Both correlate at {value}", (0.95, math.inf), (0.99998, 0.99996, 0.99999),
         "Both correlate at 0.99998 (0.99996 to 0.99999); claimed: above 0.95."),
        ("Alignment changes by {signed}", (0, math.inf), (0.0308, 0.0163, 0.0493),
         "Alignment changes by +0.03 (0.02 to 0.05); claimed: above 0."),
    ],
)  # fmt: skip
def test_an_effect_in_words(reading, region, numbers, words):
    test = c.Test("", "level", reading=reading, region=region)
    row = {"reading": test.said, "violations": None}
    assert sentence(row | dict(zip(("effect", "low", "high"), numbers, strict=True))) == words


def test_a_bound_in_words():
    row = {"part": "one step", "rows": 2400, "violations": 0, "effect": 0.0279, "unit": "nats"}
    kept = "One step: no violation in 2,400 cases; smallest margin 0.0279 nats."
    assert sentence(row) == kept
    assert sentence(row | {"effect": -4e-16}).endswith("smallest margin 0 nats.")
    broken = row | {"part": "", "violations": 4, "effect": -0.227, "unit": ""}
    assert sentence(broken) == "4 of 2,400 cases violate it, the worst by 0.227."
    assert counted(HOLDS, 21) == "21 claims hold"
    assert counted(FAILS, 1) == "1 claim does not hold"


@pytest.mark.parametrize("name", BY_SEEDS)
def test_every_claim_has_its_words(name):
    """No place of a reading is left empty, and what it claims is what the test does."""
    for test in ALL[name].tests:
        assert test.reading
        row = {"reading": test.said, "violations": None, "effect": 0.3, "low": 0.1, "high": 0.5}
        assert not set("{}") & set(sentence(row))
        assert "claimed: " in sentence(row)


# ---- the file of claims -------------------------------------------------------------------------


def test_every_claim_that_a_reproduction_must_show_is_there():
    assert {n for claim in ALL.values() for n in claim.of_paper} == set(range(1, 23))


def test_few_claims_are_primary():
    primary = [claim for claim in ALL.values() if claim.primary]
    assert 1 <= len(primary) <= 5
    assert {claim.source.partition(" ")[0] for claim in primary} == {"P1", "P2"}


def test_a_bound_cannot_be_primary(tmp_path):
    path = tmp_path / "claims.yaml"
    text = c.FILE.read_text().replace("  gap_bounded:", "  gap_bounded:\n    primary: true")
    path.write_text(text)
    with pytest.raises(InputError, match=r"claims\.gap_bounded\.primary is for tests over seeds"):
        c.load_claims(path)


def test_no_claim_is_written_twice():
    names = re.findall(r"^  (\w+):$", c.FILE.read_text().split("\nclaims:")[1], re.M)
    assert names == list(ALL)


def test_every_figure_that_a_claim_names_exists():
    named = {claim.figure for claim in ALL.values()}
    assert named <= FIGURES.keys()


# Measures of h and of z.
OF_FEATURES = re.compile(
    "cdnv|within_class_spread|etf_deviation|nccc|linear_probe|few_shot_.*|cka|rsa|similarity_gap|"
    "representation_angle"
)


@pytest.mark.parametrize("name", ALL)
def test_claims_say_of_which_features_they_are(name):
    for test in ALL[name].tests:
        for term in test.terms or ({},):
            read = {**test.where, **term}
            if test.table == "measures" and OF_FEATURES.fullmatch(read["metric"]):
                assert read.get("features") in ("h", "z"), test.label


def test_labels_tell_the_parts_of_a_claim_apart():
    for claim in ALL.values():
        assert len({test.label for test in claim.tests}) == len(claim.tests), claim.id
        assert len({test.sweep for test in claim.tests}) == 1, claim.id


def expected_values():
    found = {}
    for path in EXPECTED.glob("*.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["figure"], []).append(float(row["value"]))
    return found


@pytest.mark.parametrize("name", ALL)
def test_quoted_numbers_are_the_papers(name):
    """Every number with a decimal point is one of the papers' figures, rounded as it is quoted."""
    claim = ALL[name]
    known = [v for figure, values in expected_values().items() if figure in claim.source.split(", ")
             for v in values]  # fmt: skip
    text = re.sub(r"(at )?τ = [\d., ]+", "", claim.paper)
    for quoted in re.findall(r"\d+\.\d+", text):
        digits = len(quoted.split(".")[1])
        candidates = [x for v in known for x in (v, 100 * v)]
        # Half a unit of the last digit, and what float makes of a half.
        near = [x for x in candidates if abs(x - float(quoted)) <= 0.5001 * 10**-digits]
        assert near, (quoted, claim.paper)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"statement": "No full stop"}, "claims.a.statement is wrong"),
        ({"color": "red"}, "claims.a is wrong"),
        ({"primary": "yes"}, "claims.a.primary is wrong"),
        ({"test": {"kind": "level"}}, "'region' is a required property"),
        ({"test": {"kind": "bound"}}, "'proved' is a required property"),
        ({"test": {"kind": "guess", "region": {"above": 0}}}, "claims.a.test.kind is wrong"),
        ({"test": {"kind": "trend", "region": {"above": 0}}}, "'x' is a required property"),
        ({"test": {"kind": "level", "region": {"near": 0}}}, "claims.a.test.region is wrong"),
        ({"test": {"kind": "share", "region": {"above": 0}}}, "'pairs' is a required property"),
        (
            {"test": {"kind": "level", "region": {"above": 0}, "base_too": True}},
            "'sweep' is a required property",
        ),
    ],
)
def test_a_wrong_claim_is_one_sentence(change, sentence, tmp_path):
    claim = {
        "statement": "It is.", "source": ["P1 losses"], "figure": "losses_training", "paper": "",
        "test": {"kind": "level", "region": {"above": 0}},
    }  # fmt: skip
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"error_rate": 0.05, "claims": {"a": {**claim, **change}}}))
    with pytest.raises(InputError, match=re.escape(sentence)) as raised:
        c.load_claims(path)
    assert str(path) in str(raised.value)


def test_claims_of_ones_own(tmp_path):
    path = tmp_path / "claims.yaml"
    with pytest.raises(InputError, match="does not exist"):
        c.load_claims(path)
    path.write_text("claims: [")
    with pytest.raises(InputError, match="not valid YAML at line 1"):
        c.load_claims(path)


def test_the_claims_need_no_numerical_library():
    code = (
        "import sys, cltools.claims; "
        "sys.exit(bool({'polars', 'numpy', 'scipy', 'matplotlib', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- what is written ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tables of a whole made-up experiment, and its plan."""
    folder = tmp_path_factory.mktemp("claims")
    cells = made_up.cells(3)
    made_up.measures(cells, epochs=(0, 20, 200)).write_parquet(folder / "measures.parquet")
    made_up.training_log(cells, every=100).write_parquet(folder / "training_log.parquet")
    made_up.theory(cells).write_parquet(folder / "theory.parquet")
    made_up.regularity().write_parquet(folder / "regularity.parquet")
    sweeps = [{"name": name, **about} for name, about in made_up.SWEEPS.items()]
    write_json(
        folder / "plan.json",
        {"experiment": "made up", "reference": "dcl", "cells": {}, "sweeps": sweeps},
    )
    return folder


def run(folder, output, chosen=c.FILE, **more):
    tables = {"measures": folder / "measures.parquet", "theory": folder / "theory.parquet",
              "training_log": folder / "training_log.parquet", "minimise": None,
              "regularity": folder / "regularity.parquet"}  # fmt: skip
    stage.run(plan=folder / "plan.json", tables=tables | more, claims=chosen, output=output)


def test_the_table_and_its_readable_form(folder, tmp_path):
    for name in ("once", "again"):
        run(folder, tmp_path / name / "claims.parquet")
    for file in ("claims.parquet", "claims.md"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    table = pl.read_parquet(tmp_path / "once/claims.parquet")
    assert list(table["claim"].unique(maintain_order=True)) == list(ALL)
    text = (tmp_path / "once/claims.md").read_text()
    summary, details = text.split("## Results behind the verdicts")
    for claim in ALL.values():
        (line,) = [one for one in summary.splitlines() if one.startswith(f"| {claim.statement}")]
        (verdict,) = set(table.filter(claim=claim.id)["verdict"])
        assert f"| **{verdict}**" in line
        arms = table.filter(claim=claim.id).unique(["dataset", "sweep", "cells"])
        count = (arms["arm_verdict"] == verdict).sum()
        assert (f"in {count} of {len(arms)} sweeps" in line) == (len(arms) > 1)
    assert details.count("\n| `") == len(table.filter(pl.col("part_verdict") != UNTESTED))
    # The made-up networks are beyond the bound at the last two of three steps.
    found = table.filter(claim="surrogate_theorem_for_networks")
    assert found.select("rows", "violations").rows() == [(3, 2)]


def test_a_missing_table_and_a_damaged_one(folder, tmp_path):
    broken = tmp_path / "surrogate.parquet"
    with pytest.raises(InputError, match="does not exist"):
        run(folder, tmp_path / "claims.parquet", surrogate=broken)
    broken.write_text("no table")
    with pytest.raises(InputError, match="is damaged"):
        run(folder, tmp_path / "claims.parquet", surrogate=broken)
    assert not (tmp_path / "claims.parquet").exists()


def test_the_command(folder, tmp_path):
    def claims(regularity):
        command = [sys.executable, "-m", "cltools.cli", "claims", "--plan", folder / "plan.json",
                   "--regularity", regularity, "--output", tmp_path / "claims.parquet"]  # fmt: skip
        return subprocess.run(list(map(str, command)), capture_output=True, text=True)

    done = claims(folder / "regularity.parquet")
    assert done.returncode == 0, done.stderr
    assert "**does not hold**" in (tmp_path / "claims.md").read_text()
    done = claims(tmp_path / "none.parquet")
    assert done.returncode == 2
    assert "none.parquet does not exist" in done.stderr
