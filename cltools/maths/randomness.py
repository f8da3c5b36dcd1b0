"""Random numbers. Every draw depends on its purpose alone, never on the draws before it.

Initial weights depend on (seed, tensor name), batch order on (seed, epoch), a view on (seed, epoch,
view, sample). Where a model does not share one of these with the others, its name is part of the
key: that is the argument `owner`, which is None for what is shared.

No generator is kept between calls. So a run can be stopped anywhere, objectives can be trained
together or alone, and any process can make a batch: the bytes are always the same.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


def seed_of(*key: str | int) -> int:
    """The seed of a generator that depends on `key` alone, in [0, 2^63)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def generator(*key: str | int) -> torch.Generator:
    """A generator that depends on `key` alone.

    It draws on the CPU, so that training on any device sees the same numbers.
    """
    return torch.Generator().manual_seed(seed_of(*key))


@contextmanager
def drawing(*key: str | int) -> Iterator[None]:
    """Within it, torch's global random numbers on the CPU depend on `key` alone.

    This is for code of other libraries, which takes no generator. Afterwards, the global state is
    what it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*key))
        yield


@runtime_checkable
class DrawsItsWeights(Protocol):
    """A module of another library, with initial weights by that library's own scheme."""

    def draw_weights(self) -> None:
        """Set all parameters and buffers to new initial values, by torch's global state."""


def initialize(model: nn.Module, seed: int, owner: str | None = None) -> None:
    """Set every parameter to values that depend on (seed, its name) alone.

    Convolutions are drawn as in torchvision's ResNet (kaiming normal, fan out), linear layers as by
    torch's default (uniform in ±1/sqrt(fan in)). Normalization layers get weights 1 and biases 0.
    The layers that only a vision transformer has are drawn as in torchvision's.

    A module that `DrawsItsWeights` does so as a whole, with all of torch's random numbers depending
    on (seed, its name): its weights are no function of what else the model has either.

    Raises:
        TypeError: a parameter of any other layer. It would keep a value that depends on torch's
            global random state.
    """
    drawn = []
    for prefix, module in model.named_modules():
        if isinstance(module, DrawsItsWeights):
            with drawing("init", seed, prefix, *_private(owner)):
                module.draw_weights()
            drawn.append(f"{prefix}." if prefix else "")
    for prefix, module in model.named_modules():
        if f"{prefix}.".startswith(tuple(drawn)):  # of an empty tuple, none
            continue
        for name, parameter in module.named_parameters(recurse=False):
            draw = generator("init", seed, f"{prefix}.{name}", *_private(owner))
            with torch.no_grad():
                if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
                    parameter.fill_(1.0 if name == "weight" else 0.0)
                elif _initialise_transformer(f"{prefix}.{name}", parameter, draw):
                    pass
                elif isinstance(module, nn.Conv2d) and name == "weight":
                    nn.init.kaiming_normal_(
                        parameter, mode="fan_out", nonlinearity="relu", generator=draw
                    )
                elif isinstance(module, nn.Linear):
                    bound = module.in_features**-0.5
                    parameter.uniform_(-bound, bound, generator=draw)
                else:
                    raise TypeError(f"no initialization rule for {prefix}.{name}")


def _initialise_transformer(name: str, parameter: Tensor, draw: torch.Generator) -> bool:
    """Set a tensor that torchvision's ViT does not leave at torch's default; False for any other.

    The names are those of timm. Of a ViT's own tensors, only the output weight of the attention is
    left at torch's default.
    """
    if name.endswith(".pos_embed"):
        parameter.normal_(std=0.02, generator=draw)
    elif name.endswith((".cls_token", "patch_embed.proj.bias", "attn.qkv.bias", "attn.proj.bias")):
        parameter.zero_()
    elif name.endswith("patch_embed.proj.weight"):
        nn.init.trunc_normal_(parameter, std=parameter[0].numel() ** -0.5, generator=draw)
    elif name.endswith(("attn.qkv.weight", "mlp.fc1.weight", "mlp.fc2.weight")):
        nn.init.xavier_uniform_(parameter, generator=draw)
    elif name.endswith(("mlp.fc1.bias", "mlp.fc2.bias")):
        parameter.normal_(std=1e-6, generator=draw)
    else:
        return False
    return True


def batch_order(
    seed: int, epoch: int, images: int, batch_size: int, owner: str | None = None
) -> Tensor:
    """(steps per epoch, batch_size) positions in the training set, without replacement.

    Images beyond the last full batch are left out; which ones differs from epoch to epoch.
    """
    order = torch.randperm(images, generator=generator("batches", seed, epoch, *_private(owner)))
    steps = images // batch_size
    return order[: steps * batch_size].view(steps, batch_size)


def view_uniforms(
    seed: int, epoch: int, view: int, images: int, columns: int, owner: str | None = None
) -> Tensor:
    """(images, columns) random numbers in [0, 1). An image's row decides its view in this epoch."""
    draw = generator("views", seed, epoch, view, *_private(owner))
    return torch.rand(images, columns, generator=draw)


def balanced_order(
    seed: int, epoch: int, labels: Tensor, batch_size: int, owner: str | None = None
) -> Tensor:
    """(steps per epoch, batch_size) positions in the training set, each batch drawn independently.

    As in the authors' ApproxStratifiedSampler, an image is drawn with a probability proportional to
    1 / (images of its class). A batch has no image twice, but two batches may share images. So an
    epoch does not show all images: with balanced classes it misses a share 1/e of them.

    labels: (images,) integers, at least batch_size of them.
    """
    draw = generator("balanced batches", seed, epoch, *_private(owner))
    by_class = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    counts = counts[counts > 0]
    starts = counts.cumsum(0) - counts
    drawn = torch.empty(len(labels) // batch_size, 0, dtype=torch.int64)
    # Draw a class, then an image of it, with replacement. Images that a batch already has are
    # dropped, which makes it drawing without replacement. The number of draws is doubled until
    # every batch is full; once is mostly enough.
    while True:
        shape = (len(drawn), max(batch_size, drawn.shape[1]))
        classes = torch.randint(len(counts), shape, generator=draw)
        uniforms = torch.rand(shape, generator=draw, dtype=torch.float64)
        within = (uniforms * counts[classes]).long()
        drawn = torch.cat([drawn, by_class[starts[classes] + within]], dim=1)
        first = _first_occurrences(drawn)
        rank = first.cumsum(dim=1)
        if (rank[:, -1] >= batch_size).all():
            return drawn[first & (rank <= batch_size)].view(-1, batch_size)


def _first_occurrences(rows: Tensor) -> Tensor:
    """(n, m) bool: whether an entry is the first of its value in its row."""
    ordered, places = rows.sort(dim=1, stable=True)
    first = torch.ones_like(rows, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(first).scatter_(1, places, first)


def _private(owner: str | None) -> tuple[str, ...]:
    return () if owner is None else (owner,)
