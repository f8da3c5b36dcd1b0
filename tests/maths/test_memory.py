"""Memory for measures of features that are read from a file does not grow with their number."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np, torch
from cltools.maths import blocks, few_shot, labellings, probes, sphere

torch.set_num_threads(1)
n, d, classes = int(sys.argv[2]), 64, 4
y = np.arange(n) % classes

class Made:
    shape, dtype = (n, d), np.dtype(np.float32)
    def __init__(self, seed): self.seed = seed
    def __getitem__(self, rows):
        numbers = np.arange(*rows.indices(n))
        x = np.random.default_rng([self.seed, rows.start]).standard_normal((len(numbers), d))
        x[:, :classes] += 2 * np.eye(classes)[y[numbers]]
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

x, views = Made(0), [Made(1), Made(2)]
small, small_y = x[0:500], y[:500]
blocks.BLOCK_BYTES = 4 << 20
probes.KEPT_BYTES = 1 << 20
sphere.MOST_IMAGES = labellings.CLUSTERED = 2000
measures = {
    "nccc": lambda: probes.nccc(x, y, small, small_y),
    "linear_probe": lambda: probes.linear_probe(x, y, small, small_y, 0, 0.1),
    "few_shot": lambda: few_shot.few_shot(x, y, small, small_y, [1, 5], 3),
    "few_shot_linear": lambda: few_shot.few_shot(x, y, small, small_y, [5], 2, probe="linear"),
    "few_shot_one_split": lambda: few_shot.few_shot_one_split(x, y, [1, 5], 3),
    "knn": lambda: few_shot.knn(x, y, small, small_y),
    "view_distance": lambda: sphere.view_distance(views),
    "uniformity": lambda: sphere.uniformity(x),
    "clustered_labels": lambda: labellings.clustered_labels(x, classes),
}
measures[sys.argv[1]]()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
MEASURES = (
    "nccc", "linear_probe", "few_shot", "few_shot_linear", "few_shot_one_split", "knn",
    "view_distance", "uniformity", "clustered_labels",
)  # fmt: skip


def megabytes(measure: str, images: int) -> float:
    command = [sys.executable, "-c", SCRIPT, measure, str(images)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("measure", MEASURES)
def test_ten_times_as_many_images_take_no_more_memory(measure):
    """600,000 images of 64 features in float32 are 154 MB, and in float64 twice that."""
    few, many = (megabytes(measure, images) for images in (60_000, 600_000))
    assert many - few < 80
