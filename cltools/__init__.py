"""Coupled training of contrastive and supervised objectives, and how closely they stay aligned.

The names for use in Python are in `cltools.api`, one module per group; docs/python.md shows them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Module -> its public names. A name is imported when it is first asked for, since torch takes
# seconds and most commands do not need it.
_NAMES = {
    "cltools.api.losses": (
        "dcl_loss", "nscl_loss", "scl_loss", "nt_xent_loss",
        "DCLLoss", "NSCLLoss", "SCLLoss", "NTXentLoss",
    ),
    "cltools.api.representations": (
        "cka", "rsa", "alignment", "nccc", "linear_probe", "cdnv", "gap_bound",
    ),
    "cltools.api.training": ("CoupledTrainer", "ViewLoader"),
    "cltools.api.results": ("read_results", "curve"),
}  # fmt: skip
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_HOME)

if TYPE_CHECKING:
    from cltools.api.losses import DCLLoss as DCLLoss
    from cltools.api.losses import NSCLLoss as NSCLLoss
    from cltools.api.losses import NTXentLoss as NTXentLoss
    from cltools.api.losses import SCLLoss as SCLLoss
    from cltools.api.losses import dcl_loss as dcl_loss
    from cltools.api.losses import nscl_loss as nscl_loss
    from cltools.api.losses import nt_xent_loss as nt_xent_loss
    from cltools.api.losses import scl_loss as scl_loss
    from cltools.api.representations import alignment as alignment
    from cltools.api.representations import cdnv as cdnv
    from cltools.api.representations import cka as cka
    from cltools.api.representations import gap_bound as gap_bound
    from cltools.api.representations import linear_probe as linear_probe
    from cltools.api.representations import nccc as nccc
    from cltools.api.representations import rsa as rsa
    from cltools.api.results import curve as curve
    from cltools.api.results import read_results as read_results
    from cltools.api.training import CoupledTrainer as CoupledTrainer
    from cltools.api.training import ViewLoader as ViewLoader
else:  # a type checker that saw these would take any name for a public one

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return [*__all__, "__version__"]
