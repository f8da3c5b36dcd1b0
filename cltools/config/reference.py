"""The tables of all keys in config/README.md, made from the schema.

Write them again after a change of the schema:

    python -m cltools.config.reference config/README.md
"""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import yaml

from cltools.config.schema import schema
from cltools.objectives import built_in

Rule = Mapping[str, Any]
Row = tuple[str, str, str, str]  # key, meaning, allowed values, default; all Markdown

STAGES = ("theory", "merge", "layers", "project", "surrogate", "minimise", "regularity")
# Table -> the definitions of the schema whose keys it lists.
TABLES: dict[str, tuple[str, ...]] = {
    "experiment": (),  # the top level of a config
    "data sets": ("dataset",),
    "recipes": ("recipe",),
    "cells": ("cell",),
    "sweeps": ("product", "sweep_of_parts"),
    "theory and simulations": STAGES,
}
HEADS = ("key", "meaning", "allowed", "default")
REQUIRED = "(required)"
# A cell is checked after these were filled in from its config, a recipe after its family's values.
FILLED_IN = {"cell": {"dataset", "recipe"}, "recipe": {*schema()["$defs"]["recipe"]["required"]}}
_ANY_NAME = re.compile(r"\[.*\]\+")  # in a pattern of the schema
TYPES = {"string": "text", "boolean": "`true`, `false`", "object": "mapping", "null": "`null`"}


def written(text: str) -> str:
    """The text of a page with every table between its two markers written again.

    Raises ValueError if the page lacks the markers of a table.
    """
    for name in TABLES:
        start, end = f"<!-- keys: {name} -->", f"<!-- end of keys: {name} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"the page needs one pair of lines {start} and {end}")
        block = f"{start}\n{table(name)}\n{end}"
        text = pattern.sub(lambda _, block=block: block, text)  # type: ignore[misc]
    return text


def table(name: str) -> str:
    """One table in Markdown. Columns that would be empty are left out."""
    rows = [HEADS, *rows_of(name)]
    shown = [column for column in zip(*rows, strict=True) if any(column[1:])]
    head, *body = (" | ".join(cells) for cells in zip(*shown, strict=True))
    line = "|".join(["---"] * len(shown))
    return "\n".join([f"| {head} |", f"|{line}|", *(f"| {cells} |" for cells in body)])


def rows_of(name: str) -> list[Row]:
    """The rows of one of TABLES, in the order of the schema."""
    if name == "experiment":
        return list(_top_level())
    rows: dict[str, Row] = {}  # sweeps: a key that both forms have stands once
    for definition in TABLES[name]:
        rule = schema()["$defs"][definition]
        if definition in STAGES:
            rows[definition] = (f"`{definition}`", rule["description"], "mapping", "")
        required = {*rule.get("required", ())} - FILLED_IN.get(definition, set())
        for row in _rows(rule, f"{definition}." if definition in STAGES else "", required):
            rows.setdefault(row[0], row)
    if name == "sweeps":
        stop = schema()["$defs"]["stop"]
        rows["stop"] = ("`epochs`, `steps`", stop["description"], allowed(stop), "")
    return list(rows.values())


def _top_level() -> Iterator[Row]:
    """Keys of a config, those of its own small mappings among them; stages have another table."""
    required = schema()["required"]
    for key, rule in schema()["properties"].items():
        if key in STAGES:
            continue
        if "properties" in rule:
            if "description" in rule:
                yield f"`{key}`", rule["description"], "mapping", ""
            yield from _rows(rule, f"{key}.", set())
        else:
            yield _row(key, rule, key in required)


def _rows(rule: Rule, prefix: str, required: Set[str]) -> Iterator[Row]:
    for key, one in rule["properties"].items():
        yield _row(prefix + key, one, key in required)


def _row(key: str, rule: Rule, required: bool) -> Row:
    rule = resolved(rule)
    default = f"`{_as_yaml(rule['default'])}`" if "default" in rule else REQUIRED * required
    return f"`{key}`", rule["description"], allowed(rule), default


def _as_yaml(value: Any) -> str:
    """A value as one writes it in a config."""
    text: str = yaml.safe_dump([value], default_flow_style=True, width=math.inf)
    return text.strip()[1:-1]


def resolved(rule: Rule) -> Rule:
    """A rule with what it refers to filled in; what it says itself goes first."""
    if "$ref" not in rule:
        return rule
    name = rule["$ref"].rpartition("/")[2]
    return {**resolved(schema()["$defs"][name]), **rule}


def allowed(rule: Rule) -> str:
    """What a value may be, in words."""
    rule = resolved(rule)
    if rule.get("pattern") == schema()["$defs"]["duration"]["pattern"]:
        return "duration"
    if "enum" in rule:
        return ", ".join(f"`{value}`" for value in rule["enum"])
    types = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    return " or ".join(_of_type(kind, rule) for kind in types)


def _of_type(kind: str, rule: Rule) -> str:
    if kind == "array":
        return _list(rule)
    if kind in ("integer", "number"):
        return " ".join(filter(None, (kind, _range(rule))))
    if "objective" in rule:
        return ", ".join(f"`{name}`" for name in built_in()) + ", or with labels of its own"
    if kind == "string" and (choice := re.fullmatch(r"\^\(([^()]+)\)\\Z", rule.get("pattern", ""))):
        return ", ".join(f"`{_ANY_NAME.sub('NAME', one)}`" for one in choice[1].split("|"))
    return TYPES[kind]


def _list(rule: Rule) -> str:
    items = resolved(rule.get("items", {}))
    if "enum" in items or "objective" in items:
        return f"list of {allowed(items)}"
    first, _, rest = (allowed(items) if items else "value").partition(" ")
    several = f"{first}s {rest}".strip()
    if rule.get("minItems") == rule.get("maxItems") == 2:
        return f"two {several}"
    return f"list of {several}"


def _range(rule: Rule) -> str:
    low = {"minimum": "from {}", "exclusiveMinimum": "above {}"}
    high = {"maximum": " to {}", "exclusiveMaximum": ", below {}"}
    if "minimum" in rule:  # the stricter of the two
        del low["exclusiveMinimum"]
    ends = ((text, rule[k]) for k, text in {**low, **high}.items() if k in rule)
    return "".join(text.format(_number(end)) for text, end in ends)


def _number(number: float) -> str:
    """A limit as one writes it."""
    if number == 2**63 - 1:
        return "2^63 - 1"
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(written(page.read_text()))
