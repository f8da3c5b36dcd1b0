"""Settings of the stages that simulate a grid, `surrogate` and `minimise`, and its largest size."""

from collections.abc import Mapping
from math import prod
from typing import Any

from cltools.config.schema import with_defaults
from cltools.runtime.errors import InputError

GRIDS = ("surrogate", "minimise")  # sections of a config
MOST_SIMULATIONS = 10_000  # of one grid; `surrogate` takes minutes for them, `minimise` an hour


def grid_settings(settings: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Settings of one of `GRIDS`, checked, with defaults for the rest.

    Every list is an axis of the grid, except the numbers of classes where features are given. One
    simulation belongs to each combination; `minimise` leaves some of them out.

    Raises InputError, one sentence that names the key, also for more than `MOST_SIMULATIONS`.
    """
    chosen = with_defaults(settings, section)
    unused = {"classes"} if chosen.get("features") is not None else set()
    axes = {k: v for k, v in chosen.items() if isinstance(v, list) and k not in unused}
    asked = prod(len(values) for values in axes.values())
    if asked > MOST_SIMULATIONS:
        raise InputError(
            f"config key {section} asks for {asked:,} simulations, the product of the lengths of "
            f"{', '.join(axes)}, but may ask for {MOST_SIMULATIONS:,}: shorten these lists, or "
            "make several experiments of it"
        )
    return chosen
