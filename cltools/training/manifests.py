"""What a training manifest says. Light: no numerical library is imported here."""

import re
from pathlib import Path
from typing import Any

from cltools.config.durations import Duration
from cltools.config.schema import defaults
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import read_json

_CELL_FOLDER = re.compile(r".*-[0-9a-f]{10}")  # how `cell_id` ends
_STEM = re.compile(r"trained-.*")  # how the workflow names manifests


def read_manifest(path: Path) -> dict[str, Any]:
    """What `cltools train` wrote of a cell; settings that are younger have their defaults.

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
    named = {_CELL_FOLDER: (path.absolute().parent.name, identity),
             _STEM: (path.stem, f"trained-{until}")}  # fmt: skip
    for pattern, (name, own) in named.items():
        if pattern.fullmatch(name) and name != own:
            raise InputError(
                f"{path} is the manifest of {identity} trained to {manifest['until']}, which "
                "belongs elsewhere: delete it and run `cltools train` again"
            )
    return manifest


def saved_weights(manifest: dict[str, Any]) -> list[tuple[int, dict[str, str]]]:
    """(step, objective -> hash of its weights) of every checkpoint, in order of both."""
    objectives = manifest["cell"]["objectives"]
    checkpoints = sorted(manifest["checkpoints"].items(), key=lambda entry: int(entry[0]))
    return [
        (int(step), {o: saved["weights"][o] for o in objectives}) for step, saved in checkpoints
    ]
