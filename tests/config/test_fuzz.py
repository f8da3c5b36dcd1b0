"""Odd values at every key of the schema: an experiment is fine or refused in one sentence.

The keys are found by walking the schema, so that new ones are tested without being named here.
"""

import copy
import datetime
import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cltools.cli.options import json_object
from cltools.config.cells import resolve_cell
from cltools.config.experiment import OF_SOME_SWEEPS, load_experiment
from cltools.config.schema import schema, with_defaults
from cltools.runtime.errors import InputError

DEFS = schema()["$defs"]
STAGES = ("theory", "merge", "layers", "project", "surrogate", "minimise", "regularity")
CELL = {"dataset": "digits", "recipe": {"family": "digits"}, "horizon": 20}
CONFIG = {
    "experiment": "demo",
    "datasets": {"digits": {"source": "digits", "recipe": {"family": "digits"}}},
    "base": {**CELL, "epochs": 10},
    "sweeps": {"base": {"vary": {"seed": [0, 1]}}},
}
# Definitions that the schema itself does not lead to, and where a config holds them.
FURTHER = {
    "cell": [
        ("base",),
        ("sweeps", "base", "set"),
        ("regularity", "set"),
    ],
    "recipe": [("base", "recipe"), ("datasets", "digits", "recipe")],
    "product": [("sweeps", "base"), ("sweeps", "base", "parts", 0)],
    "sweep_of_parts": [("sweeps", "base")],
}
NAMES = {"datasets": "digits", "sweeps": "base"}  # keys that the user chooses


def full(rule):
    """A rule with what it refers to."""
    if "$ref" not in rule:
        return rule
    return {**full(DEFS[rule["$ref"].rpartition("/")[2]]), **rule}


def places(rule, path):
    """The paths of all values that a rule is about, with list entries as 0."""
    rule = full(rule)
    if path:
        yield path
    for key, one in rule.get("properties", {}).items():
        yield from places(one, (*path, key))
    if isinstance(rule.get("additionalProperties"), dict) and path[-1:] and path[-1] in NAMES:
        yield from places(rule["additionalProperties"], (*path, NAMES[path[-1]]))
    if "items" in rule:
        yield from places(rule["items"], (*path, 0))


PLACES = list(
    dict.fromkeys(
        [
            *places(schema(), ()),
            *(p for name, starts in FURTHER.items() for s in starts for p in places(DEFS[name], s)),
            *(("base", stop) for stop in ("epochs", "steps")),
            *(("sweeps", "base", "vary", key, 0) for key in DEFS["cell"]["properties"]),
        ]
    )
)
OF_STAGES = [(stage, p) for stage in STAGES for p in places(DEFS[stage], ())]
OF_CELLS = [*places(DEFS["cell"], ()), *places(DEFS["recipe"], ("recipe",))]

NUMBERS = [
    0, -0.0, -1, 1, 2, 2.0, 3, 0.5, 1e-320, 1e-6, 1e300, -1e300, 2**31, 2**63 - 1, 2**63, 10**39,
    -(10**39), 10**400, 1 << 20_000, float("nan"), float("inf"), float("-inf"), True, False,
]  # fmt: skip
TEXTS = [
    "", " ", "a", "digits", "base", "C", "1", "1e-1", "nan", "20 epochs", "20 epochs\n", "\n",
    "a\nb",
    "999999999999 steps", "9" * 5000 + " epochs", "٣ epochs", "dcl", "x" * 300, "é", "😀",
    "\ud800",
    "\x00", "\x1b[31m", "\u2028", "../..", "$(ls)", "{a}", "all", "stores", "cells", "null", "no",
]  # fmt: skip
PLAIN = st.one_of(st.none(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS))
DRAWN = st.one_of(st.integers(), st.floats(), st.text(max_size=8))
KEYS = st.one_of(
    st.sampled_from([*TEXTS, "family", "vary", "set", "parts", "tau"]), st.text(max_size=4)
)
ODD_KEYS = st.one_of(KEYS, st.sampled_from([1, 1.5, True, None]))


def nested(values):
    return st.one_of(st.lists(values, max_size=3), st.dictionaries(ODD_KEYS, values, max_size=3))


def deep(levels, kind):
    value = None
    for _ in range(levels):
        value = [value] if kind == "list" else {"a": value}
    return value


def endless():
    value = []
    value.append(value)
    return value


HUGE = st.sampled_from(
    [
        "long list",
        "long mixed list",
        "many keys",
        "deep list",
        "deep mapping",
        "endless",
        "date",
        "set",
        "bytes",
    ]
)


def huge(kind):
    return {
        "long list": lambda: list(range(30_000)),
        "long mixed list": lambda: [0, "a", None, [], {}] * 4_000,
        "many keys": lambda: {f"k{number}": None for number in range(5_000)},
        "deep list": lambda: deep(3_000, "list"),
        "deep mapping": lambda: deep(3_000, "mapping"),
        "endless": endless,
        "date": lambda: datetime.date(2020, 1, 1),
        "set": lambda: {1, 2},
        "bytes": lambda: b"a",
    }[kind]()


VALUES = st.one_of(
    PLAIN, PLAIN, DRAWN, nested(st.one_of(PLAIN, DRAWN)), nested(nested(PLAIN)), HUGE.map(huge)
)


def put(config, path, value):
    """A copy of `config` with a value at a path; mappings and lists on the way are made."""
    config = copy.deepcopy(config)
    place = config
    for here, after in pairwise(path):
        fresh = [None] if after == 0 else {}
        if here == 0:
            if not isinstance(place[0], type(fresh)):
                place[0] = fresh
            place = place[0]
            continue
        if not isinstance(place.get(here), type(fresh)):
            place[here] = fresh
        place = place[here]
    place[path[-1]] = value
    return config


def refused_in_one_sentence(call):
    """Whether the call was refused. Fails for another error, or more than one line."""
    try:
        call()
    except InputError as error:
        text = str(error)
        assert re.match(r"config key \S|sweeps \S", text), text
        assert len(text.splitlines()) == 1, text
        assert text.isprintable(), text
        assert "schemas" not in text, text
        return True
    return False


def resolve(config):
    """All that `cltools plan` and the workflow ask of a config."""
    experiment = load_experiment(config)
    for stage in (
        "theory",
        *OF_SOME_SWEEPS,
        *experiment.without_cells,
        *(["project"] if "project" in config else []),
    ):
        experiment.settings_of(stage)
    json.dumps(experiment.summary(), ensure_ascii=False).encode()
    assert experiment.batches
    assert all(experiment.batches_of(stage) is not None for stage in OF_SOME_SWEEPS)
    assert experiment.further_stages is not None


def settings_of(stage, path, value):
    with_defaults(put({}, path, value) if path else value, stage)


def attempt(place, value):
    """Put a value at one of ALL: of a config, of `--settings` or of `--cell`."""
    kind, path = place
    if kind == "config":
        start = {**CONFIG, "sweeps": {"base": {}}} if "parts" in path else CONFIG
        return refused_in_one_sentence(lambda: resolve(put(start, path, value)))
    if kind == "cell":
        return refused_in_one_sentence(
            lambda: resolve_cell(put(CELL, path, value) if path else value)
        )
    return refused_in_one_sentence(lambda: settings_of(kind, path, value))


ALL = [
    *(("config", path) for path in PLACES),
    *(("cell", path) for path in [(), *OF_CELLS]),
    *OF_STAGES,
    *((stage, ()) for stage in STAGES),
]


def test_every_key_is_found():
    keys = {path[-1] for _, path in ALL if path}
    for rules in (schema(), *DEFS.values()):
        assert keys >= rules.get("properties", {}).keys()


def test_what_is_changed_is_fine():
    resolve(CONFIG)
    resolve_cell(CELL)


@pytest.mark.parametrize("value", [None, [], {}, "a\n", float("inf"), "\ud800"], ids=repr)
def test_empty_and_odd_values_at_every_key(value):
    refused = sum(attempt(place, copy.deepcopy(value)) for place in ALL)
    assert refused > len(ALL) / 2


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"seed": ' + "9" * 5000 + "}", "{", "a\x00b", "a" * 5000]
)
def test_json_that_cannot_be_read_is_one_sentence(text):
    with pytest.raises(InputError, match=r"^--cell .*(not valid JSON|neither JSON nor)") as caught:
        json_object(text, "--cell")
    assert "\n" not in str(caught.value)


@settings(max_examples=300)
@given(place=st.sampled_from(ALL), value=VALUES)
def test_any_value_is_fine_or_refused_in_one_sentence(place, value):
    attempt(place, value)


@pytest.mark.slow
@pytest.mark.parametrize("place", ALL, ids=lambda place: ".".join(map(str, (place[0], *place[1]))))
def test_many_values_at_every_key(place):
    @settings(max_examples=25)
    @given(value=VALUES)
    def every(value):
        attempt(place, value)

    every()
