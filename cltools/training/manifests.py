"""Reading training manifests. The module imports quickly: it uses no numerical library."""

from pathlib import Path
from typing import Any

from cltools.config.schema import defaults
from cltools.runtime.files import read_json


def read_manifest(path: Path) -> dict[str, Any]:
    """The training manifest that `cltools train` wrote for a cell.

    Settings that did not exist when it was written get their defaults.

    Raises InputError when the file is missing or damaged.
    """
    manifest = read_json(path, made_by="cltools train")
    return {**manifest, "cell": {**defaults(), **manifest["cell"]}}


def saved_weights(manifest: dict[str, Any]) -> list[tuple[int, dict[str, str]]]:
    """(step, objective -> hash of its weights) of every checkpoint, in the order of steps."""
    objectives = manifest["cell"]["objectives"]
    checkpoints = sorted(manifest["checkpoints"].items(), key=lambda entry: int(entry[0]))
    return [
        (int(step), {o: saved["weights"][o] for o in objectives}) for step, saved in checkpoints
    ]
