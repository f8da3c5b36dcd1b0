"""Σ(w), the similarities of fixed views as a function of a network's weights, to first order.

P2's Theorem 1 (arXiv 2510.08852) is about similarity descent, Σ_{t+1} = Σ_t - η_t G_t (see
`cltools.maths.surrogate`). A network moves its weights w, and with J = ∂Σ/∂w its similarities obey

    Σ(w_{t+1}) = Σ(w_t) + J_t (w_{t+1} - w_t) + R_t,        w_{t+1} - w_t ≈ -η_t J_tᵀ G_t

so that J_t J_tᵀ and Taylor's remainder R_t are what stands between the two. Here is what it takes
to measure them: a reference set, a run on it, and Σ with its Jacobian.

The run is the one of `CoupledTrainer` on the reference set, so that all entries that a batch
touches are entries of Σ, with the views of epoch 0 in every epoch, because an entry of Σ is of two
views and not of two images.

Batch normalisation makes an image's embedding depend on the images beside it. Σ(w) normalises over
the 2M reference views, as a training step does over its batch's: it is a function of w alone, and
no running statistics enter it or change by it. A training step of B < M images sees other
statistics, which is one reason why the second equation above is no equality. The other is that the
objectives that are trained have both views as anchors, P2's G the first one only.

Σ(w) is smooth between the kinks of the ReLUs only. There R is of second order in the step; a step
across kinks leaves a remainder that is nearly of first order, down to very short steps.

Everything is in float64, whatever the run computes in: a remainder is a small difference of large
numbers, below the rounding of float32 where the steps are short.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, replace_all_batch_norm_modules_, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from cltools.data.image_set import ImageSet
from cltools.data.views import epoch_views
from cltools.maths.randomness import generator
from cltools.training.batches import Batches
from cltools.training.networks import Network


def reference_set(data: ImageSet, images: int, seed: int) -> ImageSet:
    """`images` of the images, in their order, from all classes as evenly as they allow.

    Which ones, the seed decides; where the number is no multiple of C, the first classes have one
    more. Takes at most the len(data.labels) images there are.
    """
    order = torch.randperm(len(data.labels), generator=generator("reference", seed))
    by_class = order[data.labels[order].argsort(stable=True)]
    counts = torch.bincount(data.labels)
    within = torch.arange(len(order)) - (counts.cumsum(0) - counts)[data.labels[by_class]]
    chosen = by_class[within.argsort(stable=True)[:images]].sort().values
    return data.chosen(chosen)


class FixedViews(Batches):
    """The batches of a cell, but every image has the views of epoch 0 in every epoch.

    views: (K, M, c, H, W) of all images, standardised, on the device.
    """

    def __init__(self, cell: dict[str, Any], data: ImageSet, device: torch.device) -> None:
        super().__init__(cell, data, device)
        images = len(data.labels)
        drawn = epoch_views(
            cell["seed"], 0, cell["views"], data.split_size, data.samples, self.recipe, *data.extent
        )
        rendered = data.normalise(data.views(torch.arange(images), drawn.table, self.recipe)())
        self.views = torch.unflatten(rendered, 0, (cell["views"], images))

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        (positions,) = self.positions([step])
        views = self.views[:, positions.to(self.views.device)].flatten(0, 1)
        return views.contiguous(memory_format=torch.channels_last), self.data.labels[positions]

    def chain_digests(self, step: int, digests: dict[str, str]) -> dict[str, str]:
        """Unchanged: the digests of a run that is not kept."""
        return digests


@dataclass(frozen=True)
class Linearised:
    """Σ at some weights: weights (P,), sigma (M, 2M) and its Jacobian J there, in float64.

    jvp maps v (P,) to J v (M, 2M), vjp u (M, 2M) to Jᵀ u (P,).
    """

    weights: Tensor
    sigma: Tensor
    jvp: Callable[[Tensor], Tensor]
    vjp: Callable[[Tensor], Tensor]


class SimilarityMap:
    """Σ(w) of two views of M images, for the weights w of all networks of one architecture.

    w (P,) holds the trained parameters of encoder and projector, one after another.

    Args:
        network: of the architecture; it is copied, and its weights do not matter.
        views: (2, M, c, H, W), standardised.
    """

    def __init__(self, network: Network, views: Tensor) -> None:
        embedding = copy.deepcopy(_Embedding(network)).double().requires_grad_(False)
        self._embedding = replace_all_batch_norm_modules_(embedding)
        self._shapes = {
            name: parameter.shape
            for name, parameter in _Embedding(network).named_parameters()
            if parameter.requires_grad
        }
        images = views.flatten(0, 1).double()
        self._views = images.contiguous(memory_format=torch.channels_last)

    def weights(self, network: Network) -> Tensor:
        """w (P,) of a network, a copy in float64."""
        parameters = dict(network.named_parameters())
        return torch.cat([parameters[name].detach().double().flatten() for name in self._shapes])

    def __call__(self, weights: Tensor) -> Tensor:
        """Σ (M, 2M) as `cltools.maths.surrogate.similarities_of_views`, of weights (P,)."""
        pieces = torch.split(weights, [shape.numel() for shape in self._shapes.values()])
        parameters = {
            name: piece.view(shape)
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward derivative
            z: Tensor = functional_call(self._embedding, parameters, (self._views,))
        return z[: len(z) // 2] @ z.T

    def at(self, weights: Tensor) -> Linearised:
        """Σ and its Jacobian at weights (P,)."""
        sigma, transposed, *_ = vjp(self, weights)
        return Linearised(
            weights,
            sigma,
            lambda direction: self._jvp(weights, direction),
            lambda direction: transposed(direction)[0],
        )

    def _jvp(self, weights: Tensor, direction: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # Torch's own rules for BatchNorm use, when they are first needed, what it deprecates.
            warnings.simplefilter("ignore", FutureWarning)
            change: Tensor = jvp(self, (weights,), (direction,))[1]
            return change


class _Embedding(nn.Module):
    """z (n, projector_dim) of images, by the modules of a network but in their own precision."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.encoder, self.projector = network.encoder, network.projector

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.projector(self.encoder(x)), dim=1)


def taylor_remainder(before: Linearised, after: Linearised) -> Tensor:
    """R (M, 2M): Σ(w') - Σ(w) - J (w' - w), with J at the weights before."""
    return after.sigma - before.sigma - before.jvp(after.weights - before.weights)


def spectral_norm(point: Linearised, iterations: int, seed: int) -> float:
    """‖J‖₂ by power iteration on JᵀJ, from a Gaussian direction that the seed draws.

    An estimate from below, that each iteration (a product with J, one with Jᵀ) raises: with 5 it
    was up to 7% below, with 10 up to 2%, for a small ResNet in its first steps.

    Raises ValueError for iterations below 1.
    """
    if iterations < 1:
        raise ValueError(f"power iteration needs 1 step or more, not {iterations}")
    draw = torch.randn(len(point.weights), generator=generator("jacobian", seed))
    direction = draw.to(point.weights)
    for _ in range(iterations):
        image = point.jvp(direction / direction.norm())
        direction = point.vjp(image)
    return float(direction.norm() / image.norm())
