"""The schema of configs, and what it says of a value: defaults, checks, sentences.

The JSON schema `schema.json` is the only place that knows the keys of a cell, their ranges,
meanings and defaults.
"""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any, cast

import jsonschema

from cltools.runtime.errors import InputError

# JSON Schema lets 2.0 pass for an integer, and NaN or infinity, which YAML has, for a number.
_TYPES = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
    {
        "integer": lambda _, v: isinstance(v, int) and not isinstance(v, bool),
        "number": lambda _, v: (
            isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
        ),
    }
)
# The stubs have no types for what `extend` makes.
Validator: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator, type_checker=_TYPES
)


@cache
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (resources.files("cltools.config") / "schema.json").read_text()
    )
    return found


def cell_keys() -> dict[str, Any]:
    keys: dict[str, Any] = schema()["$defs"]["cell"]["properties"]
    return keys


def defaults() -> dict[str, Any]:
    """The default of every cell key that has one."""
    return {key: rule["default"] for key, rule in cell_keys().items() if "default" in rule}


def check(value: Any, definition: str | None, where: str) -> None:
    """Check `value` against the config schema, or one of its definitions.

    Raises InputError, one sentence that names the key (`where` is the path of `value`).
    """
    rules = schema()
    if definition is not None:
        rules = {"$defs": rules["$defs"], "$ref": f"#/$defs/{definition}"}
    errors = Validator(rules).iter_errors(value)
    error = jsonschema.exceptions.best_match(errors)
    if error is not None:
        raise InputError(_sentence(error, where))


def with_defaults(settings: Mapping[str, Any], definition: str) -> dict[str, Any]:
    """Settings of the schema's definition of that name, checked, with defaults for the rest.

    Raises InputError, one sentence that names the key.
    """
    check(settings, definition, definition)
    rules = schema()["$defs"][definition]["properties"]
    return {**{key: rule["default"] for key, rule in rules.items()}, **settings}


def _sentence(error: jsonschema.ValidationError, where: str) -> str:
    path = ".".join([where, *(str(part) for part in error.absolute_path)]).strip(".")
    # Their types go with the validator.
    value, rules, limit = (
        cast(Any, part) for part in (error.instance, error.schema, error.validator_value)
    )
    match error.validator:
        case "additionalProperties" if isinstance(rules.get("properties"), dict):
            names = sorted(rules["properties"])
            unknown = next(key for key in sorted(value) if key not in names)
            return unknown_key(f"{path}.{unknown}".strip("."), names)
        case "required":
            missing = next(key for key in limit if key not in value)
            return f"config key {f'{path}.{missing}'.strip('.')} is missing: add it"
        case "enum":
            return f"config key {path} is {value!r}, but must be one of " + ", ".join(
                map(repr, limit)
            )
        case "exclusiveMinimum" | "minimum" | "exclusiveMaximum" | "maximum":
            words = {
                "exclusiveMinimum": "greater than",
                "minimum": "at least",
                "exclusiveMaximum": "less than",
                "maximum": "at most",
            }[error.validator]
            return f"config key {path} is {value!r}, but must be {words} {limit}"
        case "type":
            hint = ""
            if isinstance(value, str) and _is_number(value):
                hint = " (YAML reads 1e-1 as text: write 0.1)"
            return f"config key {path} is {value!r}, but must be of type " + (f"{limit}{hint}")
        case "pattern" if error.schema in schema()["$defs"]["duration"]["anyOf"]:
            return (
                f"config key {path} is {value!r}, but must be a duration such as 20, "
                "'20 epochs' or '300 steps'"
            )
    return f"config key {path or 'of the top level'} is wrong: {error.message}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def unknown_key(path: str, known: Iterable[str]) -> str:
    """The sentence for an unknown key, with the nearest known one if there is any."""
    known = sorted(known)
    close = difflib.get_close_matches(path.rsplit(".", 1)[-1], known, n=1)
    remedy = f"did you mean {close[0]}?" if close else f"known keys are {', '.join(known)}"
    return f"config key {path} is unknown: {remedy}"
