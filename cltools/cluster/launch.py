"""How the processes that train one cell are started. Imports quickly, for the rules."""

from collections.abc import Callable
from typing import Any, NamedTuple

Setting = Callable[[str], Any]  # the value of a key of the config


class Gpus(NamedTuple):
    """The GPUs of one cell: `each` of them on each of `nodes` machines."""

    nodes: int
    each: int

    @classmethod
    def of(cls, setting: Setting) -> "Gpus":
        """Those that a config asks for."""
        nodes: int = setting("nodes_per_cell")
        return cls(nodes, setting("gpus_per_cell") // nodes)


def launched(gpus: Gpus, cpus: int) -> str:
    """The shell command that stands before `train …`: one process, or torchrun with one per GPU.

    On several nodes `srun` starts a torchrun with `cpus` on each. They find each other at the node
    where the job's shell runs, which is one of them.
    """
    if gpus == (1, 1):
        return "cltools"
    # Without the two dashes, torchrun takes --run as an option of its own.
    program = f"--nproc-per-node {gpus.each} -m -- cltools.cli"
    if gpus.nodes == 1:
        return f"cltools with-gpus {gpus.each} -- torchrun --standalone {program}"
    # Jobs that share a node need different ports.
    meeting = '"$(hostname):$((20000 + SLURM_JOB_ID % 20000))"'
    return (
        f"srun --nodes {gpus.nodes} --ntasks {gpus.nodes} --ntasks-per-node 1 "
        f"--cpus-per-task {cpus} --kill-on-bad-exit=1 torchrun --nnodes {gpus.nodes} "
        f'--rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint {meeting} {program}'
    )


def training_options(setting: Setting) -> str:
    """The options of `cltools train` that the config gives, where they are not the defaults."""
    options = [
        ("--share", setting("share"), "auto"),
        ("--cells-per-gpu", setting("cells_per_gpu"), 1),
        ("--save-every-seconds", setting("save_every_seconds"), None),
        ("--tracker", setting("tracker"), "none"),
    ]
    return " ".join(f"{name} {value}" for name, value, default in options if value != default)
