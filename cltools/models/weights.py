"""Weights of models in files of other software."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cltools.runtime.errors import InputError

ENDINGS = (".safetensors", ".pt", ".pth")


def read_weights(path: Path) -> dict[str, Any]:
    """Tensors by name. Nothing in a file is run: what torch cannot load as mere weights is refused.

    A mapping "state_dict" or "model" in the file is taken for the weights, and "module." left out
    of names, as timm does. Raises InputError for what cannot be read.
    """
    if path.suffix not in ENDINGS:
        raise InputError(f"--weights {path} is of an unknown type: give {', '.join(ENDINGS)}")
    if not path.is_file():
        raise InputError(f"--weights {path} does not exist: check its path")
    import timm  # imported here because it takes seconds

    try:
        found = timm.models.load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # torch and safetensors have a dozen for damaged files
        reason = first_line(error)
        raise InputError(
            f"--weights {path} cannot be read as weights ({reason}): save the model's state_dict()"
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"--weights {path} holds no tensors by name: save the state_dict()")
    return found


def load_into(network: nn.Module, path: Path, model: str, heads: Sequence[str] = ()) -> None:
    """Set all weights from a file, but for `heads`, the modules that features do not need.

    Raises InputError, one sentence, where names or shapes do not fit.
    """
    found = read_weights(path)

    def needed(weights: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in weights.items() if k.rpartition(".")[0] not in heads}

    own, given = needed(network.state_dict()), needed(found)
    missing = [k for k in own if k not in given and not k.endswith("num_batches_tracked")]
    odd = [k for k in given if k not in own]
    shapes = [k for k in given if k in own and getattr(given[k], "shape", None) != own[k].shape]
    troubles = [
        f"{text} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for text, names in (
            ("it lacks", missing), ("it has no place for", odd), ("of another shape is", shapes),
        )
        if names
    ]  # fmt: skip
    if troubles:
        raise InputError(
            f"--weights {path} does not fit {model} ({', '.join(troubles)}): give the weights of "
            "this model, under its own names"
        )
    network.load_state_dict(given, strict=False)


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of all weights of a network on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
