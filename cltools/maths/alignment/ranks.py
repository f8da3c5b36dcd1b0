"""Rank correlation of the distances of two representations: Spearman RSA."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cltools.maths.alignment.features import (
    Vector,
    inverse_norms,
    same_images,
    squares,
)
from cltools.maths.alignment.moments import Pair
from cltools.maths.blocks import CPU, Features, RowSource, blocks_of, read, take

HELD_BYTES = 256 << 20  # of the rows that are held while all others are read
PAIR_BYTES = 4 << 20  # of the image pairs whose features are copied at a time
PAIR_GROUPS = 20  # groups of pairs, for the standard error of `spearman_rsa`


class Spearman(NamedTuple):
    """Spearman RSA over `pairs` image pairs, and its standard error due to sampling pairs."""

    value: float
    standard_error: float
    pairs: int


def spearman_rsa(
    a: Features,
    b: Features,
    pairs: int = 1_000_000,
    seed: int = 0,
    device: torch.device = CPU,
) -> Spearman:
    """Spearman rank correlation of the cosine distances of two representations.

    Over all N(N-1)/2 image pairs when these are at most `pairs`, otherwise over a sample of them
    without duplicates. Ties get their average rank.

    The standard error is that of sampling pairs of these images, 0 when all pairs are used. The
    sample is split at random into `PAIR_GROUPS` groups. Their standard deviation is scaled to the
    size of the whole sample, and by sqrt(1 - sampled / all), since pairs are drawn without
    replacement. The error says nothing about other images: for that, pass this function to
    `intervals.interval_of`.

    Args:
        a, b: (N, d) and (N, d').
        pairs: most pairs to use, at least 3 per group (60).
        seed: draws the pairs and the groups.
        device: where cosines are computed, in float64.

    Returns:
        (value in [-1, 1], standard error, pairs used). NaN where undefined: fewer than 3 images,
        or one of the two has all its distances equal.

    Raises:
        ValueError: features of unequal N or with numbers whose squares overflow, or too few pairs.
    """
    sources = same_images({"a": a, "b": b})
    return spearman_of(sources, [("a", "b")], pairs, seed, device)["a", "b"]


def spearman_of(
    features: Mapping[str, RowSource],
    compared: Sequence[Pair],
    pairs: int = 1_000_000,
    seed: int = 0,
    device: torch.device = CPU,
) -> dict[Pair, Spearman]:
    """`spearman_rsa` of several representations of the same images, over the same image pairs.

    Cosines and ranks of each are made once.
    """
    from scipy.stats import rankdata

    if pairs < 3 * PAIR_GROUPS:
        raise ValueError(f"at least {3 * PAIR_GROUPS} pairs are needed, not {pairs}")
    n = next(iter(features.values())).shape[0]
    total = n * (n - 1) // 2
    if total <= pairs:
        chosen, groups = np.arange(total), []
    else:
        rng = np.random.default_rng(seed)
        # Without shuffling, `choice` avoids a list of all pairs where that would be long. Sorted
        # pairs have their features next to each other in memory.
        chosen = np.sort(rng.choice(total, pairs, replace=False, shuffle=False))
        groups = np.array_split(rng.permutation(pairs), PAIR_GROUPS)
    ranks = {}
    for name in dict.fromkeys(name for pair in compared for name in pair):
        cosines = pair_cosines(name, features[name], chosen, device)
        ranks[name] = [rankdata(cosines), *(rankdata(cosines[group]) for group in groups)]
    found = {}
    for first, second in compared:
        value, *parts = (_pearson(x, y) for x, y in zip(ranks[first], ranks[second], strict=True))
        error = 0.0 if value == value else float("nan")
        if groups:
            error = float(np.std(parts, ddof=1) * np.sqrt((1 - pairs / total) / PAIR_GROUPS))
        found[first, second] = Spearman(value, error, len(chosen))
    return found


def pair_cosines(
    name: str, x: RowSource, chosen: NDArray[np.integer], device: torch.device = CPU
) -> Vector:
    """Cosines of the image pairs with numbers `chosen` in 0 … N(N-1)/2 - 1, for features (N, d).

    As many rows are held as fit into `HELD_BYTES`, while all rows are read block by block. So the
    features are read several times if they are larger than that.
    """
    # On a circle of the N images, pair k is image k mod N and the one k // N + 1 places further on.
    # This numbers every pair once; for even N the last round has only half of the pairs.
    n, d = x.shape
    scale = inverse_norms(squares(name, x, device))
    round_, first = np.divmod(chosen, n)
    second = (first + round_ + 1) % n
    cosines = np.empty(len(chosen))
    firsts = np.unique(first)
    for some in blocks_of(len(firsts), d, HELD_BYTES):
        held = firsts[some]
        rows = take(x, held, device) * scale[torch.from_numpy(held).to(device), None]
        mine = np.flatnonzero((first >= held[0]) & (first <= held[-1]))
        for part in blocks_of(n, d):
            here = mine[(second[mine] >= part.start) & (second[mine] < part.stop)]
            others = read(x, part, device) * scale[part, None]
            for few in blocks_of(len(here), d, PAIR_BYTES):
                i = torch.from_numpy(np.searchsorted(held, first[here[few]])).to(device)
                j = torch.from_numpy(second[here[few]] - part.start).to(device)
                cosines[here[few]] = torch.linalg.vecdot(rows[i], others[j]).cpu().numpy()
    return cosines.round(14)  # so that rounding errors break no ties


def _pearson(x: Vector, y: Vector) -> float:
    """Correlation of average ranks, of distances or of cosines; NaN if one of them is constant."""
    if len(x) < 2:
        return float("nan")
    x, y = (v - (len(v) + 1) / 2 for v in (x, y))
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")
