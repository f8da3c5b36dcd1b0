"""View recipes by data set family, as data. `cltools.data.views` defines what each key does."""

from typing import Any

# The papers' recipe for CIFAR and SVHN (and, at 64 pixels, Tiny-ImageNet); no blur.
_CIFAR = {
    "crop_scale": [0.08, 1.0],
    "crop_ratio": [0.75, 4 / 3],
    "flip_probability": 0.5,
    "jitter_probability": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale_probability": 0.2,
    "blur_probability": 0.0,
    "blur_kernel": 3,
    "blur_sigma": [1.5, 1.5],
}

RECIPES: dict[str, dict[str, Any]] = {
    "cifar": _CIFAR,
    # The papers' recipe for mini-ImageNet and ImageNet-1k: stronger jitter, always on, rare blur.
    "imagenet": {
        **_CIFAR,
        "jitter_probability": 1.0,
        "brightness": 0.8,
        "contrast": 0.8,
        "saturation": 0.8,
        "hue": 0.2,
        "blur_probability": 0.1,
    },
    # Gray objects (Fashion-MNIST): color means nothing, mirror images are the same thing.
    "grey_objects": {
        **_CIFAR,
        "crop_scale": [0.2, 1.0],
        "saturation": 0.0,
        "hue": 0.0,
        "grayscale_probability": 0.0,
    },
    # Handwritten digits: a mirrored or heavily cropped digit is another digit or none.
    "digits": {
        **_CIFAR,
        "crop_scale": [0.4, 1.0],
        "flip_probability": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        "grayscale_probability": 0.0,
        "blur_probability": 0.2,
        "blur_sigma": [0.3, 0.8],
    },
}
