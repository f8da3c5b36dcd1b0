"""From the bytes of a JPEG, PNG, … to pixels, one image at a time or many on worker threads.

Pillow lets other threads run while it decodes and resizes, so threads do where other loaders start
processes: nothing is copied between them, and nothing is left behind when the program ends.
"""

import io
import logging
import os
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from PIL import Image

from cltools.runtime.errors import InputError

# Formats that are only pixels, and that every build of Pillow reads: the same files give the same
# store everywhere. Pillow also opens EPS, for which it starts Ghostscript.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
GRAY_MODES = {"1", "L", "LA"}
# How files of other formats begin.
_OTHER_FORMATS = {
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
}
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# What Pillow calls pixels of 12, 16 or 32 bits per channel as they lie in a file, such as RGB;16B.
# BGR;16 is not among them: it has 5 or 6 bits per channel.
_DEEP = re.compile(r"\b(?!BGR)\w+;(?:12|16|32)")

log = logging.getLogger("cltools")
# Pillow's own warnings name no file. Those about pixels are said here, with the name; others are
# about text beside the pixels, and about transparency, which is left out anyway.
warnings.filterwarnings("ignore", module=r"PIL\.")

Item = TypeVar("Item")
Result = TypeVar("Result")


class DamagedImageError(InputError):
    """An image that cannot be had: the definition of its data set may allow to skip it.

    where: the image. reason: what is wrong, in the same words for all images it is wrong with.
    """

    def __init__(self, where: str, reason: str, remedy: str, detail: str = "") -> None:
        super().__init__(f"{where} {reason}{detail}: {remedy}")
        self.where, self.reason = where, reason
        self.problem = f"{where} {reason}{detail}"


def say_skipped(reasons: Counter[str], split: str) -> None:
    """One line on how many images of a split were left out, and why; none if there are none."""
    if reasons:
        counted = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        log.info("%d %s images were skipped: %s", reasons.total(), split, counted)


def open_image(encoded: bytes, where: str) -> Image.Image:
    """A decoded image, in the mode and of the size it was stored in.

    Pixels are those that are stored: an EXIF tag that asks to rotate them is not followed, as in
    torchvision. Images of more than 8 bits per channel are refused, gray ones and colored ones.

    Raises DamagedImageError, naming `where` and the reason, when it cannot be decoded.
    """
    skip = "remove it or set `skip_damaged`"
    try:
        image = Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS)
        deep = _more_than_8_bits(image)  # before it is loaded: RGB is cut to 8 bits then
        image.load()
    except Image.DecompressionBombError as error:
        limit, size = 2 * (Image.MAX_IMAGE_PIXELS or 0), re.search(r"\d+ pixels", str(error))
        raise DamagedImageError(
            where,
            f"has more than the {limit} pixels that are read",
            f"make it smaller, {skip}",
            f" ({size[0]})" if size else "",
        ) from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds, SyntaxError among them
        if other := _other_format(encoded):
            raise DamagedImageError(
                where, f"is of the format {other}, which is not read", f"convert it to PNG, {skip}"
            ) from error
        raise DamagedImageError(
            where, "cannot be decoded as an image", f"replace it, {skip}"
        ) from error
    if deep:
        raise DamagedImageError(
            where, "has more than 8 bits per channel", f"convert it to 8 bits, {skip}"
        )
    return image


def open_new_image(encoded: bytes, where: str) -> Image.Image:
    """`open_image` for images seen the first time: one that is very large is said in a line."""
    image = open_image(encoded, where)
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        log.warning("%s is very large: %d x %d pixels", where, image.width, image.height)
    return image


def _more_than_8_bits(image: Image.Image) -> bool:
    """Whether an image that is open but not loaded has more than 8 bits per channel in its file."""
    if image.mode.startswith(("I", "F")):
        return True
    for decoder, _, _, arguments in getattr(image, "tile", ()):
        if decoder in ("ppm", "ppm_plain") and isinstance(arguments, tuple):
            return int(arguments[1]) > 255  # the largest value, which the file names
        if _DEEP.search(str(arguments)):
            return True
    return False


def _other_format(encoded: bytes) -> str | None:
    """The name of a well-known format that is not read, by how the file begins."""
    if encoded[4:8] == b"ftyp":  # all kinds that the file says it is
        end = int.from_bytes(encoded[:4])
        brands = {encoded[at : at + 4] for at in range(8, min(end, 256), 4)}
        return "AVIF" if brands & _AVIF else "HEIC" if brands & _HEIC else None
    return next((name for start, name in _OTHER_FORMATS.items() if encoded.startswith(start)), None)


def format_of(image: Image.Image) -> str:
    """ "JPEG", "PNG", …: the format that an image from `open_image` was stored in."""
    if image.format is None:
        raise TypeError("only images that were decoded have a format")
    return image.format


def center(image: Image.Image, size: int, resize: int | None = None) -> Image.Image:
    """The center, size x size, of an image whose shorter side is resized to `resize` [size].

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
