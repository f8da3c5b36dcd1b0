"""What jobs ask for that were not benched: it grows with the work, and fits the papers' cells."""

import shutil
from functools import partial

import pytest
from places import ROOT

from cltools.cluster import estimates
from cltools.cluster.estimates import (
    LONG,
    SHORT,
    Run,
    Task,
    cpu_seconds_of_measuring,
    decoding_cpus,
    embed_needs,
    embedding_cpus,
    layers_needs,
    measure_needs,
    merge_needs,
    prepare_cpus,
    prepare_needs,
    theory_needs,
    theory_seconds,
    train_needs,
)
from cltools.cluster.images import KNOWN, Images, images_of_cell, images_of_set
from cltools.config.cells import resolve_cell
from cltools.config.durations import Duration
from cltools.config.experiment import load_experiment, read_config
from cltools.maths.alignment.samples import SAMPLED_IMAGES
from cltools.measurements import layers
from cltools.stages import prepare

CIFAR = KNOWN["CIFAR10"]
IMAGENET = Images(1_281_167, 50_000, 224, classes=1000, encoded=True)
THEORY = {"curvature_at": "ends", "curvature_images": 128, "power_iterations": 10, "delta": 0.05}
MERGE = {"with": ["nscl", "scl"], "points": 11, "sweeps": []}
LAYERS = {"at": "all", "split": "train", "sweeps": []}
CELL = {"dataset": "x", "recipe": "cifar", "horizon": 300, "batch_size": 1024,
        "architecture": "resnet50", "checkpoints": list(range(0, 300, 5))}  # fmt: skip
NEEDS = {
    "train": lambda work: train_needs(work[0]),
    "embed": embed_needs,
    "measure": partial(measure_needs, full_at="last", on_gpu=False),
    "theory": partial(theory_needs, settings={**THEORY, "power_iterations": 10_000}),
    "merge": partial(merge_needs, settings={**MERGE, "points": 1000}),
    "layers": partial(layers_needs, settings=LAYERS),
}


def task(images=CIFAR, until=300, **settings):
    return Task(None, Run(resolve_cell({**CELL, **settings}), Duration("epochs", until)), images)


def paper(name, images=None):
    """The cell of a paper's experiment with the most images."""
    experiment = load_experiment(read_config(ROOT / f"config/paper/{name}.yaml"))
    plan = list(experiment.plans.values())[-1]
    store = experiment.stores[plan.cell["dataset"]]
    found = images or images_of_cell(plan.cell, store, ROOT / "no store")
    return Task(None, Run(plan.cell, plan.until), found), experiment


@pytest.mark.parametrize("stage", NEEDS)
def test_more_work_takes_longer(stage):
    once = NEEDS[stage]([task(objectives=["dcl", "nscl"])])
    larger = {
        "width": task(width=2, objectives=["dcl", "nscl"]),
        "side": task(CIFAR._replace(side=64), objectives=["dcl", "nscl"]),
    }
    if stage != "theory":
        larger["objectives"] = task(objectives=["dcl", "nscl", "scl", "ce"])
        more = CIFAR._replace(train=10 * CIFAR.train, test=10 * CIFAR.test)
        larger["images"] = task(more, objectives=["dcl", "nscl"])
    if stage in ("embed", "measure", "layers"):
        larger["checkpoints"] = task(checkpoints=list(range(300)), objectives=["dcl", "nscl"])
    if stage == "measure":
        del larger["side"]
    for what, more in larger.items():
        grown = NEEDS[stage]([more])
        assert grown.runtime > once.runtime or (stage, what) == ("merge", "objectives")
        assert grown.mem_mb >= once.mem_mb, (stage, what)


def test_sizes_are_those_of_the_stages():
    """The estimates import quickly, so that they have these numbers once more."""
    assert estimates.LARGEST_SUMS == layers.MOMENTS_BYTES
    assert estimates.LARGEST_SAMPLE == SAMPLED_IMAGES


def test_memory_does_not_grow_with_stored_embeddings():
    """They are written and read in blocks."""
    few, many = (IMAGENET._replace(train=n) for n in (100_000, 1_000_000))
    assert embed_needs([task(few)]).mem_mb == embed_needs([task(many)]).mem_mb
    grown = measure_needs([task(many)], "last", True).mem_mb
    all_features = 900_000 * 2048 * 4 * 4 / 1e6  # of four objectives
    assert grown - measure_needs([task(few)], "last", True).mem_mb < all_features / 2


def test_cores_that_decode():
    settings = {"precision": "bfloat16", "stem": "imagenet", "objectives": ["dcl", "nscl"]}
    cell = task(IMAGENET, **settings).run.cell
    assert decoding_cpus(cell, CIFAR) == 0
    assert decoding_cpus(cell, IMAGENET, workers=3) == 3
    one, four = (decoding_cpus(cell, IMAGENET, gpus=gpus) for gpus in (1, 4))
    assert 1 <= one < four <= 16
    # Fewer networks are fed faster, so more images are wanted.
    assert decoding_cpus({**cell, "objectives": ["dcl"]}, IMAGENET) > one
    slow, fast = (embedding_cpus([task(IMAGENET, **settings, checkpoints=[])], precision)
                  for precision in ("float32", "training"))  # fmt: skip
    assert 1 <= slow < fast
    assert embedding_cpus([task()], workers=3) == prepare_cpus(CIFAR, 3) == 1
    assert embedding_cpus([task(IMAGENET)], workers=3) == prepare_cpus(IMAGENET, 3) == 3
    assert embedding_cpus([task(IMAGENET, 1, checkpoints=[], architecture="small_resnet")]) > 1


def between(low, value, high):
    assert low <= value <= high, (low, value, high)


def test_the_papers_cell_of_cifar():
    """p2_training_cifar10: ResNet-50, four objectives, 2,400 epochs, 24 checkpoints."""
    cell, experiment = paper("p2_training_cifar10")
    assert cell.images == CIFAR
    settings = experiment.settings_of("theory")
    between(40 * 60, train_needs(cell).runtime, 100 * 60)  # its header says 60 h of an H100
    between(4_000, train_needs(cell).mem_mb, 16_000)
    between(60, embed_needs([cell]).runtime, 240)
    between(4_000, embed_needs([cell]).mem_mb, 12_000)
    between(3 * 3600, cpu_seconds_of_measuring(cell, "last"), 20 * 3600)  # by hand: 11 h
    assert cpu_seconds_of_measuring(cell, "last") > LONG  # so it asks for a GPU of its own
    between(60, measure_needs([cell], "last", on_gpu=True).runtime, 120)
    between(4_000, measure_needs([cell], "last", on_gpu=True).mem_mb, 10_000)
    assert theory_seconds(cell, settings) < SHORT
    between(60, theory_needs([cell], settings).runtime, 120)
    between(60, merge_needs([cell], experiment.settings_of("merge")).runtime, 480)
    between(4_000, prepare_needs(cell.images).mem_mb, 8_000)


def test_the_papers_cell_of_imagenet():
    """p2_classes_imagenet: all classes, ResNet-50, two objectives, 100 epochs, 11 checkpoints."""
    cell, _ = paper("p2_classes_imagenet", IMAGENET)
    assert cell.run.cell["classes"] is None
    between(100 * 60, train_needs(cell).runtime, 200 * 60)  # its header says 125 h of an H100
    between(4_000, train_needs(cell).mem_mb, 16_000)
    between(4, decoding_cpus(cell.run.cell, cell.images), 8)
    between(10 * 60, embed_needs([cell]).runtime, 40 * 60)
    between(3 * 60, embed_needs([cell], "training").runtime, 15 * 60)
    between(4_000, embed_needs([cell]).mem_mb, 12_000)
    between(250 * 3600, cpu_seconds_of_measuring(cell, "last"), 2000 * 3600)
    needs = measure_needs([cell], "last", on_gpu=True)
    between(2 * 60, needs.runtime, 24 * 60)
    between(8_000, needs.mem_mb, 32_000)
    between(60, prepare_needs(cell.images).runtime, 240)


def test_a_cell_of_seconds_is_measured_in_the_job_of_embed():
    experiment = load_experiment(read_config(ROOT / "config/config.yaml"))
    for batch in experiment.batches.values():
        plans = [experiment.plans[cell] for cell in batch]
        tasks = [Task(None, Run(plan.cell, plan.until), KNOWN["digits"]) for plan in plans]
        assert sum(cpu_seconds_of_measuring(cell, "last") for cell in tasks) <= SHORT


def test_images_of_a_prepared_set(tmp_path):
    definition = {"source": "digits", "test_fraction": 0.5, "recipe": "digits"}
    assert images_of_set(definition, tmp_path / "store.json") == KNOWN["digits"]
    prepare.run(
        name="digits", definition={"source": "digits", "test_fraction": 0.5}, store=tmp_path
    )
    found = images_of_set(definition, tmp_path / "store.json")
    assert found.train + found.test == 1797
    assert abs(found.train - found.test) < 20
    cell = resolve_cell({**CELL, "classes": 4, "images_per_class": 7})
    chosen = images_of_cell(cell, definition, tmp_path / "store.json")
    assert (chosen.train, chosen.classes) == (28, 4)
    assert chosen.test == found.test * 4 // 10


def test_images_of_parquet_files(tmp_path):
    definition = {"source": "parquet", "path": str(tmp_path), "size": 224, "encoded": True}
    unknown = images_of_set(definition, tmp_path / "store.json")
    assert unknown.encoded
    for name in ("a.parquet", "b.parquet"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(55_000_000)
    assert images_of_set(definition, tmp_path / "store.json").both == 1000
    shutil.rmtree(tmp_path)
    assert images_of_set(definition, tmp_path / "store.json") == unknown
