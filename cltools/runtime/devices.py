"""The choice of a torch device, and settings that make its results repeat bit by bit."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cltools.runtime.errors import InputError
from cltools.runtime.faults import first_sentence
from cltools.runtime.gpus import gpu_count, release_gpus
from cltools.runtime.processor import has_bfloat16

log = logging.getLogger("cltools")
OTHER_BUILD = "install a torch that fits the GPU and its driver (docs/environments.md says how)"
# The oldest GPUs, by compute capability, that compute in TF32 and bfloat16.
FIRST_WITH_TF32 = (8, 0)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device without waiting for it, for CUDA from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def automatic_device() -> str:
    """ "cuda" where torch sees a GPU, otherwise as `_without_gpu`, which may raise InputError."""
    return "cuda" if torch.cuda.is_available() else _without_gpu()


def _without_gpu(reason: str = "") -> str:
    """ "cpu", with a warning where there is a GPU; `reason` is why torch cannot use it, if known.

    Raises InputError where Slurm gave GPUs to this job: it would occupy them and train on the CPU.
    """
    release_gpus()
    given = any(os.environ.get(name) for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")
    if not gpu_count() or hidden or ("SLURM_JOB_ID" in os.environ and not given):
        return "cpu"
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    trouble = f"torch (built {built}) cannot use the GPU of this machine"
    remedy = f"update the driver, or {OTHER_BUILD}"
    if reason:
        trouble, remedy = f"{trouble} ({reason})", OTHER_BUILD
    if given:
        raise InputError(f"{trouble}: {remedy}")
    log.warning("%s and takes the CPU: %s", trouble, remedy)
    return "cpu"


def trouble_with(name: str) -> str:
    """Why this device cannot compute, in one line; "" if it can.

    One number is computed there, since a GPU that is too old for this build of torch can still
    allocate memory. It fails at the first kernel.
    """
    try:
        torch.zeros(1, device=torch.device(name)).add_(1).item()
    except (RuntimeError, AssertionError) as error:
        return first_sentence(error)
    return ""


def choose_device(name: str) -> torch.device:
    """The device as `find_device`, with settings that make its results repeat bit by bit.

    Raises InputError as `find_device` does.
    """
    device = find_device(name)
    _repeat_bit_by_bit()
    return device


@contextmanager
def repeating() -> Iterator[None]:
    """Within it, results repeat bit by bit as after `choose_device`; then all is as before it."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    memory = torch.utils.deterministic
    mode = torch.get_deterministic_debug_mode()
    filled = memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    _repeat_bit_by_bit()
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def find_device(name: str) -> torch.device:
    """The torch device of this name.

    `name` is "auto" (a CUDA GPU where torch can use one), "cpu", "cuda", a numbered device such as
    "cuda:1", or "mps", the GPU of a Mac.

    Raises InputError for a device that this machine does not have, for a GPU on which this build of
    torch cannot compute, and as `automatic_device` does.
    """
    # CUDA's matrix products repeat bit by bit only with this workspace setting.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    automatic = name == "auto"
    if automatic:
        name = automatic_device()
    reason = trouble_with(name)
    if reason and automatic:
        name = _without_gpu(reason)
    elif reason:
        remedy = f", or {OTHER_BUILD}" if name.startswith("cuda") else ""
        raise InputError(
            f"device {name!r} is not available here ({reason}): use --device cpu{remedy}"
        )
    return torch.device(name)


def _repeat_bit_by_bit() -> None:
    # The same as `use_deterministic_algorithms(True)`, which would also import the compiler. That
    # takes 2 seconds in every process.
    torch.set_deterministic_debug_mode("error")
    # By default this mode also fills new memory with NaN, to show where it is read before it is
    # set. That would write every activation once more.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    # By default, convolutions on CUDA round their inputs to TF32. Matrix products do so where an
    # environment variable asks for it, as in NVIDIA's containers.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def tf32(device: torch.device, allowed: bool = True) -> Iterator[None]:
    """Within it, if `allowed`, CUDA multiplies float32 numbers that it first rounds to TF32.

    TF32 has the range of float32 and 10 bits after the leading one instead of 23. This concerns
    matrix products and convolutions only, and their sums stay in float32. Nothing changes on a CPU.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    if allowed and device.type == "cuda":
        matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Within it, layers of networks compute in "float32", "tf32" or "bfloat16"."""
    bfloat16 = precision == "bfloat16"
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)
    with autocast, tf32(device, precision == "tf32"):
        yield


def talk_of_precision(precision: str, device: torch.device) -> None:
    """Log one line where training in this precision is slow on this device, or is not to be had."""
    if device.type == "cuda":
        _talk_of_gpu(precision, torch.cuda.get_device_capability(device) >= FIRST_WITH_TF32)
    elif precision == "bfloat16" and not has_bfloat16():
        log.warning(
            "this processor has no instructions for bfloat16, which is several times slower here "
            "than float32: set precision to float32, or train on another machine"
        )
    elif precision == "tf32":
        log.info("only GPUs have tf32: on this CPU, it is the same as float32")


def _talk_of_gpu(precision: str, able: bool) -> None:
    """`able` is whether the GPU has instructions for TF32 and bfloat16."""
    if able and precision == "float32":
        log.warning(
            "float32 is several times slower on this GPU than tf32 or bfloat16: set precision to "
            "one of them, unless every product has to be in float32"
        )
    elif not able and precision == "bfloat16":
        log.warning(
            "this GPU has no instructions for bfloat16, which may be slower here than float32: set "
            "precision to float32, or train on another GPU"
        )
    elif not able and precision == "tf32":
        log.info("this GPU has no tf32: on it, it is the same as float32")
