"""Kill a small experiment again and again, and compare its results with those of a normal run.

    python benchmarks/soak.py --kills 10

An experiment with every stage runs to its end once. Then it is run again and again, and each stage
gets SIGKILL at a random moment of its usual time, once in each run; so does Snakemake with all that
it has started. In half of the cases SIGTERM comes up to a second before, as from batch systems.
After each of them the folder is unlocked and Snakemake is started again. The files of each run are
compared with those of the first, until every stage and Snakemake were killed `--kills` times. Linux
only.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CONFIG = {
    "experiment": "soak",
    "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
    "base": {
        "dataset": "digits",
        "images_per_class": 30,
        "test_images_per_class": 10,
        "batch_size": 100,
        "projector_hidden": 32,
        "projector_dim": 16,
        "optimizer": "sgd",
        "horizon": 40,
        "checkpoints": [0, 20],
    },
    "sweeps": {"base": {"vary": {"seed": [0, 1]}}},
    "cells_per_job": 1,
    "theory": {"power_iterations": 3},
    "merge": {"sweeps": ["base"], "points": 3},
    "project": {"images_per_class": 10},
    "surrogate": {"seeds": [0], "steps": 20, "classes": [2, 4]},
    "minimise": {"seeds": [0], "classes": [2, 4], "taus": [1.0]},
    "regularity": {"set": {"batch_size": 16}, "steps": 4, "reference_images": 16},
    "figures": {"dpi": 50},
}
SNAKEMAKE = "snakemake"  # and all that it has started
POLL = 0.05  # seconds between two looks at the processes


@dataclass(frozen=True)
class Process:
    pid: int
    stage: str | None  # the stage of a `cltools` command, None for other processes


def processes(session: int) -> list[Process]:
    """The running processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # it has ended in the meantime
            continue
        if int(own) == session and state != "Z":
            command = len(words) > 2 and Path(words[1]).name == "cltools"
            found.append(Process(int(folder.name), words[2] if command else None))
    return found


def snakemake(folder: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2"]
    command += ["--directory", folder, "--configfile", folder / "config.yaml", "--keep-going"]
    with open(folder / "snakemake.log", "a") as log:
        return subprocess.Popen(
            [str(part) for part in (*command, *options)],
            start_new_session=True, stdout=log, stderr=log,
        )  # fmt: skip


def begin(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))


def send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def strike(session: int, victim: Process | None, draw: random.Random) -> None:
    """Kill a command, or with None the whole session."""

    def alive() -> list[int]:
        return [p.pid for p in processes(session) if victim is None or p.pid == victim.pid]

    if draw.random() < 0.5:
        send(signal.SIGTERM, alive())
        time.sleep(draw.random())
    while pids := alive():
        send(signal.SIGKILL, pids)
        time.sleep(POLL)


def watched(session: int, seen: dict[Process, list[float]]) -> None:
    """Note when each command of a session was first and last seen."""
    for process in processes(session):
        if process.stage is not None:
            seen.setdefault(process, [time.monotonic(), 0.0])[1] = time.monotonic()


def undisturbed(folder: Path) -> dict[str, float]:
    """Run the experiment to its end; returns the longest time of each stage, in seconds."""
    begin(folder)
    start, process = time.monotonic(), snakemake(folder)
    seen: dict[Process, list[float]] = {}
    while process.poll() is None:
        watched(process.pid, seen)
        time.sleep(POLL)
    if process.wait() != 0:
        raise SystemExit("the undisturbed experiment fails: see its snakemake.log")
    longest = {SNAKEMAKE: time.monotonic() - start}
    for command, (first, last) in seen.items():
        longest[command.stage] = max(longest.get(command.stage, 0.0), last - first)
    return longest


def chosen(
    seen: dict[Process, list[float]], moments: dict[Process, float], due: set[str]
) -> Process | None:
    """A running command of a stage in `due` whose moment, in seconds after its start, has come."""
    now = time.monotonic()
    for command, (first, last) in seen.items():
        runs = now - last < 2 * POLL
        if command.stage in due and runs and now - first >= moments[command]:
            return command
    return None


def disturbed(
    folder: Path, draw: random.Random, longest: dict[str, float], hits: Counter[str], kills: int
) -> None:
    """Run the experiment to its end; kill once each stage that was killed less than `kills` times.

    `hits` counts the kills of each.
    """
    begin(folder)
    due = {stage for stage in longest if hits[stage] < kills}
    while True:
        process, before = snakemake(folder, "--rerun-incomplete"), hits.total()
        seen: dict[Process, list[float]] = {}
        moments: dict[Process, float] = {}
        of_all = time.monotonic() + draw.uniform(0, longest[SNAKEMAKE] / 2)
        while process.poll() is None:
            watched(process.pid, seen)
            for command in seen.keys() - moments.keys():
                moments[command] = draw.uniform(0, longest[command.stage])
            victim = chosen(seen, moments, due)
            if victim or (SNAKEMAKE in due and time.monotonic() >= of_all):
                hit = victim.stage if victim else SNAKEMAKE
                strike(process.pid, victim, draw)
                due.remove(hit)
                hits[hit] += 1
                print(f"kill {hits.total()}: {hit}", flush=True)
            time.sleep(POLL)
        if process.wait() == 0:
            return
        if hits.total() == before:
            raise SystemExit(f"{folder} fails though nothing was killed: see its snakemake.log")
        if snakemake(folder, "--unlock").wait() != 0:
            raise SystemExit(f"{folder} cannot be unlocked: see its snakemake.log")


def made(folder: Path) -> dict[str, bytes]:
    """All results by name, without those that contain timings."""
    results = folder / "results"
    return {
        str(path.relative_to(results)): path.read_bytes()
        for path in sorted(results.rglob("*"))
        if path.is_file()
        and path.relative_to(results).parts[0] not in ("logs", "benchmarks")
        and path.name not in ("report.html", "live.csv")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each stage and of Snakemake")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, hits = random.Random(args.seed), Counter()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"in {folder}", flush=True)
    start = time.monotonic()
    longest = undisturbed(folder / "undisturbed")
    wanted = made(folder / "undisturbed")
    print(f"undisturbed: {len(wanted)} files", flush=True)
    print(", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in longest.items()), flush=True)

    rounds, resumed, scratch, wrong = 0, 0, 0, []
    while any(hits[stage] < args.kills for stage in longest):
        rounds += 1
        place = folder / f"round-{rounds}"
        disturbed(place, draw, longest, hits, args.kills)
        found = made(place)
        left = {name for name in found if Path(name).name.startswith(".")}
        scratch += len(left)
        names = wanted.keys() | found.keys() - left
        differ = sorted(name for name in names if wanted.get(name) != found.get(name))
        wrong += [f"{place}/results/{name}" for name in differ]
        resumed += sum(
            "resumed at step" in p.read_text() for p in place.glob("results/logs/train/*")
        )
        print(f"round {rounds} ends: {len(names)} files, {len(differ)} differ", flush=True)
    for name in wrong:
        print(f"differs: {name}")
    each = ", ".join(f"{count} {stage}" for stage, count in hits.most_common())
    print(
        f"{hits.total()} kills ({each}) in {rounds} experiments, "
        f"{(time.monotonic() - start) / 60:.1f} min: {len(wanted)} files of each compared, "
        f"{len(wrong)} differ; {resumed} cells resumed from a saved state, "
        f"{scratch} temporary files left"
    )
    if wrong:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
