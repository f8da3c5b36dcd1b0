"""The checks of benchmarks/gpu.py, on a CPU: they run, and they can fail."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


@pytest.fixture
def setup(gpu, tmp_path):
    return gpu.Setup(torch.device("cpu"), True, tmp_path)


@pytest.mark.slow
def test_all_checks_run_on_a_cpu(gpu):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    for name in gpu.checks(smoke=True):
        assert any(line.startswith(f"PASS  {name} ") for line in lines), done.stdout + done.stderr
    assert lines[-1].startswith("ALL PASS")
    assert done.returncode == 0
    assert len(gpu.checks(smoke=True)) < len(gpu.checks(smoke=False))


def test_a_check_that_fails_is_told(gpu, setup, monkeypatch, capsys):
    def breaks(setup):
        raise ValueError("the reason\nand more")

    monkeypatch.setattr(gpu, "checks", lambda smoke: {"ceilings": gpu.ceilings, "planted": breaks})
    assert not gpu.run(setup, "")
    said = capsys.readouterr().out
    assert "FAIL  planted" in said
    assert "error ValueError: the reason\n" in said
    assert "SOME FAIL" in said


def test_a_state_that_lacks_something_is_found(gpu, setup, monkeypatch):
    assert gpu.kind({}, setup).ok
    restore = gpu.CoupledTrainer.restore

    def without_momenta(self, tensors, about):
        kept = {k: v for k, v in tensors.items() if not k.startswith("optimizer/")}
        restore(self, kept, about)

    monkeypatch.setattr(gpu.CoupledTrainer, "restore", without_momenta)
    found = gpu.kind({}, setup)
    assert not found.ok
    assert not found.numbers["resumed_same"]


def test_the_least_time_of_a_product(gpu, setup):
    """256 × 256 in float32: 2 · 256³ operations, and three matrices that are read or written."""
    a = torch.ones(256, 256)
    for copy, seconds in ((1e12, 2 * 256**3 / 1e9), (1e3, 3 * a.nbytes / 1e3)):
        setup.rates = {"bfloat16": 1e9, "copy": copy}
        with gpu.Traffic(setup) as traffic:
            _ = (a @ a).T  # a transpose moves nothing
        assert traffic.seconds == seconds
