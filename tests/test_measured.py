"""The numbers of the pages: from an experiment's tables to docs/data/, and from there into text."""

import json

import as_text
import measured
import numpy as np
import polars as pl
import pytest
import tables
import yaml
from small import small_config

from cltools.config.durations import Duration
from cltools.config.experiment import load_experiment
from cltools.layout import Results
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import write_json
from cltools.stages import claims, plan

SEEDS = [0, 1, 2]
LAST = tables.EPOCHS[-1]
BASE = {"sweep": "base", "epoch": LAST}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The folder of a finished experiment with made-up tables, whose config is shipped."""
    config = yaml.safe_load(small_config())
    config["sweeps"]["base"]["vary"]["seed"] = SEEDS
    monkeypatch.setattr(measured, "CONFIGS", tmp_path / "config")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/tiny.yaml").write_text(yaml.safe_dump(config))
    experiment = load_experiment(config)
    everything = Results(tmp_path / "results")
    folder = everything.experiment("tiny")
    plan.run(experiment=experiment, output=folder.plan)
    for identity, one in experiment.plans.items():
        made_by = {"processor": "CPU with AVX2", "torch": "2.0"}
        manifest = {"id": identity, "cell": one.cell, "until": str(one.until), "made_by": made_by}
        slug = Duration.parse(str(one.until)).slug
        write_json(everything.cell(identity).manifest(slug), manifest)
    cells = [
        tables.cell(seed=one.cell["seed"]) | {"cell": identity}
        for identity, one in experiment.plans.items()
    ]
    of = {"measures": tables.measures(cells), "theory": tables.theory(cells)}
    for name, table in of.items():
        table.write_parquet(folder.table(name))
    paths = {name: folder.table(name) for name in of}
    claims.run(plan=folder.plan, tables=paths, output=folder.claims)
    return folder


@pytest.fixture
def numbers(results, tmp_path):
    measured.take(results.path, into=tmp_path / "data")
    return as_text.Numbers.read(tmp_path / "data/tiny.json")


def test_what_made_the_numbers_is_noted(numbers, tmp_path):
    about = json.loads((tmp_path / "data/tiny.json").read_text())
    assert about["config"] == "config/tiny.yaml"
    assert about["trained_on"] == ["CPU with AVX2"]
    assert (about["cells"], about["seeds"], about["threads"]) == (3, SEEDS, [1])
    assert {"commit", "date", "processor", "torch"} < about.keys()


def test_means_and_spreads_over_seeds(numbers):
    mean = tables.alignment(tables.cell(), "nscl", LAST)
    assert numbers.mean("cka", objective="nscl", **BASE) == f"{mean:.2f}"
    assert numbers.mean("cka", objective="nscl", digits=3, **BASE) == f"{mean:.3f}"
    assert numbers.sd("cka", objective="nscl", digits=3, **BASE) == f"{tables.SPREAD:.3f}"
    assert numbers.seeds("cka", objective="nscl", **BASE) == "3"
    half = 2.919986 * tables.SPREAD / np.sqrt(3)  # t at 0.95 with two degrees of freedom
    assert numbers.interval("cka", objective="nscl", **BASE) == f"{mean:.2f} ± {half:.2f}"


def test_differences_are_seed_by_seed(numbers):
    mean = [tables.alignment(tables.cell(), objective, LAST) for objective in ("scl", "nscl")]
    found = numbers.interval("cka", objective="scl", minus={"objective": "nscl"}, **BASE)
    assert found == f"−{mean[1] - mean[0]:.2f} ± 0.00"


def test_values_of_all_rows_and_expressions(numbers):
    kept = numbers.values.filter(selection="cka", objective="nscl")["value"]
    assert numbers.smallest("cka", objective="nscl") == f"{kept.min():.2f}"
    assert numbers.median("cka", objective="nscl") == f"{kept.median():.2f}"
    percent = {"value": "100 * value", "digits": 0}
    assert numbers.largest("cka", objective=["nscl", "scl"], **percent) == "100"


def test_rows_that_are_not_one_per_seed_are_refused(numbers):
    with pytest.raises(InputError, match=r"several .*'epoch'.*: name one"):
        numbers.mean("cka", objective="nscl", sweep="base")
    with pytest.raises(InputError, match=r"no cka with .*'objective': 'dcl'"):
        numbers.mean("cka", objective="dcl", **BASE)
    with pytest.raises(InputError, match="has 1 seeds: give no spread"):
        numbers.interval("cka", objective="nscl", seed=0, **BASE)


def test_an_experiment_whose_config_changed_is_refused(results, tmp_path):
    file = tmp_path / "config/tiny.yaml"
    file.write_text(file.read_text().replace("- 2\n", "- 3\n"))
    with pytest.raises(InputError, match="other cells than were run"):
        measured.take(results.path, into=tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=r"no config .* is called tiny"):
        measured.take(results.path, into=tmp_path)


def test_old_tables_are_refused(results, tmp_path):
    pl.read_parquet(results.claims).drop("inside").write_parquet(results.claims)
    with pytest.raises(InputError, match="no column inside, so it is old"):
        measured.take(results.path, into=tmp_path)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (24, "24"),
        (149, "149"),
        (1438, "1,440"),
        (74_967, "75,000"),
        (1_049_999, "1,050,000"),
    ],
)
def test_counts_are_rounded_to_two_percent(number, text):
    assert as_text.count(number) == text
    assert abs(int(text.replace(",", "")) - number) <= 0.02 * number


def row(**changed):
    decided = {"p_holm": None, "p_bh": 0.01, "low": 1.0, "high": 2.0, "claimed": "> 0"}
    return {**decided, **changed}


@pytest.mark.parametrize(
    ("changed", "near"),
    [
        ({}, False),
        ({"claimed": "> 0.95"}, True),
        ({"claimed": "−3 to 2.05"}, True),
        ({"low": -1.95, "high": -1.0, "claimed": "< −0.95"}, True),
        ({"low": -1.95, "high": -1.0, "claimed": "< 0.95"}, False),
        ({"p_bh": 0.046}, True),
        ({"p_bh": 0.054}, True),
        ({"p_bh": 0.06}, False),
        ({"p_holm": 0.051}, True),
        ({"low": None, "high": None, "claimed": "> 0.95"}, False),
        ({"p_bh": None, "low": None, "claimed": "no violation"}, False),
    ],
)
def test_close_calls(changed, near):
    assert as_text.close_call(row(**changed), error_rate=0.05) is near


def claimed(claim, verdict, seeds, inside, **changed):
    return {
        "claim": claim, "verdict": verdict, "seeds": seeds, "inside": inside, "rows": 1438,
        "statement": f"{claim} |x|.", "source": "P1", **row(**changed),
    }  # fmt: skip


@pytest.fixture
def verdicts():
    table = [
        claimed("holding", "holds", 8, 8),
        claimed("barely", "does not hold", 8, 0, p_bh=0.049),
        claimed("agreed", "undecided", 5, 5, low=None),
        claimed("agreed", "undecided", 3, 3, low=None),
        claimed("split", "undecided", 5, 4, low=None),
        claimed("single", "undecided", 1, 1, low=None),
        claimed("absent", "not tested here", None, None, low=None, p_bh=None),
    ]
    return as_text.Numbers(pl.DataFrame(), pl.DataFrame(table, infer_schema_length=None), 0.05)


def test_verdicts(verdicts):
    said = {claim: verdicts.verdict(claim) for claim in verdicts.claims["claim"].unique()}
    assert said == {
        "holding": "**holds**",
        "barely": "**does not hold**, close call",
        "agreed": "undecided, all 3 seeds agree",
        "split": "undecided",
        "single": "undecided",
        "absent": "not tested here",
    }
    assert verdicts.cases("agreed") == "2,900"
    with pytest.raises(InputError, match="no claim is called other"):
        verdicts.verdict("other")
    assert verdicts.needs(holding=["holds"], split=["does not hold", "undecided"]) == ""
    with pytest.raises(InputError, match="if the verdict on split is undecided: reword it"):
        verdicts.needs(holding=["holds"], split=["holds"])


def test_the_table_of_claims_leaves_out_what_nothing_tests(verdicts):
    head, line, *body = as_text.claims_table(("digits", verdicts), ("more", verdicts)).splitlines()
    assert head == "| claim | source | digits | more |"
    assert line == "| --- | --- | --- | --- |"
    assert body[0] == r"| holding \|x\| | P1 | **holds** | **holds** |"
    assert len(body) == 5


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """Runs a benchmark whose script is this text."""
    monkeypatch.setattr(measured, "ROOT", tmp_path)
    monkeypatch.setattr(measured, "BENCHMARKS", {"fast": "fast.py --n 3"})
    (tmp_path / "benchmarks").mkdir()

    def run(text):
        (tmp_path / "benchmarks/fast.py").write_text(text)
        measured.bench("fast", into=tmp_path)

    return run


def test_a_benchmark_is_run_and_noted(benchmark, tmp_path):
    written = {"ratio": 2 / 3, "runs": [{"n": 3}]}
    (tmp_path / measured.BENCHMARKED).write_text('{"other": {"numbers": {}}}')
    benchmark(
        "import json, os, sys; from pathlib import Path\n"
        "assert sys.argv[1:3] == ['--n', '3'] and os.environ['OMP_NUM_THREADS'] == '1'\n"
        f"Path(sys.argv[4]).write_text(json.dumps({written}))"
    )
    found = measured.benchmarks(tmp_path)
    assert found.keys() == {"fast", "other"}
    assert found["fast"]["numbers"] == {"ratio": 0.666667, "runs": [{"n": 3}]}
    assert found["fast"]["command"] == "python benchmarks/fast.py --n 3"
    assert {"date", "processor", "cores", "python", "torch"} < found["fast"].keys()


def test_a_benchmark_that_fails_changes_nothing(benchmark, tmp_path):
    with pytest.raises(InputError, match=r"fast\.py --n 3 ended with exit code 3"):
        benchmark("raise SystemExit(3)")
    assert measured.benchmarks(tmp_path) == {}
    with pytest.raises(InputError, match="no benchmark is called slow: choose from fast"):
        measured.bench("slow", into=tmp_path)


@pytest.mark.parametrize(
    ("ratio", "text"), [(1.0849, "1.1"), (1.96, "2"), (3.47, "3"), (28.4, "30"), (0.92, "0.92")]
)
def test_ratios_have_one_digit(ratio, text):
    assert as_text.times(ratio) == text


def test_shares_and_significant_digits():
    assert (as_text.percent(0.0449), as_text.percent(0.0449, 1)) == ("4", "4.5")
    assert [as_text.significant(x) for x in (0.261, 1.0, 187.3)] == ["0.26", "1", "190"]


def test_numbers_of_the_papers():
    reached = as_text.of_paper("p2_weights", objective="nscl", metric="weight_gap")
    assert 0.5 < float(reached) < 1
    with pytest.raises(InputError, match=r"p2_weights\.csv has no row"):
        as_text.of_paper("p2_weights", objective="none")


def test_templates_are_filled_in(numbers, tmp_path, monkeypatch):
    mean = 'tiny.mean("cka", objective="nscl", sweep="base", epoch=0)'
    template = f'CKA {{{{ {mean} }}}}\n\n{{{{ claims_table(("here", tiny)) }}}}\n'
    (tmp_path / "page.j2").write_text(template)
    monkeypatch.setattr(measured, "TEMPLATES", tmp_path)
    monkeypatch.setattr(measured, "DATA", tmp_path / "data")
    monkeypatch.setattr(measured, "PAGES", {"page.md": "page.j2"})
    head, said, _, table, *_ = measured.written()["page.md"].split("\n")
    assert head == measured.HEAD.format("page.j2")
    assert said == "CKA 1.00"
    assert table == "| claim | source | here |"
