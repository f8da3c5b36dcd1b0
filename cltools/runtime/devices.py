"""The choice of a torch device, and settings that make its results repeat bit by bit."""

import logging
import os

import torch
from torch import Tensor

from cltools.runtime.errors import InputError
from cltools.runtime.gpus import gpu_count, release_gpus

log = logging.getLogger("cltools")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device without waiting for it, for CUDA from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def automatic_device() -> str:
    """ "cuda" where torch can use it, otherwise "cpu", with a warning where there is a GPU.

    Raises InputError where Slurm gave GPUs to this job: it would occupy them and train on the CPU.
    """
    if torch.cuda.is_available():
        return "cuda"
    release_gpus()
    given = any(os.environ.get(name) for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")
    if not gpu_count() or hidden or ("SLURM_JOB_ID" in os.environ and not given):
        return "cpu"
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    trouble = f"torch (built {built}) cannot use the GPU of this machine"
    remedy = "update the driver, or install a torch that fits it"
    if given:
        raise InputError(f"{trouble}: {remedy}")
    log.warning("%s and takes the CPU: %s", trouble, remedy)
    return "cpu"


def choose_device(name: str) -> torch.device:
    """The torch device of this name, with settings that make its results repeat bit by bit.

    `name` is "auto" (see `automatic_device`), "cpu", "cuda" or a numbered device such as "cuda:1".

    Raises InputError for a device that this machine does not have.
    """
    # CUDA's matrix products repeat bit by bit only with this workspace setting.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if name == "auto":
        name = automatic_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"device {name!r} is not available here ({reason}): use --device cpu"
        ) from None
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
    return device
