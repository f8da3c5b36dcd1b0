"""The tables of keys in config/README.md say what the schema and the code say."""

import inspect
import re

import pytest
from places import ROOT

from cltools.config import reference
from cltools.config.recipes import RECIPES
from cltools.config.schema import schema
from cltools.data.sources import READERS
from cltools.figures.style import DEFAULTS

PAGE = (ROOT / "config/README.md").read_text()


def rows():
    return {key: row for name in reference.TABLES for key, *row in reference.rows_of(name)}


def test_the_page_is_up_to_date():
    remedy = "run: python -m cltools.config.reference config/README.md"
    assert reference.written(PAGE) == PAGE, remedy


def test_every_key_of_the_schema_has_a_row():
    definitions = schema()["$defs"]
    keys = {*schema()["properties"]}
    for name in ("dataset", "recipe", "cell", "product", "sweep_of_parts"):
        keys |= {*definitions[name]["properties"]}
    for stage in reference.STAGES:
        keys |= {f"{stage}.{key}" for key in definitions[stage]["properties"]}
    keys |= {f"figures.{key}" for key in schema()["properties"]["figures"]["properties"]}
    keys = keys - {"measure"} | {"measure.full_at"}
    shown = [key for name in reference.TABLES for key, *_ in reference.rows_of(name)]
    assert keys == {key.strip("`") for key in shown} - {"epochs`, `steps"}
    assert all(meaning and values for meaning, values, _ in rows().values())


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="keys: recipes"):
        reference.written(PAGE.replace("<!-- keys: recipes -->", ""))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"type": "integer", "minimum": 1}, "integer from 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "number above 0 to 0.5"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "number from 0, below 1"),
        ({"$ref": "#/$defs/duration"}, "duration"),
        ({"$ref": "#/$defs/tau"}, "number from 1e-06 to 1e+06"),
        ({"$ref": "#/$defs/seed"}, "integer from 0 to 2^63 - 1"),
        ({"$ref": "#/$defs/range"}, "two numbers above 0 to 1,000"),
        ({"type": ["string", "null"]}, "text or `null`"),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, "list of `a`, `b`"),
        ({"type": ["string", "array"], "items": {"type": "string"}}, "text or list of texts"),
    ],
)
def test_values_in_words(rule, words):
    assert reference.allowed(rule) == words


def test_options_name_their_sources_and_the_defaults_of_the_readers():
    """The defaults of a source are those of its reader's parameters, which the schema repeats."""
    said = schema()["$defs"]["dataset"]["properties"]
    taken = {
        option for reader in READERS.values() for option in inspect.signature(reader).parameters
    }
    assert taken == {*said} - {"source", "recipe"}
    for option in taken:
        sources = {
            name: inspect.signature(reader).parameters[option].default
            for name, reader in READERS.items()
            if option in inspect.signature(reader).parameters
        }
        text = said[option]["description"]
        assert set(re.findall(r"`(\w+)`", text.partition(":")[0])) == {*sources}, option
        for default in sources.values():
            if default not in (None, inspect.Parameter.empty):
                default = f"`{str(default).lower()}`" if isinstance(default, bool) else default
                assert f"{default} if left out" in text, option


def test_other_defaults_that_the_schema_repeats():
    for key, default in DEFAULTS.items():
        assert f"{default} if left out" in rows()[f"`figures.{key}`"][0]
    text = schema()["$defs"]["dataset"]["properties"]["recipe"]["description"]
    assert {*RECIPES} == {*re.findall(r"`(\w+)`", text)} - {"family"}
