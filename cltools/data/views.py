"""Augmented views, a whole batch at a time on the device, from a table of per-sample parameters.

Random resized crop, horizontal flip, color jitter, grayscale and Gaussian blur as torchvision's
`transforms` define them, on float images. torchvision draws from the global random state, one image
(or one parameter for a whole batch) at a time; here each sample's parameters are a row of a table
that depends on (seed, epoch, view, sample), see `randomness`. Crop, resize and flip together are
two matrix products per image, with the matrices of antialiased bilinear interpolation.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import permutations
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cltools.maths.randomness import view_uniforms
from cltools.runtime.devices import to_device

JITTER_ORDERS = torch.tensor(list(permutations(range(4))))
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision


class Columns(NamedTuple):
    """Where each parameter's uniforms stand in a row of the table. Recipes never move them.

    Ten proposals of area and ratio, as torchvision's RandomResizedCrop draws before it falls back
    to a center crop.
    """

    area: slice = slice(0, 10)
    ratio: slice = slice(10, 20)
    top: int = 20
    left: int = 21
    flip: int = 22
    jitter: int = 23
    order: int = 24
    brightness: int = 25
    contrast: int = 26
    saturation: int = 27
    hue: int = 28
    gray: int = 29
    blur: int = 30
    sigma: int = 31


COLUMNS = Columns()
COLUMN_COUNT = 32


@dataclass(frozen=True)
class Recipe:
    """Ranges and probabilities of one data set family's views, in torchvision's terms.

    `brightness`, `contrast`, `saturation`, `hue` are ColorJitter's arguments; `crop_scale` and
    `crop_ratio` RandomResizedCrop's; `blur_kernel` is in pixels (odd), `blur_sigma` a range.
    """

    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip_probability: float
    jitter_probability: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale_probability: float
    blur_probability: float
    blur_kernel: int
    blur_sigma: tuple[float, float]

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> "Recipe":
        """From the cell's `recipe` mapping, which the schema has checked to be complete."""
        as_tuple: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
        }
        return cls(**{field.name: as_tuple[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class ViewParameters:
    """One view of each of n samples: integers in pixels of the source image, all tensors (n,).

    `order` (n, 4) holds the sequence of brightness 0, contrast 1, saturation 2, hue 3.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor
    blur: Tensor
    sigma: Tensor

    def __getitem__(self, rows: Tensor) -> "ViewParameters":
        return ViewParameters(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def view_parameters(
    uniforms: Tensor, recipe: Recipe, height: int | Tensor, width: int | Tensor
) -> ViewParameters:
    """Turn rows of uniforms (n, COLUMN_COUNT) into parameters for images of height x width pixels.

    Height and width are those of all images, or int64 (n,) of each. The distributions are
    torchvision's: the crop is the first of ten (area, aspect ratio) proposals that fits, its corner
    uniform over the places where it fits; ColorJitter's factors are uniform in
    [max(0, 1 - s), 1 + s] and its hue shift in [-h, h], in random order.
    """
    scale = _between(uniforms[:, COLUMNS.area], *recipe.crop_scale)
    log_ratio = _between(uniforms[:, COLUMNS.ratio], *map(math.log, recipe.crop_ratio))
    height, width = torch.as_tensor(height), torch.as_tensor(width)
    tall, wide = height.reshape(-1, 1), width.reshape(-1, 1)
    area = tall * wide * scale
    ratio = log_ratio.exp()
    proposed_w = (area * ratio).sqrt().round().long()
    proposed_h = (area / ratio).sqrt().round().long()
    fits = (proposed_w > 0) & (proposed_w <= wide) & (proposed_h > 0) & (proposed_h <= tall)
    first = fits.long().argmax(dim=1, keepdim=True)
    any_fits = fits.any(dim=1)
    fallback_h, fallback_w = _fallback_crop(recipe.crop_ratio, height, width)
    crop_h = torch.where(any_fits, proposed_h.gather(1, first)[:, 0], fallback_h)
    crop_w = torch.where(any_fits, proposed_w.gather(1, first)[:, 0], fallback_w)
    top = (uniforms[:, COLUMNS.top] * (height - crop_h + 1)).long()
    left = (uniforms[:, COLUMNS.left] * (width - crop_w + 1)).long()
    top = torch.where(any_fits, top, (height - crop_h) // 2)
    left = torch.where(any_fits, left, (width - crop_w) // 2)

    def factor(column: int, strength: float) -> Tensor:
        return _between(uniforms[:, column], max(0.0, 1 - strength), 1 + strength)

    order = JITTER_ORDERS[(uniforms[:, COLUMNS.order] * len(JITTER_ORDERS)).long()]
    return ViewParameters(
        top=top,
        left=left,
        height=crop_h,
        width=crop_w,
        flip=uniforms[:, COLUMNS.flip] < recipe.flip_probability,
        jitter=uniforms[:, COLUMNS.jitter] < recipe.jitter_probability,
        order=order,
        brightness=factor(COLUMNS.brightness, recipe.brightness),
        contrast=factor(COLUMNS.contrast, recipe.contrast),
        saturation=factor(COLUMNS.saturation, recipe.saturation),
        hue=_between(uniforms[:, COLUMNS.hue], -recipe.hue, recipe.hue),
        gray=uniforms[:, COLUMNS.gray] < recipe.grayscale_probability,
        blur=uniforms[:, COLUMNS.blur] < recipe.blur_probability,
        sigma=_between(uniforms[:, COLUMNS.sigma], *recipe.blur_sigma),
    )


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _fallback_crop(
    ratio: tuple[float, float], height: Tensor, width: Tensor
) -> tuple[Tensor, Tensor]:
    """torchvision's central crop: the whole image, or as much as the ratio range allows."""
    image_ratio = width.double() / height.double()
    lower = (width.double() / ratio[0]).round().long()
    narrower = (height.double() * ratio[1]).round().long()
    return (
        torch.where(image_ratio < ratio[0], lower, height),
        torch.where(image_ratio > ratio[1], narrower, width),
    )


@dataclass(frozen=True)
class EpochViews:
    """The parameters of all K views of n samples, as one table of K*n rows, view-major."""

    table: ViewParameters
    views: int
    samples: int

    def rows(self, view: int | slice, positions: Tensor) -> ViewParameters:
        """Parameters of one view, or of a range of views one after another, of some samples."""
        offsets = torch.arange(self.views)[view].reshape(-1, 1) * self.samples
        return self.table[(offsets + positions).flatten()]

    def update_digest(self, digest: "hashlib._Hash") -> None:
        """Feed every parameter into a running hash."""
        for field in fields(self.table):
            digest.update(getattr(self.table, field.name).numpy().tobytes())


def epoch_views(
    seed: int,
    epoch: int,
    views: int,
    split_size: int,
    samples: Tensor,
    recipe: Recipe,
    height: int | Tensor,
    width: int | Tensor,
    owner: str | None = None,
) -> EpochViews:
    """The K views of the given samples (ids in their split) in one epoch.

    Uniforms are drawn for the whole split, so that a sample's view does not depend on which other
    samples are trained on. Height and width are those of all samples, or (n,) of each. `owner`
    names the model that has views of its own.
    """
    uniforms = [
        view_uniforms(seed, epoch, view, split_size, COLUMN_COUNT, owner)[samples]
        for view in range(views)
    ]
    if isinstance(height, Tensor) and isinstance(width, Tensor):
        height, width = height.repeat(views), width.repeat(views)
    table = view_parameters(torch.cat(uniforms), recipe, height, width)
    return EpochViews(table, views, len(samples))


def resize_matrices(start: Tensor, length: Tensor, source: int, target: int) -> Tensor:
    """(n, target, source) matrices that crop [start, start + length) and resize it to `target`.

    Bilinear with antialiasing, edges renormalized: the rule of `F.interpolate(antialias=True)`.
    """
    start, length = start.float()[:, None, None], length.float()[:, None, None]
    scale = length / target
    support = scale.clamp(min=1.0)
    device = start.device
    center = scale * (torch.arange(target, device=device)[None, :, None] + 0.5)
    offset = torch.arange(source, device=device)[None, None, :] - start
    weight = (1 - ((offset + 0.5 - center) / support).abs()).clamp(min=0)
    weight = weight * ((offset >= 0) & (offset < length))
    return weight / weight.sum(dim=2, keepdim=True)


def crop_and_flip(images: Tensor, parameters: ViewParameters, size: tuple[int, int]) -> Tensor:
    """Random resized crop to `size` (height, width) and flip of images (n, c, h, w)."""
    names = ("top", "height", "left", "width", "flip")
    together = torch.stack([getattr(parameters, name).long() for name in names])  # one copy
    top, height, left, width, flip = to_device(together, images.device)
    rows = resize_matrices(top, height, images.shape[2], size[0])
    columns = resize_matrices(left, width, images.shape[3], size[1])
    columns = torch.where(flip[:, None, None].bool(), columns.flip(1), columns)
    return rows[:, None] @ images @ columns.transpose(1, 2)[:, None]


def flip(images: Tensor, parameters: ViewParameters) -> Tensor:
    """Images (n, c, h, w) cropped before, those to be flipped flipped."""
    flipped = to_device(parameters.flip, images.device)[:, None, None, None]
    return torch.where(flipped, images.flip(3), images)


def grayscale(images: Tensor) -> Tensor:
    """Luminance of RGB images (n, 3, h, w) as (n, 1, h, w)."""
    red, green, blue = images.unbind(dim=1)
    weights = GRAY_WEIGHTS
    return (weights[0] * red + weights[1] * green + weights[2] * blue).unsqueeze(1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    gray = grayscale(images) if images.shape[1] == 3 else images
    mean = gray.mean(dim=(1, 2, 3), keepdim=True)
    return (images * factor + mean * (1 - factor)).clamp(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor + grayscale(images) * (1 - factor)).clamp(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of RGB images by `shift` (n, 1, 1, 1) turns, through HSV as torchvision."""
    maximum, brightest = images.max(dim=1)
    chroma = maximum - images.min(dim=1).values
    gray = chroma == 0
    divisor = torch.where(gray, 1.0, chroma)
    saturation = chroma / torch.where(gray, 1.0, maximum)
    red, green, blue = ((maximum[:, None] - images) / divisor[:, None]).unbind(dim=1)
    sector = torch.stack([blue - green, 2 + red - blue, 4 + green - red])
    hue = sector.gather(0, brightest[None])[0] / 6
    hue = torch.where(gray, 0.0, hue) + shift[:, 0]

    # HSV to RGB by f(k) = v - v s max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6, n = 5, 3, 1.
    # Not torch.tensor, which would wait for the device.
    n = torch.arange(5.0, 0.0, -2.0, device=images.device)[None, :, None, None]
    k = (n + 6 * hue[:, None]) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return (maximum[:, None] * (1 - saturation[:, None] * ramp)).clamp(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Separable Gaussian blur with a sigma per image (n,), reflected at the borders."""
    count, channels, height, width = images.shape
    at = torch.arange(kernel, device=images.device) - (kernel - 1) / 2
    weights = torch.exp(-0.5 * (at[None] / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    pad = kernel // 2
    flat = F.pad(images, [pad] * 4, mode="reflect").reshape(
        1, count * channels, height + 2 * pad, -1
    )
    flat = F.conv2d(flat, weights[:, None, :, None], groups=count * channels)
    flat = F.conv2d(flat, weights[:, None, None, :], groups=count * channels)
    return flat.reshape(count, channels, height, width)


# From images (n, c, h, w) and an amount of each (n, 1, 1, 1) to changed images.
Change = Callable[[Tensor, Tensor], Tensor]
ADJUSTMENTS: tuple[tuple[str, Change, bool], ...] = (
    # parameter name, function, whether it means anything for one channel
    ("brightness", adjust_brightness, True),
    ("contrast", adjust_contrast, True),
    ("saturation", adjust_saturation, False),
    ("hue", adjust_hue, False),
)


def render(
    images: Tensor, parameters: ViewParameters, recipe: Recipe, size: tuple[int, int]
) -> Tensor:
    """Views (n, c, *size) of images (n, c, h, w) with values in [0, 1]."""
    return change_colors(crop_and_flip(images, parameters, size), parameters, recipe)


def change_colors(views: Tensor, parameters: ViewParameters, recipe: Recipe) -> Tensor:
    """Views (n, c, h, w) in [0, 1] after jitter, grayscale and blur. Overwrites the given ones.

    In each of up to six rounds (four of the jitter), every view goes through one change or none.
    Views are sorted by their change, so that it is made on a slice of them. To write into scattered
    rows would take about 20 small kernels on a GPU, where this has to be deterministic.

    Which samples are changed is known on the CPU, where the parameters are: the device is never
    waited for.
    """
    changes = [*(adjust for _, adjust, _ in ADJUSTMENTS), _all_gray, _blur(recipe.blur_kernel)]
    choice = _changes_by_round(parameters, recipe, colored=views.shape[1] == 3)
    choice = choice[(choice < len(changes)).any(dim=1)]
    if not len(choice):
        return views
    orders = choice.argsort(dim=1, stable=True)
    places = orders.argsort(dim=1)  # of each view in these orders
    moves = torch.cat([orders[:1], places[:-1].gather(1, orders[1:]), places[-1:]])
    amounts = _amounts(parameters).gather(0, choice).gather(1, orders)
    moves, amounts = to_device(moves, views.device), to_device(amounts, views.device)
    spare = torch.empty_like(views)  # two buffers in turns: new memory is slow on a CPU
    sizes = F.one_hot(choice, len(changes) + 1).sum(dim=1).tolist()
    for move, amount, by_change in zip(moves[:-1], amounts, sizes, strict=True):
        views, spare = torch.index_select(views, 0, move, out=spare), views
        start = 0
        for change, size in zip(changes, by_change[:-1], strict=True):
            if size:
                part = views[start : start + size]
                part.copy_(change(part, amount[start : start + size, None, None, None]))
            start += size
    return torch.index_select(views, 0, moves[-1], out=spare)


def _changes_by_round(parameters: ViewParameters, recipe: Recipe, colored: bool) -> Tensor:
    """The number of each sample's change in each round, (6, n), as `change_colors` lists them.

    The number after the last stands for no change.
    """
    gray, blur, none = range(len(ADJUSTMENTS), len(ADJUSTMENTS) + 3)
    active = torch.tensor(
        [getattr(recipe, name) > 0 and (colored or for_gray) for name, _, for_gray in ADJUSTMENTS]
    )
    order = parameters.order.T
    jitter = torch.where(parameters.jitter & active[order], order, none)
    grayed = torch.where(parameters.gray & colored, gray, none)
    return torch.cat([jitter, torch.stack([grayed, torch.where(parameters.blur, blur, none)])])


def _amounts(parameters: ViewParameters) -> Tensor:
    """What each change is given for each sample, (7, n), in the same order; 0 where nothing is."""
    factors = [getattr(parameters, name) for name, *_ in ADJUSTMENTS]
    nothing = torch.zeros_like(parameters.sigma)
    return torch.stack([*factors, nothing, parameters.sigma, nothing])


def _all_gray(images: Tensor, _: Tensor) -> Tensor:
    return grayscale(images).expand_as(images)


def _blur(kernel: int) -> Change:
    return lambda images, sigma: gaussian_blur(images, sigma.flatten(), kernel)
