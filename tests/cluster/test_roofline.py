"""Predictions from data sheets: the arithmetic by hand, and what limits a step."""

from typing import NamedTuple

import pytest

from cltools.cluster import roofline
from cltools.cluster.roofline import GPUS, gpu_of, measuring_seconds, step_on
from cltools.runtime.errors import InputError

H100 = GPUS["h100"]


class Kernel(NamedTuple):
    part: str = "forward"
    moved: int = 0
    flops: int = 0
    dtype: str = "bfloat16"
    launches: int = 1
    times: int = 1


def test_a_kernel_takes_as_long_as_its_slower_half():
    moving = step_on(H100, [Kernel(moved=10**12)])
    assert moving.seconds == pytest.approx(1e12 / (3.35e12 * 0.82))
    assert moving.limit == "memory bandwidth"
    computing = step_on(H100, [Kernel(moved=10**9, flops=10**15)])
    assert computing.seconds == pytest.approx(1e15 / (989e12 * 0.6))
    assert computing.limit == "arithmetic"
    both = step_on(H100, [Kernel(moved=10**12), Kernel("backward", flops=10**15, times=2)])
    assert both.seconds == pytest.approx(moving.seconds + 2 * computing.seconds)
    assert both.parts["backward"] == pytest.approx(2 * computing.seconds)
    assert both.limit == "arithmetic"


def test_many_small_kernels_are_limited_by_their_launches():
    step = step_on(H100, [Kernel(moved=10, times=4, launches=2)] * 1000)
    assert step.launches == 8000
    assert step.on_gpu == pytest.approx(8000 * roofline.SHORTEST)
    assert step.seconds == pytest.approx(8000 * roofline.LAUNCH)
    assert step.limit == "launches"


def test_decoding_limits_a_step_until_enough_cores_decode():
    work = [Kernel(moved=10**12)]
    few, many = (step_on(H100, work, images=1024, workers=count) for count in (4, 64))
    assert few.seconds == pytest.approx(1024 * 4.6e-3 / 4)
    assert (few.limit, many.limit) == ("decoding", "memory bandwidth")
    assert many.seconds == step_on(H100, work).seconds


def test_precision_decides_the_rate():
    seconds = {
        name: step_on(H100, [Kernel(flops=10**15, dtype=dtype)], tf32).seconds
        for name, dtype, tf32 in (
            ("float64", "float64", True),
            ("float32", "float32", False),
            ("tf32", "float32", True),
            ("bfloat16", "bfloat16", True),
        )
    }
    assert seconds["float32"] / seconds["tf32"] == pytest.approx(494 / 67)
    assert seconds["tf32"] / seconds["bfloat16"] == pytest.approx(989 / 494)
    assert seconds["float64"] == seconds["float32"]  # in tensor cores, at the rate of float32


def test_newer_gpus_are_no_slower():
    work = [Kernel(moved=10**12), Kernel(flops=10**15), Kernel(flops=10**13, dtype="float32")]
    times = [step_on(GPUS[name], work).seconds for name in ("v100", "a100", "h100", "h200")]
    assert times == sorted(times, reverse=True)
    with pytest.raises(InputError, match="--on b200 is not known: use one of v100, a100"):
        gpu_of("b200")


def test_measuring_grows_as_its_products():
    cell = {"objectives": ["dcl", "nscl"], "projector_layers": 2, "projector_hidden": 2048,
            "projector_dim": 128, "views": 2}  # fmt: skip
    each, last = measuring_seconds(H100, cell, 2048, 10_000, 1_000, 10)
    more, _ = measuring_seconds(H100, cell, 4096, 10_000, 1_000, 10)
    assert 2 < more / each < 4  # the products of features, not the losses of projections
    all_images, _ = measuring_seconds(H100, cell, 2048, 100_000, 10_000, 10)
    assert 10 < all_images / each < 100
    _, classes = measuring_seconds(H100, cell, 2048, 10_000, 1_000, 100)
    assert classes > last
