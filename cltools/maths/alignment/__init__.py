"""How similar two representations of the same images are, with controls for chance and classes."""

from cltools.maths.alignment.distances import FrobeniusGap, frobenius_gap
from cltools.maths.alignment.features import unit_rows, zero_norm_rows
from cltools.maths.alignment.measures import MEASURES, Measure, alignment
from cltools.maths.alignment.moments import Pair
from cltools.maths.alignment.permutations import PermutationTest, mantel_test, within_class_null
from cltools.maths.alignment.ranks import Spearman, spearman_rsa
from cltools.maths.alignment.residuals import RESIDUAL_MEASURES, residual, residual_alignment

__all__ = [
    "MEASURES", "RESIDUAL_MEASURES", "FrobeniusGap", "Measure", "Pair", "PermutationTest",
    "Spearman",
    "alignment", "frobenius_gap", "mantel_test", "residual", "residual_alignment", "spearman_rsa",
    "unit_rows", "within_class_null", "zero_norm_rows",
]  # fmt: skip
