"""Learning-rate rules and schedules, and the optimizers.

The learning rate is a formula of the step, so that a resumed run needs no state of a scheduler.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

# Exponents p of eta = lr * (B / base_batch)^p.
SCALING = {"linear": 1.0, "sqrt": 0.5, "fourth_root": 0.25, "constant": 0.0}
# For p < 1 the authors' script computes lr * B^p / base_batch, where base_batch has no exponent. At
# lr = 0.3, base_batch = 256 and B = 1024 this is 32 (p = 1/2) or 181 (p = 1/4) times less than the
# linear rule.
AUTHORS_SCALING = {"authors_sqrt": 0.5, "authors_fourth_root": 0.25}
LR_RULES = (*SCALING, *AUTHORS_SCALING)


def peak_lr(rule: str, lr: float, batch_size: int, base_batch: int) -> float:
    """eta, the learning rate at the end of the warm-up, by the named rule.

    `lr` is eta_0 of papers.md.
    """
    if rule in SCALING:
        return float(lr * (batch_size / base_batch) ** SCALING[rule])
    return float(lr * batch_size ** AUTHORS_SCALING[rule] / base_batch)


def lr_at(step: int, peak: float, warmup_steps: int, horizon_steps: int) -> float:
    """Linear warm-up, where step 0 has a rate above 0; then a cosine, which is 0 at the horizon."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, horizon_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def lr_by_epoch(
    step: int, peak: float, warmup_steps: int, horizon_steps: int, steps_per_epoch: int
) -> float:
    """The authors' schedule: a linear warm-up times a cosine, constant within each epoch.

    In epoch e of T, with W epochs of warm-up: peak · min(1, (e + 1) / W) · (1 + cos(π e / T)) / 2.
    """
    first = step - step % steps_per_epoch
    warmed = min(1.0, (first + steps_per_epoch) / warmup_steps) if warmup_steps else 1.0
    return peak * warmed * 0.5 * (1 + math.cos(math.pi * first / horizon_steps))


def lr_constant(step: int, peak: float, warmup_steps: int) -> float:
    """The linear warm-up of `lr_at`, to the same bytes; then the rate stays at its peak."""
    return peak * (step + 1) / warmup_steps if step < warmup_steps else peak


class AuthorsLars(torch.optim.Optimizer):
    """LARS as the authors run it, on gradients that are first clipped to a total norm of 1.

    With g a tensor's clipped gradient plus weight_decay · w,

        v ← momentum · v + lr · trust · g,    w ← w - v,    trust = trust_coefficient · ‖w‖ / ‖g‖

    for all tensors, including biases and the parameters of normalization layers. Tensors that start
    at 0 have trust 0 and never change. These are the shifts of normalization layers and, in a ViT,
    the class token and the biases of attention. Where g is 0, the authors' code divides by 0; here
    trust is 0.

    A step does not wait for the device.

    Source: DLFundamentals/understanding-ssl-v2, utils/optimizer.py (from Spijkervet/SimCLR) and
    models/model_config.py.
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
        (group,) = self.param_groups  # one group, since the total norm is over all parameters
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

    The first two have no weight decay and no trust ratio for biases, the parameters of
    normalization layers and the class token of a ViT.
    """
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if cell["optimizer"] == "authors_lars":
        return AuthorsLars(
            trained.values(), cell["momentum"], cell["weight_decay"], cell["trust_coefficient"]
        )
    # The class token starts at 0. The trust ratio is proportional to its norm, so it would stay 0.
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

        # With timm's default always_adapt=False, a group without weight decay has no trust ratio,
        # as in SimCLR. In the authors' copy it has one, which is 0 for all shifts: they stay 0.
        return Lars(
            groups, lr=0.0, momentum=cell["momentum"], trust_coeff=cell["trust_coefficient"],
            foreach=True,
        )  # fmt: skip
    return torch.optim.SGD(groups, lr=0.0, momentum=cell["momentum"], fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
