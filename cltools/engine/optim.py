"""Learning-rate rules and schedule, and the two optimisers.

The rate of every step is a closed form of the step, so that a resumed run needs no scheduler state.
"""

import math

import torch
from torch import nn

# Exponents p of eta = lr * (B / base_batch)^p.
SCALING = {"linear": 1.0, "sqrt": 0.5, "fourth_root": 0.25, "constant": 0.0}
# What the authors' script computes for p < 1: lr * B^p / base_batch, without scaling the base, so
# that at lr = 0.3, base 256, B = 1024 the rate is 32 or 181 times below the linear rule's.
AUTHORS_SCALING = {"authors_sqrt": 0.5, "authors_fourth_root": 0.25}
LR_RULES = (*SCALING, *AUTHORS_SCALING)


def peak_lr(rule: str, lr: float, batch_size: int, base_batch: int) -> float:
    """eta, the rate at the end of the warm-up, by the named rule (papers.md calls lr eta_0)."""
    if rule in SCALING:
        return lr * (batch_size / base_batch) ** SCALING[rule]
    return lr * batch_size ** AUTHORS_SCALING[rule] / base_batch


def lr_at(step: int, peak: float, warmup_steps: int, horizon_steps: int) -> float:
    """Linear warm-up (step 0 is not wasted), then a cosine that reaches 0 at the horizon."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, horizon_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(cell: dict, network: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, or LARS (timm); neither decays nor adapts biases and normalisation."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": cell["weight_decay"]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
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
