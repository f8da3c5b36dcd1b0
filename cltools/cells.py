"""A cell: one point of the grid, its defaults, its checks and its identity.

The JSON schema `config.schema.json` is the only place that knows the keys of a cell, their ranges,
meanings and defaults.
"""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

from cltools.durations import Duration
from cltools.errors import InputError
from cltools.files import canonical_json, read_json, sha256_text
from cltools.recipes import RECIPES

# JSON Schema lets 2.0 pass for an integer, and NaN or infinity, which YAML has, for a number.
_TYPES = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
    {
        "integer": lambda _, v: isinstance(v, int) and not isinstance(v, bool),
        "number": lambda _, v: (
            isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
        ),
    }
)
_Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=_TYPES)


@cache
def schema() -> dict[str, Any]:
    return json.loads((resources.files("cltools") / "config.schema.json").read_text())


def cell_keys() -> dict[str, Any]:
    return schema()["$defs"]["cell"]["properties"]


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
    errors = _Validator(rules).iter_errors(value)
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
    match error.validator:
        case "additionalProperties" if isinstance(error.schema.get("properties"), dict):
            known = sorted(error.schema["properties"])
            unknown = next(key for key in sorted(error.instance) if key not in known)
            return unknown_key(f"{path}.{unknown}".strip("."), known)
        case "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            return f"config key {f'{path}.{missing}'.strip('.')} is missing: add it"
        case "enum":
            return f"config key {path} is {error.instance!r}, but must be one of " + ", ".join(
                map(repr, error.validator_value)
            )
        case "exclusiveMinimum" | "minimum" | "exclusiveMaximum" | "maximum":
            words = {
                "exclusiveMinimum": "greater than",
                "minimum": "at least",
                "exclusiveMaximum": "less than",
                "maximum": "at most",
            }[error.validator]
            limit = error.validator_value
            return f"config key {path} is {error.instance!r}, but must be {words} {limit}"
        case "type":
            hint = ""
            if isinstance(error.instance, str) and _is_number(error.instance):
                hint = " (YAML reads 1e-1 as text: write 0.1)"
            return f"config key {path} is {error.instance!r}, but must be of type " + (
                f"{error.validator_value}{hint}"
            )
        case "pattern" if error.schema in schema()["$defs"]["duration"]["anyOf"]:
            return (
                f"config key {path} is {error.instance!r}, but must be a duration such as 20, "
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


def _is_valid(cell: Mapping[str, Any]) -> bool:
    """Whether `check` would find nothing in a cell, a thousand times as fast where cells repeat.

    A cell is an object of known and required keys whose values are valid each on its own, and most
    values of a grid's cells are those of its other cells.
    """
    rules = schema()["$defs"]["cell"]
    if not (cell.keys() <= rules["properties"].keys() and cell.keys() >= set(rules["required"])):
        return False
    try:
        return all(_is_valid_value(key, canonical_json(value)) for key, value in cell.items())
    except (TypeError, ValueError):  # no JSON, or NaN
        return False


@cache
def _is_valid_value(key: str, text: str) -> bool:
    rules = {"$defs": schema()["$defs"], "$ref": f"#/$defs/cell/properties/{key}"}
    return _Validator(rules).is_valid(json.loads(text))


def resolve_recipe(choice: str | Mapping[str, Any], where: str) -> dict[str, Any]:
    """The full recipe from a family's name, or from a mapping with `family` and overrides."""
    family, overrides = (choice, {}) if isinstance(choice, str) else (choice["family"], choice)
    if family not in RECIPES:
        raise InputError(
            f"config key {where} names the view recipe {family!r}, but must be one of "
            f"{', '.join(sorted(RECIPES))}"
        )
    recipe = {**RECIPES[family], **{k: v for k, v in overrides.items() if k != "family"}}
    check(recipe, "recipe", where)
    return recipe


def resolve_cell(settings: Mapping[str, Any], where: str = "cell") -> dict[str, Any]:
    """Fill defaults, check every key and bring durations into one form.

    A bare number for `warmup` or in `checkpoints` counts in the unit of `horizon`. Raises
    InputError, one sentence that names the key.
    """
    cell = {**defaults(), **settings}
    if "recipe" in cell and (isinstance(cell["recipe"], str) or "family" in cell["recipe"]):
        cell["recipe"] = resolve_recipe(cell["recipe"], f"{where}.recipe")
    if not _is_valid(cell):
        check(cell, "cell", where)
    cell = _with_floats(cell, schema()["$defs"]["cell"])
    _check_encoder(cell, where)
    _check_framework(cell, where)
    horizon = Duration.parse(cell["horizon"])
    if horizon.count == 0:
        raise InputError(f"config key {where}.horizon is 0, but must be at least 1")
    cell["horizon"] = str(horizon)
    cell["warmup"] = str(Duration.parse(cell["warmup"], horizon.unit))
    cell["checkpoints"] = [str(Duration.parse(c, horizon.unit)) for c in cell["checkpoints"]]
    order = list(cell_keys()["objectives"]["items"]["enum"])
    cell["objectives"] = sorted(cell["objectives"], key=order.index)
    sources = list(cell_keys()["coupling"]["items"]["enum"])
    cell["coupling"] = sorted(cell["coupling"], key=sources.index)
    if cell["coupling"] == sources:
        # With nothing of its own, the second DCL model would be the first.
        cell["objectives"] = [o for o in cell["objectives"] if o != "dcl_twin"]
    return cell


def _with_floats(value: Any, rules: Mapping[str, Any]) -> Any:
    """Integers as floats where the schema has numbers: 1 and 1.0 are one temperature, one cell."""
    if "$ref" in rules:
        rules = schema()["$defs"][rules["$ref"].rpartition("/")[2]]
    kind = rules.get("type")
    if kind == "number":
        return float(value)
    if kind == "array" and "items" in rules:
        return [_with_floats(item, rules["items"]) for item in value]
    if kind == "object" and "properties" in rules:
        return {k: _with_floats(v, rules["properties"].get(k, {})) for k, v in value.items()}
    return value


def _check_encoder(cell: Mapping[str, Any], where: str) -> None:
    """Refuse keys that the encoder would not use: they would make another cell of the same run."""
    if cell["architecture"] in ("small_vit", "vit_small", "vit_base"):
        unused, kind = ("width", "stem"), "a ViT"
    else:
        unused, kind = ("patch",), "a ResNet"
    for key in unused:
        if cell[key] != defaults()[key]:
            raise InputError(
                f"config key {where}.{key} is {cell[key]!r}, but {cell['architecture']} is {kind}, "
                f"which has no {key}: leave it out"
            )


def _check_framework(cell: Mapping[str, Any], where: str) -> None:
    """Refuse what has no meaning in the cell's framework, and a queue that batches do not fill."""
    if cell["framework"] == "simclr":
        for key in ("queue_size", "key_momentum"):
            if cell[key] != defaults()[key]:
                raise InputError(
                    f"config key {where}.{key} is {cell[key]!r}, but only MoCo has a queue: set "
                    "framework to moco, or leave it out"
                )
        return
    queue, batch = cell["queue_size"], cell["batch_size"]
    if queue == 0 or queue % batch:
        raise InputError(
            f"config key {where}.queue_size is {queue}, but framework moco needs a multiple of "
            f"batch_size ({batch})"
        )
    if "scl" in cell["objectives"]:
        raise InputError(
            f"config key {where}.objectives lists scl, which has no form with a queue: take it "
            "out, or set framework to simclr"
        )
    for key, value in (("views", 2), ("view_forward", "together")):
        if cell[key] != value:
            raise InputError(
                f"config key {where}.{key} is {cell[key]!r}, but MoCo passes a query and a key of "
                f"each image through networks of their own: leave it at {value!r}"
            )


def canonical_cell(cell: Mapping[str, Any]) -> str:
    """Canonical JSON of a resolved cell without the keys at their default."""
    plain = _plain_cell(cell["horizon"])
    shown = {k: v for k, v in cell.items() if k in ("recipe", "horizon") or v != plain[k]}
    return canonical_json(shown)


@cache
def _plain_cell(horizon: str) -> dict[str, Any]:
    """The resolved cell that leaves every key but its horizon at the default; not to be changed."""
    return resolve_cell({"dataset": "any", "recipe": next(iter(RECIPES)), "horizon": horizon})


def cell_id(cell: Mapping[str, Any]) -> str:
    """Folder name of a cell: readable, and unique by a hash of the canonical cell."""
    classes = "all" if cell["classes"] is None else cell["classes"]
    readable = (
        f"{cell['dataset'].rsplit('-', 1)[0]}-C{classes}-tau{cell['tau']:g}-B{cell['batch_size']}"
        f"-{cell['lr_rule']}-seed{cell['seed']}"
    )
    return f"{readable}-{sha256_text(canonical_cell(cell))[:10]}"


def training_key(cell: Mapping[str, Any]) -> str:
    """Hash of all that decides one model's weights: the cell without its list of objectives.

    A model trained alone and the same model trained with others carry the same key.
    """
    return sha256_text(canonical_cell({**cell, "objectives": defaults()["objectives"]}))


def read_manifest(path: Path) -> dict[str, Any]:
    """What `cltools train` wrote of a cell; settings that are younger have their defaults.

    Raises InputError when it is missing or damaged.
    """
    manifest = read_json(path, made_by="cltools train")
    return {**manifest, "cell": {**defaults(), **manifest["cell"]}}
