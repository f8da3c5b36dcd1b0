"""Training steps in float64, where two ways of computing one thing agree to 1e-12 on any processor.

In float32 they agree to 1e-6 before the first step only: each step multiplies what is different,
by an amount that depends on the processor. No tolerance on weights after several steps in float32
would hold everywhere and still notice a fault.
"""

import torch

from cltools.training.trainer import CoupledTrainer

# Blurring is in float32 only.
RECIPE = {"family": "digits", "blur_probability": 0.0}


def make_float_double(patch) -> None:
    """What asks for float32 at least gets float64, until `patch` (pytest's monkeypatch) ends."""
    patch.setattr(torch.Tensor, "float", torch.Tensor.double)


def in_float64(trainer: CoupledTrainer) -> CoupledTrainer:
    """The trainer, its networks, queues and momentum networks in float64."""
    for network in trainer.networks.values():
        network.double()
    for queue in trainer.queues.values():
        queue.network.double()
        queue.keys = queue.keys.double()
    for target in trainer.targets.values():
        target.network.double()
    return trainer
