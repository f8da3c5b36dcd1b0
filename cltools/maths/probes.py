"""What a classifier can read from frozen features: nearest class center and linear probe."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cltools.maths.blocks import (
    CACHE_BYTES,
    CPU,
    Features,
    RowSource,
    as_rows,
    blocks_of,
    each_block,
    read,
    working_bytes,
)
from cltools.maths.logistic import Images, fit, hits, in_memory, losses

Labels = NDArray[np.generic]  # of any kind that can be compared: numbers, strings

INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
FALLBACK = 0.1  # inverse penalty where there are too few images to hold any out
HELD_OUT = 0.2  # of each class, to choose the penalty
# Largest entry of the gradient where a probe counts as fitted. scikit-learn's default is 1e-4.
TOLERANCE = 1e-5
TOLERANCE_TO_CHOOSE = 1e-3
KEPT_BYTES = 1 << 30  # of standardized features in memory; larger ones are read at each step
DTYPE = torch.float32  # of standardized features and of all products of the probe


class Probe(NamedTuple):
    """Accuracies in [0, 1], and the inverse penalty C."""

    train: float
    test: float
    inverse_penalty: float


def nccc(
    train_features: Features,
    train_labels: ArrayLike,
    test_features: Features,
    test_labels: ArrayLike,
    device: torch.device = CPU,
) -> tuple[float, float]:
    """Accuracy of the nearest class center: P2's NCCC (arXiv 2510.08852, Table 1).

    The centers are the class means of all training features, distances are Euclidean. Everything is
    in float64; features are read in blocks.

    Args:
        train_features, test_features: (N, d) and (M, d), in memory or read from a file.
        train_labels, test_labels: (N,) and (M,) class labels of any kind. Test images of a class
            without training images count as errors.
        device: where the products are computed.

    Returns:
        (train accuracy, test accuracy), each in [0, 1].

    Raises:
        ValueError: shapes that do not fit together, an empty set, or features that are not finite.
    """
    train, y, test, test_y = checked_sets(train_features, train_labels, test_features, test_labels)
    classes = np.unique(y)
    index = class_index(classes, y, device)
    shift = shift_of(train, device)
    centers = torch.zeros(len(classes), train.shape[1], dtype=torch.float64, device=device)
    for part, x in each_block(train, device):
        centers.index_add_(0, index[part], x - shift)
    centers /= torch.bincount(index)[:, None]
    half_norms = centers.square().sum(1) / 2

    def accuracy(rows: RowSource, own: Tensor) -> float:
        # argmin ‖x - μ‖² = argmax x·μ - ‖μ‖²/2
        right = sum(
            ((x - shift) @ centers.T - half_norms).argmax(1).eq(own[part]).sum()
            for part, x in each_block(rows, device)
        )
        return int(right) / len(own)

    return accuracy(train, index), accuracy(test, class_index(classes, test_y, device))


def linear_probe(
    train_features: Features,
    train_labels: ArrayLike,
    test_features: Features,
    test_labels: ArrayLike,
    seed: int = 0,
    inverse_penalty: float | None = None,
    device: torch.device = CPU,
) -> Probe:
    """Accuracy of L2-penalized multinomial logistic regression on standardized features.

    The penalty 1/C is chosen on a fifth of each class of the training set: the one with the highest
    accuracy and, among equals, the lowest cross-entropy. The probe is then fitted again on the
    whole training set. Test images are used once, at the end. Standardization uses training
    statistics only.

    The model is that of scikit-learn's `LogisticRegression`. It is fitted in float32 until no entry
    of the gradient is above `TOLERANCE`, a tenth of what scikit-learn stops at. Standardized
    features of more than `KEPT_BYTES` are not kept in memory, but read again at each step.

    Args:
        train_features, test_features: (N, d) and (M, d), in memory or read from a file.
        train_labels, test_labels: (N,) and (M,) class labels.
        seed: draws the held-out images.
        inverse_penalty: C, above 0; by default it is chosen as described above.
        device: where the products are computed.

    Returns:
        (train accuracy, test accuracy, chosen C), accuracies in [0, 1]. When every class has fewer
        than five images, none can be held out and C is `FALLBACK`.

    Raises:
        ValueError: as `nccc`, a training set of one class, or C not above 0.
    """
    if inverse_penalty is not None and not inverse_penalty > 0:
        raise ValueError(f"inverse_penalty must be above 0, not {inverse_penalty}")
    sets = {"": train_features}, train_labels, {"": test_features}, test_labels
    return linear_probes(*sets, seed, inverse_penalty, device)[""]


def linear_probes(
    train: Mapping[str, Features],
    train_labels: ArrayLike,
    test: Mapping[str, Features],
    test_labels: ArrayLike,
    seed: int = 0,
    inverse_penalty: float | None = None,
    device: torch.device = CPU,
) -> dict[str, Probe]:
    """`linear_probe` of several features of the same images; small ones are fitted side by side.

    Args:
        train, test: name -> (N, d) and (M, d); d may differ between names.
        train_labels, test_labels, seed, inverse_penalty, device: as for `linear_probe`.
    """
    checked = {
        name: checked_sets(x, train_labels, test[name], test_labels) for name, x in train.items()
    }
    found = {}
    for names in _groups({name: sets[0].shape for name, sets in checked.items()}, device):
        y, test_y = checked[names[0]][1], checked[names[0]][3]
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError("a linear probe needs training images of at least two classes")
        trains, tests = ([checked[name][i] for name in names] for i in (0, 2))
        given = None if inverse_penalty is None else np.full(len(names), inverse_penalty)
        fitted = fit_probes(trains, class_index(classes, y, device), len(classes), seed, given)
        test_index = class_index(classes, test_y, device)
        test_images = _standardized(tests, fitted.scales, test_index, len(classes))
        right = hits(fitted.images, fitted.v), hits(test_images, fitted.v)
        for name, a, b, c in zip(names, *right, fitted.inverse_penalties, strict=True):
            found[name] = Probe(int(a) / len(y), int(b) / len(test_y), float(c))
    return {name: found[name] for name in train}


class FittedProbes(NamedTuple):
    """Probes of B sets of features with the same labels.

    images: the standardized features.
    scales: mean and factor (d,) of each set; (x - mean) * factor is standardized.
    v: (B, 1, C, d + 1), weights on standardized features, and the intercept as the last column.
    inverse_penalties: (B,).
    """

    images: Images
    scales: list[tuple[Tensor, Tensor]]
    v: Tensor
    inverse_penalties: NDArray[np.float64]


def fit_probes(
    sources: Sequence[RowSource],
    index: Tensor,
    classes: int,
    seed: int,
    inverse_penalties: NDArray[np.float64] | None = None,
    tolerance: float = TOLERANCE,
) -> FittedProbes:
    """Fit the probes that `linear_probe` describes, side by side.

    Args:
        sources: B sets of features (n, d), on which nothing is checked.
        index: (n,) classes 0..C-1, the same for all sets, on the device that computes.
        classes: C, at least 2.
        seed: draws the held-out images, the same ones for all sets.
        inverse_penalties: (B,), by default chosen.
        tolerance: as for `logistic.fit`. With far fewer images than features, the gradient is that
            of coordinates in an orthonormal basis of the images.
    """
    scales, images, reduced, basis = _prepared(sources, index, classes)
    chosen = _chosen(reduced, seed) if inverse_penalties is None else inverse_penalties
    v = fit(reduced, torch.from_numpy(chosen)[:, None], tolerance, DTYPE)
    if basis is not None:
        v = torch.cat([v[..., :-1] @ basis.mT[:, None], v[..., -1:]], 3)
    return FittedProbes(images, scales, v, chosen)


def choose_penalties(
    sources: Sequence[RowSource], index: Tensor, classes: int, seed: int
) -> NDArray[np.float64]:
    """The inverse penalties (B,) that `fit_probes` chooses."""
    return _chosen(_prepared(sources, index, classes).reduced, seed)


def together(n: int, d: int, device: torch.device) -> int:
    """How many sets of n rows of d features are fitted side by side."""
    return max(1, working_bytes(device) // (n * (n if _is_wide(n, d) else d) * DTYPE.itemsize))


def _is_wide(n: int, d: int) -> bool:
    """Whether features are first reduced to n: the QR decomposition pays with far fewer images."""
    return 4 * n <= d


class _Prepared(NamedTuple):
    """Standardized features, as such and reduced, and the basis (B, d, n) of what is left.

    The weights of a probe are combinations of the images. So with n < d images, n coordinates in an
    orthonormal basis of the images give the same probe.
    """

    scales: list[tuple[Tensor, Tensor]]
    images: Images
    reduced: Images
    basis: Tensor | None


def _prepared(sources: Sequence[RowSource], index: Tensor, classes: int) -> _Prepared:
    scales = [_standardization(x, index.device) for x in sources]
    images = _standardized(sources, scales, index, classes)
    n, d = len(index), images.features
    if len(sources) * n * d * DTYPE.itemsize > KEPT_BYTES:
        return _Prepared(scales, images, images, None)
    x = torch.empty(len(sources), n, d, dtype=DTYPE, device=index.device)
    rows = 1
    for part, block in images.blocks():
        x[:, part] = block
        rows = max(rows, block.shape[1])
    images = in_memory(x, index, classes, rows)
    if not _is_wide(n, d):
        return _Prepared(scales, images, images, None)
    basis, coordinates = torch.linalg.qr(x.mT)
    return _Prepared(scales, images, in_memory(coordinates.mT, index, classes), basis)


def _chosen(images: Images, seed: int) -> NDArray[np.float64]:
    held_out = torch.from_numpy(_held_out(images.index.numpy(force=True), seed))
    if not held_out.any():
        return np.full(images.sets, FALLBACK)
    held_out = held_out.to(images.index.device)
    penalties = torch.tensor(INVERSE_PENALTIES).expand(images.sets, -1)
    v = fit(images, penalties, TOLERANCE_TO_CHOOSE, DTYPE, left_out=held_out)
    right = hits(images, v, held_out)
    best_ones = right == right.amax(1, keepdim=True)
    among_best = losses(images, v, held_out).where(best_ones, torch.inf)
    best = among_best.numpy(force=True).argmin(axis=1)
    chosen: NDArray[np.float64] = np.array(INVERSE_PENALTIES)[best]
    return chosen


def _standardization(x: RowSource, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean (d,) and factor (d,) that make each feature's mean 0 and its variance 1."""
    n, d = x.shape
    size = working_bytes(device)
    mean, square, largest = torch.zeros(3, d, dtype=torch.float64, device=device)
    shift = shift_of(x, device)
    for _, rows in each_block(x, device, block_bytes=size):
        mean += (rows - shift).sum(0) / n
        largest = torch.maximum(largest, torch.maximum(rows.amax(0), -rows.amin(0)))
    mean += shift
    for _, rows in each_block(x, device, block_bytes=size):
        square += (rows - mean).square_().sum(0) / n
    return mean, _factor(square, largest)


def _factor(variance: Tensor, largest: Tensor) -> Tensor:
    # A constant feature says nothing. Rounding may give it a deviation just above 0.
    deviation = variance.sqrt()
    constant = deviation <= 1e-12 * largest
    return torch.where(constant, 0.0, 1 / torch.where(constant, 1.0, deviation))


def _standardized(
    sources: Sequence[RowSource],
    scales: Sequence[tuple[Tensor, Tensor]],
    index: Tensor,
    classes: int,
) -> Images:
    """Images whose features are read and standardized block by block."""
    n, d = sources[0].shape
    width = len(sources) * (d + len(INVERSE_PENALTIES) * classes)

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        for part in blocks_of(n, width, 2 * working_bytes(index.device)):
            each = torch.empty(
                len(sources), part.stop - part.start, d, dtype=DTYPE, device=index.device
            )
            for place, x, (mean, factor) in zip(each, sources, scales, strict=True):
                torch.mul(read(x, part, index.device) - mean, factor, out=place)
            yield part, each

    return Images(blocks, index, classes, d, len(sources))


def _groups(shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> list[list[str]]:
    """The names in groups of equal shape, each small enough to be fitted side by side."""
    of_shape: dict[tuple[int, ...], list[str]] = {}
    for name, shape in shapes.items():
        of_shape.setdefault(shape, []).append(name)
    return [
        names[start : start + size]
        for shape, names in of_shape.items()
        for size in [together(shape[0], shape[1], device)]
        for start in range(0, len(names), size)
    ]


def _held_out(index: NDArray[np.intp], seed: int) -> NDArray[np.bool_]:
    """Mask (N,) of a random fifth of each class, rounded down."""
    order = np.random.default_rng(seed).permutation(len(index))
    by_class = order[np.argsort(index[order], kind="stable")]
    held_out = np.zeros(len(index), dtype=bool)
    for members in np.split(by_class, np.cumsum(np.bincount(index))[:-1]):
        held_out[members[: int(HELD_OUT * len(members))]] = True
    return held_out


def class_index(classes: Labels, labels: Labels, device: torch.device = CPU) -> Tensor:
    """Places (n,) of the labels among the sorted classes, -1 for a label that is none of them."""
    place = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    return torch.from_numpy(np.where(classes[place] == labels, place, -1)).to(device)


def shift_of(x: RowSource, device: torch.device = CPU) -> Tensor:
    """The mean (d,) of some rows. Subtracted from all rows, it leaves distances as they are.

    Rounding errors get smaller where features have a large offset.
    """
    return read(x, blocks_of(x.shape[0], x.shape[1], CACHE_BYTES)[0], device).mean(0)


def checked_sets(
    train: Features, train_labels: ArrayLike, test: Features, test_labels: ArrayLike
) -> tuple[RowSource, Labels, RowSource, Labels]:
    """Features and labels of the training set, then of the test set.

    Raises:
        ValueError: as `nccc`.
    """
    x, y = _checked_set("train", train, train_labels)
    test_x, test_y = _checked_set("test", test, test_labels)
    if x.shape[1] != test_x.shape[1]:
        raise ValueError(f"train and test differ in features: {x.shape}, {test_x.shape}")
    return x, y, test_x, test_y


def _checked_set(which: str, features: Features, labels: ArrayLike) -> tuple[RowSource, Labels]:
    x, y = as_rows(which, features), np.asarray(labels)
    if y.shape != (x.shape[0],):
        raise ValueError(f"{which} features {x.shape} and labels {y.shape} must be (N, d) and (N,)")
    for _, rows in each_block(x):
        if not rows.sum().isfinite():
            raise ValueError(f"{which} features hold NaN or infinity")
    return x, y
