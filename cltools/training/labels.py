"""The labels that objectives are trained with: those of the data set, or made ones as a control.

An objective's name says which: `nscl` takes the labels of the data set, `nscl:shuffled` takes
shuffled ones. Labels are drawn from the cell's seed and the kind of labels alone, so that all
objectives of a cell with the same kind share them. What is measured after training is always
measured with the labels of the data set.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cltools.config.cells import parts_of
from cltools.data.image_set import ImageSet
from cltools.maths.labellings import (
    clustered_labels,
    coarse_labels,
    noisy_labels,
    random_labels,
    shuffled_labels,
)
from cltools.maths.objectives import labels_of
from cltools.maths.randomness import generator
from cltools.runtime.errors import InputError

BLOCK = 1024  # images whose pixels are read at once
SIDE = 16  # pixels; larger images are averaged to this side before they are clustered


class Labels(NamedTuple):
    """Labels (N,) of the training set, integers below `classes`, on the CPU."""

    values: Tensor
    classes: int


def labels_of_models(cell: dict[str, Any], data: ImageSet) -> dict[str, Labels]:
    """Objective -> the labels it is trained with. Equal kinds of labels are one object.

    Raises InputError for more groups than there are classes or images to group.
    """
    made: dict[str, Labels] = {}
    for objective in cell["objectives"]:
        if labels_of(objective) not in made:
            made[labels_of(objective)] = _made(objective, cell["seed"], data)
    return {objective: made[labels_of(objective)] for objective in cell["objectives"]}


def class_count(objective: str, classes: int) -> int:
    """How many classes an objective is trained on, in a cell of `classes` classes."""
    _, kind, number = parts_of(objective)
    return number if kind in ("random", "coarse", "clusters") else classes


def _made(objective: str, seed: int, data: ImageSet) -> Labels:
    labels, (_, kind, number) = labels_of(objective), parts_of(objective)
    true, classes = data.labels.numpy(), class_count(objective, data.classes)
    limits = {"coarse": data.classes - 1, "random": len(true), "clusters": len(true)}
    if number > limits.get(kind, number):
        of = f"{data.classes} classes" if kind == "coarse" else f"{len(true)} training images"
        raise InputError(
            f"config key objectives asks for labels {labels}, but this cell has {of}: lower the "
            f"number to at most {limits[kind]}, or take the objective out"
        )
    draw = int(torch.randint(2**31, (1,), generator=generator("labels", seed, labels)))
    match kind:
        case "":
            return Labels(data.labels, classes)
        case "shuffled":
            found = shuffled_labels(true, draw)
        case "random":
            found = random_labels(len(true), number, draw)
        case "coarse":
            found = coarse_labels(true, number, draw)
        case "noise":
            found = noisy_labels(true, number / 100, draw)
        case "clusters":
            found = clustered_labels(_pixels(data), number, draw)
        case _:
            raise ValueError(f"no such labels: {labels!r}")
    return Labels(torch.from_numpy(found), classes)


def _pixels(data: ImageSet) -> NDArray[np.float32]:
    """Pixels (N, d) of the plain images, averaged to at most SIDE x SIDE."""
    blocks = torch.split(torch.arange(len(data.labels)), BLOCK)
    height, width = (min(SIDE, side) for side in data.image_shape[:2])
    small = [
        F.adaptive_avg_pool2d(pixels, (height, width)).flatten(1).cpu()
        for pixels in data.plain(blocks)
    ]
    found: NDArray[np.float32] = torch.cat(small).numpy()
    return found
