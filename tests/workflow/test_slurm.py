"""`snakemake --profile slurm` on a real Slurm of two nodes, undisturbed and disturbed.

Needs root and Debian's slurm-wlm (`apt-get install slurm-wlm`), on a machine without a Slurm of its
own; see tests/slurm_lab.sh. The runs go on at the same time: most of it is waiting.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from places import ROOT
from waiting import HANGS, wait_until

from cltools.config.experiment import load_experiment

LAB = ROOT / "tests/slurm_lab.sh"
# As few waits as possible; everything else is the profile's.
HASTE = ["--slurm-init-seconds-before-status-checks", "3", "--max-status-checks-per-second", "1",
         "--latency-wait", "5"]  # fmt: skip
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--profile", "slurm", *HASTE]
CONFIG = {
    "experiment": "tiny",
    "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
    "base": {
        "dataset": "digits",
        "images_per_class": 30,
        "test_images_per_class": 10,
        "batch_size": 50,
        "projector_hidden": 16,
        "projector_dim": 8,
        "optimizer": "sgd",
        "horizon": 60,
        "checkpoints": [0],
    },
    "sweeps": {"temperature": {"vary": {"tau": [0.1, 0.5]}}},
    "surrogate": {"seeds": [0], "steps": 3, "classes": [2], "images": 20, "batch_sizes": [8]},
    "minimise": {"seeds": [0], "classes": [2], "taus": [1.0], "objectives": ["nscl"]},
    "cells_per_job": 2,
}
# What is compared; disturbed runs make no more than these and what they need.
TABLES = ("measures.parquet", "training_log.parquet", "theory.parquet", "surrogate.parquet",
          "minimise.parquet", "figures/alignment_temperature.csv")  # fmt: skip
FEWER = [f"results/tiny/{name}" for name in TABLES]

missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed (slurm-wlm)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons need root here"),
    pytest.mark.skipif(
        Path("/etc/slurm/slurm.conf").exists(), reason="this machine has a Slurm of its own"
    ),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A running Slurm; the environment in which its commands find it."""
    folder = tmp_path_factory.mktemp("lab")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_LAB": str(folder), "LAB_GPUS": "4",
                   "LAB_CPUS": "8", "SLURM_CONF": str(folder / "etc/slurm.conf")}  # fmt: skip
    environment.pop("PYTHONPATH", None)
    try:
        subprocess.run([LAB, "start"], env=environment, check=True, timeout=HANGS)
        yield environment
    finally:
        subprocess.run([LAB, "stop"], env=environment, check=True, timeout=HANGS)


class Clone:
    """A fresh copy of the repository, with `snakemake --profile slurm` at work in it."""

    def __init__(
        self, folder, environment, partition="gpu", target=(), command=SNAKEMAKE, **changes
    ):
        for name in ("Snakefile", "workflow", "slurm", "cltools", "config", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        (folder / "slurm/site.yaml").write_text(f"gpu: {{slurm_partition: {partition}}}\n")
        (folder / "tiny.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
        self.folder = folder
        self.environment = {**environment, "PYTHONPATH": str(folder)}
        with open(folder / "console", "w") as console:
            self.process = subprocess.Popen(
                [*command, *target, "--configfile", "tiny.yaml"], cwd=folder, stdout=console,
                stderr=subprocess.STDOUT, env=self.environment,
            )  # fmt: skip

    def slurm(self, *command):
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=HANGS
        ).stdout

    def jobs(self):
        """What Slurm knows of this clone's jobs, in the order of submission."""
        shown = self.slurm("scontrol", "show", "job", "--oneliner").splitlines()
        jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in shown]
        return [job for job in jobs if job.get("WorkDir") == str(self.folder)]

    def training(self, tau):
        """The cell of that τ if its training is under way, else None."""
        weights = self.folder.glob(f"results/cells/*tau{tau}-*/run/weights/*-0000000*")
        return next((path.parents[2].name for path in weights), None)

    def kill(self, cell):
        os.kill(self.process_of(cell), signal.SIGKILL)

    def requeue(self, cell):
        """As an administrator does; but Slurm would hold the job for two minutes."""
        (job,) = [j["JobId"] for j in self.jobs() if cell in j["Comment"]]
        self.slurm("scontrol", "requeue", job)
        wait_until(
            lambda: "PENDING" in self.slurm("squeue", "--job", job, "--Format", "State"),
            "the requeued job is pending",
        )
        self.slurm("scontrol", "update", f"JobId={job}", "StartTime=now")

    def process_of(self, cell):
        """The number of the process that trains a cell of this clone."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = [*(entry / "cmdline").read_bytes().decode().split("\0"), ""]
                here = os.readlink(entry / "cwd") == str(self.folder)
            except OSError:
                continue
            ours = here and words[1].endswith("cltools")
            if ours and any(cell in word for word in words):
                return int(entry.name)
        raise AssertionError(f"nothing trains {cell}")


@pytest.fixture(scope="module")
def clones(environment, tmp_path_factory):
    """A run that nobody disturbs, and one whose training jobs are: one requeued, one killed."""
    folders = [tmp_path_factory.mktemp(name) for name in ("calm", "disturbed")]
    calm, disturbed = (
        Clone(folder, environment, target=target)
        for folder, target in zip(folders, ([], FEWER), strict=True)
    )
    try:
        disturbances = {0.1: disturbed.requeue, 0.5: disturbed.kill}

        def all_disturbed():
            for tau in list(disturbances):
                if (cell := disturbed.training(tau)) is not None:
                    disturbances.pop(tau)(cell)
            return not disturbances or disturbed.process.poll() is not None

        wait_until(all_disturbed, "both cells train")
        assert not disturbances, (disturbed.folder / "console").read_text()
        for clone in (calm, disturbed):
            code = clone.process.wait(timeout=HANGS)
            assert code == 0, (clone.folder / "console").read_text()
        yield calm, disturbed
    finally:
        for clone in (calm, disturbed):
            clone.process.kill()


def test_jobs_ask_for_what_they_need(clones):
    """GPUs and the site's partition for training; short stages are not submitted one by one."""
    jobs = clones[0].jobs()
    stages = Counter(re.sub("_wildcards.*", "", job["Comment"]) for job in jobs)
    assert stages == {"rule_prepare": 1, "rule_train": 2, "rule_simulate_minimise_surrogate": 1,
                      "rule_cell_embed_measure_theory": 1}  # fmt: skip
    for job in jobs:
        on_gpu = "train" in job["Comment"] or "embed" in job["Comment"]
        assert job["Partition"] == ("gpu" if on_gpu else "main")
        assert job.get("TresPerJob", "") == ("gres:gpu:1" if on_gpu else "")
        assert job["JobState"] == "COMPLETED"
        assert job["NumNodes"] == "1"
        assert job["Requeue"] == "1"


def test_disturbed_jobs_went_on(clones):
    """A killed job is tried again with twice the memory; a requeued one stays the same job."""
    training = [job for job in clones[1].jobs() if "train" in job["Comment"]]
    assert Counter(job["JobState"] for job in training) == {"COMPLETED": 2, "FAILED": 1}
    (failed,) = [job for job in training if job["JobState"] == "FAILED"]
    (again,) = [j for j in training if j["Comment"] == failed["Comment"] and j is not failed]
    (requeued,) = [job for job in training if job["Comment"] != failed["Comment"]]
    once, twice = (int(job["MinMemoryNode"].removesuffix("M")) for job in (failed, again))
    assert twice == 2 * once
    assert (again["Restarts"], requeued["Restarts"]) == ("0", "1")


def test_disturbed_runs_end_with_the_same_bytes(clones):
    for name in TABLES:
        calm, disturbed = (clone.folder / "results/tiny" / name for clone in clones)
        assert calm.read_bytes() == disturbed.read_bytes()


def test_a_cell_on_two_nodes(clones, environment, tmp_path):
    """One process on each, which train an objective each: the manifest is that of one process."""
    (cell, _) = load_experiment(CONFIG).plans
    (target,) = (clones[0].folder / "results/cells" / cell).glob("trained-*.json")
    name = str(target.relative_to(clones[0].folder))
    pair = Clone(tmp_path, environment, "pair", [name], gpus_per_cell=2, nodes_per_cell=2)
    assert pair.process.wait(timeout=HANGS) == 0, (tmp_path / "console").read_text()
    (job,) = [job for job in pair.jobs() if "train" in job["Comment"]]
    assert (job["NumNodes"], job["TresPerNode"]) == ("2", "gres:gpu:1")
    (log,) = (tmp_path / "results/logs/train").iterdir()
    assert "2 processes share the objectives" in log.read_text()
    assert (tmp_path / name).read_bytes() == target.read_bytes()


def test_snakemake_as_a_job_goes_on_after_its_end(clones, environment, tmp_path):
    """Told that its time ends, then killed: the next one waits for the cells and goes on."""
    asked = ["sbatch", "--parsable", "--time", "60", "slurm/head.sbatch", "--profile", "slurm"]
    run = Clone(tmp_path, environment, target=FEWER, command=[*asked, *HASTE])
    assert run.process.wait(timeout=HANGS) == 0
    first = (tmp_path / "console").read_text().strip()

    def heads():
        return {j["JobId"]: j["JobState"] for j in run.jobs() if j["JobName"] == "cltools-head"}

    def log():
        return "".join(path.read_text() for path in tmp_path.glob("cltools-head-*.log"))

    def ended(job):
        return heads()[job] not in ("PENDING", "RUNNING", "COMPLETING")

    wait_until(lambda: run.training(0.1) or run.training(0.5) or ended(first), "a cell trains")
    assert not ended(first), log()
    run.slurm("scancel", "--batch", "--signal", "USR1", first)
    wait_until(lambda: len(heads()) == 2, "the next one is queued")
    run.slurm("scancel", first)
    (second,) = heads().keys() - {first}
    wait_until(lambda: ended(second), "the next one ends")
    assert heads()[second] == "COMPLETED", log()
    for name in TABLES:
        calm = clones[0].folder / "results/tiny" / name
        assert (tmp_path / "results/tiny" / name).read_bytes() == calm.read_bytes()
