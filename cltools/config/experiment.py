"""From a config to the cells that it asks for. Light: no numerical library is imported here."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from cltools.config.cells import cell_id, resolve_cell, resolve_recipe
from cltools.config.durations import Duration
from cltools.config.grids import GRIDS, grid_settings
from cltools.config.schema import check, key_path, schema, shown, unknown_key, with_defaults
from cltools.config.sweeps import alike, base_sweep
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_text
from cltools.runtime.yaml_text import parse_yaml, read_yaml

STOP_KEYS = ("epochs", "steps")
MOST_CELLS = 20_000  # of all sweeps together; to work them out takes some 30 seconds
# Stages that work on the cells of the sweeps that their config key `sweeps` names.
OF_SOME_SWEEPS = ("merge", "layers")
# What a data set's definition says that does not decide which images it holds.
NOT_IDENTITY = ("path", "root", "download", "recipe")


@dataclass(frozen=True)
class Plan:
    """One cell of an experiment: its settings, where training stops, the sweeps it belongs to."""

    cell: dict[str, Any]
    dataset: str
    until: Duration
    sweeps: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """A checked config: `plans` by cell id, in the order of the config."""

    config: dict[str, Any]
    stores: dict[str, dict[str, Any]]
    plans: dict[str, Plan]
    sweeps: dict[str, dict[str, Any]]
    regularity_cell: dict[str, Any] | None  # of the stage of that name, None where not asked for

    @property
    def name(self) -> str:
        return str(self.config["experiment"])

    @property
    def reference(self) -> str:
        """The objective that all others are compared with."""
        return str(self.setting("reference"))

    def setting(self, *path: str) -> Any:
        """A config value by its path, or the schema's default."""
        value, rules = self.config, schema()
        for key in path:
            rules = rules["properties"][key]
            value = value.get(key, rules.get("default", {}))
        return value

    def settings_of(self, stage: str) -> dict[str, Any]:
        """A stage's own settings, with defaults for the rest. Raises InputError."""
        return with_defaults(self.setting(stage), stage)

    def summary(self) -> dict[str, Any]:
        """Cells and sweeps as later stages need them, for JSON."""
        return {
            "experiment": self.name,
            "reference": self.reference,
            # A list keeps the config's order, which figures follow; JSON keys are sorted.
            "sweeps": [{"name": name, **about} for name, about in self.sweeps.items()],
            "cells": {
                identity: {
                    "dataset": plan.dataset,
                    "until": str(plan.until),
                    "sweeps": list(plan.sweeps),
                    "cell": plan.cell,
                }
                for identity, plan in self.plans.items()
            },
        }

    @cached_property
    def without_cells(self) -> list[str]:
        """The stages of this experiment that need no trained cell: it has those that it names."""
        return [s for s in ("surrogate", "minimise", "regularity") if s in self.config]

    @cached_property
    def further_stages(self) -> list[str]:
        """The stages that not every experiment has, and whose work figures show."""
        base = base_sweep(self.sweeps)
        others = {
            stage: base in self.setting(stage).get("sweeps", ()) for stage in OF_SOME_SWEEPS
        } | {"project": "project" in self.config}
        return [*self.without_cells, *(stage for stage, there in others.items() if there)]

    @cached_property
    def batches(self) -> dict[str, list[str]]:
        """Cell ids by job of the short stages (`cells_per_job`); a batch of one is its cell."""
        return self._in_batches(list(self.plans))

    def batches_of(self, stage: str) -> dict[str, list[str]]:
        """The batches of a stage: those of all cells or, of `OF_SOME_SWEEPS`, of these sweeps'."""
        if stage not in OF_SOME_SWEEPS:
            return self.batches
        chosen = set(self.setting(stage).get("sweeps", ()))
        return self._in_batches([c for c, plan in self.plans.items() if chosen & set(plan.sweeps)])

    @cached_property
    def pictured_cell(self) -> str:
        """The first cell of the base sweep, which stage `project` makes pictures of."""
        base = base_sweep(self.sweeps)
        return next(cell for cell, plan in self.plans.items() if base in plan.sweeps)

    def _in_batches(self, ids: list[str]) -> dict[str, list[str]]:
        size = self.setting("cells_per_job")
        if size == 1:
            return {cell: [cell] for cell in ids}
        chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
        return {f"batch{number:03d}": chunk for number, chunk in enumerate(chunks)}


def identity_of(definition: Mapping[str, Any]) -> dict[str, Any]:
    """What of a data set's definition decides which images it holds; files may be moved."""
    return {k: v for k, v in definition.items() if k not in NOT_IDENTITY}


def store_id(name: str, definition: Mapping[str, Any]) -> str:
    """Folder name of a data set's store."""
    return f"{name}-{sha256_text(canonical_json(identity_of(definition)))[:8]}"


def read_config(path: Path) -> dict[str, Any]:
    """A config file as a mapping. Raises InputError."""
    config = read_yaml(path, "config file")
    if not isinstance(config, dict):
        raise InputError(f"config file {path} holds no settings: see config/README.md")
    return config


def nested_settings(given: Iterable[str], read: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of `--config` that have keys of their own, read as in a config file.

    `given` is what stands on the command line, such as "base={tau: 0.2}". `read` is what Snakemake
    made of it, where the 0.2 is text. Each setting comes as a config of its own, here
    {"base": {"tau": 0.2}}. Raises InputError, as `parse_yaml` does.
    """
    for key, _, text in (setting.partition("=") for setting in given):
        if isinstance(read.get(key), Mapping | list):
            yield {key: parse_yaml(text, f"--config {key}")}


def load_experiment(config: Mapping[str, Any]) -> Experiment:
    """Check a config and work out its cells; cells that sweeps share stand once.

    Raises InputError, one sentence that names the key at fault.
    """
    check(config, None, "")
    config = dict(config)
    for name, definition in config["datasets"].items():
        resolve_recipe(definition["recipe"], f"datasets.{name}.recipe")
    _check_sweeps(config["sweeps"])
    _check_gpus(Experiment(config, {}, {}, {}, None).setting)
    for section in GRIDS:
        if section in config:
            grid_settings(config[section], section)
    ids = {name: store_id(name, definition) for name, definition in config["datasets"].items()}
    stores = {
        ids[name]: {key: value for key, value in definition.items() if key != "recipe"}
        for name, definition in config["datasets"].items()
    }

    _plan(dict(config["base"]), config["datasets"], ids, "base", "base")  # its own faults
    plans: dict[str, Plan] = {}
    sweeps = {}
    for name, sweep in config["sweeps"].items():
        parts = sweep.get("parts", [sweep])
        factors = {factor for part in parts for factor in part.get("vary", {})}
        sweeps[name] = {
            "label": sweep.get("label", name.replace("_", " ")),
            "factors": sorted(factors),
        }
        for part in parts:
            where = f"sweeps.{name}"
            for settings in _points(config["base"], part, where):
                _add(plans, _plan(settings, config["datasets"], ids, name, where))
        cells = [plan.cell for plan in plans.values() if name in plan.sweeps]
        _check_told_apart(cells, factors, f"sweeps.{name}")
        numbers = {cell["classes"] for cell in cells}
        sweeps[name]["classes"] = sorted(n for n in numbers if isinstance(n, int))
    for stage in OF_SOME_SWEEPS:
        unknown = sorted(set(config.get(stage, {}).get("sweeps", ())) - set(sweeps))
        if unknown:
            raise InputError(unknown_key(f"{stage}.sweeps.{unknown[0]}", sweeps))
    reference = config.get("reference")
    if reference and not any(reference in plan.cell["objectives"] for plan in plans.values()):
        raise InputError(
            f"config key reference is {reference}, which no cell trains: add it to objectives"
        )
    if config.get("reference", "dcl") in config.get("merge", {}).get("with", ()):
        raise InputError(
            "config key merge.with names the reference, at which all lines begin: name others"
        )
    if "project" in config and base_sweep(sweeps) is None:
        raise InputError(
            "config key project needs a sweep that varies only the seed, whose first cell it shows:"
            " add one to sweeps"
        )
    regularity = None
    if "regularity" in config:
        settings = {**config["base"], **config["regularity"].get("set", {})}
        where = "regularity.set"
        regularity = _plan(settings, config["datasets"], ids, where, where).cell
    return Experiment(config, stores, plans, sweeps, regularity)


def _check_gpus(setting: Callable[[str], Any]) -> None:
    """Check that the settings of a cell's GPUs fit together."""
    gpus, nodes = setting("gpus_per_cell"), setting("nodes_per_cell")
    if gpus % nodes:
        raise InputError(
            f"config key gpus_per_cell is {gpus}, which nodes_per_cell ({nodes}) does not divide: "
            "make it a multiple"
        )
    if gpus > 1 and setting("cells_per_gpu") > 1:
        raise InputError(
            f"config key cells_per_gpu is {setting('cells_per_gpu')}, but gpus_per_cell is {gpus}: "
            "set one of them to 1"
        )


def _check_sweeps(sweeps: Mapping[str, Any]) -> None:
    """Check the keys of all sweeps, and that their cells are not too many to be worked out."""
    cells = 0
    for name, sweep in sweeps.items():
        check(sweep, "sweep_of_parts" if "parts" in sweep else "product", f"sweeps.{name}")
        for part in sweep.get("parts", [sweep]):
            cells += prod(len(values) for values in part.get("vary", {}).values())
        if cells > MOST_CELLS:
            raise InputError(
                f"config key sweeps asks for {cells:,} cells by its sweep {name}, but an "
                f"experiment may have {MOST_CELLS:,}: vary less, or make several experiments of it"
            )


def _check_told_apart(cells: list[dict[str, Any]], factors: set[str], where: str) -> None:
    """Refuse two cells that no factor tells apart: figures would take them for one, of two runs."""
    if (pair := alike(cells, factors)) is not None:
        other, cell = pair
        differing = sorted(k for k in {*cell, *other} if cell.get(k) != other.get(k))
        raise InputError(
            f"config key {where} has two cells that differ in {', '.join(differing)}, which is "
            f"under no vary: put {differing[0]} there, or the cells in sweeps of their own"
        )


def _points(
    base: Mapping[str, Any], part: Mapping[str, Any], where: str
) -> Iterator[dict[str, Any]]:
    both = sorted(set(part.get("set", {})) & set(part.get("vary", {})))
    if both:
        raise InputError(
            f"config key {where} both sets and varies {key_path(both[0])}: keep one of them"
        )
    fixed = {**base, **part.get("set", {})}
    if any(key in part.get("set", {}) for key in (*STOP_KEYS, "horizon")):
        # A sweep with its own horizon does not stop where the base stops, unless it says so.
        inherited = [key for key in STOP_KEYS if key not in part.get("set", {})]
        fixed = {key: value for key, value in fixed.items() if key not in inherited}
    vary = part.get("vary", {})
    for values in product(*vary.values()):
        yield {**fixed, **dict(zip(vary, values, strict=True))}


def _plan(
    settings: dict[str, Any],
    datasets: Mapping[str, Any],
    ids: Mapping[str, str],
    sweep: str,
    where: str,
) -> Plan:
    stops = {key: settings.pop(key) for key in STOP_KEYS if key in settings}
    if len(stops) == 2:
        raise InputError(f"config key {where} gives both epochs and steps: keep one of them")
    dataset = settings.get("dataset", next(iter(datasets)))
    check(dataset, "cell/properties/dataset", f"{where}.dataset")
    if dataset not in datasets:
        raise InputError(
            f"config key {where}: dataset {shown(dataset)} is not one of the datasets "
            f"({', '.join(sorted(datasets))})"
        )
    recipe = settings.get("recipe", datasets[dataset]["recipe"])
    cell = resolve_cell({**settings, "dataset": ids[dataset], "recipe": recipe}, where)
    if "dcl" not in cell["objectives"]:
        raise InputError(
            f"config key {where}.objectives lacks dcl, which alignment is measured against: add it"
        )
    horizon = Duration.parse(cell["horizon"])
    until = horizon
    for unit, count in stops.items():
        check(count, "stop", f"{where}.{unit}")
        until = Duration(unit, count)
    if until.unit == horizon.unit and until.count > horizon.count:
        raise InputError(
            f"config key {where}.{until.unit} is {until.count}, beyond the horizon of {horizon}: "
            "lower it or raise the horizon"
        )
    return Plan(cell, dataset, until, (sweep,))


def _add(plans: dict[str, Plan], plan: Plan) -> None:
    """Add a plan, or join it with the same cell of another sweep: the longer run serves both."""
    identity = cell_id(plan.cell)
    known = plans.get(identity)
    if known is None:
        plans[identity] = plan
        return
    if known.until.unit != plan.until.unit:
        raise InputError(
            f"sweeps {known.sweeps[0]} and {plan.sweeps[0]} share the cell {identity} but one "
            "stops by epochs and the other by steps: use the same unit"
        )
    sweeps = known.sweeps if plan.sweeps[0] in known.sweeps else known.sweeps + plan.sweeps
    plans[identity] = Plan(known.cell, known.dataset, max(known.until, plan.until), sweeps)
