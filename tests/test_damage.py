"""Every kind of file of a finished experiment, damaged in every way; every command, killed.

A command with damaged input gives the same bytes as before, or one sentence and exit code 2.
Which commands there are is read from a dry run of Snakemake, and which files they read is seen as
they run: a new rule or a new kind of file is tested without an edit here. A command that is killed
as it touches a file, and then started again, ends with the same bytes.
"""

import fcntl
import json
import os
import random
import re
import shlex
import shutil
import signal
import sys
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import SERVER, snakemake
from waiting import HANGS

from cltools import cli
from cltools.cli.examples import PANELS

CONFIG = {
    "experiment": "tiny",
    "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
    "base": {
        "dataset": "digits", "classes": 4, "images_per_class": 12, "test_images_per_class": 8,
        "batch_size": 16, "projector_hidden": 8, "projector_dim": 4, "optimizer": "sgd",
        "horizon": 1, "checkpoints": [0], "objectives": ["dcl", "nscl"],
    },
    "sweeps": {"base": {"vary": {"seed": [0, 1]}}},
    "keep_embeddings": True,
    "cells_per_job": 1,
    "theory": {"power_iterations": 2},
    "merge": {"sweeps": ["base"], "points": 2},
    "layers": {"sweeps": ["base"]},
    "project": {"classes": 3, "images_per_class": 4},
    "surrogate": {"seeds": [0], "steps": 3, "classes": [2], "images": 20, "batch_sizes": [8]},
    "minimise": {"seeds": [0], "classes": [2], "taus": [1.0], "objectives": ["nscl"]},
    "regularity": {"set": {"batch_size": 16}, "steps": 2, "reference_images": 16},
    "figures": {"dpi": 50},
}  # fmt: skip
# What each command made: without it, the command has to read its input again.
MADE = {
    "train": ["trained-*.json", "run"],
    "embed": ["embeddings"],
    "measure": ["measures"],
    "theory": ["theory"],
    "merge": ["merge"],
    "layers": ["layers"],
}
# Options that name what a command writes.
WRITTEN = {"collect": ["--measures", "--log", "--theory", "--layers"], "prepare": ["--store"]}
TOUCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate")  # audit events
KILLS, FLIPS = 2, 1  # of each command, and of each kind of file under a command
# Commands that read nothing below `results`, and those that write nothing there.
OTHERS = {"bench", "compare", "workflow-path", "with-gpus"}  # the last one starts a command
OF_NO_RESULTS = {"surrogate", "minimise", *OTHERS}
WRITE_NO_RESULTS = {"status", "watch", *OTHERS}
# Differ from run to run, or say how the run went.
OWN = re.compile(r"results/(logs|benchmarks)/|/lock$|/live\.csv$|^config.yaml$|^tmp/|\.snakemake")


class Case(NamedTuple):
    command: str
    anew: bool
    damage: str
    file: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory, worker_id):
    """A finished experiment, of which only copies are damaged: one for all processes of pytest."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "finished"
    folder.mkdir(exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not commands_of(folder).exists():
            snakemake(folder, config=CONFIG)
            again = snakemake(folder, "-n", "-p", "--forceall", config=CONFIG)
            commands_of(folder).write_text(again)
    return folder


def commands_of(folder: Path) -> Path:
    """The file beside an experiment with what a dry run of all its rules printed."""
    return folder.with_suffix(".txt")


@pytest.fixture(scope="module")
def commands(finished: Path) -> dict[str, list[str]]:
    """The commands of all rules, one of each kind, and those that people give by hand."""
    found: dict[str, list[str]] = {}
    for line in commands_of(finished).read_text().splitlines():
        words = shlex.split(line) if "cltools " in line and "logged " in line else []
        if "cltools" in words:
            command = words[words.index("cltools") + 1 :]
            name = " ".join(command[: 1 + (command[0] == "plot")])
            found.setdefault(name, command)
    found["status"] = ["status", "config.yaml"]
    found["watch"] = ["watch", "config.yaml", "--once"]
    found["partial"] = ["partial", "config.yaml", "--output", "results/tiny/partial"]
    step = sorted(
        str(p.relative_to(finished)) for p in finished.glob("results/cells/*/embeddings/*.nc")
    )
    manifest = next(finished.glob("results/cells/*/trained-*.json")).relative_to(finished)
    found["export"] = ["export", str(manifest), "--objective", "dcl", "--to", "safetensors",
                       "--output", "results/tiny/exported"]  # fmt: skip
    found["compare"] = ["compare", *step[:2], "--output", "tmp/compared.parquet"]
    return found


def _run(
    arguments: list[str], folder: str, output: str, read: str | None, kill_at: int | None
) -> None:
    """In a process of its own: run a command, and note the files that it opens for reading.

    With `kill_at`, the process is killed as it opens, renames or removes a file of the folder for
    that time. How often it did so is written to the file "touched".
    """
    os.chdir(folder)
    times = 0

    def count(event: str, about: tuple[object, ...]) -> None:
        nonlocal times
        if event not in TOUCHED or not isinstance(about[0], str | bytes | Path):
            return
        if os.path.abspath(os.fsdecode(about[0])).startswith(f"{folder}/results/"):
            times += 1
            if times == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    touched = Path(output).with_name("touched")
    if read is not None:
        notes = os.open(read, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def note(event: str, about: tuple[object, ...]) -> None:
            opened = event == "open" and isinstance(about[0], str | bytes | Path)
            if opened and not int(about[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                os.write(notes, os.fsencode(os.path.abspath(about[0])) + b"\n")

        sys.addaudithook(note)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["cltools", *arguments]
    try:
        cli.main()
    finally:
        touched.write_text(str(times))


def run(
    arguments: list[str], folder: Path, read: Path | None = None, kill_at: int | None = None
) -> tuple[int, str]:
    (folder / "tmp").mkdir(exist_ok=True)
    output = folder / "tmp/said"
    process = SERVER.Process(
        target=_run,
        args=(arguments, str(folder), str(output), None if read is None else str(read), kill_at),
    )
    process.start()
    process.join(HANGS)
    assert not process.is_alive(), arguments
    return process.exitcode, output.read_text(errors="replace")


def copied(finished: Path, folder: Path, command: str, anew: bool) -> Path:
    """A copy of the experiment by links; files are replaced, never written into."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder, copy_function=os.link,
                    ignore=shutil.ignore_patterns(".snakemake", "lock", "tmp"))  # fmt: skip
    if anew:
        for pattern in MADE[command]:
            for path in folder.glob(f"results/cells/*/{pattern}"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {str(path.relative_to(folder)): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if not OWN.search(name)}


def kind(name: str) -> str:
    """Names of files of one kind are equal but for cells, figures, hashes, numbers, objectives."""
    name = re.sub(r"cells/[^/]+", "cells/*", re.sub(r"figures/[^/.]+", "figures/*", name))
    return re.sub(r"[0-9a-f]{16}|\d+|dcl|nscl", "*", name)


def damages(name: str, intact: bytes, all_files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    draw = random.Random(zlib.crc32(name.encode()))
    for number in range(FLIPS):
        flipped = bytearray(intact)
        flipped[draw.randrange(len(intact))] ^= 1 << draw.randrange(8)
        yield f"one bit flipped ({number})", bytes(flipped)
    place = draw.randrange(len(intact))
    yield "64 bytes zeroed", intact[:place] + bytes(64) + intact[place + 64 :]
    yield "cut", intact[: len(intact) // 2]
    yield "empty", b""
    yield "gone", None
    others = [n for n, other in all_files.items() if kind(n) == kind(name) and other != intact]
    others += [n for n in all_files if Path(n).suffix == Path(name).suffix and n != name]
    other = next((n for n in others if all_files[n] != intact), None)
    if other is not None:
        yield f"in its place {other}", all_files[other]


def fault_of(code: int, said: str) -> str | None:
    """What is wrong with how a command refused; None where it is as it should be."""
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    if code != 2 or "Traceback" in said or len(errors) != 1:
        return f"exit code {code}: {said[-1500:]}"
    if not said.rstrip().splitlines()[-1].startswith("Error: "):
        return f"more than a sentence: {said[-500:]}"
    return None


def check_command(
    finished: Path, work: Path, name: str, arguments: list[str], known: set[tuple[bool, str]]
) -> list[Case]:
    """Run a command on every damaged file that it reads, but for kinds that are `known`.

    Returns the cases, if none of them failed.
    """
    done, failed = [], []
    for anew in (False, True) if name in MADE else (False,):
        folder = copied(finished, work / "copy", name, anew)
        notes = work / "read"
        notes.unlink(missing_ok=True)
        code, said = run(arguments, folder, notes)
        assert code == 0, (name, said)
        expected, before = content(folder), content(finished)
        opened = {os.path.relpath(line, folder) for line in notes.read_text().splitlines()}
        kinds: dict[str, str] = {}
        for file in sorted(opened & before.keys()):
            if file.startswith("results/"):
                kinds.setdefault(kind(file), file)
        assert kinds or name in OF_NO_RESULTS | {"prepare", "plan"}, f"{name} reads nothing"
        for file in [file for k, file in kinds.items() if (anew, k) not in known]:
            known.add((anew, kind(file)))
            for damage, changed in damages(file, before[file], before):
                case = Case(name, anew, damage, file)
                copied(finished, folder, name, anew)
                made_by_itself = not (folder / file).exists()
                not_done_yet = name == "partial" and damage == "gone"
                if made_by_itself or not_done_yet:
                    continue
                (folder / file).unlink()
                if changed is not None:
                    (folder / file).write_bytes(changed)
                code, said = run(arguments, folder)
                done.append(case)
                if code == 0:
                    found = content(folder)
                    own = {file} if found.get(file) in (changed, expected.get(file)) else set()
                    differ = [n for n in expected.keys() | found.keys()
                              if n not in own and found.get(n) != expected.get(n)]  # fmt: skip
                    if differ:
                        failed.append((case, f"silently wrong: {differ[:3]}"))
                elif (fault := fault_of(code, said)) is not None:
                    failed.append((case, fault))
    assert not failed, "\n\n".join(f"{case}\n{why}" for case, why in failed)
    return done


def names() -> tuple[str, ...]:
    commands = chain.from_iterable(PANELS.values())
    return tuple(command.__name__.replace("_", "-") for command in commands)


@pytest.mark.damage
@pytest.mark.parametrize("name", [name for name in names() if name not in OF_NO_RESULTS])
def test_damaged_files(finished, commands, tmp_path, name):
    chosen = {words: command for words, command in commands.items() if command[0] == name}
    assert chosen, f"no rule and no line here runs `cltools {name}`"
    known: set[tuple[bool, str]] = set()
    cases = [
        case for words, command in chosen.items()
        for case in check_command(finished, tmp_path, words, command, known)
    ]  # fmt: skip
    print(json.dumps({"command": name, "cases": len(cases), "kinds": len({c.file for c in cases})}))


@pytest.mark.damage
@pytest.mark.parametrize("name", [name for name in names() if name not in WRITE_NO_RESULTS])
def test_killed_commands(finished, commands, tmp_path, name):
    """Killed at random moments: the second start gives the bytes of a run that was not killed."""
    words, arguments = next(
        (words, command) for words, command in commands.items() if command[0] == name
    )
    folder, draw = tmp_path / "copy", random.Random(zlib.crc32(name.encode()))

    def begin() -> None:
        copied(finished, folder, words, anew=name in MADE)
        for option in WRITTEN.get(name, ["--output", "--done", "--manifest"]):
            if option in arguments:
                written = folder / arguments[arguments.index(option) + 1]
                for path in written.parent.glob(f"{written.name}*"):  # a figure has several files
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    begin()
    code, said = run(arguments, folder)
    assert code == 0, said
    expected, touched = content(folder), int((folder / "tmp/touched").read_text())
    assert touched > 1
    for _ in range(KILLS):
        begin()
        kill_at = draw.randrange(1, touched + 1)
        code, said = run(arguments, folder, kill_at=kill_at)
        assert code == -signal.SIGKILL, said
        code, said = run(arguments, folder)
        assert code == 0, said
        found = {n: c for n, c in content(folder).items() if not Path(n).name.startswith(".")}
        differ = [n for n in expected.keys() | found.keys() if found.get(n) != expected.get(n)]
        assert not differ, (kill_at, touched, differ)
