"""Sources of images: built-in digits, the Hugging Face hub, parquet, folders, torchvision archives.

`read_source` is the one entry. A source is described by a flat dict, {"source": KIND, **options};
the options of a kind are the keyword arguments of its reader. What a reader does not know
for sure (a column, a split, a size) it refuses with an InputError that names the file, rather than
guess: a wrong guess here would pass silently through every later stage.

All decoded images are held in memory at once (CIFAR-10: 180 MB, SVHN with its extra images 1.9 GB).
Large photographs stay encoded (`encoded: true`), and are read when they are written to the store.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cltools.data.encoded import EncodedSource
from cltools.data.sources.digits import read_digits
from cltools.data.sources.folder import read_folder
from cltools.data.sources.huggingface import read_huggingface
from cltools.data.sources.parquet import read_parquet
from cltools.data.sources.source import Source, in_words
from cltools.data.sources.torchvision import read_torchvision
from cltools.runtime.errors import InputError

READERS: dict[str, Callable[..., Source | EncodedSource]]

READERS = {
    "digits": read_digits,
    "parquet": read_parquet,
    "huggingface": read_huggingface,
    "folder": read_folder,
    "torchvision": read_torchvision,
}


def read_source(definition: dict[str, Any]) -> Source | EncodedSource:
    """Read the images that `definition` describes, e.g. {"source": "parquet", "path": "…"}.

    With "encoded": true they are only listed. Raises InputError for an unknown source or option and
    for whatever is wrong with the files.
    """
    options = dict(definition)
    kind = options.pop("source", None)
    if kind not in READERS:
        raise InputError(f"source is {kind!r}: use one of {in_words(READERS)}")
    reader = READERS[kind]
    parameters = inspect.signature(reader).parameters
    if unknown := options.keys() - parameters.keys():
        raise InputError(
            f"source '{kind}' has no option {in_words(unknown)}: its options are "
            f"{in_words(parameters)}"
        )
    required = {key for key, value in parameters.items() if value.default is value.empty}
    if missing := required - options.keys():
        raise InputError(f"source '{kind}' needs the option {in_words(missing)}: add it")
    _check_sizes(options)
    source = reader(**options)
    if len(source.class_names) < 2:
        raise InputError(
            f"the {kind} source {_described(options)} has only {len(source.class_names)} class: "
            "at least 2 are needed"
        )
    read: Source | EncodedSource = replace(source, provenance={**definition, **source.provenance})
    return read


def _check_sizes(options: dict[str, Any]) -> None:
    """Refuse what `size`, `resize` and `encoded` cannot mean together."""
    size, resize, encoded = (options.get(key) for key in ("size", "resize", "encoded"))
    for key, value in (("size", size), ("resize", resize)):
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"{key} is {value!r}: give the side of the images in whole pixels")
    if encoded and size is None:
        raise InputError("encoded is true, but there is no size: add what views are resized to")
    if resize is not None and (size is None or resize < size):
        raise InputError(
            f"resize is {resize}, but size is {size}: `resize` is what the shorter side is brought "
            "to before the center, `size`, is cropped; raise it or leave it out"
        )


def _described(options: dict[str, Any]) -> str:
    return str(next((options[key] for key in ("path", "root", "repo") if key in options), ""))
