"""A second DCL model, to see how far apart two runs of one objective are."""

from dataclasses import replace

from cltools.objectives import dcl

OBJECTIVE = replace(dcl.OBJECTIVE, name="dcl_twin", label="second DCL", color="#882255", marker="X")
