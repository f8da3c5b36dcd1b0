"""Stage `prepare`: read a data set from its source and write it as an image store."""

import logging
from pathlib import Path
from typing import Any

from cltools.data.encoded import EncodedSource, write_encoded_store
from cltools.data.sources import read_source
from cltools.data.store import write_store

log = logging.getLogger("cltools")


def run(*, name: str, definition: dict[str, Any], store: Path, workers: int | None = None) -> None:
    """Read the images that `definition` names and write them to the folder `store`.

    `definition` is the argument of `read_source`, for example {"source": "digits"}. `workers`
    threads decode images that stay encoded. Raises InputError when the source cannot be read. The
    store is then unchanged, but for encoded images that were already checked: the next call goes on
    after them.
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
