"""Where the workflow is, and what belongs to it: in a wheel below the package, else beside it."""

from pathlib import Path
from typing import Literal

from cltools.runtime.errors import InputError

Part = Literal["snakefile", "profile", "configs"]
PARTS: dict[Part, str] = {
    "snakefile": "workflow/Snakefile",
    "profile": "slurm",
    "configs": "config",
}
PACKAGE = Path(__file__).parents[1]


def shipped(part: Part = "snakefile") -> Path:
    """The absolute path of a part of the workflow that belongs to this installation.

    "snakefile" is the workflow, "profile" the folder of its Slurm profile, "configs" the folder of
    its configs.

    Raises InputError where the package was copied without its workflow.
    """
    for folder in (PACKAGE / "shipped", PACKAGE.parent):
        if (path := folder / PARTS[part]).exists():
            return path
    raise InputError(f"{PACKAGE} has no workflow beside it: install cltools, or use a checkout")
