"""From the image store to the images of one cell on the device."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cltools.data.decoding import (
    DamagedImageError,
    center,
    crop,
    open_image,
    pool,
    workers_available,
)
from cltools.data.store import PER_CLASS, EncodedImages, ImageStore, Subset
from cltools.data.views import EpochViews, Recipe, ViewParameters, change_colors, flip, render
from cltools.runtime.devices import to_device
from cltools.runtime.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """The images of one cell and split, on the device.

    images (n, H, W, c) uint8; labels (n,) 0..C-1 on the CPU; samples (n,) positions in the split,
    on the CPU; split_size images in the whole split; mean, std (c,) of the data set in [0, 1].

    Positions, in all methods, are on the CPU or on the device.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor
    split_size: int
    classes: int
    mean: Tensor
    std: Tensor
    ahead: ClassVar[int] = 0  # batches that are worth beginning before they are wanted

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of plain images and views, which is what a network is given."""
        return *self._shared_size(), self.channels

    @property
    def extent(self) -> tuple[int | Tensor, int | Tensor]:
        """Height and width that crops are taken from: of all images, or (n,) of each."""
        height, width = self._shared_size()
        return height, width

    def _shared_size(self) -> tuple[int, int]:
        """Height and width of all images, which are arrays of one shape."""
        height, width = self.images.shape[1:3]
        return height, width

    def chosen(self, positions: Tensor) -> "ImageSet":
        """The set of the images at `positions` (on the CPU) alone."""
        return replace(
            self,
            images=self.images[positions.to(self.device)],
            labels=self.labels[positions],
            samples=self.samples[positions],
        )

    def pixels(self, positions: Tensor) -> Tensor:
        """Plain images as floats (n, c, H, W) in [0, 1]."""
        return self.images[to_device(positions, self.device)].permute(0, 3, 1, 2).float().div_(255)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Standardised by channel, in the memory format that convolutions want."""
        standard = (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        return standard.contiguous(memory_format=torch.channels_last)

    def views(
        self, positions: Tensor, parameters: ViewParameters, recipe: Recipe
    ) -> Callable[[], Tensor]:
        """Begin to make K views of n images: the call gives them, (K*n, c, H, W) in [0, 1].

        `parameters` has K*n rows, view-major. What is begun and not wanted is called off when the
        call is dropped.
        """

        def made() -> Tensor:
            repeated = self.pixels(positions).repeat(len(parameters.top) // len(positions), 1, 1, 1)
            return render(repeated, parameters, recipe, self._shared_size())

        return made

    def plain(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """`pixels` of block after block of positions."""
        return map(self.pixels, blocks)

    def plain_and_views(
        self, views: EpochViews, recipe: Recipe, block: int
    ) -> Generator[tuple[Tensor, list[Tensor]], None, None]:
        """All images in blocks: `pixels`, and each of the K views of the same images."""
        for positions in torch.split(torch.arange(len(self.labels)), block):
            pixels = self.pixels(positions)
            yield (
                pixels,
                [
                    render(pixels, views.rows(view, positions), recipe, self._shared_size())
                    for view in range(views.views)
                ],
            )


@dataclass(frozen=True)
class EncodedImageSet(ImageSet):
    """Images of one cell and split that stay encoded until they are wanted.

    Threads decode, crop and resize them to size x size (uint8); all else is done on the device.
    `images` are those of the whole split; extent is (n,) heights and widths. `workers` is the
    number of threads [one per core].
    """

    images: EncodedImages  # type: ignore[assignment]  # all methods that use it are overridden
    size: int
    resize: int | None
    workers: int | None = None
    ahead: ClassVar[int] = 2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.size, self.size, self.channels

    @property
    def extent(self) -> tuple[Tensor, Tensor]:
        sizes = torch.from_numpy(self.images.sizes[self.samples.numpy()].astype(np.int64))
        return sizes[:, 0], sizes[:, 1]

    def chosen(self, positions: Tensor) -> "EncodedImageSet":
        return replace(self, labels=self.labels[positions], samples=self.samples[positions])

    def pixels(self, positions: Tensor) -> Tensor:
        return self._on_device(_Decoding(self, positions)()[0])

    def views(
        self, positions: Tensor, parameters: ViewParameters, recipe: Recipe
    ) -> Callable[[], Tensor]:
        boxes = _boxes(parameters, len(positions))
        decoding = _Decoding(self, positions, boxes, plain=False)

        def made() -> Tensor:
            return self._finished(decoding().flatten(0, 1), parameters, recipe)

        return made

    def plain(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        for decoded in _begun_ahead(partial(_Decoding, self, block) for block in blocks):
            yield self._on_device(decoded[0])

    def plain_and_views(
        self, views: EpochViews, recipe: Recipe, block: int
    ) -> Generator[tuple[Tensor, list[Tensor]], None, None]:
        blocks = torch.split(torch.arange(len(self.labels)), block)

        def boxes(positions: Tensor) -> NDArray[np.int64]:
            return _boxes(views.rows(slice(None), positions), len(positions))

        begun = (partial(_Decoding, self, block, boxes(block)) for block in blocks)
        for positions, decoded in zip(blocks, _begun_ahead(begun), strict=True):
            yield (
                self._on_device(decoded[0]),
                [
                    self._finished(crops, views.rows(view, positions), recipe)
                    for view, crops in enumerate(decoded[1:])
                ],
            )

    def _on_device(self, decoded: Tensor) -> Tensor:
        """Floats (n, c, size, size) in [0, 1] of uint8 (n, size, size, c)."""
        there = decoded.to(self.device, non_blocking=True)
        return there.permute(0, 3, 1, 2).float().div_(255)

    def _finished(self, crops: Tensor, parameters: ViewParameters, recipe: Recipe) -> Tensor:
        # Copying whole images is fastest where each is in one piece.
        views = flip(self._on_device(crops), parameters).contiguous()
        return change_colors(views, parameters, recipe)


NO_BOXES = np.empty((0, 0, 4), dtype=np.int64)


class _Decoding:
    """Images at n positions of a set, being decoded by its threads.

    The call waits for them: uint8 (1 + K, n, size, size, c), the plain images if they are wanted
    and the pixels in each of `boxes` (K, n, 4). What has not begun is called off when this object
    goes. Raises InputError for an image that cannot be decoded.
    """

    def __init__(
        self,
        data: EncodedImageSet,
        positions: Tensor,
        boxes: NDArray[np.int64] = NO_BOXES,
        plain: bool = True,
    ) -> None:
        self.pixels = torch.empty(
            (plain + len(boxes), len(positions), data.size, data.size, data.channels),
            dtype=torch.uint8,
            pin_memory=data.device.type == "cuda",
        )
        samples = data.samples[positions.cpu()].tolist()
        out = self.pixels.numpy()
        chunks = min(4 * (data.workers or workers_available()), len(samples))
        self._futures = [
            pool(data.workers).submit(_decode, data, samples, boxes, plain, out, rows)
            for rows in np.array_split(np.arange(len(samples)), chunks)
        ]

    def __call__(self) -> Tensor:
        for future in self._futures:
            future.result()
        return self.pixels

    def __del__(self) -> None:
        for future in getattr(self, "_futures", ()):
            future.cancel()


def _decode(
    data: EncodedImageSet,
    samples: list[int],
    boxes: NDArray[np.int64],
    plain: bool,
    out: NDArray[np.uint8],
    rows: NDArray[np.intp],
) -> None:
    """Fill some rows of `out`, as `_Decoding` says."""
    for row in rows:
        where = f"image {samples[row]} of {data.images.file}"
        try:
            image = open_image(data.images[samples[row]], where).convert("RGB")
        except DamagedImageError as error:
            raise InputError(f"{where} is damaged: run `cltools prepare` again") from error
        made = [center(image, data.size, data.resize)] if plain else []
        made += [crop(image, tuple(of_view[row].tolist()), data.size) for of_view in boxes]
        for kind, pixels in enumerate(made):
            out[kind, row] = np.asarray(pixels)[..., : data.channels]


def _boxes(parameters: ViewParameters, images: int) -> NDArray[np.int64]:
    """Left, top, width and height (K, n, 4) of the crops of K views of n images."""
    edges = (parameters.left, parameters.top, parameters.width, parameters.height)
    return torch.stack(edges, dim=1).numpy().reshape(-1, images, 4)


def _begun_ahead(starts: Iterable[Callable[[], _Decoding]]) -> Iterator[Tensor]:
    """What each of `starts` gives, each begun while the one before is used."""
    waiting: deque[_Decoding] = deque()
    for start in starts:
        waiting.append(start())
        if len(waiting) > 1:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def open_store(folder: Path, cell: dict[str, Any]) -> ImageStore:
    """The cell's image store. Raises InputError when it holds another data set."""
    store = ImageStore.open(folder)
    if store.name != cell["dataset"]:
        raise InputError(
            f"the store {folder} holds {store.name!r}, but the cell is of {cell['dataset']!r}: "
            "give the store of that data set"
        )
    return store


def cell_subset(store: ImageStore, cell: dict[str, Any], split: str) -> Subset:
    """The images that a cell uses of a split ("train" or "test"). Raises InputError.

    Only training sets are unbalanced on demand: accuracies stay those of a balanced test set.
    """
    imbalance = cell["imbalance"] if split == "train" else 1.0
    return store.subset(
        split, cell["classes"], cell["class_draw"], cell[PER_CLASS[split]], imbalance
    )


def image_set(
    store: ImageStore,
    cell: dict[str, Any],
    split: str,
    device: torch.device,
    workers: int | None = None,
) -> ImageSet:
    """A cell's images of one split, held on the device as uint8, or still encoded.

    `workers` threads decode encoded ones [one per core]; their number changes no byte.
    """
    subset = cell_subset(store, cell, split)
    images = store.images[split]
    if isinstance(images, EncodedImages):
        size = store.image_shape[0]
        make: Callable[..., ImageSet] = partial(
            EncodedImageSet, images, size=size, resize=store.resize, workers=workers
        )
    else:
        chosen = np.ascontiguousarray(images[subset.indices])
        make = partial(ImageSet, torch.from_numpy(chosen).to(device))
    return make(
        labels=torch.from_numpy(subset.labels),
        samples=torch.from_numpy(subset.indices),
        split_size=len(store.labels[split]),
        classes=len(subset.class_ids),
        mean=torch.tensor(store.mean, dtype=torch.float32, device=device),
        # A channel with one value only is 0 everywhere once its mean is subtracted.
        std=torch.tensor([s or 1.0 for s in store.std], dtype=torch.float32, device=device),
    )
