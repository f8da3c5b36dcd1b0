"""The schema of configs, and what it says of a value: defaults, checks, sentences.

The JSON schema `schema.json` is the only place that knows the keys of a cell, their ranges,
meanings and defaults.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, cast

from cltools.objectives import GROUP, built_in, find, names
from cltools.runtime.errors import InputError

if TYPE_CHECKING:
    import jsonschema

# What a config may hold, far beyond any real one. More would only make the checks slow.
DEEPEST = 20  # levels of mappings and lists
MOST_VALUES = 1_000_000
LONGEST_LIST = 10_000
LONGEST_INTEGER = 512  # bits; Python has neither text nor a float for much longer ones
LONGEST_SHOWN = 80  # characters of a value in a sentence

_WORDS = {"object": "mapping", "array": "list", "string": "text"}  # the others are plain English


def _is_number(_: Any, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unique(_: Any, wanted: bool, value: Any, __: Any) -> "Iterator[jsonschema.ValidationError]":
    """As the library's, which takes minutes for long lists of mixed values."""
    import jsonschema

    if not (wanted and isinstance(value, list)):
        return
    whole = [int(v) if isinstance(v, float) and v.is_integer() else v for v in value]
    if len({json.dumps(one, sort_keys=True) for one in whole}) < len(value):
        yield jsonschema.ValidationError("has equal entries")


def _objective(
    _: Any, kinds: Mapping[str, list[int]], value: Any, __: Any
) -> "Iterator[jsonschema.ValidationError]":
    """The keyword `objective`: the name of one, which may have labels of its own after a colon.

    `kinds` are the kinds of labels, with the smallest and the largest number that follows, if one
    does. Of objectives of other packages, the code is imported only if the value names one.
    """
    if not isinstance(value, str) or value in names():
        return
    found = re.fullmatch("([a-z0-9_]+):([a-z]+)([1-9][0-9]{0,3})?", value)
    if found and found[2] in kinds and found[1] in names() and find(found[1]).labels:
        limits, number = kinds[found[2]], found[3]
        if not (limits or number):
            return
        if limits and number and limits[0] <= int(number) <= limits[1]:
            return
    import jsonschema

    yield jsonschema.ValidationError(f"{value!r} is no objective")


@cache
def validator() -> Any:
    """The class of jsonschema's validators with the rules above; help texts do not wait for it."""
    import jsonschema

    # JSON Schema lets 2.0 pass for an integer, and NaN or infinity, which YAML has, for a number.
    types = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, v: isinstance(v, int) and not isinstance(v, bool),
            "number": _is_number,
        }
    )
    # The stubs have no types for what `extend` makes.
    return jsonschema.validators.extend(  # type: ignore[no-untyped-call]
        jsonschema.Draft202012Validator,
        {"uniqueItems": _unique, "objective": _objective},
        type_checker=types,
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
    check_plain(value, where)
    rules = schema()
    if definition is not None:
        rules = {"$defs": rules["$defs"], "$ref": f"#/$defs/{definition}"}
    import jsonschema

    errors = validator()(rules).iter_errors(value)
    error = jsonschema.exceptions.best_match(errors)
    if error is not None:
        raise InputError(_sentence(error, where))


def check_plain(value: Any, where: str) -> None:
    """Refuse what no JSON has, and what is too deep, large or long to be a config.

    YAML has such values: dates, sets, keys that are numbers, lists that contain themselves. Raises
    InputError.
    """
    left: list[tuple[Any, tuple[str, ...]]] = [(value, (where,))]
    seen = 0
    while left:
        value, path = left.pop()
        seen += 1
        if len(path) > DEEPEST or seen > MOST_VALUES:
            much = f"{DEEPEST} levels" if len(path) > DEEPEST else f"{MOST_VALUES:,} values"
            raise InputError(
                f"config key {key_path(*path[:4]) or 'of the top level'} holds more than {much}: "
                "make it smaller"
            )
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise InputError(
                        f"config key {key_path(*path, str(key))} is {shown(key)}, but must be "
                        "text: put it in quotes"
                    )
            left += [(one, (*path, key)) for key, one in value.items()]
        elif isinstance(value, list):
            if len(value) > LONGEST_LIST:
                raise InputError(
                    f"config key {key_path(*path)} is wrong: a list of {len(value)} entries must "
                    f"have at most {LONGEST_LIST}"
                )
            left += [(one, (*path, str(number))) for number, one in enumerate(value)]
        elif isinstance(value, int) and value.bit_length() > LONGEST_INTEGER:
            raise InputError(
                f"config key {key_path(*path)} is an integer of {value.bit_length()} bits, but "
                f"must have at most {LONGEST_INTEGER}: make it smaller"
            )
        elif not isinstance(value, str | int | float | None):
            raise InputError(
                f"config key {key_path(*path)} is {shown(value)}, but must be text, a number, a "
                "list or a mapping: put text in quotes"
            )


def key_path(*parts: str) -> str:
    """Keys as a path for sentences, on one line and not longer than a line can be."""
    shortened = (
        part if len(part) <= LONGEST_SHOWN else part[: LONGEST_SHOWN - 1] + "…"
        for part in parts
        if part
    )
    return ".".join(one if one.isprintable() else repr(one) for one in shortened)


def shown(value: Any) -> str:
    """A value as sentences show it: on one line, and shortened if it is long."""
    if value is None:
        return "empty (null)"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"


def with_defaults(settings: Mapping[str, Any], definition: str) -> dict[str, Any]:
    """Settings of the schema's definition of that name, checked, with defaults for the rest.

    Raises InputError, one sentence that names the key.
    """
    check(settings, definition, definition)
    rules = schema()["$defs"][definition]["properties"]
    return {**{key: rule["default"] for key, rule in rules.items()}, **settings}


def _sentence(error: "jsonschema.ValidationError", where: str) -> str:
    parts = [where, *(str(part) for part in error.absolute_path)]
    path = key_path(*parts)
    # Their types go with the validator.
    value, rules, limit = (
        cast(Any, part) for part in (error.instance, error.schema, error.validator_value)
    )
    match error.validator:
        case "additionalProperties":
            known = sorted(rules["properties"])
            unknown = next(key for key in sorted(value) if key not in known)
            return unknown_key(key_path(*parts, unknown), known)
        case "required":
            missing = next(key for key in limit if key not in value)
            return f"config key {key_path(*parts, missing)} is missing: add it"
        case "enum":
            must = f"be one of {', '.join(map(repr, limit))}"
        case "not":
            folders = ", ".join(map(repr, limit.get("enum", ())))
            must = f"be none of {folders}, which are folders of results" if folders else "be odd"
        case "objective":
            kinds = (kind + str(most[0] if most else "") for kind, most in limit.items())
            with_labels = (name for name, one in built_in().items() if one.labels)
            must = (
                f"be one of {', '.join(names())}, an installed one (entry point in {GROUP}), or "
                f"{', '.join(with_labels)} with labels of its own, after a colon: "
                f"{', '.join(kinds)}, with any such number"
            )
        case "type":
            must = f"be of type {_types(limit)}{_hint(value)}"
        case "pattern":
            must = rules["expects"]
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            must = f"be {_BOUNDS[error.validator]} {limit}"
        case _:
            must = _SIZES[str(error.validator)].format(limit)
            return f"config key {path or 'of the top level'} is wrong: {shown(value)} must {must}"
    return f"config key {path or 'of the top level'} is {shown(value)}, but must {must}"


_BOUNDS = {
    "exclusiveMinimum": "greater than",
    "minimum": "at least",
    "exclusiveMaximum": "less than",
    "maximum": "at most",
}
_SIZES = {
    "minItems": "have at least {} entries",
    "maxItems": "have at most {} entries",
    "minProperties": "have at least {} entries",
    "maxProperties": "have at most {} entries",
    "maxLength": "have at most {} characters",
    "uniqueItems": "have every entry once",
}


def _types(names: str | list[str]) -> str:
    return " or ".join(
        _WORDS.get(name, name) for name in ([names] if isinstance(names, str) else names)
    )


def _hint(value: Any) -> str:
    """What YAML makes of some texts and numbers that look like something else."""
    if isinstance(value, str) and _reads_as_number(value):
        return " (YAML reads 1e-1 as text: write 0.1)"
    if isinstance(value, float):
        return f" (write {int(value)})" if value.is_integer() else ""
    return ""


def _reads_as_number(text: str) -> bool:
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
