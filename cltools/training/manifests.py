"""Reading training manifests. The module imports quickly: it uses no numerical library."""

from pathlib import Path
from typing import Any

from cltools.config.durations import Duration
from cltools.config.schema import defaults
from cltools.layout import belongs_at
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import read_json


def read_manifest(path: Path) -> dict[str, Any]:
    """The training manifest that `cltools train` wrote for a cell.

    Settings that did not exist when it was written get their defaults.

    Raises InputError when it is missing or damaged, or lies where another cell's should.
    """
    manifest = read_json(path, made_by="cltools train")
    try:
        manifest["cell"] = {**defaults(), **manifest["cell"]}
        until = Duration.parse(manifest["until"]).slug
        identity = manifest["id"]
    except (KeyError, TypeError):
        raise InputError(
            f"{path} is no training manifest: give one that `cltools train` wrote"
        ) from None
    if not belongs_at(path, identity, until):
        raise InputError(
            f"{path} is the manifest of {identity} trained to {manifest['until']}, which belongs "
            "elsewhere: delete it and run `cltools train` again"
        )
    return manifest


def saved_weights(manifest: dict[str, Any]) -> list[tuple[int, dict[str, str]]]:
    """(step, objective -> hash of its weights) of every checkpoint, in the order of steps."""
    objectives = manifest["cell"]["objectives"]
    checkpoints = sorted(manifest["checkpoints"].items(), key=lambda entry: int(entry[0]))
    return [
        (int(step), {o: saved["weights"][o] for o in objectives}) for step, saved in checkpoints
    ]
