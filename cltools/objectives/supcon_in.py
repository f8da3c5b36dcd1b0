"""L_in of Khosla et al. 2020 (arXiv 2004.11362, Eq. 3): the mean is inside the logarithm.

`scl` is their L_out (Eq. 2), with the mean over positives outside.
"""

from typing import TYPE_CHECKING, cast

from cltools.objectives.declared import Objective, Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from cltools.maths.objectives import PairMasks


def loss(outputs: Outputs) -> "Tensor":
    """Mean over anchors of -log(mean over positives of exp(s) / sum over all others of exp(s)).

    s is the cosine of the anchor with another projection, divided by tau. Positives are all other
    projections of the anchor's class.
    """
    from cltools.maths.objectives import masked_logsumexp

    masks = cast("PairMasks", outputs.masks)
    positives = masks.same_class.sum(dim=1).to(outputs.logits.dtype)
    numerator = masked_logsumexp(outputs.logits, masks.same_class) - positives.log()
    return (masked_logsumexp(outputs.logits, masks.not_self) - numerator).mean()


OBJECTIVE = Objective(
    name="supcon_in",
    loss=loss,
    label="SupCon, L_in",
    color="#66BBAA",
    marker="p",
    labels=True,
    contrastive=True,
)
