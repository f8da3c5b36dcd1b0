"""GPUs that processes claim, on a machine that is said to have some."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from planted import PLANTED

from cltools.runtime import devices, gpus
from cltools.runtime.errors import InputError
from cltools.runtime.faults import device_fault
from cltools.stages import measure

# Claims so many GPUs of as many, or a place on one that so many share; says which it has, and holds
# them until its input ends.
CLAIM = """
import os, sys
from cltools.runtime import gpus
gpus.gpu_count = lambda: int(sys.argv[2])
gpus.SECONDS_BETWEEN_TRIES = 0.01
if len(sys.argv) > 3:
    gpus.claim_place(int(sys.argv[3]))
else:
    gpus.claim_gpus(int(sys.argv[1]))
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


SET_BY_OTHERS = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", gpus.CLAIMED)
CLEAN = {key: value for key, value in os.environ.items() if key not in SET_BY_OTHERS}


@pytest.fixture
def start(tmp_path):
    """Start a process that claims GPUs."""
    started = []

    def begin(count, present, cells=None, **environment):
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                CLAIM,
                str(count),
                str(present),
                *([str(cells)] if cells else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**CLEAN, "TMPDIR": str(tmp_path), **environment},
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def claimed(process):
    return process.stdout.readline().strip()


def test_every_process_has_a_gpu_of_its_own(start):
    processes = [start(1, 3) for _ in range(3)]
    assert {claimed(process) for process in processes} == {"0", "1", "2"}


def test_a_gpu_is_free_when_its_process_was_killed(start):
    first, other = start(1, 2), start(1, 2)
    had = {claimed(first): first, claimed(other): other}
    late = start(1, 2)
    had["1"].kill()
    assert claimed(late) == "1"


def test_another_user_can_claim(tmp_path, monkeypatch):
    """Whatever the umask of the first: the lock file is everyone's, and is not created again."""
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    before = os.umask(0o077)
    try:
        ((file,),) = gpus._try(1, ["0"]).values()
    finally:
        os.umask(before)
    os.close(file)
    path = tmp_path / "cltools-gpu-0"
    assert path.stat().st_mode & 0o777 == 0o444
    flags = []
    opened = os.open
    monkeypatch.setattr(os, "open", lambda *given: flags.append(given[1]) or opened(*given))
    ((file,),) = gpus._try(1, ["0"]).values()
    os.close(file)
    (only,) = flags
    assert only & (os.O_CREAT | os.O_ACCMODE) == os.O_RDONLY


@pytest.mark.parametrize("plant", [*PLANTED, "a file of somebody else"])
def test_what_stands_in_the_place_of_a_lock(plant, tmp_path, monkeypatch):
    """Anyone may put something there: it is not followed, not waited for, and named."""
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    path = tmp_path / "cltools-gpu-0"
    if plant in PLANTED:
        PLANTED[plant](path)
        said = "is not a lock file but a link, a pipe or the like"
    else:
        monkeypatch.setattr(gpus, "open_lock", refused)  # root may read all files
        said = r"cannot be read \(Permission denied\)"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"cltools-gpu-0 {said}: delete it, or name the GPUs"):
        gpus._try(1, ["0"])
    assert sorted(tmp_path.iterdir()) == before


def refused(*given, **options):
    raise PermissionError


def test_two_create_the_lock_at_once(tmp_path, monkeypatch):
    """The slower one opens what the faster one made."""
    path, opened = tmp_path / "cltools-gpu-0", gpus.open_lock

    def just_made(given, flags, *others, **options):
        if flags & os.O_CREAT:
            path.touch()
        return opened(given, flags, *others, **options)

    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpus, "open_lock", just_made)
    ((file,),) = gpus._try(1, ["0"]).values()
    assert os.path.samestat(os.fstat(file), path.stat())
    os.close(file)


def test_several_gpus_are_claimed_together_or_not_at_all(start):
    pair = start(2, 3)
    assert claimed(pair) == "0,1"
    waiting = start(2, 3)
    single = start(1, 3)
    assert claimed(single) == "2"  # which the waiting one does not hold back
    pair.kill()
    assert claimed(waiting) == "0,1"


def test_small_cells_share_a_gpu(start):
    """So many on each; the next one waits for a place, and comes to the GPU that has one."""
    sharing = [start(1, 2, cells=2) for _ in range(4)]
    where = [claimed(process) for process in sharing]
    assert sorted(where) == ["0", "0", "1", "1"]
    late = start(1, 2, cells=2)
    sharing[where.index("1")].kill()
    assert claimed(late) == "1"


def test_a_shared_gpu_is_nobodys_own(start):
    """A process that wants a GPU for itself waits for all that share it; and they for it."""
    first, second = start(1, 1, cells=3), start(1, 1, cells=3)
    assert (claimed(first), claimed(second)) == ("0", "0")
    alone = start(1, 2)
    assert claimed(alone) == "1"
    third = start(1, 2, cells=3)
    assert claimed(third) == "0"
    for process in (first, second):
        process.kill()
    waiting = start(1, 1)
    third.kill()
    assert claimed(waiting) == "0"
    late = start(1, 1, cells=3)
    waiting.kill()
    assert claimed(late) == "0"


def test_places_of_listed_gpus(start):
    """Of one that is listed alone, nothing is locked: it is this process's."""
    listed = {"CUDA_VISIBLE_DEVICES": "2,7"}
    assert [claimed(start(1, 8, cells=2, **listed)) for _ in range(3)] == ["2", "2", "7"]
    assert claimed(start(1, 8, cells=2, CUDA_VISIBLE_DEVICES="2")) == "2"
    assert claimed(start(1, 0, cells=2)) == "None"


def test_what_slurm_or_the_user_set_stays(start):
    assert claimed(start(1, 2, CUDA_VISIBLE_DEVICES="7")) == "7"
    assert claimed(start(1, 2, SLURM_JOB_ID="1")) == "None"
    assert claimed(start(1, 0)) == "None"  # no GPU here


def test_processes_share_out_what_slurm_or_the_user_listed(start):
    """As a local Snakemake within an allocation needs it."""
    listed = {"CUDA_VISIBLE_DEVICES": "2,GPU-5e,7", "SLURM_JOB_ID": "1"}
    processes = [start(1, 8, **listed) for _ in range(3)]
    assert {claimed(process) for process in processes} == {"2", "GPU-5e", "7"}
    other_job = {**listed, "SLURM_JOB_ID": "2"}
    assert claimed(start(2, 8, **other_job)) == "2,GPU-5e"


def test_children_share_what_their_parent_claimed(start):
    environment = {"CUDA_VISIBLE_DEVICES": "0,1", gpus.CLAIMED: "0,1"}
    assert claimed(start(1, 2, **environment)) == "0,1"


def test_more_than_there_are(monkeypatch):
    monkeypatch.setattr(gpus, "gpu_count", lambda: 2)
    with pytest.raises(InputError, match="gpus_per_cell is 4, but this machine has 2"):
        gpus.claim_gpus(4, {})


def test_a_command_inherits_the_claim(tmp_path, start):
    """`cltools with-gpus` becomes the command, which holds the locks."""
    code = ("import sys; from cltools import cli; from cltools.runtime import gpus; "
            "gpus.gpu_count = lambda: 2; "
            "sys.argv = ['cltools', *sys.argv[1:]]; cli.main()")  # fmt: skip
    command = [sys.executable, "-c", code, "with-gpus", "1", "--", sys.executable, "-c",
               "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); "
               "sys.stdin.read()"]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**CLEAN, "TMPDIR": str(tmp_path)}) as process:  # fmt: skip
        assert json.loads(claimed(process))["CUDA_VISIBLE_DEVICES"] == "0"
        assert claimed(start(1, 2)) == "1"
        process.stdin.close()


@pytest.fixture
def broken(monkeypatch):
    """A machine with a GPU that torch cannot use, and no scheduler."""
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "gpu_count", lambda: 1)
    for variable in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
        monkeypatch.delenv(variable, raising=False)


def test_a_gpu_that_cannot_be_used_is_told(broken, caplog):
    assert devices.choose_device("auto").type == "cpu"
    assert "cannot use the GPU of this machine" in caplog.text


def test_a_gpu_that_was_asked_for_is_not_given_up_in_silence(broken, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert devices.choose_device("auto").type == "cpu"  # a job without GPUs
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    with pytest.raises(InputError, match="cannot use the GPU of this machine: update the driver"):
        devices.choose_device("auto")
    assert devices.choose_device("cpu").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.choose_device("auto").type == "cpu"
    assert not caplog.text


def test_long_measuring_is_worth_a_gpu(monkeypatch):
    claims = []
    monkeypatch.setattr(measure, "claim_gpus", claims.append)
    monkeypatch.setattr(measure, "choose_device", lambda name: name)
    limit = measure.WORTH_A_GPU
    devices = [measure._device("auto", seconds) for seconds in (limit - 1, limit)]
    assert (devices, claims) == (["cpu", "auto"], [1])
    assert measure._device("cuda:1", 10) == "cuda:1"
    assert claims == [1]


def test_a_missing_device_is_told_before_measuring(monkeypatch, tmp_path):
    monkeypatch.setattr(devices.torch, "zeros", _no_cuda)
    with pytest.raises(InputError, match=r"'cuda' is not available here \(no driver\)"):
        measure.run(manifests=[], done=tmp_path / "m.json", device="cuda")
    assert not (tmp_path / "m.json").exists()


def _no_cuda(*shape, device):
    raise AssertionError("no driver\nand more")


@pytest.fixture
def too_old(monkeypatch):
    """A GPU that is older than this build of torch: it holds memory, but runs no kernel."""
    zeros, add = torch.zeros, torch.Tensor.add_

    def on_gpu(*shape, device):
        made = zeros(*shape)
        made.there = device.type == "cuda"
        return made

    def compute(self, number):
        if self.there:
            raise RuntimeError("CUDA error: no kernel image is available for execution\nand more")
        return add(self, number)

    monkeypatch.setattr(devices.torch, "zeros", on_gpu)
    monkeypatch.setattr(devices.torch.Tensor, "add_", compute)
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "gpu_count", lambda: 1)
    for variable in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
        monkeypatch.delenv(variable, raising=False)


def test_a_gpu_that_can_allocate_but_not_compute_is_told(too_old):
    said = (
        r"'cuda:1' is not available here \(CUDA error: no kernel image .* execution\): "
        "use --device cpu, or install a torch that fits the GPU"
    )
    with pytest.raises(InputError, match=said):
        devices.choose_device("cuda:1")


def test_a_gpu_that_cannot_compute_is_not_taken_unasked(too_old, monkeypatch, caplog):
    said = "cannot use the GPU of this machine (CUDA error: no kernel image"
    assert devices.choose_device("auto").type == "cpu"
    assert said in caplog.text
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    with pytest.raises(InputError, match=re.escape(said)):
        devices.choose_device("auto")


@pytest.mark.parametrize(
    ("precision", "capability", "said"),
    [
        ("float32", (9, 0), "float32 is several times slower on this GPU than tf32 or bfloat16"),
        ("float32", (7, 0), ""),
        ("tf32", (8, 0), ""),
        ("tf32", (7, 5), "this GPU has no tf32: on it, it is the same as float32"),
        ("bfloat16", (8, 0), ""),
        ("bfloat16", (7, 5), "this GPU has no instructions for bfloat16"),
        ("float32", None, ""),
        ("tf32", None, "on this CPU, it is the same as float32"),
    ],
)
def test_what_is_said_of_a_precision(precision, capability, said, monkeypatch, caplog):
    """`capability` is that of a GPU; None is the CPU."""
    monkeypatch.setattr(devices.torch.cuda, "get_device_capability", lambda device: capability)
    caplog.set_level("INFO", "cltools")
    devices.talk_of_precision(precision, torch.device("cuda" if capability else "cpu"))
    assert len(caplog.messages) == bool(said)
    assert said in caplog.text


@pytest.mark.parametrize(
    ("device", "allowed", "inside"),
    [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)],
)
def test_tf32_ends_with_its_block(device, allowed, inside):
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    devices.choose_device("cpu")

    def fails():
        with devices.tf32(torch.device(device), allowed):
            assert [flag.allow_tf32 for flag in flags] == [inside, inside]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not any(flag.allow_tf32 for flag in flags)


def test_the_gpu_of_a_mac_is_only_used_where_it_is():
    """Torch explains its absence on more than a thousand characters."""
    if torch.backends.mps.is_available():
        pytest.skip("this is a Mac")
    with pytest.raises(InputError, match=r"^device 'mps' is not available here ") as said:
        devices.choose_device("mps")
    assert len(str(said.value)) < 200


def test_what_the_gpu_of_a_mac_cannot_compute_is_one_sentence():
    said = "Cannot convert a MPS Tensor to float64 dtype as MPS doesn't support float64"
    fault = device_fault(TypeError(f"{said}. Please use float32 instead."))
    assert str(fault) == f"{said}: use --device cpu"
    assert device_fault(TypeError("unsupported operand")) is None
