"""prepare: a source of images -> an image store."""

import logging
from pathlib import Path
from typing import Any

from cltools.data.encoded import EncodedSource, write_encoded_store
from cltools.data.sources import read_source
from cltools.data.store import write_store

log = logging.getLogger("cltools")


def run(*, name: str, definition: dict[str, Any], store: Path, workers: int | None = None) -> None:
    """Read the images that `definition` names and write them to the folder `store`.

    `definition` is what `read_source` takes, for example {"source": "digits"}. Raises InputError
    when the source cannot be read; `store` is then as it was, but for encoded images that were
    found whole by then: the next call goes on after them. `workers` threads decode those.
    """
    source = read_source(definition)
    if isinstance(source, EncodedSource):
        counts = write_encoded_store(store, name, source, workers)
    else:
        write_store(
            store,
            name,
            source.class_names,
            source.splits,
            source.provenance,
            source.preprocessing,
        )
        counts = {split: len(labels) for split, (_, labels) in source.splits.items()}
    listed = ", ".join(f"{count} {split}" for split, count in counts.items())
    log.info("%s: %s images in %s", name, listed, store)
