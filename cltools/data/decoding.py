"""From the bytes of a JPEG, PNG, … to pixels, one image at a time or many on worker threads.

Pillow lets other threads run while it decodes and resizes, so threads do where other loaders start
processes: nothing is copied between them, and nothing is left behind when the program ends.
"""

import io
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from PIL import Image

from cltools.runtime.errors import InputError

# Formats that are only pixels. Pillow also opens EPS, for which it starts Ghostscript.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
GREY_MODES = {"1", "L", "LA"}

Item = TypeVar("Item")
Result = TypeVar("Result")


class DamagedImageError(InputError):
    """An image that cannot be had: the definition of its data set may allow to skip it."""


def open_image(encoded: bytes, where: str) -> Image.Image:
    """A decoded image, in the mode and of the size it was stored in.

    Raises DamagedImageError, naming `where`, when it cannot be decoded, and InputError when it has
    more than 8 bits per channel.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS)
        image.load()
    except Exception as error:  # Pillow's decoders raise a dozen kinds, SyntaxError among them
        raise DamagedImageError(
            f"{where} cannot be decoded as an image: replace it, remove it or set `skip_damaged`"
        ) from error
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{where} has more than 8 bits per channel: convert it to 8 bits")
    return image


def format_of(image: Image.Image) -> str:
    """ "JPEG", "PNG", …: the format that an image from `open_image` was stored in."""
    if image.format is None:
        raise TypeError("only images that were decoded have a format")
    return image.format


def centre(image: Image.Image, size: int, resize: int | None = None) -> Image.Image:
    """The centre, size x size, of an image whose shorter side is resized to `resize` [size].

    Bilinear, antialiased; one pass over a box with fractional edges.
    """
    side = min(image.size) * (size / (resize or size))
    left, top = ((length - side) * 0.5 for length in image.size)
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def crop(image: Image.Image, box: tuple[int, int, int, int], size: int) -> Image.Image:
    """The pixels in box (left, top, width, height), resized to size x size.

    What torchvision's `resized_crop` makes of a Pillow image, byte by byte.
    """
    left, top, width, height = box
    cropped = image.crop((left, top, left + width, top + height))
    return cropped.resize((size, size), Image.Resampling.BILINEAR)


# --- worker threads --------------------------------------------------------------------------


def workers_available() -> int:
    """CPU cores that this process may use: a cluster job sees its own, its ranks share them."""
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@cache
def pool(workers: int | None = None) -> ThreadPoolExecutor:
    """The program's pool of that many threads [a thread per core]."""
    return ThreadPoolExecutor(workers or workers_available(), thread_name_prefix="decode")


def in_order(
    threads: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
) -> Generator[Result, None, None]:
    """function(item) of each item, in the order of the items, worked out by `threads`.

    At most `ahead` results are waiting or under way. The first exception stops it; then, or when
    the iterator is closed, what has not begun is called off.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
