"""Σ(w), the similarities of fixed views as a function of a network's weights, and its Jacobian.

P2's Theorem 1 (arXiv 2510.08852) is about similarity descent, Σ_{t+1} = Σ_t - η_t G_t (see
`cltools.maths.surrogate`). Training a network changes its weights w instead. With J = ∂Σ/∂w,

    Σ(w_{t+1}) = Σ(w_t) + J_t (w_{t+1} - w_t) + R_t,        w_{t+1} - w_t ≈ -η_t J_tᵀ G_t

The two differ by the factor J_t J_tᵀ and by the remainder R_t of Taylor's formula. This module
provides what is needed to measure these: a reference set, a run on it, and Σ with its Jacobian.

The run is a `CoupledTrainer` on the reference set, so that all similarities within a batch are
entries of Σ. In every epoch, images have the views of epoch 0, because an entry of Σ belongs to two
views, not to two images.

With batch normalization, the embedding of an image depends on the other images of the batch. Σ(w)
normalizes over all 2M reference views, in the way a training step does over its batch. It therefore
depends on w only; running statistics are neither used nor changed. A training step of B < M images
has other statistics. This is one reason why the second relation above is only approximate. The
other is that the trained objectives have both views as anchors, while P2's G has only the first.

Σ(w) is smooth only where no ReLU switches on or off. There, R is of second order in the step. If
some ReLUs switch during the step, R is nearly of first order, even for very short steps.

Everything is in float64, whatever the precision of the run: a remainder is a small difference of
large numbers. For short steps it is smaller than the rounding of float32.
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
    """A subset of `images` images, in their order, with classes as equal in size as possible.

    The seed draws them. If C does not divide `images`, the first classes have one image more.
    `images` is at most len(data.labels).
    """
    order = torch.randperm(len(data.labels), generator=generator("reference", seed))
    by_class = order[data.labels[order].argsort(stable=True)]
    counts = torch.bincount(data.labels)
    within = torch.arange(len(order)) - (counts.cumsum(0) - counts)[data.labels[by_class]]
    chosen = by_class[within.argsort(stable=True)[:images]].sort().values
    return data.chosen(chosen)


class FixedViews(Batches):
    """The batches of a cell, but every image has the views of epoch 0 in every epoch.

    views (K, M, c, H, W) holds those of all images, standardized, on the device.
    """

    def __init__(self, cell: dict[str, Any], data: ImageSet, device: torch.device) -> None:
        super().__init__(cell, data, device)
        images = len(data.labels)
        drawn = epoch_views(
            cell["seed"], 0, cell["views"], data.split_size, data.samples, self.recipe, *data.extent
        )
        rendered = data.normalize(data.views(torch.arange(images), drawn.table, self.recipe)())
        self.views = torch.unflatten(rendered, 0, (cell["views"], images))

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        (positions,) = self.positions([step])
        views = self.views[:, positions.to(self.views.device)].flatten(0, 1)
        return views.contiguous(memory_format=torch.channels_last), positions

    def chain_digests(self, step: int, digests: dict[str, str]) -> dict[str, str]:
        """The digests, unchanged: this run is not saved, so that they are not needed."""
        return digests


@dataclass(frozen=True)
class Linearised:
    """Σ and its Jacobian J at given weights, in float64.

    weights (P,), sigma (M, 2M); jvp maps v (P,) to J v (M, 2M), and vjp maps u (M, 2M) to Jᵀ u
    (P,).
    """

    weights: Tensor
    sigma: Tensor
    jvp: Callable[[Tensor], Tensor]
    vjp: Callable[[Tensor], Tensor]


class SimilarityMap:
    """Σ(w) of two views of M images, for the weights w of any network of one architecture.

    w (P,) is the concatenation of the trained parameters of encoder and projector.

    Args:
        network: sets the architecture; it is copied, and its weights do not matter.
        views: (2, M, c, H, W), standardized.
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
        """Σ (M, 2M) at weights (P,), as `cltools.maths.surrogate.similarities_of_views`."""
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
            # torch's derivative of BatchNorm uses a function of torch that is deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            change: Tensor = jvp(self, (weights,), (direction,))[1]
            return change


class _Embedding(nn.Module):
    """z (n, width of z) of images: a network's `forward` without its cast to float32."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.encoder, self.projector = network.encoder, network.projector

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.projector(self.encoder(x)), dim=1)


def taylor_terms(before: Linearised, after: Linearised) -> tuple[Tensor, Tensor]:
    """J (w' - w) and the remainder R, (M, 2M) each: Σ(w') = Σ(w) + J (w' - w) + R.

    J is the Jacobian at w, the weights of `before`; w' are those of `after`.
    """
    first_order = before.jvp(after.weights - before.weights)
    return first_order, after.sigma - before.sigma - first_order


def spectral_norm(point: Linearised, iterations: int, seed: int) -> float:
    """‖J‖₂ by power iteration on JᵀJ, from a Gaussian direction that the seed draws.

    The estimate is at most ‖J‖₂, and each iteration (one product with J and one with Jᵀ) raises it.
    For a small ResNet in its first steps, it was up to 7% too low with 5 iterations and up to 2%
    with 10.

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
