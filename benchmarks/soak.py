"""Kill a small experiment again and again, and compare its results with those of a normal run.

    python benchmarks/soak.py --kills 50

Snakemake trains, embeds and measures four cells on digits. At random times, one of its commands, or
Snakemake and all its commands, get SIGKILL. In half of the cases they get SIGTERM up to a second
before, as from batch systems. Then the folder is unlocked and Snakemake is started again. The files
of a finished experiment are compared, and the next experiment begins, until the given number of
kills is reached. Linux only.
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
        "horizon": 60,
        "checkpoints": [0, 20, 40],
    },
    "sweeps": {"temperature": {"vary": {"tau": [0.1, 0.5], "seed": [0, 1]}}},
}
STAGES = ("prepare", "train", "embed", "measure", "theory", "plan", "collect", "plot")
LONGEST_WAIT = 25.0  # seconds to the next kill, enough for one or two cells


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


def strike(session: int, draw: random.Random) -> str | None:
    """Kill a random command, or everything; returns what was killed, None if nothing was left."""
    alive = processes(session)
    commands = [process for process in alive if process.stage in STAGES]
    if commands and draw.random() < 0.6:
        victim = draw.choice(commands)
        hit, pids = victim.stage, [victim.pid]
    else:
        hit, pids = "everything", [process.pid for process in alive]
    if not pids:
        return None
    if draw.random() < 0.5:
        send(signal.SIGTERM, pids)
        time.sleep(draw.random())
        hit += " (SIGTERM first)"
    send(signal.SIGKILL, pids)
    while hit.startswith("everything") and (rest := processes(session)):
        send(signal.SIGKILL, [process.pid for process in rest])
        time.sleep(0.05)
    return hit


def disturbed(folder: Path, draw: random.Random, kills: int, hits: Counter[str]) -> None:
    """Run the experiment in `folder` to its end, with kills until `hits` counts `kills` of them."""
    begin(folder)
    while True:
        process, before = snakemake(folder, "--rerun-incomplete"), hits.total()
        while process.poll() is None and hits.total() < kills:
            wait = draw.uniform(0, LONGEST_WAIT)
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                if hit := strike(process.pid, draw):
                    hits[hit.partition(" ")[0]] += 1
                    print(f"kill {hits.total()} of {kills}: {hit} after {wait:.1f} s", flush=True)
        if process.wait() == 0:
            return
        if hits.total() == before:
            raise SystemExit(f"{folder} fails though nothing was killed: see its snakemake.log")
        if snakemake(folder, "--unlock").wait() != 0:
            raise SystemExit(f"{folder} cannot be unlocked: see its snakemake.log")


def made(folder: Path) -> dict[str, bytes]:
    """All results by name, without logs, benchmarks and the report, which contains timings."""
    results = folder / "results"
    return {
        str(path.relative_to(results)): path.read_bytes()
        for path in sorted(results.rglob("*"))
        if path.is_file()
        and path.relative_to(results).parts[0] not in ("logs", "benchmarks")
        and path.name != "report.html"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, hits = random.Random(args.seed), Counter()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"in {folder}", flush=True)
    start = time.monotonic()
    begin(folder / "undisturbed")
    if snakemake(folder / "undisturbed").wait() != 0:
        raise SystemExit("the undisturbed experiment fails: see its snakemake.log")
    wanted = made(folder / "undisturbed")
    print(f"undisturbed: {len(wanted)} files after {time.monotonic() - start:.0f} s", flush=True)

    rounds, resumed, scratch, wrong = 0, 0, 0, []
    while hits.total() < args.kills:
        rounds += 1
        place = folder / f"round-{rounds}"
        disturbed(place, draw, args.kills, hits)
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
    each = ", ".join(f"{count} {hit}" for hit, count in hits.most_common())
    print(
        f"{hits.total()} kills ({each}) in {rounds} experiments, "
        f"{(time.monotonic() - start) / 60:.1f} min: {len(wrong)} of {rounds * len(wanted)} files "
        f"differ; {resumed} cells resumed from a saved state, {scratch} temporary files left"
    )
    if wrong:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
