"""Run the default experiment by `snakemake --profile slurm` on a real Slurm, with interruptions.

    python benchmarks/slurm.py                 # on two cores; needs root and slurm-wlm
    python benchmarks/slurm.py --local FOLDER  # where `snakemake --cores 2` has been run

It runs in a fresh clone. Meanwhile, a training process is killed, a training job is requeued,
another is preempted by a job of a partition with higher priority, and Snakemake itself is killed
and started again. At the end, every table and the numbers of every figure are compared with those
of an uninterrupted local run, byte for byte.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAB = ROOT / "tests/slurm_lab.sh"
EXPERIMENT = "quickstart"
BETWEEN = 45.0  # seconds from one disturbance to the next


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


class Run:
    """Snakemake in a fresh clone."""

    def __init__(self, folder: Path, environment: dict[str, str], options: list[str]) -> None:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        self.folder, self.options = folder, options
        self.environment = {**environment, "PYTHONPATH": str(folder)}
        self.start()

    def start(self) -> None:
        with open(self.folder / "console", "a") as console:
            self.process = subprocess.Popen(
                ["snakemake", *self.options],
                cwd=self.folder,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )

    def command(self, *words: str) -> str:
        return subprocess.run(
            words, env=self.environment, cwd=self.folder, capture_output=True, text=True
        ).stdout

    def training(self, state: str = "RUNNING") -> list[str]:
        """Job numbers of this clone's training jobs in the given state."""
        jobs = self.command("scontrol", "show", "job", "--oneliner").splitlines()
        found = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in jobs]
        return [
            job["JobId"]
            for job in found
            if job.get("JobState") == state and "rule_train" in job.get("Comment", "")
        ]

    def trainers(self) -> list[int]:
        """Numbers of this clone's processes that train."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                here = os.readlink(entry / "cwd") == str(self.folder)
            except OSError:
                continue
            if here and words[2:3] == ["train"]:
                found.append(int(entry.name))
        return found


def kill_a_trainer(run: Run) -> str:
    number = run.trainers()[0]
    os.kill(number, signal.SIGKILL)
    return f"killed training process {number}"


def requeue_a_job(run: Run) -> str:
    job = run.training()[0]
    run.command("scontrol", "requeue", job)
    return f"requeued job {job}"


def preempt_jobs(run: Run) -> str:
    """Preempt them by a job that takes all GPUs for 20 seconds."""
    before = set(run.training())
    run.command(
        "sbatch", "--partition=urgent", "--gpus=2", "--mem=1000", "--output=/dev/null",
        "--wrap=sleep 20",
    )  # fmt: skip
    time.sleep(10)
    return f"preempted jobs {sorted(before - set(run.training()))}"


def kill_snakemake(run: Run) -> str:
    """Kill Snakemake and cancel its jobs, which would otherwise run next to their restarts."""
    run.process.kill()
    run.process.wait()
    run.command("scancel", "--user", "root")
    while run.command("squeue", "--noheader"):
        time.sleep(1)
    run.command("snakemake", *run.options, "--unlock")
    run.start()
    return "killed Snakemake, canceled its jobs, started it again"


DISTURBANCES: tuple[Callable[[Run], str], ...] = (
    kill_a_trainer, requeue_a_job, preempt_jobs, kill_snakemake,
)  # fmt: skip


def finish(run: Run) -> None:
    if code := run.process.wait():
        sys.exit(f"Snakemake failed with {code}: see {run.folder / 'console'}")


def disturbed_run(folder: Path, environment: dict[str, str]) -> Run:
    run = Run(folder, environment, ["--profile", "slurm"])
    for disturb in DISTURBANCES:
        while run.process.poll() is None and not (run.training() and run.trainers()):
            time.sleep(0.5)
        say(disturb(run))
        time.sleep(BETWEEN)
    finish(run)
    return run


def numbers(folder: Path) -> dict[str, bytes]:
    """Every table of the experiment, and the numbers of every figure."""
    results = folder / "results" / EXPERIMENT
    paths = [*results.glob("*.parquet"), *results.glob("figures/*.csv")]
    return {str(path.relative_to(results)): path.read_bytes() for path in paths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--local", type=Path, help="clone in which the experiment has been run")
    local = parser.parse_args().local
    if local is not None and not (local / f"results/{EXPERIMENT}/report.html").exists():
        parser.error(f"the experiment in {local} is not finished: run `snakemake --cores 2` there")
    folder = Path(tempfile.mkdtemp(prefix="cltools-slurm-"))
    print(f"in {folder}, which is not deleted if anything goes wrong")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_LAB": str(folder / "lab"),
                   "SLURM_CONF": str(folder / "lab/etc/slurm.conf")}  # fmt: skip
    start = time.monotonic()
    subprocess.run([LAB, "start"], env=environment, check=True)
    try:
        run = disturbed_run(folder / "slurm", environment)
        say(f"Slurm: {time.monotonic() - start:.0f} s")
        states = run.command("scontrol", "show", "job", "--oneliner")
        print(Counter(re.findall(r"JobState=(\w+)", states)))
        print(Counter(re.findall(r"Comment=rule_([a-z]+)", states)))
    finally:
        subprocess.run([LAB, "stop"], env=environment, check=True)
    if local is None:
        start, local = time.monotonic(), folder / "local"
        finish(Run(local, environment, ["--cores", "2"]))
        say(f"local: {time.monotonic() - start:.0f} s")
    one, other = numbers(run.folder), numbers(local)
    differing = sorted(key for key in one | other if one.get(key) != other.get(key))
    if differing or not one:
        sys.exit(f"these differ: {differing}")
    print(f"the same bytes: {len(one)} files")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
