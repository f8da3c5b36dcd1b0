"""prepare: a source of images -> an image store."""

import logging
from pathlib import Path
from typing import Any

from cltools.engine.sources import read_source
from cltools.engine.store import write_store
from cltools.versions import VERSIONS

VERSION = VERSIONS["prepare"]

log = logging.getLogger("cltools")


def prepare(name: str, definition: dict[str, Any], folder: Path | str) -> None:
    """Read the images that `definition` names and write them to the store `folder`.

    `definition` is what `read_source` takes, for example {"source": "digits"}. Raises InputError
    when the source cannot be read; `folder` is then as it was.
    """
    source = read_source(definition)
    write_store(
        folder,
        name,
        source.class_names,
        source.splits,
        source.provenance,
        source.preprocessing,
    )
    counts = ", ".join(f"{len(labels)} {split}" for split, (_, labels) in source.splits.items())
    log.info("%s: %s images in %s", name, counts, folder)
