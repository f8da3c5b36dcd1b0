"""The measures of representations: generators of tidy rows, one function per family.

A row is a dict with some of the columns of `tidy`. Columns that a family leaves out are set by the
caller for all rows together, or stay empty.
"""

from cltools.maths.objectives import REFERENCE
from cltools.measurements.alignment import (
    add_intervals,
    alignment_rows,
    angle_rows,
    corollary_rows,
    null_rows,
    rank_rows,
)
from cltools.measurements.downstream import downstream_rows
from cltools.measurements.geometry import geometry_rows, head_rows, view_rows
from cltools.measurements.layers import LayerOutputs, layer_rows, tidy_layers
from cltools.measurements.losses import (
    batch_loss_rows,
    dropped_rows,
    labelling_rows,
    loss_rows,
)
from cltools.measurements.representations import Representations
from cltools.measurements.table import SCHEMA, Row, tidy
from cltools.measurements.weights import weight_rows

__all__ = [
    "REFERENCE",
    "SCHEMA",
    "LayerOutputs",
    "Representations",
    "Row",
    "add_intervals",
    "alignment_rows",
    "angle_rows",
    "batch_loss_rows",
    "corollary_rows",
    "downstream_rows",
    "dropped_rows",
    "geometry_rows",
    "head_rows",
    "labelling_rows",
    "layer_rows",
    "loss_rows",
    "null_rows",
    "rank_rows",
    "tidy",
    "tidy_layers",
    "view_rows",
    "weight_rows",
]
