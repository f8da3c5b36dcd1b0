"""The digits inside scikit-learn."""

import numpy as np
from PIL import Image

from cltools.data.decoding import center
from cltools.data.sources.source import Source, drawn_split, held_out


def read_digits(size: int | None = None, test_fraction: float = 0.2, seed: int = 0) -> Source:
    """The 1,797 gray 8x8 digits inside scikit-learn, split by class with `seed`.

    `size` upsamples them (bilinear) to size x size.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 16 gray levels above black become 0..255.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    preprocessing = "values 0..16 scaled to 0..255"
    if size not in (None, 8):
        images = np.stack([np.asarray(center(Image.fromarray(image), size)) for image in images])
        preprocessing += f", 8x8 resized to {size}x{size} (bilinear)"
    images, labels = images[..., None], digits.target.astype(np.int64)
    test = held_out(labels, test_fraction, seed)
    return Source(
        class_names=[str(digit) for digit in digits.target_names],
        splits={"train": (images[~test], labels[~test]), "test": (images[test], labels[test])},
        provenance={
            "files": "inside scikit-learn (load_digits)",
            "split": drawn_split(test_fraction, seed),
        },
        preprocessing=preprocessing,
    )
