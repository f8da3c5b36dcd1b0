"""The objectives, one file each, found by name.

A file of this folder declares one objective, `OBJECTIVE`, under the name of the file. So does the
entry point of an installed package in the group `cltools.objectives`:

    [project.entry-points."cltools.objectives"]
    dhel = "my_package.dhel:OBJECTIVE"

The code of a package is imported when something asks for an objective of its name, never because
the package is there. A config can name what is installed, and no other code.
"""

import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from cltools.objectives.declared import Objective, Outputs
from cltools.runtime.errors import InputError

__all__ = [
    "GROUP",
    "Objective",
    "Outputs",
    "built_in",
    "find",
    "names",
    "package_of",
    "settings_of",
]

GROUP = "cltools.objectives"  # of entry points
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
# Cells list objectives in the order of `names`, which is part of their hash: these come first.
_FIRST = (
    "dcl", "nscl", "scl", "ce", "nt_xent", "nscl_with_positive", "nt_xent_double_positive",
    "dcl_twin",
)  # fmt: skip


@cache
def built_in() -> dict[str, Objective]:
    """Name -> objective of cltools, in the order of `names`."""
    files = {file.name for file in pkgutil.iter_modules(__path__)} - {"declared"}
    ordered = [*_FIRST, *sorted(files.difference(_FIRST))]
    return {name: import_module(f"{__name__}.{name}").OBJECTIVE for name in ordered}


@cache
def _installed() -> dict[str, list[EntryPoint]]:
    """Name -> entry points of other packages. What they point to is not imported."""
    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        if NAME.match(point.name):
            found.setdefault(point.name, []).append(point)
    return found


@cache
def names() -> tuple[str, ...]:
    """The names of all objectives: those of cltools, and after them those of other packages."""
    return tuple(dict.fromkeys([*built_in(), *_installed()]))


@cache
def find(objective: str) -> Objective:
    """The objective of a name, which may have labels of its own after a colon.

    Raises InputError for an unknown name, one that two packages have, and one whose package cannot
    be imported or declares something else.
    """
    name = objective.partition(":")[0]
    points = _installed().get(name, [])
    own = built_in().get(name)
    packages = ["cltools"] * (own is not None) + [_package(point) for point in points]
    if len(packages) > 1:
        raise InputError(
            f"the objective {name} is in the packages {' and '.join(packages)}: rename or "
            "uninstall one of them"
        )
    if own is not None:
        return own
    if not points:
        raise InputError(
            f"there is no objective {name}: use one of {', '.join(names())}, or install a package "
            f"with an entry point of that name in the group {GROUP}"
        )
    return _loaded(points[0])


def settings_of(cell: Mapping[str, Any], objective: str) -> dict[str, float]:
    """The settings of an objective in a cell, by name."""
    found = find(objective)
    given = cell["objective_settings"].get(found.name, {})
    return {name: given.get(name, one.default) for name, one in found.settings.items()}


def package_of(objective: str) -> str | None:
    """Name and version of the other package that an objective is from; None for our own."""
    points = _installed().get(objective.partition(":")[0], [])
    return f"{_package(points[0])} {points[0].dist.version}" if points and points[0].dist else None


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def _loaded(point: EntryPoint) -> Objective:
    package = _package(point)
    try:
        found = point.load()
    except Exception as error:  # of any kind: it is other people's code
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"the objective {point.name} of the package {package} cannot be imported ({reason}): "
            "mend the package, or take the objective out of the config"
        ) from error
    if not isinstance(found, Objective) or found.name != point.name:
        what = f"an objective {found.name}" if isinstance(found, Objective) else "something else"
        raise InputError(
            f"the package {package} declares {what} at {point.value}, where its entry point "
            f"promises the objective {point.name}: mend the package"
        )
    return found
