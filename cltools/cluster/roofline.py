"""How long work takes on a GPU that is not here: bytes over bandwidth, arithmetic over its rate.

A kernel takes as long as it moves its bytes or does its arithmetic, whichever is longer (the
roofline model of Williams, Waterman and Patterson 2009), and no less than `SHORTEST`. A step takes
as long as its kernels, or as long as the processor needs to launch them, or to decode its images.
All this is a prediction: nothing is measured on the GPU.

Sizes are in bytes, of 10^9 per GB.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from cltools.cluster.estimates import SECONDS_TO_CROP, SECONDS_TO_DECODE
from cltools.config.projectors import z_width
from cltools.runtime.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet: GB of memory, bytes per second, arithmetic per second by type.

    Rates are those without sparsity. `tf32` and `bfloat16` are products in tensor cores that round
    their inputs; `float64` is the tensor core's where there is one.
    """

    name: str
    memory: float
    bandwidth: float
    float64: float
    float32: float
    tf32: float
    bfloat16: float


# NVIDIA's data sheets. A V100 has neither TF32 nor bfloat16: products are done in float32.
GPUS = {
    "v100": Gpu("V100 SXM 32 GB", 32, 0.90e12, 7.8e12, 15.7e12, 15.7e12, 15.7e12),
    "a100": Gpu("A100 SXM 80 GB", 80, 2.04e12, 19.5e12, 19.5e12, 156e12, 312e12),
    "l40s": Gpu("L40S", 48, 0.864e12, 1.4e12, 91.6e12, 183e12, 362e12),
    "h100": Gpu("H100 SXM", 80, 3.35e12, 67e12, 67e12, 494e12, 989e12),
    "h200": Gpu("H200 SXM", 141, 4.8e12, 67e12, 67e12, 494e12, 989e12),
}
# Of the data sheet's rates, the share that long kernels reach. These are assumptions: copies reach
# 80 to 85 % of the bandwidth, large products and convolutions half to three quarters of the rate.
BANDWIDTH_SHARE = 0.82
ARITHMETIC_SHARE = 0.6
SHORTEST = 2e-6  # seconds of the smallest kernel
LAUNCH = 7.5e-6  # seconds of the processor for each kernel, in Python
CONTEXT = 1e9  # bytes of GPU memory of CUDA and its libraries
DECODING = SECONDS_TO_DECODE + 2 * SECONDS_TO_CROP  # of one core, for a photograph and its views
LIMITS = ("memory bandwidth", "arithmetic", "launches", "decoding")


class Work(Protocol):
    """What a kernel does; see `training.trace.Kernel`."""

    @property
    def part(self) -> str: ...
    @property
    def moved(self) -> int: ...
    @property
    def flops(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def launches(self) -> int: ...
    @property
    def times(self) -> int: ...


class Step(NamedTuple):
    """A predicted step: seconds of the GPU by part and by limit, and of the processor.

    `decoding` is that of the batch, on all cores that decode.
    """

    parts: dict[str, float]
    limits: dict[str, float]
    launches: int
    decoding: float

    @property
    def on_gpu(self) -> float:
        return sum(self.parts.values())

    @property
    def seconds(self) -> float:
        """What a step takes, since GPU, launches and decoding go on side by side."""
        return max(self.on_gpu, self.launches * LAUNCH, self.decoding)

    @property
    def limit(self) -> str:
        """The one of LIMITS that a faster step would have to change."""
        longest = max(
            (self.on_gpu, ""), (self.launches * LAUNCH, "launches"), (self.decoding, "decoding")
        )[1]
        return longest or max(LIMITS[:2], key=lambda name: self.limits[name])


def gpu_of(name: str) -> Gpu:
    """The GPU of this name in GPUS. Raises InputError for another one."""
    if name not in GPUS:
        raise InputError(f"--on {name} is not known: use one of {', '.join(GPUS)}")
    return GPUS[name]


def step_on(
    gpu: Gpu,
    kernels: Iterable[Work],
    tf32: bool = False,
    images: int = 0,
    workers: int = 1,
    recorded: Mapping[str, int] | None = None,
) -> Step:
    """Predict a step of these kernels on a GPU.

    `tf32` says whether products in float32 may round their inputs. `images` are decoded by
    `workers` cores. The kernels of the parts `recorded` were recorded as so many CUDA graphs,
    each of which is one launch.
    """
    parts: dict[str, float] = defaultdict(float)
    limits: dict[str, float] = dict.fromkeys(LIMITS[:2], 0.0)
    recorded = recorded or {}
    launches = sum(recorded.values())
    for kernel in kernels:
        dtype = "tf32" if tf32 and kernel.dtype == "float32" else kernel.dtype
        moving = kernel.moved / (gpu.bandwidth * BANDWIDTH_SHARE)
        computing = kernel.flops / (rate(gpu, dtype) * ARITHMETIC_SHARE)
        seconds = kernel.times * max(moving, computing, SHORTEST * kernel.launches)
        parts[kernel.part] += seconds
        limits[LIMITS[computing > moving]] += seconds
        if kernel.part not in recorded:
            launches += kernel.times * kernel.launches
    return Step(dict(parts), limits, launches, images * DECODING / workers)


def rate(gpu: Gpu, dtype: str) -> float:
    """Arithmetic per second in numbers of this type; integers and others count as float32."""
    found: float = getattr(gpu, dtype, gpu.float32)
    return found


def measuring_seconds(
    gpu: Gpu, cell: Mapping[str, Any], features: int, train: int, test: int, classes: int
) -> tuple[float, float]:
    """Seconds to measure one checkpoint: (of every one, of the slow measures of the last).

    Every one: products of all pairs of objectives (d x d, of raw and of normalized features, h and
    z) in float64; whole-set losses and uniformity (N x N) in float32. The slow measures: kNN
    (N x N'), a linear probe of 300 iterations for 5 penalties, and the losses with three other
    labellings. Reading the features is not counted.
    """
    objectives, d, p = len(cell["objectives"]), features, z_width(cell, features)
    views, pairs = cell["views"], objectives * (objectives + 1) / 2
    moments = 2 * (train + test) * (d**2 + p**2) * 2 * pairs
    losses = 2 * objectives * (train**2 + test**2) * p * (views**2 + 1)
    knn = 2 * objectives * train * test * (d + p)
    probe = 4 * 300 * 5 * objectives * train * (d + p) * classes
    double, single = (rate(gpu, t) * ARITHMETIC_SHARE for t in ("float64", "float32"))
    return moments / double + losses / single, (knn + probe + 3 * losses) / single
