"""A network whose weights follow those of the trained one, as an exponential moving average."""

import math
from collections.abc import Iterator

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cltools.training.networks import Network


class MomentumNetwork:
    """It computes without a gradient, with the batch statistics of what it is given.

    `network` must have the initial weights of the trained network, which may have more parts.
    """

    def __init__(self, network: Network) -> None:
        self.network = network.requires_grad_(False).train()

    def follow(self, trained: nn.Module, momentum: float) -> None:
        """Keep the share `momentum` of the weights, and take the rest from the trained network.

        BatchNorm statistics are not changed.
        """
        theirs = dict(trained.named_parameters())
        own = dict(self.network.named_parameters())
        average = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call]
        average(list(own.values()), [theirs[name] for name in own], None)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of everything that a resumed run needs."""
        for name, tensor in self.network.state_dict().items():
            yield f"network/{name}", tensor

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Set the tensors that `state` gave; raises RuntimeError if they do not fit."""
        prefix = "network/"
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.network.load_state_dict(weights)


def target_momentum(base: float, step: int, horizon: int) -> float:
    """The momentum after a step, from `base` along a cosine to 1 at the horizon.

    Grill et al. 2020 (arXiv 2006.07733), Section 3.2.
    """
    return 1 - (1 - base) * (math.cos(math.pi * step / horizon) + 1) / 2
