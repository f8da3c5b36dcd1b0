"""From a config to cells: sharing, identity, durations, one sentence for every mistake."""

import copy
import json
import re

import pytest
import yaml
from commands import cltools
from places import ROOT

from cltools.config.cells import canonical_cell, cell_id, resolve_cell, training_key
from cltools.config.durations import Duration
from cltools.config.experiment import load_experiment, read_config, store_id
from cltools.config.recipes import RECIPES
from cltools.config.schema import defaults, schema
from cltools.layout import RESULTS
from cltools.runtime.errors import InputError

CONFIG = {
    "experiment": "demo",
    "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
    "base": {"dataset": "digits", "horizon": 20, "warmup": 2, "epochs": 10},
    "sweeps": {
        "base": {"vary": {"seed": [0, 1]}},
        "temperature": {"label": "τ", "vary": {"tau": [0.1, 0.5], "seed": [0]}},
        "classes": {
            "parts": [{"set": {"horizon": "220 steps"}, "vary": {"classes": [2, 4]}}, {}],
        },
    },
}


def changed(**changes):
    """CONFIG with values replaced by their path, "a__b": value."""
    config = copy.deepcopy(CONFIG)
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = config
        for parent in parents:
            place = place[parent]
        place[key] = value
    return config


def cell(**settings):
    return resolve_cell({"dataset": "x", "recipe": "cifar", "horizon": 20, **settings})


def test_sweeps_share_cells():
    experiment = load_experiment(CONFIG)
    sweeps = sorted(plan.sweeps for plan in experiment.plans.values())
    assert sweeps == [
        ("base",),
        ("base", "temperature", "classes"),
        ("classes",),
        ("classes",),
        ("temperature",),
    ]
    of_tau = {"label": "τ", "factors": ["seed", "tau"], "classes": []}
    assert experiment.sweeps["temperature"] == of_tau


def test_full_grid():
    grid = {"vary": {"tau": [0.1, 0.5], "batch_size": [16, 32, 64], "seed": [0, 1]}}
    assert len(load_experiment(changed(sweeps={"grid": grid})).plans) == 12


def test_the_longer_stop_serves_both():
    config = changed(sweeps__short={"set": {"epochs": 5}})
    assert {str(plan.until) for plan in load_experiment(config).plans.values()} == {
        "10 epochs",
        "220 steps",
    }


def test_identity_does_not_depend_on_spelling():
    one = cell(tau=0.5, warmup=2, seed=3)
    other = cell(seed=3, warmup="2 epochs", horizon="20 epochs", batch_size=128)
    assert cell_id(one) == cell_id(other)
    assert cell_id(cell(objectives=["nscl", "dcl"])) == cell_id(cell(objectives=["dcl", "nscl"]))
    assert cell_id(cell(seed=1)) != cell_id(cell(seed=2))
    for key in ("tau", "lr", "imbalance"):
        assert cell_id(cell(**{key: 1})) == cell_id(cell(**{key: 1.0}))
        assert isinstance(cell(**{key: 1})[key], float)
    recipe = {**RECIPES["cifar"], "brightness": 1, "crop_scale": [1, 1]}
    same = {**RECIPES["cifar"], "brightness": 1.0, "crop_scale": [1.0, 1.0]}
    assert cell_id(cell(recipe=recipe)) == cell_id(cell(recipe=same))
    assert "seed" not in json.loads(canonical_cell(cell()))  # at its default
    assert resolve_cell(json.loads(canonical_cell(one))) == one


def test_training_key_ignores_who_else_is_trained():
    assert training_key(cell(objectives=["scl"])) == training_key(cell())
    assert training_key(cell(tau=0.1)) != training_key(cell())


def test_moving_the_files_changes_nothing():
    assert store_id("x", {"source": "folder", "path": "a"}) == store_id(
        "x", {"path": "b", "source": "folder", "recipe": "cifar"}
    )
    assert store_id("x", {"source": "folder", "size": 8}) != store_id("x", {"source": "folder"})


def test_stop_is_not_part_of_the_identity():
    ten, twenty = (load_experiment(changed(base__epochs=e)).plans for e in (10, 20))
    assert list(ten) == list(twenty)


def test_batches():
    experiment = load_experiment(changed(cells_per_job=2))
    assert [len(cells) for cells in experiment.batches.values()] == [2, 2, 1]
    assert list(load_experiment(CONFIG).batches) == list(experiment.plans)


def test_each_seed_can_draw_classes_of_its_own():
    sweeps = {"c": {"set": {"class_draw": "seed"}, "vary": {"classes": [2, 4], "seed": [0, 5]}}}
    plans = load_experiment(changed(sweeps=sweeps)).plans
    draws = [(plan.cell["seed"], plan.cell["class_draw"]) for plan in plans.values()]
    assert draws == [(0, 0), (5, 5)] * 2
    said = {"c": {"set": {"class_draw": 5}, "vary": {"classes": [2, 4], "seed": [5]}}}
    assert load_experiment(changed(sweeps=said)).plans.keys() < plans.keys()


def test_coupling_can_be_swept():
    levels = [["init", "batches", "views"], ["views", "init"], []]
    sweeps = {"ladder": {"vary": {"coupling": levels}}}
    config = changed(sweeps=sweeps, base__objectives=["dcl", "nscl", "dcl_twin"])
    plans = load_experiment(config).plans.values()
    assert [plan.cell["coupling"] for plan in plans] == [levels[0], ["init", "views"], []]
    assert [len(plan.cell["objectives"]) for plan in plans] == [3, 3, 3]


@pytest.mark.parametrize("stage", ["merge", "layers"])
def test_some_stages_work_on_the_named_sweeps(stage):
    experiment = load_experiment(changed(**{stage: {"sweeps": ["base"]}}))
    chosen = [cell for cells in experiment.batches_of(stage).values() for cell in cells]
    assert chosen == [c for c, plan in experiment.plans.items() if "base" in plan.sweeps]
    assert 0 < len(chosen) < len(experiment.plans)
    assert experiment.batches_of("measure") == experiment.batches
    assert load_experiment(CONFIG).batches_of(stage) == {}


def test_regularity_has_a_cell_of_its_own():
    assert load_experiment(CONFIG).regularity_cell is None
    cell = load_experiment(changed(regularity={"set": {"batch_size": 16}})).regularity_cell
    assert cell["batch_size"] == 16
    assert cell["tau"] == load_experiment(CONFIG).config["base"].get("tau", defaults()["tau"])


def test_durations():
    assert Duration.parse("300 steps").in_steps(11) == 300
    assert Duration.parse(20).in_steps(11) == 220
    assert Duration.parse(7, "steps") == Duration("steps", 7)
    assert cell(horizon="300 steps", warmup=30)["warmup"] == "30 steps"
    for wrong in ("3 weeks", -1, 2.5, True, None):
        with pytest.raises(ValueError, match="duration"):
            Duration.parse(wrong)


def test_defaults_are_valid():
    assert cell() == resolve_cell({**defaults(), **cell()})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"base__taus": 1}, r"base\.taus is unknown: did you mean tau\?"),
        ({"base__tau": 0}, r"base\.tau is 0, but must be greater than 0"),
        ({"base__tau": "1e-1"}, r"base\.tau is '1e-1'.*YAML reads 1e-1 as text"),
        ({"base__horizon": "3 weeks"}, r"base\.horizon is '3 weeks'.*duration"),
        ({"base__horizon": 0}, r"horizon is 0"),
        ({"base__epochs": 30}, r"base\.epochs is 30, beyond the horizon of 20 epochs"),
        ({"base__steps": 30}, r"both epochs and steps"),
        ({"base__classes": 1}, r"base\.classes is 1"),
        ({"base__tau": float("nan")}, r"base\.tau is nan, but must be of type number"),
        ({"base__lr": float("inf")}, r"base\.lr is inf, but must be of type number"),
        ({"base__classes": 4.0}, r"base\.classes is"),
        ({"base__views": 2.0}, r"base\.views is 2\.0, but must be of type integer"),
        ({"theory": {"delta": 0}}, r"theory\.delta is 0"),
        ({"merge": {"sweeps": ["bas"]}}, r"merge\.sweeps\.bas is unknown: did you mean base"),
        ({"layers": {"sweeps": ["bas"]}}, r"layers\.sweeps\.bas is unknown: did you mean base"),
        (
            {"merge": {"with": ["dcl"]}},
            r"merge\.with names the reference, at which all lines begin",
        ),
        ({"reference": "nt_xent"}, r"reference is nt_xent, which no cell trains: add it"),
        ({"reference": "nscli"}, r"reference is 'nscli', but must be one of dcl, nscl"),
        ({"minimise": {"tau": [1]}}, r"minimise\.tau is unknown: did you mean taus"),
        ({"regularity": {"set": {"taus": 1}}}, r"regularity\.set\.taus is unknown"),
        ({"base__batch_size": 1}, r"base\.batch_size is 1, but must be at least 2"),
        ({"base__recipe": "watercolor"}, r"base\.recipe names the view recipe 'watercolor'"),
        ({"base__recipe": {"family": "cifar", "huee": 1}}, r"recipe\.huee is unknown.*hue"),
        ({"base__recipe": {"family": "cifar", "blur_kernel": 4}}, r"recipe\.blur_kernel"),
        ({"base__objectives": ["nscl"]}, r"base\.objectives lacks dcl"),
        ({"base__objectives": ["dcl", "simclr"]}, r"objectives\.1 is 'simclr'.*one of"),
        ({"base__dataset": "mnist"}, r"dataset 'mnist' is not one of the datasets \(digits\)"),
        ({"base__lr_rule": "cubic"}, r"lr_rule is 'cubic', but must be one of"),
        ({"sweeps__temperature__vary__tauu": [1]}, r"sweeps\.temperature\.tauu.*tau\?"),
        ({"sweeps__temperature__vary__tau": [0.5, -1.0]}, r"sweeps\.temperature\.tau is -1\.0"),
        ({"sweeps__temperature__vari": {}}, r"sweeps\.temperature\.vari is unknown.*vary"),
        ({"sweeps__temperature__set": {"tau": 1.0}}, r"both sets and varies tau"),
        ({"sweeps__classes__parts": [{"sett": {}}]}, r"sweeps\.classes\.parts\.0\.sett.*set\?"),
        (
            {"sweeps__classes__parts": [{"set": {"tau": 0.1, "lr": 0.2}}, {}]},
            r"sweeps\.classes has two cells that differ in lr, tau, which is under no vary: put lr",
        ),
        (
            {"gpus_per_cell": 6, "nodes_per_cell": 4},
            r"gpus_per_cell is 6, which nodes_per_cell \(4\)",
        ),
        ({"gpus_per_cell": 2, "cells_per_gpu": 2}, r"cells_per_gpu is 2, but gpus_per_cell is 2"),
        ({"share": "gpus"}, r"share is 'gpus', but must be one of"),
        ({"tracker": "comet"}, r"tracker is 'comet', but must be one of 'tensorboard', 'wandb'"),
        ({"save_every_seconds": 0}, r"save_every_seconds is 0, but must be at least 1"),
        ({"experimentt": "x"}, r"config key experimentt is unknown: did you mean experiment\?"),
        ({"experiment": "a b"}, r"config key experiment is 'a b', but must be letters"),
        ({"datasets__digits__source": "mnist"}, r"datasets\.digits\.source is 'mnist'"),
        ({"datasets__digits__pth": "x"}, r"datasets\.digits\.pth is unknown: did you mean path\?"),
        ({"base": None}, r"base is empty \(null\), but must be of type mapping"),
        ({"sweeps": None}, r"sweeps is empty \(null\), but must be of type mapping"),
        ({"sweeps__base": None}, r"sweeps\.base is empty \(null\), but must be of type mapping"),
        ({"sweeps__base__vary": None}, r"sweeps\.base\.vary is empty"),
        ({"sweeps__base__vary__seed": []}, r"base\.vary\.seed is wrong: \[\] must have at least 1"),
        ({"datasets__digits__recipe": None}, r"datasets\.digits\.recipe is empty.*text or mapping"),
        ({"datasets__digits__recipe": "oils"}, r"datasets\.digits\.recipe names the .* 'oils'"),
        (
            {"base__recipe": None},
            r"base\.recipe is empty \(null\), but must be of type text or map",
        ),
        ({"base__dataset": ["digits"]}, r"base\.dataset is \['digits'\], but must be of type text"),
        ({"base__dataset": {"a": 1}}, r"base\.dataset is \{'a': 1\}, but must be of type text"),
        ({"base__classes": "all"}, r"base\.classes is 'all', but must be of type integer or null"),
        ({"base__classes": 2.0}, r"base\.classes is 2\.0, .* integer or null \(write 2\)"),
        ({"base__tau": 1e-320}, r"base\.tau is 1e-320, but must be at least 1e-06"),
        ({"base__seed": 2**63}, r"base\.seed is 9223372036854775808, but must be at most 92233720"),
        ({"base__seed": 1 << 5000}, r"base\.seed is an integer of 5001 bits"),
        (
            {"base__horizon": "20 epochs\n"},
            r"base\.horizon is '20 epochs\\n', but must be a duration",
        ),
        ({"base__warmup": 21}, r"base\.warmup is 21 epochs, beyond the horizon of 20 epochs"),
        ({"base__checkpoints": [1] * 100_000}, r"base\.checkpoints is wrong: .* at most 10000"),
        (
            {"base__recipe": {"family": "cifar", "crop_scale": [1, 0.5]}},
            r"crop_scale is \[1, 0\.5\]",
        ),
        (
            {"datasets__digits__recipe": {"family": "cifar", "crop_ratio": [2, 1]}},
            r"digits\.recipe",
        ),
        ({"experiment": "a\n"}, r"experiment is 'a\\n', but must be letters"),
        ({"experiment": "a" * 65}, r"experiment is wrong: .* must have at most 64 characters"),
        ({"datasets": {"a" * 65: {}}}, r"at most 64 characters"),
        ({"sweeps": {"base\n": {}}}, r"sweeps is 'base\\n', but must be letters, digits and _"),
        ({"sweeps": {True: {}}}, r"sweeps\.True is True, but must be text: put it in quotes"),
        (
            {"sweeps": {"a": {"vary": {k: list(range(100)) for k in ("seed", "tau", "lr")}}}},
            r"sweeps asks for 1,000,000 cells by its sweep a, but an experiment may have 20,000",
        ),
        (
            {"surrogate": {"seeds": list(range(1000)), "taus": [0.1 * i for i in range(1, 1001)]}},
            r"key surrogate asks for 12,000,000 simulations, .* of classes, taus, batch_sizes, ",
        ),
        (
            {"minimise": {"seeds": list(range(93))}},
            r"key minimise asks for 10,044 simulations, .* may ask for 10,000: shorten these lists",
        ),
        ({"figures": {"dpi": 1}}, r"figures\.dpi is 1, but must be at least 50"),
    ],
)
def test_mistakes(changes, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        load_experiment(changed(**changes))
    assert "\n" not in str(caught.value)


def test_grids_up_to_the_limit_are_accepted(tmp_path):
    """With features, the numbers of classes are no axis."""
    many = {"classes": list(range(2, 1002)), "features": "z.npy", "labels": "y.npy"}
    load_experiment(changed(minimise={"seeds": list(range(92))}, surrogate=many))
    with pytest.raises(InputError, match="asks for 12,000 simulations"):
        load_experiment(changed(surrogate={"seeds": list(range(500))}))
    too_many = '{"seeds": [0], "taus": %s}' % [0.001 * i for i in range(1, 1001)]
    message = cltools("surrogate", "--settings", too_many, "--output", tmp_path / "t", code=2)
    assert "key surrogate asks for 12,000 simulations" in message
    assert not any(tmp_path.iterdir())


def examples(pattern):
    """A text that a pattern of the schema takes."""
    known = ("demo", "20 epochs", "C-1", "seed", "timm:resnet18")
    return next(text for text in known if re.search(pattern, text))


def patterns(rules):
    """Every pattern in the schema."""
    if isinstance(rules, dict):
        yield from [rules["pattern"]] if isinstance(rules.get("pattern"), str) else ()
        rules = list(rules.values())
    if isinstance(rules, list):
        for one in rules:
            yield from patterns(one)


def test_no_pattern_takes_a_line_break_at_the_end():
    found = set(patterns(schema()))
    assert len(found) > 3
    for pattern in found:
        assert not re.search(pattern, examples(pattern) + "\n"), pattern


def test_every_pattern_says_what_is_expected():
    def check(rules):
        if isinstance(rules, dict):
            assert "expects" in rules or not isinstance(rules.get("pattern"), str), rules
            rules = list(rules.values())
        for one in rules if isinstance(rules, list) else ():
            check(one)

    check(schema())


@pytest.mark.parametrize(
    "folder",
    [
        RESULTS.stores, RESULTS.benchmarks, RESULTS.cell("a").path.parent,
        RESULTS.log("train").parent.parent,
    ],
    ids=lambda folder: folder.name,
)  # fmt: skip
def test_no_experiment_is_named_like_a_folder_of_results(folder):
    with pytest.raises(InputError, match=f"experiment is '{folder.name}', but must be none of"):
        load_experiment(changed(experiment=folder.name))


def test_a_cell_is_an_object():
    for wrong in ([], "a", None, 1):
        with pytest.raises(InputError, match=r"config key cell is .* must be of type mapping"):
            resolve_cell(wrong)


def test_limits_of_a_config():
    value = "a"
    for _ in range(30):
        value = [value]
    with pytest.raises(InputError, match=r"base\.tau\.0 holds more than 20 levels"):
        load_experiment(changed(base__tau=value))
    itself = {}
    itself["set"] = itself
    with pytest.raises(InputError, match="more than 20 levels"):
        load_experiment(changed(sweeps__base=itself))


def test_missing_keys():
    for key in ("experiment", "datasets", "base", "sweeps"):
        config = {k: v for k, v in CONFIG.items() if k != key}
        with pytest.raises(InputError, match=f"config key {key} is missing"):
            load_experiment(config)


def test_unreadable_config(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,\nb: }")
    with pytest.raises(InputError, match=r"broken\.yaml is not valid YAML at line 2"):
        read_config(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(InputError, match="holds no settings"):
        read_config(tmp_path / "empty.yaml")


def test_a_config_that_runs_code_is_refused():
    """Snakemake would run Python that it holds."""
    with pytest.raises(InputError, match="config key __use_yte__ is unknown"):
        load_experiment({**CONFIG, "__use_yte__": True})


def test_shipped_configs_are_valid():

    configs = list((ROOT / "config").rglob("*.yaml"))
    assert configs
    for path in configs:
        assert load_experiment(yaml.safe_load(path.read_text())).plans
