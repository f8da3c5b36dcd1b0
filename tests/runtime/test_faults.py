"""What training and the other stages do when something breaks: kills, full disks, damaged files."""

import errno
import fcntl
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from contextlib import redirect_stderr, suppress
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from commands import SERVER
from places import ROOT
from planted import PLANTED
from small import files, small_cell
from small import train_into as run
from waiting import HANGS, wait_until

import cltools.runtime.tensors
from cltools import cli
from cltools.config.cells import canonical_cell
from cltools.runtime.errors import InputError, Stopped
from cltools.runtime.files import only_process, whole_file
from cltools.runtime.tensors import load_checked, load_tensors, save_tensors
from cltools.stages import embed, measure, prepare, status, train
from cltools.stages.train import Saves
from cltools.training.states import States
from cltools.training.trainer import CoupledTrainer

cell = partial(
    small_cell,
    objectives=["dcl", "nscl"],
    horizon="12 steps",
    warmup=2,
    checkpoints=[0, 5],
    test_images_per_class=5,
    optimizer="sgd",
    lr=0.2,
)


def saved_step(path):
    return load_tensors(path, "")[1]["step"]


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """The files of a cell that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run(cell(), digits, folder)
    return folder


def test_what_a_killed_writer_left_is_removed(tmp_path):
    """But not the scratch file of one that is alive, nor that of another file."""
    path = tmp_path / "rows [1].parquet"

    def write_and_die(signal_number):
        if (child := os.fork()) == 0:
            with whole_file(path) as scratch:
                scratch.write_text("half")
                os.kill(os.getpid(), signal_number)
        os.waitpid(child, os.WUNTRACED)
        return child

    write_and_die(signal.SIGKILL)
    stopped = write_and_die(signal.SIGSTOP)
    elsewhere = tmp_path / f".{path.stem}.other-host-1.part.parquet"
    elsewhere.write_text("half")
    with whole_file(path) as scratch:
        scratch.write_text("whole")
    try:
        (left,) = set(tmp_path.iterdir()) - {path, elsewhere}
        assert f"-{stopped}.part" in left.name
    finally:
        os.kill(stopped, signal.SIGKILL)
        os.waitpid(stopped, 0)
    os.utime(elsewhere, (0, 0))
    with whole_file(path) as scratch:
        scratch.write_text("whole again")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def interrupted(monkeypatch, act, step=5):
    """Let `act` happen as training comes to `step`."""
    train_step = CoupledTrainer.train_step

    def acting(self):
        train_step(self)
        if self.step == step:
            act()

    monkeypatch.setattr(CoupledTrainer, "train_step", acting)


# Signals


HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def handlers():
    return [signal.getsignal(s) for s in HANDLED]


@pytest.fixture
def usual_handlers():
    """Ctrl-C and SIGHUP as in a terminal, whatever started the tests."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_handlers")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_saves_and_leaves(digits, tmp_path, whole, monkeypatch, name):
    number, before = signal.Signals[name], handlers()
    with monkeypatch.context() as patch:
        interrupted(patch, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Stopped) as stopped:
            run(cell(), digits, tmp_path)
    assert stopped.value.code == 128 + number
    assert str(stopped.value) == (f"stopped by {name} at step 5 of 12: saved; start again to go on")
    assert handlers() == before
    assert saved_step(tmp_path / "run/resume.safetensors") == 5
    assert not (tmp_path / "trained.json").exists()
    run(cell(), digits, tmp_path)
    assert files(tmp_path) == files(whole)


def test_more_signals_change_nothing(digits, tmp_path, whole, monkeypatch):
    """A signal to the group comes again from the parent, even while the state is being saved."""
    save = safetensors.torch.save_file

    def disturbed(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments, **options)

    with monkeypatch.context() as patch:
        interrupted(patch, lambda: os.kill(os.getpid(), signal.SIGUSR1), step=11)
        patch.setattr("cltools.runtime.tensors.save_file", disturbed)
        with pytest.raises(Stopped, match="by SIGTERM at step 1 of 12"):
            run(cell(), digits, tmp_path)  # while the first weights are saved
        with pytest.raises(Stopped, match="by SIGTERM at step 6 of 12"):
            run(cell(), digits, tmp_path)
        with pytest.raises(Stopped, match="by SIGUSR1 at step 11 of 12"):
            run(cell(), digits, tmp_path)
        run(cell(), digits, tmp_path)  # in the last step: there is nothing left to stop
    assert files(tmp_path) == files(whole)


def test_other_threads_and_ignored_signals(digits, tmp_path, monkeypatch):
    """Handlers are the main thread's. In the background Ctrl-C is ignored, under nohup SIGHUP."""
    seen = []
    interrupted(monkeypatch, lambda: seen.append(handlers()))
    before = handlers()
    thread = threading.Thread(target=run, args=(cell(), digits, tmp_path / "thread"))
    thread.start()
    thread.join()
    assert (tmp_path / "thread/trained.json").exists()
    ignored = (signal.SIGINT, signal.SIGHUP)
    was = [signal.signal(number, signal.SIG_IGN) for number in ignored]
    run(cell(), digits, tmp_path / "main")
    for number, handler in zip(ignored, was, strict=True):
        signal.signal(number, handler)
    assert seen[0] == before
    in_main = dict(zip(HANDLED, seen[1], strict=True))
    assert all(in_main[number] == signal.SIG_IGN for number in ignored)
    assert in_main[signal.SIGTERM] not in before


def on_a_terminal_that_is_closed(arguments):
    """Run the command with a terminal of its own, which is gone at step 5."""
    os.setsid()
    master, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupted(pytest.MonkeyPatch(), lambda: os.close(master))
    sys.argv = ["cltools", *map(str, arguments)]
    with open(terminal, "w", buffering=1) as written, redirect_stderr(written):
        try:
            cli.main()
        except SystemExit as left:
            os._exit(left.code)  # what multiprocessing does at its end needs a terminal


def test_a_terminal_that_is_closed(digits, tmp_path):
    """As when ssh is lost: the state is saved, although nothing can be written there any more."""
    arguments = train_command(cell(), digits, tmp_path)
    process = SERVER.Process(target=on_a_terminal_that_is_closed, args=(arguments,))
    process.start()
    process.join(HANGS)
    assert process.exitcode == 128 + signal.SIGHUP
    assert saved_step(tmp_path / "run/resume.safetensors") == 5


@pytest.mark.slow
def test_a_signal_to_all_of_snakemake(tmp_path):
    """SIGTERM to its process group, as Slurm sends it: the job saves, says so, and has failed."""
    base = {**cell(), "horizon": 5000, "checkpoints": [0]}
    for key in ("recipe", "dataset"):
        base.pop(key)
    config = {"experiment": "signals", "base": {"dataset": "digits", **base}, "sweeps": {"one": {}}}
    config["datasets"] = {"digits": {"source": "digits", "recipe": "digits"}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "1"]
    command += ["--directory", tmp_path, "--configfile", tmp_path / "config.yaml"]
    process = subprocess.Popen(
        [str(part) for part in command], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    cells = tmp_path / "results/cells"
    # These are written as the first step begins.
    wait_until(
        lambda: process.poll() is not None or list(cells.glob("*/run/weights/nscl-0000000.*")),
        "the first weights",
    )
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 1, said
    (log,) = (tmp_path / "results/logs/train").iterdir()
    assert "stopped by SIGTERM at step" in log.read_text(), said
    assert "stopped by SIGTERM at step" in said
    (state,) = cells.glob("*/run/resume.safetensors")
    assert saved_step(state) > 0
    assert not list(cells.glob("*/trained-*"))
    with only_process(state.parent):  # nobody trains on
        pass


# Resume states


def test_two_states_while_training_and_one_at_the_end(digits, tmp_path, monkeypatch):
    latest, previous = (
        tmp_path / "run/resume.safetensors",
        tmp_path / "run/resume-previous.safetensors",
    )
    with monkeypatch.context() as patch:
        interrupted(patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            run(cell(), digits, tmp_path, saves=Saves(every_steps=1))
    assert (saved_step(latest), saved_step(previous)) == (5, 4)
    run(cell(), digits, tmp_path, until="8 steps")
    assert saved_step(latest) == 8
    assert not previous.exists()
    assert any(name.startswith("optimizer/") for name in load_tensors(latest, "")[0])
    run(cell(), digits, tmp_path)
    # Nothing continues a run at its horizon: slots of optimizers are of no more use.
    assert not previous.exists()
    assert {name.split("/")[0] for name in load_tensors(latest, "")[0]} == {"log", "network"}
    before = files(tmp_path)
    (tmp_path / "trained.json").unlink()
    run(cell(), digits, tmp_path)
    assert files(tmp_path) == before


def test_any_changed_byte_is_noticed(digits, tmp_path):
    run(cell(), digits, tmp_path, until="5 steps")
    path, draw = tmp_path / "run/resume.safetensors", random.Random(0)
    intact = path.read_bytes()
    header = int.from_bytes(intact[:8], "little")
    places = [*draw.sample(range(8 + header), 30), *draw.sample(range(8 + header, len(intact)), 30)]
    for place in places:
        damaged = bytearray(intact)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"resume\.safetensors is damaged"):
            load_checked(path, "remedy")
    for length in (0, 5, header, header + 8, len(intact) // 2, len(intact) - 1):
        path.write_bytes(intact[:length])
        with pytest.raises(InputError, match=r"resume\.safetensors is damaged"):
            load_checked(path, "remedy")
    path.write_bytes(intact)
    assert load_checked(path, "remedy")[1]["step"] == 5


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_damaged_state_gives_way_to_the_one_before(digits, tmp_path, whole, monkeypatch, caplog):
    latest, previous = (
        tmp_path / "run/resume.safetensors",
        tmp_path / "run/resume-previous.safetensors",
    )
    with monkeypatch.context() as patch:
        interrupted(patch, lambda: os.kill(os.getpid(), signal.SIGTERM), step=6)
        with pytest.raises(Stopped):
            run(cell(), digits, tmp_path, saves=Saves(every_steps=2))
    assert (saved_step(latest), saved_step(previous)) == (6, 4)
    flip(latest)
    with monkeypatch.context() as patch:
        interrupted(patch, lambda: os.kill(os.getpid(), signal.SIGTERM), step=7)
        with caplog.at_level("INFO", "cltools"), pytest.raises(Stopped):
            run(cell(), digits, tmp_path)
    assert f"{latest} is damaged" in caplog.text
    assert "resumed at step 4 of 12" in caplog.text
    # What was damaged has not taken the place of the good one.
    assert (saved_step(latest), saved_step(previous)) == (7, 4)
    load_checked(previous, "")
    flip(latest)
    flip(previous)
    before = files(tmp_path)
    with pytest.raises(
        InputError, match=r"resume\.safetensors and .*-previous.* are damaged: delete"
    ):
        run(cell(), digits, tmp_path)
    assert files(tmp_path) == before
    latest.unlink()
    with pytest.raises(InputError, match=r"resume-previous\.safetensors is damaged: delete it"):
        run(cell(), digits, tmp_path)
    previous.unlink()
    run(cell(), digits, tmp_path)
    assert files(tmp_path) == files(whole)


def test_a_state_without_a_hash_is_refused(digits, tmp_path):
    run(cell(), digits, tmp_path, until="8 steps")
    path = tmp_path / "run/resume.safetensors"
    tensors, about = load_checked(path, "")
    save_tensors(path, tensors, about)
    with pytest.raises(InputError, match=r"resume\.safetensors is damaged: delete it"):
        States(tmp_path / "run").load()


def test_the_old_file_is_kept_where_files_have_one_name_only(tmp_path, monkeypatch):
    def refused(*names):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    for text in "abc":
        with whole_file(tmp_path / "new", tmp_path / "old") as scratch:
            scratch.write_text(text)
    assert files(tmp_path) == {"new": b"c", "old": b"b"}


# An earlier stop


def test_an_earlier_stop_leaves_the_later_state(digits, tmp_path, whole, monkeypatch):
    """Step 8 was not kept: training up to it again touches nothing of the longer run."""
    run(cell(), digits, tmp_path / "short", until="8 steps")
    shutil.copytree(whole, tmp_path / "long")
    with monkeypatch.context() as patch:
        interrupted(patch, lambda: os.kill(os.getpid(), signal.SIGTERM), step=6)
        with pytest.raises(Stopped):
            run(cell(), digits, tmp_path / "long", until="8 steps")
    assert saved_step(tmp_path / "long/run/until-8steps/resume.safetensors") == 6
    manifest = run(cell(), digits, tmp_path / "long", until="8 steps")
    assert manifest == json.loads((tmp_path / "short/trained.json").read_text())
    after, before, short = files(tmp_path / "long"), files(whole), files(tmp_path / "short")
    untouched = before.keys() - {"trained.json"}
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    for name in ("run/weights/dcl-0000008.safetensors", "run/log-8steps.parquet"):
        assert after[name] == short[name]
    # Asked again, nothing is trained; and the longer run still is where it was.
    steps = []
    interrupted(monkeypatch, lambda: steps.append(1), step=1)
    assert run(cell(), digits, tmp_path / "long", until="8 steps") == manifest
    assert run(cell(), digits, tmp_path / "long") == json.loads(
        (whole / "trained.json").read_text()
    )
    assert steps == []


# Two runs of one cell


def test_two_runs_of_one_cell(digits, tmp_path, whole):
    with only_process(tmp_path / "run"):
        with pytest.raises(InputError) as error:
            run(cell(), digits, tmp_path)
        assert files(tmp_path).keys() == {"run/lock"}
    holder = f"process {os.getpid()} on {os.uname().nodename}"
    assert f"{tmp_path / 'run'} is in use by {holder}: wait for its end" in str(error.value)
    run(cell(), digits, tmp_path)
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize("plant", PLANTED)
def test_what_stands_in_the_place_of_a_lock(plant, tmp_path):
    """It is neither followed nor waited for nor emptied."""
    PLANTED[plant](tmp_path / "lock")
    sentence = "lock is not a lock file but a link, a pipe or the like: delete it"
    with pytest.raises(InputError, match=sentence), only_process(tmp_path):
        pass
    with pytest.raises(InputError, match=sentence):
        status._locked(tmp_path / "lock")
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_the_umask_counts_for_a_lock(tmp_path):
    before = os.umask(0o027)
    try:
        with only_process(tmp_path):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_a_lock_of_a_moment_is_waited_for(tmp_path, monkeypatch):
    """`cltools status` takes the lock to see whether it can."""
    with only_process(tmp_path):
        pass
    waits = []
    with open(tmp_path / "lock") as probe:

        def wait(seconds):
            waits.append(seconds)
            if len(waits) == 3:
                fcntl.flock(probe, fcntl.LOCK_UN)

        monkeypatch.setattr("cltools.runtime.files.time.sleep", wait)
        fcntl.flock(probe, fcntl.LOCK_SH)
        with only_process(tmp_path):
            pass
    assert len(waits) == 3


def hold(folder, held):
    with only_process(folder):
        held.set()
        signal.pause()


def test_a_killed_run_holds_nothing(tmp_path):
    held = SERVER.Event()
    process = SERVER.Process(target=hold, args=(tmp_path, held))
    process.start()
    assert held.wait(HANGS)
    with (
        pytest.raises(InputError, match=f"in use by process {process.pid}"),
        only_process(tmp_path),
    ):
        pass
    process.kill()
    process.join()
    with only_process(tmp_path):
        pass


def test_a_disk_without_locks(digits, tmp_path, monkeypatch, caplog):
    def refused(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    run(cell(), digits, tmp_path)
    assert "cannot be locked ([Errno 37] No locks available): start no second run" in caplog.text


# Kills within a save


def die_within(store, folder, moment, count):
    """Train, saving at every step, and be gone at the `count`-th moment of that kind."""
    left = [count]

    def due():
        left[0] -= 1
        return left[0] < 0

    save, replace = safetensors.torch.save_file, os.replace

    def half(tensors, path, **options):
        save(tensors, path, **options)
        if due():
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def before_rename(scratch, path):
        if due():
            os.kill(os.getpid(), signal.SIGKILL)
        replace(scratch, path)

    if moment == "half a file":
        cltools.runtime.tensors.save_file = half
    else:
        os.replace = before_rename
    run(cell(), store, folder, saves=Saves(every_steps=1))


@pytest.mark.parametrize(
    "moment", ["half a file", pytest.param("before a rename", marks=pytest.mark.slow)]
)
def test_killed_within_a_save(digits, tmp_path, whole, moment):
    """Also of the first file of all, of weights, and of the last state."""
    for count in (0, 3, 5, 9, 2):
        process = SERVER.Process(target=die_within, args=(digits, tmp_path, moment, count))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "trained.json").exists()
    # What safetensors leaves where the kill hits its own writing, which it does now and then.
    for folder in ("run", "run/weights"):
        (tmp_path / folder / ".tmp7axcvd").write_bytes(bytes(9))
    run(cell(), digits, tmp_path)
    assert files(tmp_path) == files(whole)


# Full disks, missing rights, little memory


def _in_process(answers, limit, work, arguments):
    torch.set_num_threads(1)
    if limit:
        kind, extra = limit
        if kind == resource.RLIMIT_AS:
            extra += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(kind, (extra, extra))
    try:
        answer = work(*arguments)
    except BaseException as error:
        answer = type(error).__name__, str(error)
    answers.send(answer)
    answers.close()
    os._exit(0)  # without what Python does at its end, which may not be possible any more


def within(limit, work, *arguments):
    """What `work` returns in a process with a limit, or name and text of what it raises."""
    here, there = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_in_process, args=(there, limit, work, arguments))
    process.start()
    there.close()
    answer = here.recv()
    process.join()
    return answer


def small_files(size):
    return resource.RLIMIT_FSIZE, size


def test_no_room_for_a_state(digits, tmp_path, whole):
    """What was there stays, nothing half is left, and with room the run goes on."""
    run(cell(), digits, tmp_path, until="5 steps")
    before = files(tmp_path)
    size = (tmp_path / "run/resume.safetensors").stat().st_size
    kind, said = within(small_files(size // 2), run, cell(), digits, tmp_path)
    assert kind == "InputError"
    assert said.startswith(
        f"{tmp_path}/run/resume.safetensors cannot be written (File too large): "
    )
    weights = {name for name in files(tmp_path) if name.endswith("0000012.safetensors")}
    assert len(weights) == 2
    assert {name: data for name, data in files(tmp_path).items() if name not in weights} == before
    run(cell(), digits, tmp_path)
    after = files(tmp_path)
    assert {name: after[name] for name in files(whole)} == files(whole)


def test_no_room_for_a_store(tmp_path):
    digits = {"name": "digits", "definition": {"source": "digits"}, "store": tmp_path}
    kind, said = within(small_files(20_000), partial(prepare.run, **digits))
    assert (kind, said.partition(" (")[0]) == (
        "InputError", f"{tmp_path}/train-images.npy cannot be written",
    )  # fmt: skip
    assert files(tmp_path) == {}


def test_no_room_for_embeddings_and_measures(digits, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "cell")
    manifest = tmp_path / "cell/trained.json"
    embedding = partial(
        embed.run,
        manifests=[manifest],
        stores=[digits],
        done=tmp_path / "embedded.json",
        device="cpu",
    )
    kind, said = within(small_files(50_000), embedding)
    assert kind == "InputError"
    assert "cell/embeddings/step-0000000.nc cannot be written (File too large): allow" in said
    assert files(tmp_path / "cell/embeddings") == {}
    embedding()
    measuring = partial(measure.run, manifests=[manifest], done=tmp_path / "measured.json")
    kind, said = within(small_files(10_000), measuring)
    assert kind == "InputError"
    assert ".parquet cannot be written (File too large): allow larger files" in said
    left = list((tmp_path / "cell/measures").rglob("*.*"))
    for path in left:  # whole checkpoints, from where the next call goes on
        assert path.parent.name.endswith("-steps")
        assert pl.read_parquet(path).height > 0
    assert not (tmp_path / "measured.json").exists()
    measuring()
    (table,) = (tmp_path / "cell/measures").iterdir()
    assert pl.read_parquet(table)["step"].n_unique() == 3


def command(*arguments):
    """Exit code of `cltools` with these arguments, and what it says."""
    said, sys.argv = io.StringIO(), ["cltools", *map(str, arguments)]
    with redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as left:
            return left.code, said.getvalue()
    return 0, said.getvalue()


def train_command(settings, store, folder):
    return (
        "train", "--cell", canonical_cell(settings), "--store", store, "--run", folder / "run",
        "--manifest", folder / "trained.json", "--device", "cpu",
    )  # fmt: skip


def write_table(path, directly):
    """Half the size of this table are the names and places of its columns, at its end."""
    table = pl.DataFrame({f"column {i}": [float(i)] * 20 for i in range(400)})
    content = io.BytesIO()
    table.write_parquet(content)
    with whole_file(path) as scratch:
        if directly:
            table.write_parquet(scratch)
        else:
            scratch.write_bytes(content.getvalue())


def table_at_all_sizes(path, directly):
    """What is said of a table for which there is less and less room, and what is left of it."""
    write_table(path, directly)
    size, told = path.stat().st_size, []
    for room in range(size - 1, 0, -size // 40):
        path.unlink(missing_ok=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            write_table(path, directly)
        except BaseException as error:
            told.append(
                (type(error).__name__, str(error), [file.name for file in path.parent.iterdir()])
            )
    return size, told


@pytest.mark.parametrize("directly", [True, False])
def test_no_room_for_a_table(tmp_path, directly):
    """At whatever byte the room ends: polars names no error for the last part of a table."""
    path = tmp_path / "table.parquet"
    size, told = within(None, table_at_all_sizes, path, directly)
    sentence = f"{path} cannot be written (File too large): allow larger files (ulimit -f), or "
    assert size > 40
    assert len(told) >= 40
    assert {(kind, said.startswith(sentence), *left) for kind, said, left in told} == {
        ("InputError", True)
    }


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=300k none {0} && cd {0} && {1} -m cltools.cli {2}
code=$?; ls -A {0} {0}/run; exit $code
"""


def test_a_full_disk(digits, tmp_path):
    """A real one, of 300 kB: some weights fit, not all."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a disk here")
    folder = tmp_path / "disk"
    folder.mkdir()
    arguments = " ".join(f"'{part}'" for part in train_command(cell(), digits, folder))
    script = ON_A_SMALL_DISK.format(folder, sys.executable, arguments)
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    sentence = (
        r"run/weights/\S+\.safetensors cannot be written \(No space left on device\): free space"
    )
    assert re.search(sentence, done.stderr), done.stderr
    assert done.stdout.split() == [
        f"{folder}:",
        "cell.json",
        "run",
        f"{folder}/run:",
        "lock",
        "weights",
    ]


def test_a_folder_that_is_closed_to_us(digits, tmp_path):
    """Not even root may write to /sys; and a file is no folder."""
    code, said = within(None, command, *train_command(cell(), digits, Path("/sys/cltools")))
    assert code == 2
    assert said.startswith("Error: /sys/cltools")
    assert said.count("\n") == 1
    (tmp_path / "file").touch()
    code, said = within(None, command, *train_command(cell(), digits, tmp_path / "file"))
    assert code == 2
    assert "a file stands where a folder is needed" in said


def test_too_little_memory(digits, tmp_path):
    little = resource.RLIMIT_AS, 150_000_000
    # The masks of 16 x 1,024 views by themselves are too large: no library is asked before them.
    large = cell(images_per_class=None, batch_size=1024, views=16, checkpoints=[])
    code, said = within(little, command, *train_command(large, digits, tmp_path))
    assert code == 2, said
    assert "Error: out of memory (" in said
    assert (
        ": lower batch_size, set precision to bfloat16, raise gpus_per_cell with share: batch, or"
        in said
    )
    assert said.count("\n") == 1


def fails_with(error, *arguments):
    def failing(*arguments, **options):
        raise error

    train.run = embed.run = failing
    return command(*arguments)


@pytest.mark.parametrize(
    "number", [errno.EMFILE, pytest.param(errno.ENFILE, marks=pytest.mark.slow)]
)
def test_too_many_open_files(digits, tmp_path, number):
    """Said by Python, by a library in Rust, and by the loader of libraries."""
    arguments = ("embed", "trained.json", "--store", digits, "--done", tmp_path / "done.json")
    words = os.strerror(number)
    remedy = {errno.EMFILE: r"allow more open files \(ulimit -n\)"}.get(number, "run fewer jobs .*")
    for error in (
        OSError(number, words, "some/file"),
        RuntimeError(f"I/O error: {words} (os error {number})"),
        ImportError(f"x.so: cannot open shared object file: {words}"),
    ):
        code, said = within(None, fails_with, error, *arguments)
        assert code == 2
        assert re.fullmatch(rf"Error: .* cannot be read or written \({words}\): {remedy}\n", said)


def all_files_open(*arguments):
    """Run the command where it can open no file any more."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with suppress(OSError):
        while True:
            os.open("/dev/null", os.O_RDONLY)
    return command(*arguments)


@pytest.mark.parametrize("stage", ["collect", "claims", "surrogate", "train"])
def test_no_more_files_can_be_opened(digits, tmp_path, stage):
    files_of_stage = {
        "collect": ("collect", "list", "--plan", "p", "--measures", "m", "--log", "l"),
        "claims": ("claims", "--plan", "p", "--output", tmp_path / "c.parquet"),
        "surrogate": ("surrogate", "--output", tmp_path / "s.parquet"),
        "train": train_command(cell(), digits, tmp_path),
    }
    code, said = within(None, all_files_open, *files_of_stage[stage])
    assert code == 2, said
    assert said.startswith("Error: ")
    assert "(Too many open files): allow more open files (ulimit -n)" in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_memory_in_other_words_and_mistakes_of_the_program(digits, tmp_path):
    """The first are a sentence; a file that the program should have had stays a traceback."""
    arguments = ("embed", "trained.json", "--store", digits, "--done", tmp_path / "done.json")
    for error in (
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        ImportError("x.so: failed to map segment from shared object: Cannot allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError(),
    ):
        code, said = within(None, fails_with, error, *arguments)
        assert code == 2
        assert re.fullmatch(r"Error: out of memory \(\S.*\): lower images_per_class, .*\n", said)
    arguments = train_command(cell(), digits, tmp_path)
    full = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB. GPU 0 has")
    code, said = within(None, fails_with, full, *arguments)
    assert code == 2
    assert said.startswith("Error: out of memory (CUDA out of memory. Tried to allocate 20 MiB")
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "x")
    assert within(None, fails_with, missing, *arguments)[0] == "FileNotFoundError"
    wrong = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert within(None, fails_with, wrong, *arguments)[0] == "RuntimeError"
    code, said = within(None, fails_with, Stopped(signal.SIGTERM, "at step 1"), *arguments)
    assert (code, said) == (143, "stopped by SIGTERM at step 1\n")


# Losses, stores, clocks


@pytest.mark.parametrize("every", [1, 2, None])
def test_a_loss_that_is_not_finite_is_never_saved(digits, tmp_path, whole, monkeypatch, every):
    """The states on disk are of steps before it."""
    run(cell(), digits, tmp_path, until="5 steps")
    train_step = CoupledTrainer.train_step

    def poisoned(self):
        if self.step == 8:
            next(self.networks["nscl"].parameters()).data.fill_(torch.nan)
        train_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(CoupledTrainer, "train_step", poisoned)
        with pytest.raises(InputError, match="nscl loss is not finite at step 8: lower lr"):
            run(cell(), digits, tmp_path, saves=Saves(every_steps=every))
    saved = {1: 8, 2: 8, None: 5}[every]
    tensors, about = load_checked(tmp_path / "run/resume.safetensors", "")
    assert about["step"] == saved
    assert len(tensors["log/measured"]) == saved
    assert all(t.isfinite().all() for name, t in tensors.items() if name.startswith("network/"))
    run(cell(), digits, tmp_path)
    assert (tmp_path / "trained.json").read_bytes() == (whole / "trained.json").read_bytes()


def test_a_store_that_is_made_anew_under_a_run(digits, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(digits, store)
    run(cell(), store, tmp_path, until="5 steps")
    prepare.run(name="digits", definition={"source": "digits", "seed": 1}, store=store)
    with pytest.raises(InputError, match="is of a run with other images than this one: delete"):
        run(cell(), store, tmp_path)
    with pytest.raises(InputError, match="holds other images"):
        embed.run(
            manifests=[tmp_path / "trained.json"],
            stores=[store],
            done=tmp_path / "done.json",
            device="cpu",
        )


def test_weights_that_are_damaged_say_what_to_do(digits, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "cell")
    manifest = tmp_path / "cell/trained.json"
    embed.run(manifests=[manifest], stores=[digits], done=tmp_path / "done.json", device="cpu")
    weights = tmp_path / "cell/run/weights/nscl-0000005.safetensors"
    flip(weights)
    shutil.rmtree(tmp_path / "cell/embeddings")
    remedy = f"delete the training manifests in {tmp_path}/cell and train this cell again"
    sentence = rf"nscl-0000005\.safetensors is damaged .*: {remedy}"
    with pytest.raises(InputError, match=sentence):
        embed.run(manifests=[manifest], stores=[digits], done=tmp_path / "done.json", device="cpu")
    weights.unlink()
    with pytest.raises(InputError, match=f"nscl-0000005.safetensors does not exist: {remedy}"):
        embed.run(manifests=[manifest], stores=[digits], done=tmp_path / "done.json", device="cpu")


def test_clocks_may_jump(digits, tmp_path, whole, monkeypatch):
    draw = random.Random(0)
    for clock in ("time", "time_ns"):
        monkeypatch.setattr(time, clock, lambda: draw.randrange(-(10**12), 10**12))
    run(cell(), digits, tmp_path)
    assert files(tmp_path) == files(whole)
    assert np.isfinite(time.time())
