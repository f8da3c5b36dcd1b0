"""Learning-rate rules and schedules, and the optimisers.

The rate of every step is a closed form of the step, so that a resumed run needs no scheduler state.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

# Exponents p of eta = lr * (B / base_batch)^p.
SCALING = {"linear": 1.0, "sqrt": 0.5, "fourth_root": 0.25, "constant": 0.0}
# What the authors' script computes for p < 1: lr * B^p / base_batch, without scaling the base, so
# that at lr = 0.3, base 256, B = 1024 the rate is 32 or 181 times below the linear rule's.
AUTHORS_SCALING = {"authors_sqrt": 0.5, "authors_fourth_root": 0.25}
LR_RULES = (*SCALING, *AUTHORS_SCALING)


def peak_lr(rule: str, lr: float, batch_size: int, base_batch: int) -> float:
    """eta, the rate at the end of the warm-up, by the named rule (papers.md calls lr eta_0)."""
    if rule in SCALING:
        return float(lr * (batch_size / base_batch) ** SCALING[rule])
    return float(lr * batch_size ** AUTHORS_SCALING[rule] / base_batch)


def lr_at(step: int, peak: float, warmup_steps: int, horizon_steps: int) -> float:
    """Linear warm-up (step 0 is not wasted), then a cosine that reaches 0 at the horizon."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, horizon_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def lr_by_epoch(
    step: int, peak: float, warmup_steps: int, horizon_steps: int, steps_per_epoch: int
) -> float:
    """The authors' schedule: a linear warm-up times a cosine, constant within each epoch.

    In epoch e of T, warmed up in W: peak · min(1, (e + 1) / W) · (1 + cos(π e / T)) / 2.
    """
    first = step - step % steps_per_epoch
    warmed = min(1.0, (first + steps_per_epoch) / warmup_steps) if warmup_steps else 1.0
    return peak * warmed * 0.5 * (1 + math.cos(math.pi * first / horizon_steps))


class AuthorsLars(torch.optim.Optimizer):
    """LARS as the authors run it, on gradients that are first clipped to a total norm of 1.

    With g a tensor's clipped gradient plus weight_decay · w,

        v ← momentum · v + lr · trust · g,    w ← w - v,    trust = trust_coefficient · ‖w‖ / ‖g‖

    for every tensor alike, biases and normalisation among them. Tensors of norm 0 have trust 0 and
    stay 0 for ever: the shifts of all normalisation, and a ViT's class token and the biases of its
    attention. Where g is 0, theirs is infinite or not a number; here trust is 0.

    Nothing waits for the device. Source: DLFundamentals/understanding-ssl-v2, utils/optimizer.py
    (from Spijkervet/SimCLR) and models/model_config.py.
    """

    MAX_NORM = 1.0

    def __init__(
        self, params: Iterable[Tensor], momentum: float, weight_decay: float,
        trust_coefficient: float,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            {
                "lr": 0.0,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
            },
        )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step. Clips the gradients in place.

        As with torch's optimizers, a closure is called first. It computes the loss, which is
        returned, and the gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups  # the total norm is over all that is trained
        weights = [p for p in group["params"] if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(weights, self.MAX_NORM, foreach=True)
        gradients = torch._foreach_add(
            [p.grad for p in weights], weights, alpha=group["weight_decay"]
        )
        norms = torch.stack(torch._foreach_norm(gradients))
        trust = group["trust_coefficient"] * torch.stack(torch._foreach_norm(weights)) / norms
        rates = group["lr"] * torch.where(norms > 0, trust, 0.0)
        torch._foreach_mul_(gradients, list(rates.unbind()))
        for p in weights:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in weights]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        torch._foreach_sub_(weights, momenta)
        return loss


def build_optimizer(cell: Mapping[str, Any], network: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, LARS (timm), or the authors' LARS.

    The first two neither decay nor adapt biases, normalisation and a ViT's class token.
    """
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if cell["optimizer"] == "authors_lars":
        return AuthorsLars(
            trained.values(), cell["momentum"], cell["weight_decay"], cell["trust_coefficient"]
        )
    # The class token starts at 0: a trust ratio, which goes with its norm, would keep it there.
    decayed = {name for name, p in trained.items() if p.ndim > 1 and not name.endswith("cls_token")}
    groups = [
        {
            "params": [p for name, p in trained.items() if name in decayed],
            "weight_decay": cell["weight_decay"],
        },
        {"params": [p for name, p in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]
    if cell["optimizer"] == "lars":
        from timm.optim.lars import Lars  # imported here: timm takes seconds to import

        # A group without weight decay gets no trust ratio either (timm's always_adapt=False), as
        # in SimCLR; the authors' copy adapts it to 0 and so freezes every shift.
        return Lars(
            groups, lr=0.0, momentum=cell["momentum"], trust_coeff=cell["trust_coefficient"],
            foreach=True,
        )  # fmt: skip
    return torch.optim.SGD(groups, lr=0.0, momentum=cell["momentum"], fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
