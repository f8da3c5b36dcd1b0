"""The coupled trainer and its stage: the randomness rule, resuming, the log, and what must fail."""

import json
import os
import platform
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import safetensors
import torch
from commands import SERVER, cltools
from small import small_cell
from small import train_into as run
from waiting import HANGS

from cltools.config.cells import canonical_cell
from cltools.data.image_set import image_set, open_store
from cltools.layout import VERSIONS
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import write_json
from cltools.runtime.tensors import load_tensors
from cltools.stages import prepare
from cltools.stages.train import Saves
from cltools.training.manifests import read_manifest
from cltools.training.trainer import CoupledTrainer

OBJECTIVES = [
    "dcl", "nscl", "scl", "ce", "nt_xent", "nscl_with_positive", "nt_xent_double_positive",
]  # fmt: skip
AUTHORS = {
    "optimizer": "authors_lars",
    "lr_schedule": "per_epoch",
    "sampler": "authors",
    "view_forward": "apart",
}


cell = partial(
    small_cell,
    horizon="12 steps",
    warmup=2,
    checkpoints=[0, 5],
    optimizer="sgd",
    lr=0.2,
)


def files(folder, pattern="*"):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_together_is_alone(digits, tmp_path):
    """Every objective gives the same bytes whether it is trained with others or by itself."""
    manifest = run(cell(objectives=OBJECTIVES), digits, tmp_path / "together")
    together = files(tmp_path / "together/run/weights")
    assert len(together) == 3 * len(OBJECTIVES)
    for objective in OBJECTIVES:
        single = run(cell(objectives=[objective]), digits, tmp_path / objective)
        alone = files(tmp_path / objective / "run/weights")
        for step, checkpoint in single["checkpoints"].items():
            assert checkpoint["digests"] == manifest["checkpoints"][step]["digests"]
        assert alone == {name: together[name] for name in alone}
        assert len(alone) == 3


def test_same_cell_same_bytes(digits, tmp_path):
    for folder in ("one", "two"):
        run(cell(), digits, tmp_path / folder)
    assert files(tmp_path / "one/run/weights") == files(tmp_path / "two/run/weights")
    assert files(tmp_path / "one", "*.json") == files(tmp_path / "two", "*.json")
    assert files(tmp_path / "one/run", "*.parquet") == files(tmp_path / "two/run", "*.parquet")


def test_models_differ_and_share_their_start(digits, tmp_path):
    manifest = run(cell(), digits, tmp_path)
    weights = {
        objective: load_tensors(tmp_path / f"run/weights/{objective}-0000000.safetensors", "")[0]
        for objective in ("dcl", "nscl", "scl", "ce")
    }
    for name, value in weights["dcl"].items():
        assert all(torch.equal(value, other[name]) for other in weights.values())
    last = manifest["checkpoints"]["12"]["weights"]
    assert len(set(last.values())) == 4


@pytest.mark.parametrize("changes", [{}, {"optimizer": "lars"}, AUTHORS])
def test_raising_epochs_continues(digits, tmp_path, changes):
    settings = cell(**changes)
    run(settings, digits, tmp_path / "whole")
    run(settings, digits, tmp_path / "parts", until="7 steps")
    marker = tmp_path / "parts/run/weights/dcl-0000000.safetensors"
    written = marker.stat().st_mtime_ns
    longer = run(settings, digits, tmp_path / "parts")
    assert marker.stat().st_mtime_ns == written  # nothing was trained twice
    assert longer == json.loads((tmp_path / "whole/trained.json").read_text())
    whole = files(tmp_path / "whole/run/weights")
    assert files(tmp_path / "parts/run/weights").items() >= whole.items()
    name = "log-12steps.parquet"
    assert (tmp_path / "parts/run" / name).read_bytes() == (
        tmp_path / "whole/run" / name
    ).read_bytes()


def test_a_shorter_stop_is_served_from_the_longer_run(digits, tmp_path):
    run(cell(), digits, tmp_path / "long")
    before = files(tmp_path / "long/run/weights")
    manifest = run(cell(), digits, tmp_path / "long", until="5 steps")
    assert files(tmp_path / "long/run/weights") == before
    assert manifest == run(cell(), digits, tmp_path / "short", until="5 steps")


def saved_step(folder):
    try:
        with safetensors.safe_open(folder / "run/resume.safetensors", framework="pt") as file:
            return json.loads(file.metadata()["cltools"])["step"]
    except FileNotFoundError:
        return 0


def die_at(stop, settings, store, folder):
    """Train, saving the state after every step, and be killed between a step and its save."""
    step = CoupledTrainer.train_step

    def last(self):
        step(self)
        if self.step == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    CoupledTrainer.train_step = last
    run(settings, store, folder, saves=Saves(every_steps=1))


def test_killed_three_times_is_never_stopped(digits, tmp_path):
    """SIGKILL at three random steps, then resumed: the bytes of a run that was never stopped."""
    settings = cell(horizon="40 steps", checkpoints=[0, 10, 25])
    run(settings, digits, tmp_path / "whole")
    killed, stops = tmp_path / "killed", sorted(random.sample(range(3, 38), 3))
    for stop in stops:
        process = SERVER.Process(target=die_at, args=(stop, settings, digits, killed))
        process.start()
        process.join(HANGS)
        assert process.exitcode == -signal.SIGKILL
        assert saved_step(killed) in (stop - 2, stop - 1)  # the last may not be written yet
        assert not (killed / "trained.json").exists()
    cltools(
        "train", "--cell", canonical_cell(settings), "--store", digits, "--device", "cpu",
        "--run", killed / "run", "--manifest", killed / "trained.json", "--save-every-steps", 1,
    )  # fmt: skip
    assert files(killed / "run/weights") == files(tmp_path / "whole/run/weights")
    for name in ("trained.json", "run/log-40steps.parquet", "run/resume.safetensors"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(killed.rglob(".*"))  # no half-written file is left by the end


def test_log(digits, tmp_path):
    manifest = run(cell(objectives=OBJECTIVES, classes=4), digits, tmp_path)
    log = pl.read_parquet(tmp_path / "run" / manifest["log"]["file"])
    assert log.shape[0] == 12 * len(OBJECTIVES)
    contrastive = log.filter(pl.col("model") != "ce")
    names = [name for name in OBJECTIVES if name != "ce"]
    assert contrastive.select(pl.col(names).is_finite().all()).row(0) == (True,) * 6
    within = (pl.col("nscl") <= pl.col("dcl")) & (
        pl.col("dcl") <= pl.col("nscl") + pl.col("gap_bound")
    )
    assert contrastive.select(within.all()).item()
    ce = log.filter(pl.col("model") == "ce")
    assert ce["ce"].is_finite().all()
    assert ce["dcl"].is_nan().all()
    rates = log.filter(pl.col("model") == "dcl")
    assert rates["sum_lr"].to_list() == pytest.approx(rates["lr"].cum_sum().to_list())
    first = log.filter(pl.col("step") == 0)
    assert first.filter(pl.col("model").is_in(["dcl", "nscl"]))["dcl"].n_unique() == 1


def test_a_batch_of_one_class_is_skipped_and_counted(tmp_path):
    """Such a batch has no NSCL: the model takes no step, the log says NaN, the manifest counts."""
    import numpy as np

    from cltools.data.store import write_store

    images = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 1), dtype=np.uint8)
    labels = np.array([0] * 10 + [1] * 2)
    write_store(tmp_path / "store", "lopsided", ["a", "b"],
                {"train": (images, labels), "test": (images, labels)}, {})  # fmt: skip
    settings = cell(dataset="lopsided", images_per_class=None, batch_size=3, horizon="8 steps")
    manifest = run(settings, tmp_path / "store", tmp_path)
    log = pl.read_parquet(tmp_path / "run/log-8steps.parquet")
    one_class = log.filter(pl.col("batch_classes") == 1)
    skipped = one_class["step"].n_unique()
    assert 0 < skipped < 8
    assert manifest["skipped_steps"] == {"nscl": skipped}
    assert one_class["gap_bound"].is_nan().all()
    assert one_class.filter(pl.col("model") == "nscl")["grad_norm"].is_nan().all()
    assert one_class.filter(pl.col("model") == "dcl")["dcl"].is_finite().all()
    assert one_class.filter(pl.col("model") == "dcl")["nscl"].is_nan().all()


def test_bfloat16_runs_and_differs(digits, tmp_path):
    low = run(cell(precision="bfloat16"), digits, tmp_path / "low")
    high = run(cell(), digits, tmp_path / "high")
    assert low["checkpoints"]["0"] == {
        **high["checkpoints"]["0"],
        "weights": low["checkpoints"]["0"]["weights"],
    }
    logs = [
        pl.read_parquet(tmp_path / f"{name}/run/log-12steps.parquet") for name in ("low", "high")
    ]
    # Before any update. bfloat16 rounds to 8 bits, each similarity by 2⁻⁸ of its size at most.
    first, exact = (log["dcl"][0] for log in logs)
    assert 0 < abs(first - exact) < 2**-7 * exact


def test_bfloat16_without_its_instructions_warns(digits, tmp_path, monkeypatch, caplog):
    for able, said in ((True, False), (False, True)):
        monkeypatch.setattr("cltools.runtime.devices.has_bfloat16", lambda able=able: able)
        caplog.clear()
        run(cell(horizon="2 steps", precision="bfloat16"), digits, tmp_path / str(able))
        assert ("no instructions for bfloat16" in caplog.text) == said
    monkeypatch.undo()
    caplog.clear()
    run(cell(horizon="2 steps"), digits, tmp_path / "float32")
    assert "bfloat16" not in caplog.text


@pytest.mark.parametrize("level", ["avx2", "default"])
def test_what_the_processor_can_do(level):
    """As torch uses it, which may be less than there is."""
    code = "from cltools.runtime import processor as p; print(p.instructions(), p.has_bfloat16())"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": level}
    said = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    if platform.machine() == "x86_64":
        assert said.split() == [level.upper(), "False"]


def test_three_views(digits, tmp_path):
    manifest = run(cell(views=3), digits, tmp_path)
    two = run(cell(), digits, tmp_path / "two")
    assert (
        manifest["checkpoints"]["12"]["digests"]["batches"]
        == (two["checkpoints"]["12"]["digests"]["batches"])
    )
    assert (
        manifest["checkpoints"]["12"]["digests"]["views"]
        != (two["checkpoints"]["12"]["digests"]["views"])
    )


def test_nothing_draws_from_the_global_random_state(digits):
    device = torch.device("cpu")
    settings = cell()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    store = open_store(digits, settings)
    trainer = CoupledTrainer(settings, image_set(store, settings, "train", device), device)
    for _ in range(3):
        trainer.train_step()
    after = torch.random.get_rng_state()
    # Constructing layers draws their default weights, which are overwritten; steps draw nothing.
    for _ in range(3):
        trainer.train_step()
    assert torch.equal(after, torch.random.get_rng_state())
    assert before.shape == after.shape


def test_mistakes(digits, tmp_path):
    def fails(settings, sentence, store=digits, **options):
        with pytest.raises(InputError, match=sentence):
            run(settings, store, tmp_path / "fails", **options)
        assert not (tmp_path / "fails/trained.json").exists()

    fails(cell(batch_size=500), "batch_size is 500, but the training set of this cell has 120")
    fails(cell(classes=12), "12")
    fails(cell(images_per_class=5000), "5000")
    fails(cell(), "beyond|raise horizon", until="13 steps")
    fails(cell(dataset="other"), "holds 'digits', but the cell is of 'other'")
    fails(cell(), "does not exist", store=tmp_path / "nowhere")
    fails(cell(lr=1e30, warmup=0), "loss is not finite at step")


def test_damaged_and_foreign_states(digits, tmp_path):
    run(cell(), digits, tmp_path, until="5 steps")
    state = tmp_path / "run/resume.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"resume\.safetensors is damaged.*delete it"):
        run(cell(), digits, tmp_path)
    state.write_bytes(whole)
    with pytest.raises(InputError, match="other settings"):
        run(cell(tau=0.1), digits, tmp_path)
    prepare.run(name="digits", definition={"source": "digits", "seed": 1}, store=tmp_path / "other")
    with pytest.raises(InputError, match="other images"):
        run(cell(), tmp_path / "other", tmp_path)
    assert run(cell(), digits, tmp_path)["steps"] == 12


def test_another_version_of_the_stage_trains_again(digits, tmp_path, monkeypatch):
    run(cell(), digits, tmp_path, until="5 steps")
    first = tmp_path / "run/weights/dcl-0000000.safetensors"
    written = first.stat().st_mtime_ns
    monkeypatch.setitem(VERSIONS, "train", 1000)
    assert run(cell(), digits, tmp_path)["made_by"]["version"] == 1000
    assert first.stat().st_mtime_ns > written


def test_lost_weights_are_made_again(digits, tmp_path):
    run(cell(), digits, tmp_path)
    before = files(tmp_path / "run/weights")
    (tmp_path / "run/weights/nscl-0000005.safetensors").write_bytes(b"half")
    run(cell(), digits, tmp_path)
    assert files(tmp_path / "run/weights") == before


def test_a_manifest_may_be_older_than_a_setting(digits, tmp_path):
    manifest = run(cell(), digits, tmp_path)
    del manifest["cell"]["patch"], manifest["cell"]["sampler"]
    write_json(tmp_path / "trained.json", manifest)
    assert read_manifest(tmp_path / "trained.json")["cell"] == cell()


def test_paths_may_hold_blanks(digits, tmp_path):
    assert run(cell(), digits, Path(tmp_path / "a folder"))["steps"] == 12
