"""Tensors on disk, as safetensors files that are written completely or not at all."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_file, whole_file

log = logging.getLogger("cltools")

CONTENT = "content"  # key of the metadata


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write tensors and return the file's SHA-256. Same tensors and metadata, same bytes.

    The metadata is one key with canonical JSON, because safetensors writes several keys in random
    order.
    """
    with whole_file(path) as scratch:
        _write(scratch, _plain(tensors), metadata)
        digest = sha256_file(scratch)
    return digest


def save_checked(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], previous: Path | None
) -> None:
    """Write tensors and a hash of them, which `load_checked` checks.

    If `previous` is given, the file that was at `path` is kept under that name.
    """
    plain = _plain(tensors)
    with whole_file(path, previous) as scratch:
        _write(scratch, plain, {**metadata, CONTENT: _content(plain, metadata)})


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, Any]) -> None:
    save_file(tensors, path, metadata={"cltools": canonical_json(metadata)})


def _content(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """SHA-256 over the metadata, and names, types, shapes and bytes of all tensors."""
    about = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    digest = hashlib.sha256(canonical_json([metadata, about]).encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata.

    Raises InputError when the file is missing, cut short or of another program; `remedy`, which
    says what the user can do, ends its message. Raises OSError when reading fails.
    """
    try:
        open(path, "rb").close()  # safetensors reports any file it cannot open as missing
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["cltools"])
        return load_file(path), metadata
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {remedy}") from None
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError):
        raise _damaged(path, remedy) from None


def load_checked(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checked` wrote, as `load_tensors` gives it, if not one bit of it has changed.

    Raises InputError where one has.
    """
    tensors, metadata = load_tensors(path, remedy)
    if metadata.pop(CONTENT, None) != _content(tensors, metadata):
        raise _damaged(path, remedy)
    return tensors, metadata


def _damaged(path: Path, remedy: str) -> InputError:
    return InputError(f"{path} is damaged or is not a file of cltools: {remedy}")
