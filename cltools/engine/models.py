"""Encoders, the projector of the papers and the linear head of CE.

One residual network serves every size: with the published blocks its modules carry torchvision's
names and it computes what torchvision's ResNet computes (tested). It is written here because
torchvision's has no width multiplier that widens the whole network, no small variant and no CIFAR
stem, and because importing torchvision takes longer than training a small cell.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """Blocks per stage, channels of the first stage at width 1, and the kind of block."""

    blocks: tuple[int, ...]
    channels: int
    bottleneck: bool


ARCHITECTURES = {
    "small_resnet": Architecture((1, 1, 1), 8, bottleneck=False),
    "resnet18": Architecture((2, 2, 2, 2), 64, bottleneck=False),
    "resnet50": Architecture((3, 4, 6, 3), 64, bottleneck=True),
}


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
    return nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Images (n, c, h, w) to features h (n, features).

    stem "imagenet": 7x7 convolution with stride 2 and max pooling; "cifar": 3x3 with stride 1 and
    no pooling. `width` multiplies every stage's channels (2048 features of ResNet-50 become 4096).
    """

    def __init__(self, architecture: Architecture, stem: str, width: int, image_channels: int):
        super().__init__()
        channels = architecture.channels * width
        block = Bottleneck if architecture.bottleneck else BasicBlock
        if stem == "imagenet":
            self.conv1 = _convolution(image_channels, channels, 7, 2)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
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


class Projector(nn.Sequential):
    """Linear-BN-ReLU-Linear-BN, no linear biases, the last BN's shift fixed at 0 (papers' head)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(
            nn.Linear(inputs, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, outputs, bias=False),
            nn.BatchNorm1d(outputs),
        )
        self[4].bias.requires_grad_(False)


class Network(nn.Module):
    """Encoder, projector and, for CE, a linear head on the normalised projection.

    `forward` maps images (n, c, h, w) to (h, z): h (n, features) and z (n, projector_dim) of unit
    norm in float32. `class_logits` maps z to (n, classes).
    """

    def __init__(self, encoder: ResNet, hidden: int, outputs: int, classes: int | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = Projector(encoder.features, hidden, outputs)
        if classes is not None:
            self.head = nn.Linear(outputs, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return h, F.normalize(self.projector(h).float(), dim=1)

    def class_logits(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.head(z.float())


def build_network(cell: dict, image_channels: int, classes: int, objective: str) -> Network:
    """The network of one objective of a cell, with uninitialised randomness (see `initialise`)."""
    encoder = ResNet(
        ARCHITECTURES[cell["architecture"]], cell["stem"], cell["width"], image_channels
    )
    return Network(
        encoder,
        cell["projector_hidden"],
        cell["projector_dim"],
        classes if objective == "ce" else None,
    )
