"""The features that are measured together, and what several families of measures need of them."""

from collections.abc import Mapping
from functools import cached_property
from itertools import combinations

import numpy as np
import torch

from cltools.maths.alignment.features import class_index, same_images
from cltools.maths.alignment.moments import Moments, moments_of
from cltools.maths.alignment.samples import Sample, sample_of, sampled_images
from cltools.maths.blocks import CPU, RowSource
from cltools.maths.objectives import REFERENCE
from cltools.measurements.table import others


class Representations:
    """Features of the same n images by several objectives (or from several files).

    The moments and the sample are made when they are first asked for, and once.

    Args:
        features: name -> (n, d), in memory or in a file (`cltools.maths.blocks`).
        labels: (n,) classes of the images, None if there are none: then measures that need them
            have no rows, and all images count as one class.
        starts: name -> (n, d) before training, of all names. Objectives with the same start may
            share one object, which is then read once.
        reference: the name that others are compared with where not all pairs are.
        device: where products are made.

    Raises:
        ValueError: features that are not real (n, d), or of unequal n; labels of another number.
    """

    def __init__(
        self,
        features: Mapping[str, RowSource],
        labels: np.ndarray | None,
        starts: Mapping[str, RowSource] | None = None,
        reference: str = REFERENCE,
        device: torch.device = CPU,
    ) -> None:
        self.features = same_images(features)
        self.labels, self.reference, self.device = labels, reference, device
        self.index = np.zeros(len(self), dtype=np.intp)
        if labels is not None:
            self.index, _ = class_index(labels, len(self))
        # One entry for each distinct start, however many models share it.
        self.begun = {name: f"init {id(starts[name])}" for name in features} if starts else {}
        self._starts = {start: starts[name] for name, start in self.begun.items()} if starts else {}

    @property
    def others(self) -> list[str]:
        """All names except the reference; none if the reference is not there."""
        return others(self.features, self.reference)

    def __len__(self) -> int:
        return next(iter(self.features.values())).shape[0] if self.features else 0

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two names, the reference being the first of its pairs; each start with its name."""
        names = sorted(self.features, key=lambda name: name != self.reference)
        return [
            *combinations(names, 2),
            *((start, name) for name, start in self.begun.items()),
        ]

    @cached_property
    def cosine(self) -> Moments:
        """Moments of rows of norm 1."""
        return self._moments(cosine=True)

    @cached_property
    def raw(self) -> Moments:
        """Moments of the features as they are, with those within classes of every name."""
        return self._moments(cosine=False)

    @cached_property
    def sample(self) -> Sample:
        """Rows of norm 1 of a sample of the images, for permutation tests and intervals."""
        return sample_of(self.features, sampled_images(len(self)), True, self.device)

    def _moments(self, cosine: bool) -> Moments:
        every = {**self.features, **self._starts}
        within = () if cosine else tuple(self.features)
        return moments_of(every, self.pairs, self.index, cosine, self.device, within)
