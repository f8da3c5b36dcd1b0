"""A cell: one point of the grid, its defaults, its checks and its identity.

`schema.json` beside this file says what its keys mean.
"""

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from cltools.config.architectures import TIMM, TRANSFORMERS
from cltools.config.durations import Duration
from cltools.config.recipes import RECIPES
from cltools.config.schema import (
    cell_keys,
    check,
    defaults,
    key_path,
    schema,
    shown,
    unknown_key,
    validator,
)
from cltools.objectives import find, names
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_text


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
    # Not JSON, NaN, an integer beyond all floats, or too deep.
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False


@cache
def _is_valid_value(key: str, text: str) -> bool:
    rules = {"$defs": schema()["$defs"], "$ref": f"#/$defs/cell/properties/{key}"}
    return bool(validator()(rules).is_valid(json.loads(text)))


def resolve_recipe(choice: str | Mapping[str, Any], where: str) -> dict[str, Any]:
    """The full recipe from a family's name, or from a mapping with `family` and overrides.

    Raises InputError, one sentence that names the key (`where` is the path of `choice`).
    """
    check(choice, "recipe_choice", where)
    family, overrides = (choice, {}) if isinstance(choice, str) else (choice["family"], choice)
    if family not in RECIPES:
        raise InputError(
            f"config key {where} names the view recipe {shown(family)}, but must be one of "
            f"{', '.join(sorted(RECIPES))}"
        )
    recipe = {**RECIPES[family], **{k: v for k, v in overrides.items() if k != "family"}}
    check(recipe, "recipe", where)
    _check_ranges(recipe, where)
    return recipe


def _check_ranges(recipe: Mapping[str, Any], where: str) -> None:
    for key, rule in schema()["$defs"]["recipe"]["properties"].items():
        if rule.get("$ref") == "#/$defs/range" and recipe[key][0] > recipe[key][1]:
            raise InputError(
                f"config key {where}.{key} is {recipe[key]!r}, but must have the smaller number "
                "first: exchange them"
            )


def resolve_cell(settings: Mapping[str, Any], where: str = "cell") -> dict[str, Any]:
    """Fill defaults, check every key and bring durations into one form.

    A bare number for `warmup` or in `checkpoints` counts in the unit of `horizon`. Raises
    InputError, one sentence that names the key.
    """
    check(settings, "settings", where)
    cell = {**defaults(), **settings}
    recipe = cell.get("recipe", {})
    if not isinstance(recipe, Mapping) or "family" in recipe:
        cell["recipe"] = resolve_recipe(recipe, f"{where}.recipe")
    if not _is_valid(cell):
        check(cell, "cell", where)
    if cell["class_draw"] == "seed":
        cell["class_draw"] = cell["seed"]
    _check_ranges(cell["recipe"], f"{where}.recipe")
    cell = dict(_with_floats(cell, schema()["$defs"]["cell"]))
    cell["objective_settings"] = _objective_settings(cell, f"{where}.objective_settings")
    _check_encoder(cell, where)
    _check_projector(cell, where)
    _check_framework(cell, where)
    horizon = Duration.parse(cell["horizon"])
    if horizon.count == 0:
        raise InputError(f"config key {where}.horizon is 0, but must be at least 1")
    cell["horizon"] = str(horizon)
    warmup = Duration.parse(cell["warmup"], horizon.unit)
    if warmup.unit == horizon.unit and warmup.count > horizon.count:
        raise InputError(
            f"config key {where}.warmup is {warmup}, beyond the horizon of {horizon}: lower it or "
            "raise the horizon"
        )
    cell["warmup"] = str(warmup)
    cell["checkpoints"] = [str(Duration.parse(c, horizon.unit)) for c in cell["checkpoints"]]
    cell["objectives"] = in_order(cell["objectives"])
    _check_labels(cell, where)
    sources = list(cell_keys()["coupling"]["items"]["enum"])
    cell["coupling"] = sorted(cell["coupling"], key=sources.index)
    return cell


def _objective_settings(cell: Mapping[str, Any], where: str) -> dict[str, dict[str, float]]:
    """The settings of the cell's objectives that are not at their defaults, checked.

    Raises InputError for settings of objectives that the cell has not, or that these have not, for
    numbers out of range, and where an installed package with an objective is at fault.
    """
    trained = {found.name: found for found in map(find, cell["objectives"])}
    changed: dict[str, dict[str, float]] = {}
    for name, settings in sorted(cell["objective_settings"].items()):
        if name not in trained:
            raise InputError(
                f"config key {key_path(where, name)} is about an objective that the cell does not "
                "train: add it to objectives, or take its settings out"
            )
        known = trained[name].settings
        for key, value in sorted(settings.items()):
            place = key_path(where, name, key)
            if key not in known:
                if not known:
                    raise InputError(f"config key {place} is unknown: {name} has no settings")
                raise InputError(unknown_key(place, known))
            low, high = known[key].at_least, known[key].below
            if not low <= value < high:
                below = f" and below {high:g}" if math.isfinite(high) else ""
                raise InputError(
                    f"config key {place} is {shown(value)}, but must be at least {low:g}{below}"
                )
            if value != known[key].default:
                changed.setdefault(name, {})[key] = float(value) + 0.0  # which makes 0 of -0
    return changed


def in_order(objectives: Iterable[str]) -> list[str]:
    """The distinct objectives in the order of tables and figures.

    Objectives with labels of their own come last, and more classes after fewer.
    """
    known, kinds = names(), ["", *schema()["$defs"]["objective"]["objective"]]

    def rank(objective: str) -> tuple[int, int, int]:
        loss, kind, number = parts_of(objective)
        return kinds.index(kind), number, known.index(loss)

    return sorted(set(objectives), key=rank)


def parts_of(objective: str) -> tuple[str, str, int]:
    """("nscl", "coarse", 2) of "nscl:coarse2"; "" and 0 for what is not there."""
    loss, _, labels = objective.partition(":")
    kind = labels.rstrip("0123456789")
    return loss, kind, int(labels[len(kind) :] or 0)


def _check_labels(cell: Mapping[str, Any], where: str) -> None:
    """Refuse to group the classes of a cell into as many groups as there are classes."""
    for objective in cell["objectives"]:
        _, kind, number = parts_of(objective)
        if kind == "coarse" and cell["classes"] is not None and number >= cell["classes"]:
            raise InputError(
                f"config key {where}.objectives asks for {objective}, but the cell has only "
                f"{cell['classes']} classes: lower the number, or take the objective out"
            )


def _with_floats(value: Any, rules: Mapping[str, Any]) -> Any:
    """Integers as floats where the schema has numbers: 1 and 1.0 are one temperature, one cell."""
    if "$ref" in rules:
        rules = schema()["$defs"][rules["$ref"].rpartition("/")[2]]
    kind = rules.get("type")
    if kind == "number":
        return float(value) + 0.0  # which makes 0 of -0
    if kind == "array" and "items" in rules:
        return [_with_floats(item, rules["items"]) for item in value]
    if kind == "object" and "properties" in rules:
        return {k: _with_floats(v, rules["properties"].get(k, {})) for k, v in value.items()}
    return value


def _check_encoder(cell: Mapping[str, Any], where: str) -> None:
    """Refuse keys that the encoder would not use: they would make another cell of the same run."""
    if cell["architecture"] in TRANSFORMERS:
        unused, kind = ["width", "stem"], "a ViT"
    elif cell["architecture"].startswith(TIMM):
        unused, kind = ["width", "stem"], "a model of timm"
    else:
        unused, kind = ["patch"], "a ResNet"
    for key in unused:
        if cell[key] != defaults()[key]:
            raise InputError(
                f"config key {where}.{key} is {cell[key]!r}, but {cell['architecture']} is {kind}, "
                f"which has no {key}: leave it out"
            )


def _check_projector(cell: Mapping[str, Any], where: str) -> None:
    """Refuse keys that the projector would not use, as `_check_encoder` does."""
    unused = {
        0: ("projector_norm", "projector_hidden", "projector_dim"),
        1: ("projector_hidden",),
    }
    for key in unused.get(cell["projector_layers"], ()):
        usual = defaults()[key]
        if cell[key] != usual:
            raise InputError(
                f"config key {where}.{key} is {cell[key]!r}, which means nothing with "
                f"projector_layers {cell['projector_layers']}: leave it out, or set it to its "
                f"default {usual} where it is set for other cells too"
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
    for objective in cell["objectives"]:
        if find(objective).contrastive and find(objective).queue is None:
            raise InputError(
                f"config key {where}.objectives lists {objective}, which has no form with a queue: "
                "take it out, or set framework to simclr"
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
