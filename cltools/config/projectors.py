"""The widths of a cell's projector. Without torch: jobs are sized by them before it is imported."""

from collections.abc import Mapping
from typing import Any


def projector_widths(cell: Mapping[str, Any], features: int) -> list[int]:
    """Width of h, and of what each linear layer of the projector puts out; the last is that of z.

    features: of h. Without a projector, z is as wide as h.

    >>> from cltools.config.cells import resolve_cell
    >>> kind = {"dataset": "d", "recipe": "digits", "horizon": 1}
    >>> projector_widths(resolve_cell(kind), 32)
    [32, 2048, 128]
    >>> projector_widths(resolve_cell({**kind, "projector_layers": 0}), 32)
    [32]
    """
    layers = cell["projector_layers"]
    if layers == 0:
        return [features]
    return [features, *[cell["projector_hidden"]] * (layers - 1), cell["projector_dim"]]


def z_width(cell: Mapping[str, Any], features: int) -> int:
    """Width of z, where h has so many features."""
    return projector_widths(cell, features)[-1]


def with_widths(cell: Mapping[str, Any], features: int) -> dict[str, Any]:
    """The cell with the widths that its network has, where h has so many features.

    `projector_dim` is that of z, and `projector_hidden` that of the projector's hidden layers or,
    where there are none, of z.
    """
    widths = projector_widths(cell, features)
    hidden = cell["projector_hidden"] if len(widths) > 2 else widths[-1]
    return {**cell, "projector_hidden": hidden, "projector_dim": widths[-1]}


def projector_words(cell: Mapping[str, Any]) -> str:
    """How the projector differs from that of the papers, in words; empty for theirs."""
    layers, plain = cell["projector_layers"], cell["projector_norm"] == "none"
    if layers == 2 and not plain:
        return ""
    kind = f"{layers}-layer projector" if layers else "no projector"
    return f"{kind}, unnormalized" if plain else kind
