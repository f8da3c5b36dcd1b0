"""Time how long Snakemake takes to plan 1,000 cells, and to find that nothing has to be done.

    python benchmarks/dag.py                  # two minutes
    python benchmarks/dag.py --cells 5000

In every stage, every cell is a job of its own, as on a cluster. The results are empty files, which
`snakemake --touch` marks as up to date.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def config_of(cells: int) -> dict:
    base = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return {
        "experiment": "large",
        "datasets": base["datasets"],
        "base": base["base"],
        "sweeps": {
            "base": {"vary": {"seed": [0]}},
            "temperature": {"vary": {"tau": [0.1, 0.5], "seed": list(range(cells // 2))}},
        },
    }


def make_results(dry_run: str, folder: Path) -> None:
    """Make empty files for all outputs that a dry run lists."""
    for outputs in re.findall(r"^ *output: (.*)$", dry_run, re.M):
        for file in outputs.split(", "):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()


def timed(what: str, folder: Path, *arguments: str) -> str:
    """Run Snakemake in `folder`, print its time, and return its output."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(folder / "config.yaml")]
    before, start = os.times(), time.perf_counter()
    done = subprocess.run([*command, "--cores", "2", *arguments], capture_output=True, text=True)
    after, seconds = os.times(), time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    cpu = sum(after[2:4]) - sum(before[2:4])
    print(f"{what:22} {seconds:6.1f} s, {cpu:6.1f} s of CPU", flush=True)
    return done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    config = config_of(parser.parse_args().cells)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        jobs = timed("everything to be done", folder, "--dry-run")
        print(next(line for line in jobs.splitlines() if line.startswith("total")))
        make_results(jobs, folder)
        timed("touching the results", folder, "--touch", "--forceall", "--quiet")
        assert "Nothing to be done" in timed("nothing to be done", folder)


if __name__ == "__main__":
    main()
