"""Distance of every objective's weights from those of the reference."""

from collections.abc import Iterator, Mapping

import numpy as np

from cltools.maths.angles import weight_angle
from cltools.maths.objectives import REFERENCE
from cltools.maths.weights import weight_distance, weight_gap
from cltools.measurements.table import Row, others, rows_of

Weights = Mapping[str, np.ndarray]  # name of a tensor -> tensor


def weight_rows(
    weights: Mapping[str, Weights],
    initial: Weights | None = None,
    reference: str = REFERENCE,
) -> Iterator[Row]:
    """Gaps and angles (degrees) between every objective's encoder and the reference's.

    With `initial`, the common start of all objectives, also the angle between their paths from it.
    """
    for objective in others(weights, reference):
        pair = weights[reference], weights[objective]
        gap, layers = weight_gap(*pair)
        values = {
            ("weight_gap", "mean_layer"): gap,
            **{("weight_gap_layer", layer): value for layer, value in layers.items()},
            ("weight_distance", "euclidean"): weight_distance(*pair),
            ("weight_angle", "weights"): weight_angle(*pair),
        }
        if initial is not None:
            values["weight_angle", "from_init"] = weight_angle(*pair, initial)
        yield from rows_of(values, objective=objective, reference=reference)
