"""`cltools bench --on`: hours and memory of cells on a GPU that is not here."""

import json

import pytest
from small import SMALL, small_cell
from typer.testing import CliRunner

from cltools.cli import app
from cltools.cluster.estimates import Bench, Run, disk_mb, training_seconds
from cltools.config.durations import Duration
from cltools.config.experiment import load_experiment
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import read_json
from cltools.stages import predict
from cltools.stages.predict import Given, Sharing, data_set

SETTINGS = {
    "dataset": "cifar10", "recipe": "cifar", "images_per_class": None, "batch_size": 500,
    "objectives": ["dcl", "nscl"], "horizon": 10, "checkpoints": [0],
}  # fmt: skip


def cell(**settings):
    return small_cell(**{**SETTINGS, **settings})


def found(**settings):
    (entry,) = predict.run(on="h100", cell=cell(**settings))["kinds"]
    return entry


def test_a_report_has_the_layout_of_a_bench(tmp_path):
    path = tmp_path / "bench.json"
    text = {**SMALL, **SETTINGS, "images_per_class": 100, "batch_size": 50}
    done = CliRunner().invoke(
        app, ["bench", "--cell", json.dumps(text), "--on", "h200", "--output", str(path)]
    )
    assert done.exit_code == 0, done.output
    first, head, line, last = done.output.splitlines()
    assert "H200 SXM (predicted): nothing was run there" in first
    assert head.split()[:3] == ["cells", "train", "h"]
    assert line.split()[0] == "1"
    assert "launches (100%)" in line
    assert last.startswith("1 cell, one after another: ")
    (entry,) = read_json(path, made_by="cltools bench")["kinds"]
    costs = Bench(path).of(cell(images_per_class=100, batch_size=50))
    run = Run(cell(images_per_class=100, batch_size=50), Duration("epochs", 10))
    assert costs.steps_per_epoch == 1000 // 50
    assert entry["longest_seconds"] == pytest.approx(training_seconds(costs, run), rel=1e-3)
    assert entry["disk_mb"] == pytest.approx(disk_mb(costs, run), rel=1e-3)
    assert entry["predicted"]["hours"].keys() == {
        "train", "embed", "measure", "theory", "merge",
    }  # fmt: skip


def test_what_is_known_of_the_papers_main_cell():
    """ResNet-50, B = 1024, bfloat16, counted by another program too: 64 TFLOP and 26.2 GB saved."""
    main = found(architecture="resnet50", batch_size=1024, projector_hidden=2048, projector_dim=64,
                 precision="bfloat16", objectives=["dcl", "nscl", "scl", "ce"])  # fmt: skip
    predicted = main["predicted"]
    assert predicted["tflop"] == pytest.approx(64, rel=0.01)
    assert predicted["saved_gb"] == pytest.approx(26.2, rel=0.02)
    # By hand: 3.4 million numbers of convolutions per view, which forward and backward pass move
    # about 20 times in all.
    by_hand = 4 * 2048 * 3.43e6 * 2 * 20
    assert predicted["moved_gb"] * 1e9 == pytest.approx(by_hand, rel=0.15)
    assert predicted["limit"] == "memory bandwidth"
    assert predicted["fits"]
    # 45 s for 48 steps of two networks in the authors' log, whose loop does more.
    assert 0.05 < main["costs"]["seconds_per_step"] / 2 < 45 / 48


def test_what_a_cell_needs_grows_with_what_it_does():
    base = found()
    assert base["costs"]["steps_per_epoch"] == 100
    twice = found(batch_size=1000)["costs"]
    assert twice["steps_per_epoch"] == 50
    assert twice["gpu_memory_mb"] > base["costs"]["gpu_memory_mb"]
    assert found(classes=5)["costs"]["steps_per_epoch"] == 50
    four = found(objectives=["dcl", "nscl", "scl", "nt_xent"])["costs"]
    assert four["weights_mb"] == pytest.approx(2 * base["costs"]["weights_mb"], rel=0.01)
    assert four["embedding_mb"] == 2 * base["costs"]["embedding_mb"]


def test_a_cell_beyond_the_memory_is_said_so():
    large = {"architecture": "resnet50", "batch_size": 8000, "width": 2}
    report = predict.run(on="v100", cell=cell(**large))
    assert not report["kinds"][0]["predicted"]["fits"]
    assert any("(more than it has)" in line for line in predict.report_lines(report))


@pytest.mark.slow
def test_several_gpus_share_objectives_or_batches():
    assert [Sharing(gpus, what).parts(4) for gpus, what in (
        (1, "auto"), (2, "auto"), (4, "objectives"), (8, "auto"), (2, "batch")
    )] == [1, 1, 1, 8, 2]  # fmt: skip
    given = {
        "experiment": "tiny",
        "datasets": {
            "cifar10": {
                "source": "torchvision",
                "dataset": "CIFAR10",
                "root": "data",
                "recipe": "cifar",
            }
        },
    }
    base = {k: v for k, v in SETTINGS.items() if k not in ("recipe", "horizon")}
    base |= {"horizon": 10, "batch_size": 20_000, "architecture": "resnet18"}
    given |= {"base": base, "sweeps": {"base": {"vary": {"seed": [0]}}}}
    seconds, memory = [], []
    for gpus in (1, 2, 4):
        experiment = load_experiment({**given, "gpus_per_cell": gpus})
        (entry,) = predict.run(on="h100", experiment=experiment)["kinds"]
        seconds.append(entry["costs"]["seconds_per_step"])
        memory.append(entry["predicted"]["saved_gb"])
    assert seconds[0] / seconds[1] == pytest.approx(2, abs=0.1)  # one objective each
    assert seconds[0] / seconds[2] == pytest.approx(4, abs=0.1)  # a quarter of the batch each
    assert memory[0] == memory[1]
    assert memory[2] == pytest.approx(memory[0] / 4, rel=1e-3)


def test_sizes_of_data_sets(digits):
    assert data_set("cifar100-0123abcd", None).classes == 100
    assert data_set("anything", digits) == data_set("digits", None)
    given = data_set("anything", None, Given(image_size=48, images=1000, classes=7, channels=1))
    assert (given.shape, given.classes, given.train, given.test) == ((48, 48, 1), 7, 1000, 200)
    assert data_set("cifar10", None, Given(images=600)).train == 600
    assert data_set("cifar10", None, Given(image_size=64)).shape == (64, 64, 3)
    with pytest.raises(InputError, match=r"'anything' are not known: .* --synthetic with --images"):
        data_set("anything", None, Given(image_size=48, classes=7))


def test_mistakes():
    with pytest.raises(InputError, match="--on t4 is not known"):
        predict.run(on="t4", cell=cell())
    with pytest.raises(InputError, match="give an experiment or a cell"):
        predict.run(on="h100")
    with pytest.raises(InputError, match=r"batch_size is 500, but .* has 20 images"):
        predict.run(on="h100", cell=cell(images_per_class=2))
