"""Stage `embed`, its second form: features of a store's images by a model of another library.

`cltools.models.sources` loads the model, and says how images are prepared for it.
`cltools.data.feature_files` describes the file, which `cltools compare` reads.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cltools.data.decoding import in_order, open_image, pool, workers_available
from cltools.data.embeddings import Samples
from cltools.data.feature_files import FEATURES, new_feature_file
from cltools.data.store import SPLITS, EncodedImages, ImageStore
from cltools.layout import VERSIONS
from cltools.models import sources
from cltools.models.outputs import POOLING, Outputs
from cltools.models.weights import first_line
from cltools.runtime.devices import choose_device
from cltools.runtime.errors import InputError
from cltools.runtime.progress import track

BLOCK = 64  # images per forward pass, mostly of 224 x 224 pixels
log = logging.getLogger("cltools")


def run(
    *,
    wanted: sources.Wanted,
    store: Path,
    output: Path,
    layers: Sequence[str] = (),
    split: str = "test",
    device: str = "auto",
    threads: int = 1,
    workers: int | None = None,
) -> None:
    """Write the features of all images of a split, "train", "test" or "all", to `output` (.nc).

    Its arrays are `features` or, with `layers`, `features:LAYER` of each; `models.outputs` says how
    maps and tokens become vectors. `workers` threads prepare the images.

    Raises InputError when the model cannot be had or does not take such images, and when the file
    cannot be written.
    """
    if output.suffix != ".nc":
        raise InputError(f"--output {output} must end in .nc, since netCDF is written")
    torch.set_num_threads(threads)
    opened = ImageStore.open(store)
    found = sources.load(wanted, opened)
    chosen = choose_device(device)
    outputs = Outputs(found.network.to(chosen), layers, found.channels_last, found.before)
    splits = SPLITS if split == "all" else (split,)
    images = _prepared(opened, splits, found, workers)
    first = next(images)
    widths = {
        _array(layer): features.shape[1]
        for layer, features in _features(outputs, [first], chosen, wanted.model).items()
    }
    samples = Samples(
        {name: opened.labels[name] for name in splits},
        {name: np.arange(len(opened.labels[name])) for name in splits},
    )
    about = {
        **found.about,
        "dataset": opened.name,
        "store": opened.content,
        "split": split,
        "layers": outputs.shapes,
        "pooling": POOLING,
        "version": VERSIONS["embed"],
    }
    with new_feature_file(output, widths, samples, about) as writer:
        blocks = _blocks(first, images)
        done = 0
        for block in track(blocks, -(-samples.count // BLOCK), "embedding", "block"):
            made = _features(outputs, block, chosen, wanted.model)
            writer.write(done, **{_array(k): v.cpu().numpy() for k, v in made.items()})
            done += len(block)
        opened.check()
    log.info("%s: %d images, %s", output, samples.count, _summary(widths))


def _array(layer: str) -> str:
    return f"{FEATURES}:{layer}" if layer else FEATURES


def _summary(widths: dict[str, int]) -> str:
    return ", ".join(f"{name} of {width} numbers" for name, width in widths.items())


def _prepared(
    store: ImageStore, splits: Sequence[str], found: sources.Foreign, workers: int | None
) -> Iterator[Tensor]:
    """Each image as the network takes it (c, h, w), prepared by threads, in their order."""
    for split in splits:
        one = partial(_prepare, store.images[split], found)
        numbers = range(len(store.labels[split]))
        yield from in_order(pool(workers), one, numbers, 2 * BLOCK + workers_available())


def _prepare(images: Any, found: sources.Foreign, number: int) -> Tensor:
    if isinstance(images, EncodedImages):
        where = f"image {number} of {images.file}"
        image = open_image(images[number], where)
    else:
        pixels = images[number]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return found.prepare(image.convert("L" if found.channels == 1 else "RGB"))


def _blocks(first: Tensor, images: Iterator[Tensor]) -> Iterator[list[Tensor]]:
    block = [first, *islice(images, BLOCK - 1)]
    while block:
        yield block
        block = list(islice(images, BLOCK))


def _features(
    outputs: Outputs, block: list[Tensor], device: torch.device, model: str
) -> dict[str, Tensor]:
    """Features (n, d) by layer. Raises InputError where the network does not take the images."""
    images = torch.stack(block).to(device)
    try:
        return outputs(images)
    except (AssertionError, RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        size = " × ".join(map(str, images.shape[2:]))
        raise InputError(
            f"{model} does not take images of {size} pixels ({first_line(error)}): set --image-size"
        ) from error
