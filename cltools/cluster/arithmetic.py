"""What a network costs: arithmetic and parameters, from its settings. Imports quickly.

The numbers are of the layers with nearly all the work: convolutions, linear layers and attention.
`tests/cluster/test_arithmetic.py` compares them with those that torch counts. A model of timm is
counted by torch itself, which has to be imported for it.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from cltools.config.architectures import (
    ARCHITECTURES,
    TIMM,
    TRANSFORMERS,
    Architecture,
    Transformer,
    usual_patch,
)
from cltools.config.projectors import projector_widths


class NetworkSize(NamedTuple):
    """The size of one network: encoder and projector.

    flops: of the forward pass of one image, a multiplication and an addition counting as two.
    parameters: their number. features: of h.
    widths: of what the stem and the blocks put out, as `training.layers` takes it.
    """

    flops: float
    parameters: float
    features: int
    widths: tuple[int, ...]


def network_size(cell: Mapping[str, Any], side: int, channels: int = 3) -> NetworkSize:
    """The size of one network of a resolved cell, for images of side x side pixels.

    Raises InputError for a model that timm does not have, or that does not take such images.
    """
    name = cell["architecture"]
    if name.startswith(TIMM):
        from cltools.models.timm_encoder import timm_size

        encoder = NetworkSize(*timm_size(name.removeprefix(TIMM), side, channels, cell["patch"]))
    elif name in TRANSFORMERS:
        encoder = _transformer(
            TRANSFORMERS[name], cell["patch"] or usual_patch(side), side, channels
        )
    else:
        encoder = _resnet(ARCHITECTURES[name], cell, side, channels)
    widths = projector_widths(cell, encoder.features)
    weights = sum(inputs * outputs for inputs, outputs in pairwise(widths))
    return encoder._replace(
        flops=encoder.flops + 2 * weights, parameters=encoder.parameters + weights
    )


def _resnet(
    architecture: Architecture, cell: Mapping[str, Any], side: int, channels: int
) -> NetworkSize:
    inputs = architecture.channels * cell["width"]
    large = cell["stem"] == "imagenet"
    kernel = 7 if large else 3
    side = -(-side // 2) if large else side
    # (inputs, outputs, kernel, side of the output) of every convolution
    layers, widths = [(channels, inputs, kernel, side)], [inputs]
    side = -(-side // 2) if large else side
    expansion = 4 if architecture.bottleneck else 1
    for stage, count in enumerate(architecture.blocks):
        width = architecture.channels * cell["width"] * 2**stage
        for index in range(count):
            before, side = side, -(-side // 2) if stage > 0 and index == 0 else side
            if architecture.bottleneck:
                layers += [(inputs, width, 1, before), (width, width, 3, side),
                           (width, width * expansion, 1, side)]  # fmt: skip
            else:
                layers += [(inputs, width, 3, side), (width, width, 3, side)]
            if before != side or inputs != width * expansion:
                layers.append((inputs, width * expansion, 1, side))
            inputs = width * expansion
            widths.append(inputs)
    weights = [i * o * k * k for i, o, k, _ in layers]
    flops = sum(2 * w * s * s for w, (_, _, _, s) in zip(weights, layers, strict=True))
    return NetworkSize(flops, sum(weights), inputs, tuple(widths))


def _transformer(sizes: Transformer, patch: int, side: int, channels: int) -> NetworkSize:
    tokens, d = (side // patch) ** 2 + 1, sizes.features
    first = channels * patch**2 * d
    weights = sizes.layers * 12 * d * d  # queries, keys, values, output, and the MLP: 4 + 8
    attention = sizes.layers * 4 * tokens**2 * d
    return NetworkSize(
        flops=2 * tokens * (first + weights) + attention,
        parameters=first + weights + tokens * d,
        features=d,
        widths=(d,) * (sizes.layers + 1),
    )
