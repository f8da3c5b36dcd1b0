"""Tensors on disk: safetensors, whole or not at all, with one key of sorted metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cltools.errors import InputError
from cltools.files import canonical_json, sha256_file, whole_file


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write tensors and return the file's SHA-256. Same tensors and metadata, same bytes.

    The metadata is one key of canonical JSON: safetensors writes several keys in random order.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as scratch:
        save_file(plain, scratch, metadata={"cltools": canonical_json(metadata)})
        digest = sha256_file(scratch)
    return digest


def load_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata. Raises InputError when missing, cut short or foreign.

    `remedy` ends the message: what the user can do about it.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["cltools"])
        return load_file(path), metadata
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {remedy}") from None
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError, OSError):
        raise InputError(f"{path} is damaged or is not a file of cltools: {remedy}") from None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for it: CUDA gets it through pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def choose_device(name: str) -> torch.device:
    """Device "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1", set to repeat bit by bit.

    Raises InputError for a device that this machine lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"device {name!r} is not available here: use --device cpu") from None
    torch.use_deterministic_algorithms(True)
    # By default that mode also writes NaN into all new memory, which reading it unset would show:
    # one more write of every activation.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    # Convolutions would round their inputs to TF32 by default, and only on CUDA.
    torch.backends.cudnn.allow_tf32 = False
    return device
