"""Encoders, the projector of the papers, and what some objectives have behind it.

One class builds residual networks of all sizes. With the published blocks, its modules have the
names of torchvision's, and it computes the same as torchvision's ResNet (tested). torchvision's
class is not used because it has no multiplier for the width of the whole network, no small variant
and no CIFAR stem. Importing torchvision also takes longer than training a small cell.

Vision transformers come from timm. The authors train those of torchvision. With the same weights,
both compute the same (tested): GELU is exact and the epsilon of LayerNorm is 1e-6 in both.

Any other model of timm can be the encoder too; see `models.timm_encoder`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cltools.config.architectures import (
    ARCHITECTURES,
    TIMM,
    TRANSFORMERS,
    Architecture,
    Transformer,
    usual_patch,
)
from cltools.config.projectors import projector_widths, with_widths
from cltools.config.schema import defaults
from cltools.models.timm_encoder import TimmEncoder
from cltools.objectives import find
from cltools.runtime.errors import InputError


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _convolution(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _convolution(channels, channels * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.downsample = _shortcut(inputs, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(x), inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    narrow = inputs < 64  # in none of the published networks
    make = EveryOther if narrow else partial(_convolution, kernel=1)
    pointwise = make(inputs, outputs, stride=stride)
    return nn.Sequential(pointwise, nn.BatchNorm2d(outputs))


class EveryOther(nn.Conv2d):
    """A 1 x 1 convolution with a stride, as a convolution with stride 1 of every stride-th pixel.

    On a CPU, torch 2.14 corrupts memory in the backward pass of a 1 x 1 convolution with stride 2
    from 8 to 16 channels, in channels_last layout and for 64 or more pixels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)
        self.every = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, :: self.every, :: self.every])


class ResNet(nn.Module):
    """Images (n, c, h, w) to features h (n, features).

    stem "imagenet" is a 7x7 convolution with stride 2 and max pooling, "cifar" a 3x3 convolution
    with stride 1 and no pooling. `width` multiplies the channels of every stage: with width 2,
    ResNet-50 has 4096 features instead of 2048.
    """

    def __init__(self, architecture: Architecture, stem: str, width: int, image_channels: int):
        super().__init__()
        channels = architecture.channels * width
        block = Bottleneck if architecture.bottleneck else BasicBlock
        if stem == "imagenet":
            self.conv1 = _convolution(image_channels, channels, 7, 2)
            self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1)
        else:
            self.conv1 = _convolution(image_channels, channels, 3)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(channels)
        inputs = channels
        self.stages = len(architecture.blocks)
        for stage, count in enumerate(architecture.blocks):
            outputs = channels * 2**stage
            layers = []
            for index in range(count):
                layers.append(block(inputs, outputs, 2 if stage > 0 and index == 0 else 1))
                inputs = outputs * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.features = inputs

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return x.mean(dim=(2, 3))

    def layers(self) -> dict[str, nn.Module]:
        """Name -> module of the stem and of every residual block but the last, which h is of."""
        blocks = {
            f"layer{stage + 1}.{number}": block
            for stage in range(self.stages)
            for number, block in enumerate(self.get_submodule(f"layer{stage + 1}").children())
        }
        return {"stem": self.maxpool, **dict(list(blocks.items())[:-1])}


class VisionTransformer(nn.Module):
    """Images (n, c, h, w) to features h (n, features), the class token after the last LayerNorm.

    image_shape is (h, w, c); `patch` must divide h and w.
    """

    def __init__(self, transformer: Transformer, patch: int, image_shape: Sequence[int]):
        # Imported here because importing timm takes seconds.
        from timm.models import vision_transformer

        super().__init__()
        height, width, channels = image_shape
        self.features = transformer.features
        self.vit = vision_transformer.VisionTransformer(
            (height, width), patch, channels, num_classes=0, embed_dim=self.features,
            depth=transformer.layers, num_heads=transformer.heads, weight_init="skip",
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.vit(x)
        return features

    def layers(self) -> dict[str, nn.Module]:
        """Name -> module of the embedded patches and of every transformer block."""
        blocks = {f"block{number}": block for number, block in enumerate(self.vit.blocks)}
        return {"stem": self.vit.norm_pre, **blocks}


def patch_side(patch: int | None, image_shape: Sequence[int]) -> int:
    """Side in pixels of the patches of a ViT for images of shape (h, w, c).

    This is `patch`, or the choice of the papers if `patch` is None.

    Raises InputError when the images cannot be cut into such patches.
    """
    height, width, _ = image_shape
    if patch is None:
        patch = usual_patch(max(height, width))
    if height % patch or width % patch:
        sides = [str(n) for n in range(1, height + 1) if math.gcd(height, width) % n == 0]
        raise InputError(
            f"images of {height} × {width} pixels cannot be cut into patches of {patch} × {patch}: "
            f"set config key patch to one of {', '.join(sides)}"
        )
    return patch


class Projector(nn.Sequential):
    """Linear layers, each with a BatchNorm, and a ReLU between two: from h to z before its scaling.

    That of the papers has two: Linear-BN-ReLU-Linear-BN. Without a layer, z is h. The linear layers
    have no bias, and the shift of the last BatchNorm is fixed at 0.

    Without normalization, hidden layers have a bias, which takes the place of the shift, and the
    last layer has neither. So nothing but the normalization differs, and tensors that are in both
    have the same names, and so the same initial values.

    widths: of h and of what each linear layer puts out (see `config.projectors`).
    """

    def __init__(self, widths: Sequence[int], normalized: bool = True) -> None:
        super().__init__()
        self.outputs = widths[-1]
        last = len(widths) - 1
        for layer, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            hidden = layer < last
            self.append(nn.Linear(inputs, outputs, bias=hidden and not normalized))
            self.append(nn.BatchNorm1d(outputs) if normalized else nn.Identity())
            if hidden:
                self.append(nn.ReLU(inplace=True))
        if normalized and last > 0:
            self[-1].bias.requires_grad_(False)

    def layers(self) -> dict[str, nn.Module]:
        """Name -> module of what lies between h and z: hidden units after their ReLU.

        One hidden layer is "projector", and of several the first is "projector.0".
        """
        hidden = [module for module in self if isinstance(module, nn.ReLU)]
        if len(hidden) == 1:
            return {"projector": hidden[0]}
        return {f"projector.{number}": module for number, module in enumerate(hidden)}


class Predictor(nn.Sequential):
    """Projections to predictions of another view's: Linear-BN-ReLU-Linear, as in SimSiam and BYOL.

    The first linear layer has no bias.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__(
            nn.Linear(features, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, features),
        )


Encoder = ResNet | VisionTransformer | TimmEncoder
# Prefixes of the names of tensors that not all objectives have.
OWN_PARTS = ("head.", "predictor.")


class Network(nn.Module):
    """Encoder, projector and, for CE, a linear head on the normalized projection.

    `forward` maps images (n, c, h, w) to features h (n, features) and projections z
    (n, width of z). z has unit norm and is in float32. `project` gives projections that are not
    normalized. `class_logits` maps z to (n, classes), and `predict` projections to predictions of
    the same shape. Weights of the head and the predictor have names, and so random numbers, of
    their own: the others are the same with and without them.

    Args:
        classes: of the head; None for no head.
        predictor: hidden width of the predictor; None for no predictor.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: Projector,
        classes: int | None,
        predictor: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        if classes is not None:
            self.head = nn.Linear(projector.outputs, classes)
        if predictor is not None:
            self.predictor = Predictor(projector.outputs, predictor)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, projections = self.project(x)
        return h, F.normalize(projections, dim=1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return h, self.projector(h).float()

    def predict(self, projections: Tensor) -> Tensor:
        with torch.autocast(projections.device.type, enabled=False):
            predictions: Tensor = self.predictor(projections.float())
            return predictions

    def class_logits(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            logits: Tensor = self.head(z.float())
            return logits


def build_network(
    cell: Mapping[str, Any],
    image_shape: Sequence[int],
    classes: int,
    objective: str,
    shared_parts: bool = False,
) -> Network:
    """The network of one objective of a cell; `initialize` then sets its weights from the seed.

    image_shape is the (h, w, c) of its input. With `shared_parts`, it has only what the networks of
    all objectives have. Raises InputError where the patches of a ViT do not fit it, and for a model
    of timm as `TimmEncoder` does.
    """
    cell = {**defaults(), **cell}  # that of an exported model may be older than some keys
    needs = find(objective)
    head = needs.classifier and not shared_parts
    encoder = _encoder(cell, image_shape)
    widths = projector_widths(cell, encoder.features)
    projector = Projector(widths, cell["projector_norm"] == "batch")
    predictor = None
    if needs.predictor is not None and not shared_parts:
        predictor = needs.predictor(with_widths(cell, encoder.features))
    return Network(encoder, projector, classes if head else None, predictor)


def on_device(network: Network, device: torch.device) -> Network:
    """Move the network to the device, with weights of convolutions in channels_last layout."""
    # torch's types lack a device together with a memory format.
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _encoder(cell: Mapping[str, Any], image_shape: Sequence[int]) -> Encoder:
    name = cell["architecture"]
    if name.startswith(TIMM):
        height, width, channels = image_shape
        return TimmEncoder(name.removeprefix(TIMM), (height, width, channels), cell["patch"])
    if name in TRANSFORMERS:
        patch = patch_side(cell["patch"], image_shape)
        return VisionTransformer(TRANSFORMERS[name], patch, image_shape)
    return ResNet(ARCHITECTURES[name], cell["stem"], cell["width"], image_shape[-1])
