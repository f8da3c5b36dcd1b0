"""What a cluster needs to know of jobs: partition, account, kind of GPU. Imports quickly.

A file of the site's own says it by class of job (`slurm/site.yaml`, made from
`slurm/site.example.yaml`): what jobs ask for beyond time and memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cltools.config.schema import unknown_key
from cltools.runtime.errors import InputError
from cltools.runtime.yaml_text import read_yaml

FILE = "slurm/site.yaml"
CLASSES = ("cpu", "gpu")
# Names that the Slurm executor knows, passed on as they are.
PASSED = ("slurm_partition", "slurm_account", "qos", "constraint", "slurm_extra")
OF_GPUS = ("gpu_model", "gpu_request")


class Site:
    """The site's settings by class of job; empty without its file.

    Raises InputError when the file is no YAML mapping, or for an unknown key.
    """

    def __init__(self, path: Path) -> None:
        self._wishes: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._wishes = _read(path)

    @classmethod
    def of(cls, *folders: str | Path) -> "Site":
        """The settings of the first of these folders that has a `slurm/site.yaml`."""
        paths = [Path(folder) / FILE for folder in folders]
        return cls(next((path for path in paths if path.exists()), paths[-1]))

    def resources(self, job_class: str, gpus: int = 0, nodes: int = 1) -> dict[str, Any]:
        """Resources of a rule whose jobs are of that class and need so many GPUs on each node.

        `gpu` counts them (Slurm's --gpus), but for sites that want `--gres` instead, and for
        several nodes, since `--gpus` does not say how many are on each.
        """
        wishes = self._wishes.get(job_class, {})
        asked = {key: wishes[key] for key in PASSED if key in wishes}
        if not gpus:
            return asked
        model = wishes.get("gpu_model")
        if nodes > 1 or wishes.get("gpu_request") == "gres":
            return {**asked, "gres": ":".join(["gpu", *([model] if model else []), str(gpus)])}
        return {**asked, "gpu": gpus, **({"gpu_model": model} if model else {})}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    content = read_yaml(path, "site file") or {}
    for name, wishes in content.items() if isinstance(content, dict) else [("", None)]:
        if name and name not in CLASSES:
            raise InputError(f"{path}: {unknown_key(name, CLASSES)}")
        if not isinstance(wishes, Mapping):
            raise InputError(f"{path} holds no settings by class: see slurm/site.example.yaml")
        known = PASSED + OF_GPUS if name == "gpu" else PASSED
        for key, value in wishes.items():
            if key not in known:
                raise InputError(f"{path}: {unknown_key(f'{name}.{key}', known)}")
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise InputError(f"{path}: config key {name}.{key} is {value!r}, but must be text")
        if wishes.get("gpu_request", "gpus") not in ("gpus", "gres"):
            raise InputError(f"{path}: config key gpu.gpu_request must be one of 'gpus', 'gres'")
    return {name: {k: str(v) for k, v in wishes.items()} for name, wishes in content.items()}
