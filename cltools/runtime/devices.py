"""Devices of torch: which one is taken, set to repeat bit by bit."""

import logging
import os

import torch
from torch import Tensor

from cltools.runtime.errors import InputError
from cltools.runtime.gpus import gpu_count, release_gpus

log = logging.getLogger("cltools")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for it: CUDA gets it through pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def automatic_device() -> str:
    """ "cuda" where torch can use it, else "cpu", with a warning where there is a GPU all the same.

    Raises InputError where Slurm gave this job GPUs: it would hold them while a CPU trains.
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
    """Device "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1", set to repeat bit by bit.

    Raises InputError for a device that this machine lacks.
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
    # What `use_deterministic_algorithms(True)` sets, without its import of the compiler: 2 seconds
    # of every process.
    torch.set_deterministic_debug_mode("error")
    # By default that mode also writes NaN into all new memory, which reading it unset would show:
    # one more write of every activation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    # On CUDA convolutions would round their inputs to TF32 by default, and matrix products where
    # the environment asks for it, as NVIDIA's containers do.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return device
