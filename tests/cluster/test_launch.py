"""The command that starts the processes of a cell, and the options that a config gives it."""

import os
import shlex
import subprocess

import pytest

from cltools.cluster.launch import Gpus, launched, training_options
from cltools.config.experiment import Experiment

DEFAULT = {"experiment": "tiny"}


def setting(**keys):
    return Experiment({**DEFAULT, **keys}, {}, {}, {}, None).setting


def test_one_node():
    assert launched(Gpus.of(setting()), 1) == "cltools"
    four = launched(Gpus.of(setting(gpus_per_cell=4)), 1)
    assert four.split() == [
        "cltools", "with-gpus", "4", "--", "torchrun", "--standalone", "--nproc-per-node", "4",
        "-m", "--", "cltools.cli",
    ]  # fmt: skip


@pytest.fixture
def srun(tmp_path):
    """A command of this name that prints what it is given, one word a line."""
    path = tmp_path / "srun"
    path.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def words(gpus, environment, job):
    command = f"set -euo pipefail; {launched(gpus, 6)} train --cell x"
    done = subprocess.run(
        ["bash", "-c", command], env={**environment, "SLURM_JOB_ID": job}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_several_nodes(srun):
    """One torchrun on each node; they meet where the shell runs, jobs of a node at other ports."""
    found = words(Gpus.of(setting(gpus_per_cell=16, nodes_per_cell=2)), srun, "70001")
    begun, torchrun = (" ".join(part) for part in (found[:9], found[9:]))
    host = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    assert begun == (
        "--nodes 2 --ntasks 2 --ntasks-per-node 1 --cpus-per-task 6 --kill-on-bad-exit=1"
    )
    assert torchrun == (
        f"torchrun --nnodes 2 --rdzv-backend c10d --rdzv-id 70001 --rdzv-endpoint {host}:30001 "
        "--nproc-per-node 8 -m -- cltools.cli train --cell x"
    )
    assert f"{host}:30002" in words(Gpus(2, 8), srun, "70002")


def test_options():
    assert training_options(setting()) == ""
    given = training_options(
        setting(share="batch", cells_per_gpu=3, save_every_seconds=900, tracker="wandb")
    )
    assert shlex.split(given) == [
        "--share", "batch", "--cells-per-gpu", "3", "--save-every-seconds", "900",
        "--tracker", "wandb",
    ]  # fmt: skip
