"""Accuracy on frozen features with few labels, and accuracy of nearest neighbors.

P1 is arXiv 2506.04411. Its few-shot figures show the nearest class center classifier (NCCC) and a
linear probe, both trained on n images per class.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cltools.maths.blocks import (
    CPU,
    Features,
    RowSource,
    SomeRows,
    blocks_of,
    each_block,
    is_float32,
    read,
    take,
    working_bytes,
)
from cltools.maths.probes import (
    KEPT_BYTES,
    Labels,
    checked_sets,
    choose_penalties,
    class_index,
    fit_probes,
    shift_of,
    together,
)

FEWEST_QUERIES = 2  # images of a class that must remain to be classified, in `few_shot_one_split`
TEMPERATURE = 0.07  # in the neighbors' weights, Wu et al. 2018 (arXiv 1805.01978)
# Of the gradient of a linear probe, as scikit-learn's. The labeled images that are drawn matter far
# more than what a smaller one would change.
TOLERANCE = 1e-4
CHUNK_ENTRIES = 1 << 23  # scores or cosines held at once
CENTERS_BYTES = 512 << 20  # of class centers held at once


class FewShot(NamedTuple):
    """Accuracy at each number of shots (S,), over repeats; NaN where a class is too small."""

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    accuracies: NDArray[np.float64]  # (S, repeats)


def few_shot(
    train_features: Features,
    train_labels: ArrayLike,
    test_features: Features,
    test_labels: ArrayLike,
    shots: Sequence[int],
    repeats: int = 20,
    ways: int | None = None,
    seed: int = 0,
    probe: Literal["nccc", "linear"] = "nccc",
    device: torch.device = CPU,
) -> FewShot:
    """Test accuracy when only n training images per class are labeled (P1, few-shot figures).

    Each repeat draws its own images, and with `ways` its own classes. Within a repeat, a larger
    number of shots adds images to those of a smaller one, so that the curve over shots is smooth.

    Args:
        train_features, test_features: (N, d) and (M, d), in memory or read from a file. Images are
            drawn from the training set. All test images of the drawn classes are classified.
        train_labels, test_labels: (N,) and (M,) class labels of any kind.
        shots: S numbers of labeled images per class, each above 0, in any order.
        repeats: draws, above 0.
        ways: classes per repeat, e.g. 2, drawn from the classes that both sets have. Default all
            classes of the training set; then test images of other classes count as errors.
        seed: draws classes and images.
        probe: "nccc" (nearest class center, Euclidean) or "linear" (`probes.linear_probe`). The
            penalty of the linear probe is chosen in the first repeat, once for each number of
            shots, on images held out of that draw. It is fitted to `TOLERANCE`.
        device: where the products are computed.

    Returns:
        (mean, sd, accuracies) of shapes (S,), (S,) and (S, repeats), all in [0, 1]. The sd has
        repeats - 1 in the denominator and is NaN for a single repeat. More shots than images in
        the smallest training class give NaN.

    Raises:
        ValueError: as `nccc`; shots, repeats or probe outside these ranges; ways below 2 or above
            the number of classes.
    """
    sets = {"": train_features}, train_labels, {"": test_features}, test_labels
    return few_shots(*sets, shots, repeats, ways, seed, probe, device)[""]


def few_shots(
    train: Mapping[str, Features],
    train_labels: ArrayLike,
    test: Mapping[str, Features],
    test_labels: ArrayLike,
    shots: Sequence[int],
    repeats: int = 20,
    ways: int | None = None,
    seed: int = 0,
    probe: Literal["nccc", "linear"] = "nccc",
    device: torch.device = CPU,
) -> dict[str, FewShot]:
    """`few_shot` of several features of the same images, with the same draws.

    The linear probes of small features are fitted side by side.

    Args:
        train, test: name -> (N, d) and (M, d); d may differ between names.
        train_labels, test_labels, shots, repeats, ways, seed, probe, device: as for `few_shot`.
    """
    each = _checked_shots(shots, repeats)
    if probe not in ("nccc", "linear"):
        raise ValueError(f"probe must be nccc or linear, not {probe!r}")
    sets = {
        name: checked_sets(x, train_labels, test[name], test_labels) for name, x in train.items()
    }
    y, test_y = (np.asarray(labels) for labels in (train_labels, test_labels))
    drawn = _draw(y, test_y, each, np.unique(y, return_counts=True)[1].min(), repeats, ways, seed)
    if not len(drawn.shots):
        return dict.fromkeys(sets, _over_repeats(each, drawn, np.empty((repeats, 0))))
    queries = np.full((repeats, 1), len(test_y))
    if ways:
        queries = np.array([[np.isin(test_y, drawn.classes[of]).sum()] for of in drawn.of])
    index = class_index(drawn.classes, test_y, device)
    if probe == "linear":
        linear = _linear({name: x for name, (x, *_) in sets.items()}, drawn, seed, device)
    found = {}
    for name, (x, _, test_x, _) in sets.items():
        if probe == "linear":
            right = _right(test_x, index, drawn, linear.pop(name))
        else:
            right = _right_by_centers(x, test_x, index, drawn)
        found[name] = _over_repeats(each, drawn, right.sum(axis=2) / queries)
    return found


def few_shot_one_split(
    features: Features,
    labels: ArrayLike,
    shots: Sequence[int],
    repeats: int = 20,
    ways: int | None = None,
    seed: int = 0,
    device: torch.device = CPU,
) -> FewShot:
    """Accuracy of the nearest class center, where all images are of one set (P1, Proposition 1).

    The proposition draws labeled images and those to classify from one distribution. Here each
    repeat draws n labeled images per class, as `few_shot` does, and classifies all others of these
    classes. Every class has the same weight in the accuracy, whatever its number of images.

    Args:
        features: (N, d).
        labels: (N,) class labels of any kind.
        shots, repeats, ways, seed, device: as for `few_shot`.

    Returns:
        As `few_shot`. Shots that leave fewer than two images of the smallest class give NaN.

    Raises:
        ValueError: as `few_shot`.
    """
    x, y, *_ = checked_sets(features, labels, features, labels)
    each = _checked_shots(shots, repeats)
    counts = np.unique(y, return_counts=True)[1]
    drawn = _draw(y, y, each, counts.min() - FEWEST_QUERIES, repeats, ways, seed)
    if not len(drawn.shots):
        return _over_repeats(each, drawn, np.empty((repeats, 0)))
    index = class_index(drawn.classes, y, device)
    right = _right_by_centers(x, x, index, drawn, labeled_too=False)
    of_class = np.take_along_axis(right, drawn.of[:, None], axis=2)  # (repeats, S, W)
    others = counts[drawn.of][:, None] - drawn.shots[:, None]
    return _over_repeats(each, drawn, (of_class / others).mean(axis=2))


def knn(
    train_features: Features,
    train_labels: ArrayLike,
    test_features: Features,
    test_labels: ArrayLike,
    k: int = 20,
    device: torch.device = CPU,
) -> float:
    """Accuracy of the k nearest training images by cosine, with votes exp(cos / 0.07).

    The weighted vote of Wu et al. 2018 (arXiv 1805.01978), as lightly and DINO compute it. Cosines
    are in float64.

    Args:
        train_features, test_features: (N, d) and (M, d), in memory or read from a file. A row of
            norm 0 has cosine 0 with all.
        train_labels, test_labels: (N,) and (M,) class labels of any kind. Test images of a class
            without training images count as errors.
        k: neighbors, above 0; all training images when there are fewer.
        device: where the products are computed.

    Returns:
        Test accuracy in [0, 1].

    Raises:
        ValueError: as `nccc`, numbers whose squares overflow, or k below 1.
    """
    train, y, test, test_y = checked_sets(train_features, train_labels, test_features, test_labels)
    if k < 1:
        raise ValueError(f"k must be above 0, not {k}")
    classes, index = np.unique(y, return_inverse=True)
    own = class_index(classes, test_y).numpy()
    columns = blocks_of(*train.shape)[0].stop
    size = max(1, CHUNK_ENTRIES // columns) * 8 * train.shape[1]
    hits = 0
    for part in blocks_of(test.shape[0], test.shape[1], size):
        cosines, near = _nearest(train, unit_rows(read(test, part, device)), min(k, len(y)))
        weights = np.exp(cosines / TEMPERATURE)
        cell = np.arange(len(near))[:, None] * len(classes) + index[near]
        votes = np.bincount(cell.ravel(), weights.ravel(), len(near) * len(classes))
        best = votes.reshape(len(near), len(classes)).argmax(axis=1)
        hits += int(np.count_nonzero(best == own[part]))
    return hits / len(own)


def _nearest(
    train: RowSource, test: Tensor, k: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The k largest cosines (m, k) of test rows (m, d) of norm 1, and the training rows."""
    cosines = test.new_empty(len(test), 0)
    near = torch.empty(len(test), 0, dtype=torch.int64, device=test.device)
    for part, x in each_block(train, test.device):
        these = torch.arange(part.start, part.stop, device=test.device).expand(len(test), -1)
        found, place = (test @ unit_rows(x).T).topk(min(k, x.shape[0]))
        both = torch.cat([cosines, found], 1)
        cosines, kept = both.topk(min(k, both.shape[1]))
        near = torch.cat([near, these.gather(1, place)], 1).gather(1, kept)
    return cosines.numpy(force=True), near.numpy(force=True)


def unit_rows(x: Tensor) -> Tensor:
    """Each row of x (n, d) divided by its norm; a row of norm 0 stays 0."""
    norms = x.norm(dim=1, keepdim=True)
    if not norms.isfinite().all():
        raise ValueError("features hold numbers whose squares overflow")
    return x / torch.where(norms == 0, 1.0, norms)


def draws(
    y: Labels, test_y: Labels, most: int, repeats: int, ways: int | None, seed: int
) -> Iterator[tuple[Labels, NDArray[np.intp]]]:
    """For each repeat, its classes (W,) and the row numbers (W, most) of the images drawn of them.

    The first s columns are the images of s shots.

    Raises:
        ValueError: ways below 2 or above the number of classes.
    """
    classes = np.unique(y)
    if ways is not None:
        classes = np.intersect1d(classes, test_y)
        if not 2 <= ways <= len(classes):
            raise ValueError(f"ways must be 2 to {len(classes)} classes, not {ways}")
    members = {c: np.flatnonzero(y == c) for c in classes}
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        drawn = classes if ways is None else rng.choice(classes, ways, replace=False)
        yield drawn, np.stack([rng.permutation(members[c])[:most] for c in drawn])


def _checked_shots(shots: Sequence[int], repeats: int) -> NDArray[np.integer]:
    each = np.asarray(shots)
    if each.ndim != 1 or each.size == 0 or each.dtype.kind not in "iu" or each.min() < 1:
        raise ValueError(f"shots must be whole numbers above 0, not {each}")
    if repeats < 1:
        raise ValueError(f"repeats must be above 0, not {repeats}")
    return each


@dataclass(frozen=True)
class _Drawn:
    """What the repeats drew: R repeats of W classes, and S numbers of shots."""

    classes: Labels  # (C,) all classes of the training set
    shots: NDArray[np.integer]  # (S,) ascending; those that the smallest class allows
    of: NDArray[np.intp]  # (R, W) drawn classes, by their place among all classes
    support: NDArray[np.intp]  # (R, W, most shots) rows of the training set


def _draw(
    y: Labels,
    test_y: Labels,
    each: NDArray[np.integer],
    most: int,
    repeats: int,
    ways: int | None,
    seed: int,
) -> _Drawn:
    """Draws for those of `each` number of shots that are at most `most`."""
    shots, classes = np.unique(each[each <= most]), np.unique(y)
    largest = int(shots[-1]) if len(shots) else 0
    drawn, support = zip(*draws(y, test_y, largest, repeats, ways, seed), strict=True)
    return _Drawn(classes, shots, np.searchsorted(classes, np.stack(drawn)), np.stack(support))


def _over_repeats(each: NDArray[np.integer], drawn: _Drawn, found: NDArray[np.float64]) -> FewShot:
    """For each number of shots, the accuracies found (R, S); NaN where there are none."""
    repeats = len(found)
    accuracies = np.full((len(each), repeats), np.nan)
    feasible = np.isin(each, drawn.shots)
    accuracies[feasible] = found.T[np.searchsorted(drawn.shots, each[feasible])]
    sd = accuracies.std(axis=1, ddof=1) if repeats > 1 else np.full(len(each), np.nan)
    return FewShot(accuracies.mean(axis=1), sd, accuracies)


class _Classifiers(NamedTuple):
    """Linear classifiers of each repeat and number of shots.

    The class with the largest (x - shift) · weights + offset wins.
    """

    weights: Tensor  # (R, S, W, d)
    offsets: Tensor  # (R, S, W)
    shift: Tensor  # (d,)


def _right_by_centers(
    train: RowSource, test: RowSource, index: Tensor, drawn: _Drawn, labeled_too: bool = True
) -> NDArray[np.float64]:
    """As `_right`, for the nearest class center; as many repeats at once as memory allows."""
    size = drawn.of.shape[1] * len(drawn.shots) * train.shape[1] * 8
    at_once = max(1, CENTERS_BYTES // size)
    found = []
    for start in range(0, len(drawn.of), at_once):
        part = slice(start, start + at_once)
        some = replace(drawn, of=drawn.of[part], support=drawn.support[part])
        found.append(_right(test, index, some, _centers(train, some, index.device), labeled_too))
    return np.concatenate(found)


def _centers(x: RowSource, drawn: _Drawn, device: torch.device) -> _Classifiers:
    """Class centers as classifiers: argmin ‖x - μ‖² = argmax x·μ - ‖μ‖²/2."""
    (repeats, ways, most), numbers = drawn.support.shape, len(drawn.shots)
    # Sums over the images that one more number of shots adds; each image is read once.
    step = np.searchsorted(drawn.shots, np.arange(most), side="right")
    cells = (np.arange(ways)[:, None] * numbers + step).ravel()
    support = drawn.support.reshape(repeats, -1)
    order = np.argsort(support, axis=1)
    rows, cells = np.take_along_axis(support, order, axis=1), cells[order]
    sums = torch.zeros(repeats, ways * numbers, x.shape[1], dtype=torch.float64, device=device)
    shift = shift_of(x, device)
    for part, block in each_block(x, device, block_bytes=working_bytes(device)):
        block = block - shift
        for repeat in range(repeats):
            some = slice(*np.searchsorted(rows[repeat], [part.start, part.stop]))
            chosen, into = (
                torch.from_numpy(numbers_of[repeat, some]).to(device)
                for numbers_of in (rows - part.start, cells)
            )
            sums[repeat].index_add_(0, into, block[chosen])
    sums = sums.view(repeats, ways, numbers, -1)
    for place in range(1, numbers):
        sums[:, :, place] += sums[:, :, place - 1]
    sums /= torch.from_numpy(drawn.shots).to(device)[:, None]
    weights = sums.transpose(1, 2).contiguous()
    return _Classifiers(weights, -weights.square().sum(3) / 2, shift)


def _linear(
    sources: Mapping[str, RowSource], drawn: _Drawn, seed: int, device: torch.device
) -> dict[str, _Classifiers]:
    """The linear probes, of several features of the same images."""
    if drawn.of.shape[1] < 2:
        raise ValueError("a linear probe needs training images of at least two classes")
    rows = np.unique(drawn.support)
    found = {}
    for names in _groups({name: x.shape[1] for name, x in sources.items()}, len(rows)):
        labeled = _Labeled.of({name: sources[name] for name in names}, rows, drawn, device)
        shape = *drawn.of.shape[:1], len(drawn.shots), drawn.of.shape[1], labeled.features
        for name in names:
            weights = torch.zeros(shape, dtype=torch.float64, device=device)
            shift = shift_of(sources[name], device)
            found[name] = _Classifiers(weights, torch.zeros_like(weights[..., 0]), shift)
        for place in range(len(drawn.shots)):
            penalties = _penalties(labeled, place, names, seed)
            sets = [(name, repeat) for name in names for repeat in range(len(drawn.of))]
            for some in labeled.together(sets, place):
                _fit(labeled, place, some, seed, penalties, found)
    return found


@dataclass(frozen=True)
class _Labeled:
    """The labeled images of all draws, in memory if they are few enough."""

    sources: Mapping[str, RowSource]
    rows: NDArray[np.intp]  # of the training set, those that are in memory
    held: Mapping[str, Tensor] | None
    drawn: _Drawn
    device: torch.device

    @classmethod
    def of(
        cls,
        sources: Mapping[str, RowSource],
        rows: NDArray[np.intp],
        drawn: _Drawn,
        device: torch.device,
    ) -> Self:
        held = None
        if all(len(rows) * x.shape[1] * 8 <= KEPT_BYTES for x in sources.values()):
            held = {
                name: take(x, rows, device, torch.float32 if is_float32(x) else torch.float64)
                for name, x in sources.items()
            }
        return cls(sources, rows, held, drawn, device)

    @property
    def features(self) -> int:
        return next(iter(self.sources.values())).shape[1]

    def together(
        self, sets: Sequence[tuple[str, int]], place: int
    ) -> Iterator[Sequence[tuple[str, int]]]:
        """The sets in groups that can be fitted side by side; in a file, each has its own order."""
        n = self.drawn.of.shape[1] * int(self.drawn.shots[place])
        size = together(n, self.features, self.device) if self.held else 1
        for start in range(0, len(sets), size):
            yield sets[start : start + size]

    def set(self, name: str, repeat: int, place: int) -> tuple[RowSource, Tensor]:
        """Features and classes (n,), the latter by their place among the drawn ones."""
        ways, shots = self.drawn.of.shape[1], self.drawn.shots[place]
        support = self.drawn.support[repeat, :, :shots].ravel()
        index = np.repeat(np.arange(ways), shots)
        if self.held:
            chosen = torch.from_numpy(np.searchsorted(self.rows, support)).to(self.device)
            return self.held[name][chosen], torch.from_numpy(index).to(self.device)
        order = np.argsort(support)
        x = SomeRows(self.sources[name], support[order])
        return x, torch.from_numpy(index[order]).to(self.device)


def _penalties(labeled: _Labeled, place: int, names: Sequence[str], seed: int) -> dict[str, float]:
    """The inverse penalty of each feature, chosen in the first repeat."""
    found: dict[str, float] = {}
    for sets in labeled.together([(name, 0) for name in names], place):
        x, index = zip(*(labeled.set(*one, place) for one in sets), strict=True)
        chosen = choose_penalties(x, index[0], labeled.drawn.of.shape[1], seed)
        found |= {name: float(c) for (name, _), c in zip(sets, chosen, strict=True)}
    return found


def _fit(
    labeled: _Labeled,
    place: int,
    sets: Sequence[tuple[str, int]],
    seed: int,
    penalties: Mapping[str, float],
    found: Mapping[str, _Classifiers],
) -> None:
    """Put the probes of these features and repeats, at one number of shots, into `found`."""
    x, index = zip(*(labeled.set(*one, place) for one in sets), strict=True)
    given = np.array([penalties[name] for name, _ in sets])
    fitted = fit_probes(x, index[0], labeled.drawn.of.shape[1], seed, given, TOLERANCE)
    each = zip(sets, fitted.scales, fitted.v[:, 0].double(), strict=True)
    for (name, repeat), (mean, factor), v in each:
        weights = v[:, :-1] * factor
        found[name].weights[repeat, place] = weights
        found[name].offsets[repeat, place] = v[:, -1] - weights @ (mean - found[name].shift)


def _groups(features: Mapping[str, int], n: int) -> list[list[str]]:
    """The names in groups with equally many features, n rows of which fit in memory together."""
    groups: list[list[str]] = []
    for name, d in features.items():
        last = groups[-1] if groups else []
        if last and features[last[0]] == d and (len(last) + 1) * n * d * 8 <= KEPT_BYTES:
            last.append(name)
        else:
            groups.append([name])
    return groups


def _right(
    x: RowSource,
    index: Tensor,
    drawn: _Drawn,
    classifiers: _Classifiers,
    labeled_too: bool = True,
) -> NDArray[np.float64]:
    """How many images of each class (R, S, C) are classified rightly.

    index (n,): the classes of the images, -1 for one that no classifier knows. Without
    `labeled_too`, the images that a classifier was made from are left out.
    """
    device, classes = index.device, len(drawn.classes)
    place = np.full((len(drawn.of), classes), -1)
    np.put_along_axis(place, drawn.of, np.arange(drawn.of.shape[1])[None], axis=1)
    before = np.full((len(drawn.of), len(index)), drawn.shots[-1])  # shots of which it is none
    if not labeled_too:
        numbers = np.tile(np.arange(drawn.support.shape[2]), drawn.of.shape[1])
        np.put_along_axis(before, drawn.support.reshape(len(before), -1), numbers[None], axis=1)
    places, shots = (torch.from_numpy(a).to(device) for a in (place, drawn.shots))
    weights, offsets, shift = classifiers
    found = torch.zeros(*offsets.shape[:2], classes, dtype=torch.float64, device=device)
    for part, block in each_block(x, device):
        first = torch.from_numpy(before[:, part]).to(device)
        for repeats, images in _that_meet(places, index[part]):
            rows, own = block[images] - shift, index[part][images]
            member = torch.nn.functional.one_hot(own, classes).double()
            at_once = max(1, CHUNK_ENTRIES // (len(images) * offsets[0].numel()))
            for some in torch.split(repeats, at_once):
                scores = (rows @ weights[some].flatten(0, 2).T).view(-1, *offsets[some].shape)
                right = (scores + offsets[some]).argmax(3) == places[some][:, own].T[:, :, None]
                right &= first[some][:, images].T[:, :, None] >= shots
                found[some] += torch.einsum("mrs,mc->rsc", right.double(), member)
    return np.asarray(found.numpy(force=True))


def _that_meet(place: Tensor, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Repeats, and the images that have their classes, so that no others are compared."""
    if (place >= 0).all():
        yield torch.arange(len(place)), (index >= 0).nonzero()[:, 0]
        return
    for c in (place >= 0).any(0).nonzero()[:, 0].tolist():
        images = (index == c).nonzero()[:, 0]
        if len(images):
            yield (place[:, c] >= 0).nonzero()[:, 0], images
