"""The sizes of the encoders. Without torch: jobs are sized by them before it is imported."""

from dataclasses import dataclass

TIMM = "timm:"  # begins the architecture of a cell whose encoder is a model of timm


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


@dataclass(frozen=True)
class Transformer:
    """Layers, attention heads per layer, and features of each token.

    The hidden layer of each MLP has 4 times as many features.
    """

    layers: int
    heads: int
    features: int


# The papers' "ViT-Base" is `vit_base` on ImageNet and, with half the features, `vit_small` on
# CIFAR and Tiny-ImageNet. (Elsewhere a ViT-S has 6 heads.)
TRANSFORMERS = {
    "small_vit": Transformer(4, 4, 64),
    "vit_small": Transformer(12, 12, 384),
    "vit_base": Transformer(12, 12, 768),
}
# Largest side of the images, in pixels -> side of the patches. 32 (CIFAR) and 64 (Tiny-ImageNet)
# are as in the papers. Images of up to 16 pixels have half the patches of CIFAR. Images of more
# than 64 pixels have those of ImageNet.
PATCHES = {16: 2, 32: 4, 64: 8}
LARGEST_PATCH = 16


def usual_patch(side: int) -> int:
    """The papers' side of patches for images whose larger side has so many pixels."""
    return next((patch for limit, patch in PATCHES.items() if side <= limit), LARGEST_PATCH)
