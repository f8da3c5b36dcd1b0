"""The randomness rule: every draw is a function of what it is for, never of what came before it.

Initial weights depend on (seed, tensor name), batch order on (seed, epoch), a view on (seed, epoch,
view, sample). Where a model does not share one of these, its name is added to the key: `owner` is
None for what is shared. Nothing here keeps a state, so that a run can be stopped anywhere,
objectives can be trained together or alone, and a batch can be made by any process, all with the
same bytes.
"""

import hashlib

import torch
from torch import Tensor, nn


def generator(*key: str | int) -> torch.Generator:
    """A CPU generator whose stream is a function of `key` alone.

    Draws are made on the CPU, so that every device sees the same numbers.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def initialise(model: nn.Module, seed: int, owner: str | None = None) -> None:
    """Set every parameter from (seed, its name): kaiming for weights, 1 and 0 for normalisation.

    Convolutions as torchvision's ResNet (kaiming normal, fan out), linear layers as torch's default
    (uniform in ±1/sqrt(fan in)). Raises TypeError for a parameter of any other layer, which would
    otherwise keep an initial value from the global random state.
    """
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            draw = generator("init", seed, f"{prefix}.{name}", *_private(owner))
            with torch.no_grad():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    parameter.fill_(1.0 if name == "weight" else 0.0)
                elif isinstance(module, nn.Conv2d) and name == "weight":
                    nn.init.kaiming_normal_(
                        parameter, mode="fan_out", nonlinearity="relu", generator=draw
                    )
                elif isinstance(module, nn.Linear):
                    bound = module.in_features**-0.5
                    parameter.uniform_(-bound, bound, generator=draw)
                else:
                    raise TypeError(f"no initialisation rule for {prefix}.{name}")


def batch_order(
    seed: int, epoch: int, images: int, batch_size: int, owner: str | None = None
) -> Tensor:
    """(steps per epoch, batch_size) positions in the training set, without replacement.

    The last incomplete batch is dropped; other epochs drop other images.
    """
    order = torch.randperm(images, generator=generator("batches", seed, epoch, *_private(owner)))
    steps = images // batch_size
    return order[: steps * batch_size].view(steps, batch_size)


def view_uniforms(
    seed: int, epoch: int, view: int, images: int, columns: int, owner: str | None = None
) -> Tensor:
    """(images, columns) uniforms in [0, 1): the row of a sample decides its view in this epoch."""
    draw = generator("views", seed, epoch, view, *_private(owner))
    return torch.rand(images, columns, generator=draw)


def _private(owner: str | None) -> tuple[str, ...]:
    return () if owner is None else (owner,)
