"""`cltools bench`: what it prints and writes, the arithmetic of estimates, what jobs ask for."""

import io
import json
import math
import subprocess
import sys
from functools import partial

import pytest
import yaml
from typer.testing import CliRunner
from waiting import HANGS

from cltools.cli import app
from cltools.cluster.estimates import (
    Bench,
    Costs,
    Run,
    Task,
    checkpoint_steps,
    describe,
    disk_mb,
    embed_needs,
    kind_of,
    layers_needs,
    measure_needs,
    merge_needs,
    prepare_needs,
    theory_needs,
    train_needs,
    training_seconds,
)
from cltools.cluster.images import Images
from cltools.config.cells import resolve_cell
from cltools.config.durations import Duration
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import read_json, write_json
from cltools.stages import bench, train
from cltools.stages.bench import Synthetic, bench_cell

IMAGES = Images(1_438, 359, 8, channels=1)
COSTS = Costs(
    steps_per_epoch=10,
    seconds_per_step=2.0,
    seconds_per_epoch=5.0,
    seconds_per_save=3.0,
    seconds_per_embedding=60.0,
    memory_mb=1000.0,
    gpu_memory_mb=None,
    weights_mb=100.0,
    state_mb=250.0,
    embedding_mb=40.0,
)
SETTINGS = {
    "dataset": "digits", "recipe": "digits", "horizon": 4, "checkpoints": [0, 1, 9],
    "images_per_class": 15, "test_images_per_class": 10, "batch_size": 50,
    "projector_hidden": 16, "projector_dim": 8, "optimizer": "sgd",
}  # fmt: skip


def cell(**changes):
    return resolve_cell({**SETTINGS, **changes})


def cltools(*arguments, code=0):
    command = [sys.executable, "-m", "cltools.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def benched(digits, tmp_path_factory):
    """What a bench of one cell printed, its file, and what is in it."""
    output = tmp_path_factory.mktemp("bench") / "bench.json"
    text = cltools("bench", "--cell", json.dumps(SETTINGS), "--store", digits, "--steps", 4,
                   "--device", "cpu", "--output", output)  # fmt: skip
    return text, output, read_json(output, made_by="cltools bench")


def test_a_cell(benched):
    text, _, report = benched
    assert report.keys() == {"device", "kinds", "made_by", "totals"}
    (entry,) = report["kinds"]
    costs = entry["costs"]
    assert list(costs) == sorted(COSTS.__dict__)
    parts = ["views", "forward", "losses", "backward", "optimizer", "logging"]
    assert list(entry["shares"]) == sorted(parts)
    assert sum(entry["shares"].values()) == pytest.approx(1, abs=0.001)
    assert entry["steps_per_second"] * costs["seconds_per_step"] == pytest.approx(1, rel=1e-3)
    assert entry["images_per_second"] == pytest.approx(50 / costs["seconds_per_step"], rel=1e-3)
    assert costs["steps_per_epoch"] == 3
    assert costs["gpu_memory_mb"] is None
    assert 100 < costs["memory_mb"] < 20_000
    # The four networks of this cell have 20,000 weights of 4 bytes each, the state momentum too.
    assert 0.2 < costs["weights_mb"] < 0.5
    assert 1.5 < costs["state_mb"] / costs["weights_mb"] < 2.5
    assert costs["embedding_mb"] == pytest.approx(250 * 4 * (32 + 3 * 8) * 4 / 1e6)
    run = Run(cell(), Duration("epochs", 4))
    assert entry["disk_mb"] == pytest.approx(disk_mb(Costs(**costs), run), rel=1e-3)
    assert entry["kind"] == kind_of(cell())
    assert text.splitlines()[0].startswith("digits C=all small_resnet B=50 dcl+nscl+scl+ce on cpu")
    for part in parts:
        assert f"{part}: " in text
    assert "images a second" in text
    assert text.splitlines()[-1].startswith("1 cell on cpu, ")


def test_what_is_kept_is_what_is_on_disk(digits, benched, tmp_path):
    train.run(
        cell=cell(),
        store=digits,
        run=tmp_path / "run",
        manifest=tmp_path / "trained.json",
        device="cpu",
    )
    real = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert benched[2]["kinds"][0]["disk_mb"] == pytest.approx(real / 1e6, rel=0.1)


@pytest.mark.slow
def test_a_config_of_two_kinds(tmp_path):
    """Seeds and temperatures cost the same, batch sizes do not; nothing is prepared."""
    base = {k: v for k, v in SETTINGS.items() if k not in ("recipe", "dataset")}
    config = {
        "experiment": "tiny",
        "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
        "base": {**base, "epochs": 2, "objectives": ["dcl", "nscl"]},
        "sweeps": {
            "temperature": {"vary": {"tau": [0.1, 0.5], "seed": [0, 1]}},
            "batch_size": {"vary": {"batch_size": [50, 25]}},
        },
    }
    path, output = tmp_path / "config.yaml", tmp_path / "bench.json"
    path.write_text(yaml.safe_dump(config))
    text = cltools("bench", path, "--store", tmp_path, "--synthetic", "--image-size", 8,
                   "--images", 200, "--classes", 10, "--channels", 1, "--steps", 2,
                   "--device", "cpu", "--output", output)  # fmt: skip
    report = read_json(output, made_by="cltools bench")
    kinds = {entry["kind"]["batch_size"]: entry for entry in report["kinds"]}
    assert {size: entry["cells"] for size, entry in kinds.items()} == {50: 4, 25: 1}
    assert {size: e["costs"]["steps_per_epoch"] for size, e in kinds.items()} == {50: 3, 25: 6}
    assert report["totals"]["cells"] == 5
    seconds = sum(entry["seconds"] for entry in kinds.values())
    assert report["totals"]["hours"] == pytest.approx(seconds / 3600, rel=1e-3)
    assert kinds[50]["seconds"] == pytest.approx(4 * kinds[50]["longest_seconds"], rel=1e-3)
    lines = text.splitlines()
    assert len(lines) == 5
    assert lines[1].split()[0] == "4"
    assert lines[3].startswith("5 cells on cpu, ")
    assert lines[4].startswith("all stages, one after another: about ")
    assert report["stages"].keys() == {
        "prepare", "train", "embed", "measure", "theory", "plot", "report",
    }  # fmt: skip
    assert report["stages"]["train"]["seconds"] > seconds
    missing = cltools("bench", path, code=2)
    command = f"run `snakemake --until prepare --configfile {path} --cores 1` first"
    assert command in missing
    # The rules find both kinds in the file, and no third.
    bench = Bench(output)
    assert bench.of(resolve_cell({**cell(**kinds[25]["kind"]), "seed": 7})) is not None
    assert bench.of(cell()) is None


@pytest.mark.slow
def test_a_cell_on_several_processes_with_photographs(tmp_path):
    """As its training would run: torchrun starts them, and each decodes its part of the images."""
    base = {k: v for k, v in SETTINGS.items() if k not in ("recipe", "dataset")}
    config = {
        "experiment": "tiny",
        "datasets": {"photographs": {
            "source": "folder", "path": "photographs", "encoded": True, "size": 16,
            "recipe": "imagenet",
        }},
        "gpus_per_cell": 2,
        "base": {**base, "epochs": 2, "batch_size": 20, "objectives": ["dcl", "nscl"]},
        "sweeps": {"base": {"vary": {"seed": [0]}}},
    }  # fmt: skip
    path, output = tmp_path / "config.yaml", tmp_path / "bench.json"
    path.write_text(yaml.safe_dump(config))
    text = cltools("bench", path, "--store", tmp_path, "--synthetic", "--image-size", 16,
                   "--images", 200, "--classes", 10, "--steps", 2, "--device", "cpu",
                   "--output", output)  # fmt: skip
    (entry,) = read_json(output, made_by="cltools bench")["kinds"]
    assert entry["costs"]["steps_per_epoch"] == 150 // 20
    assert 0.15 < entry["costs"]["weights_mb"] < 0.25  # of both objectives
    assert "photographs" in text.splitlines()[0]
    assert len([line for line in text.splitlines() if line.startswith("memory:")]) == 1


def test_what_stops_one_of_several_processes_is_said(tmp_path):
    """A batch of 25 images cannot be shared by two."""
    with pytest.raises(InputError, match=r"^config key batch_size is 25, which 2 ranks cannot"):
        bench._in_a_process(
            cell(batch_size=25, objectives=["dcl"]), Synthetic(8, 200, 10, 1), 2, device="cpu",
            steps=1,
        )  # fmt: skip


def test_random_photographs_are_like_photographs():
    from PIL import Image

    (first, second, *_) = bench._photographs()
    assert first != second
    image = Image.open(io.BytesIO(first))
    assert (image.format, image.size) == ("JPEG", (500, 375))
    assert 50_000 < len(first) < 200_000  # those of ImageNet have 110,000 bytes


def test_random_images_like_those_of_a_store(digits):
    report = bench_cell(cell(), digits, "cpu", 1, Synthetic(image_size=4, images=400))
    (entry,) = report["kinds"]
    assert entry["kind"] == kind_of(cell())
    assert entry["costs"]["steps_per_epoch"] == 3  # 15 images of each of the store's 10 classes


def test_kinds():
    assert kind_of(cell(seed=3, tau=0.1, lr=1.0, warmup=2, horizon="7 steps")) == kind_of(cell())
    for change in ({"batch_size": 25}, {"classes": 4}, {"objectives": ["dcl"]}, {"views": 3},
                   {"precision": "bfloat16"}, {"optimizer": "lars"}, {"threads": 2}):  # fmt: skip
        assert kind_of(cell(**change)) != kind_of(cell())
    kinds = [kind_of(cell(precision=p)) for p in ("float32", "bfloat16")]
    assert describe(kinds[1], kinds) == (
        'digits C=all small_resnet B=50 dcl+nscl+scl+ce precision="bfloat16"'
    )


def test_arithmetic():
    run = Run(cell(horizon=4, checkpoints=[0, 1, 9]), Duration("steps", 25))
    assert checkpoint_steps(run, 10) == [0, 10, 25]
    # 25 steps begin 3 epochs; a save every 120 s, at 3 checkpoints, and of the state at the end.
    plain = 25 * 2 + 3 * 5
    assert training_seconds(COSTS, run) == pytest.approx(plain + 3 * (plain / 120 + 4))
    log = 25 * 4 * 14 * 8 / 1e6
    assert disk_mb(COSTS, run) == pytest.approx(3 * 100 + 250 + log)
    assert disk_mb(COSTS, run, embedding_bytes=2) == pytest.approx(3 * 120 + 250 + log)


def test_what_jobs_ask_for():
    run = Run(cell(horizon=100, checkpoints=[0]), Duration("epochs", 100))
    task = Task(COSTS, run, IMAGES)
    once, twice = (train_needs(task, attempt) for attempt in (1, 2))
    assert once.mem_mb == 2000  # 1.5 times what was measured, and 500 MB
    assert once.runtime * 60 > 1.5 * training_seconds(COSTS, run) > 100 * 25
    assert twice == (2 * once.mem_mb, 2 * once.runtime)
    # A job that embeds two cells takes the time of both and the memory of one.
    one, two = (embed_needs([task] * count) for count in (1, 2))
    assert one.mem_mb == two.mem_mb
    assert 0 < one.mem_mb - (1.5 * 1000 + 500) < 10  # and its small networks
    assert (one.runtime, two.runtime) == (10 + 1.5 * 2, 10 + 1.5 * 4)


def train_of_one(work, attempt):
    (task,) = work
    return train_needs(task, attempt)


THEORY = {"curvature_at": "ends", "curvature_images": 128, "power_iterations": 10, "delta": 0.05}
MERGE = {"with": ["nscl", "scl"], "points": 11, "sweeps": []}


@pytest.mark.parametrize(
    "needs",
    [train_of_one, embed_needs, partial(measure_needs, full_at="last", on_gpu=False),
     partial(theory_needs, settings=THEORY),
     partial(merge_needs, settings=MERGE),
     partial(layers_needs, settings={"at": "all", "split": "test"})],
    ids=["train", "embed", "measure", "theory", "merge", "layers"],
)  # fmt: skip
@pytest.mark.parametrize("costs", [COSTS, None], ids=["benched", "not benched"])
def test_every_attempt_asks_for_more(needs, costs):
    run = Run(cell(horizon=100, checkpoints=[0]), Duration("epochs", 100))
    work = [Task(costs, run, IMAGES)]
    once, thrice = (needs(work, attempt=attempt) for attempt in (1, 3))
    assert thrice == (3 * once.mem_mb, 3 * once.runtime)


def test_theory_takes_as_long_as_its_products():
    """10 of them, each three of a network's share of a step, for two networks, at two steps."""
    run = Run(cell(horizon=100, checkpoints=[0, 50]), Duration("epochs", 100))
    share = COSTS.seconds_per_step / len(run.cell["objectives"])
    many = {**THEORY, "power_iterations": 10_000}
    work = [Task(COSTS, run, IMAGES)] * 2
    needs = theory_needs(work, many)
    assert needs.runtime == math.ceil(1.5 * 2 * 2 * 10_000 * 2 * 3 * share / 60 + 10)
    everywhere = theory_needs(work, {**many, "curvature_at": "all"})
    assert everywhere.runtime - 10 == pytest.approx(1.5 * (needs.runtime - 10), abs=2)


def test_preparing_photographs_needs_time_but_no_memory():
    many = Images(10_000_000, 50_000, 224, classes=1000)
    decoded, encoded = (prepare_needs(many._replace(encoded=value)) for value in (False, True))
    more = prepare_needs(many._replace(train=20_000_000, encoded=True))
    assert encoded.mem_mb == more.mem_mb < decoded.mem_mb
    assert more.runtime > 1.5 * encoded.runtime
    assert prepare_needs(many, 2) == (2 * decoded.mem_mb, 2 * decoded.runtime)


@pytest.mark.parametrize(
    "content",
    [{}, {"kinds": 3}, {"kinds": [{"kind": {}}]}, {"kinds": [{"kind": {}, "costs": {}}]}],
)
def test_another_file_is_no_bench(tmp_path, content):
    path = tmp_path / "bench.json"
    write_json(path, content)
    with pytest.raises(InputError, match=r"bench.json is not a file of `cltools bench`"):
        Bench(path)


def test_costs_that_are_none(benched, tmp_path):
    path = tmp_path / "bench.json"
    for name, value in (("memory_mb", "much"), ("seconds_per_step", -1), ("steps_per_epoch", 0)):
        report = read_json(benched[1], made_by="cltools bench")
        report["kinds"][0]["costs"][name] = value
        write_json(path, report)
        with pytest.raises(InputError, match="make it again"):
            Bench(path)
    with pytest.raises(InputError, match=r"does not exist: run `cltools bench CONFIG"):
        Bench(tmp_path / "none.json")


def test_nothing_to_time():
    with pytest.raises(InputError, match="give an experiment or a cell"):
        bench.run()


def test_mistakes(digits, tmp_path):
    def fails(*arguments):
        error = CliRunner().invoke(app, ["bench", *map(str, arguments)]).exception
        assert isinstance(error, InputError)
        return str(error)

    given = ["--cell", json.dumps(SETTINGS)]
    assert "a config or --cell" in fails()
    assert "a config or --cell" in fails("config.yaml", *given)
    assert "add --synthetic" in fails(*given, "--store", digits, "--images", 100)
    assert "run `cltools prepare` first, or give --synthetic" in fails(*given)
    assert "--synthetic needs --images, --classes" in fails(
        *given, "--synthetic", "--image-size", 8
    )
    sizes = ["--image-size", 224, "--images", 1_300_000, "--classes", 1000]
    assert "--synthetic would make 235 GB" in fails(*given, "--synthetic", *sizes)
    wrong = ["--cell", json.dumps({**SETTINGS, "batch_size": 500}), "--store", digits]
    assert "batch_size is 500, but the training set of this cell has 150" in fails(*wrong)
    assert "--cell is not valid JSON" in fails("--cell", "{taus: 1}")
    # From the process of a kind, the sentence comes through.
    plain = {k: v for k, v in SETTINGS.items() if k not in ("recipe", "dataset")}
    config = {
        "experiment": "tiny",
        "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
        "base": {**plain, "epochs": 2, "objectives": ["dcl", "nscl"], "classes": 12},
        "sweeps": {"base": {"vary": {"seed": [0]}}},
    }
    message = cltools("bench", json.dumps(config), "--synthetic", "--image-size", 8, "--images",
                      200, "--classes", 10, code=2)  # fmt: skip
    assert message.startswith("Error: the data set 'digits-7017fd10' has 10 classes, but")
    assert message.count("\n") == 1
