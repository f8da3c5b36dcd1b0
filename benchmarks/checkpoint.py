"""Time and memory of `cltools measure` for checkpoints of any size, with made-up features.

    python benchmarks/checkpoint.py                                  # CIFAR: 50,000 + 10,000 images
    python benchmarks/checkpoint.py --train 5000 --test 1000 --d 512
    python benchmarks/checkpoint.py --train 400000 --d 512 --objectives dcl --not-in-full

A tiny cell is trained for one step. Its embeddings are then replaced by made-up ones of the wanted
size, which are written and measured as a cell's are: the first checkpoint without, the second with
the measures that only the last one gets ("in full"). Beside the time stands the least time of the
products XᵀY of all pairs of networks, raw and normalized, by the rate of such a product here.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cltools.config.cells import resolve_cell
from cltools.config.durations import Duration
from cltools.data.embeddings import Samples, new_embeddings, origin
from cltools.layout import PLAIN, CellFolder
from cltools.stages import prepare, train
from cltools.training.manifests import read_manifest, saved_weights

CLASSES = 10
BLOCK = 2048  # images that are made up at a time


def trained(folder: Path, dimensions: int, objectives: list[str]) -> Path:
    """The manifest of a cell with checkpoints before and after its only step."""
    prepare.run(name="digits", definition={"source": "digits"}, store=folder / "store")
    cell = resolve_cell({
        "dataset": "digits", "recipe": "digits", "horizon": "1 steps", "checkpoints": ["0 steps"],
        "images_per_class": 20, "batch_size": 20, "projector_dim": dimensions, "warmup": 0,
        "objectives": objectives,
    })  # fmt: skip
    manifest = folder / "cell/trained-1steps.json"
    train.run(
        cell=cell, store=folder / "store", run=folder / "cell/run", manifest=manifest,
        until=Duration.parse("1 steps"), device="cpu",
    )  # fmt: skip
    return manifest


def made_up(path: Path, about: dict, objectives: list[str], counts: tuple[int, int], d: int,
            dimensions: int) -> None:  # fmt: skip
    """Embeddings in classes: after a ReLU, with a part that all networks share."""
    random = np.random.default_rng(0)
    labels = {s: np.arange(n) % CLASSES for s, n in zip(("train", "test"), counts, strict=True)}
    ids = {split: np.arange(len(y)) for split, y in labels.items()}
    centers = random.standard_normal((CLASSES, d + dimensions), dtype=np.float32)
    widths = {"feature": d, "dimension": dimensions, "view": 2}
    y = np.concatenate(list(labels.values()))
    with new_embeddings(path, objectives, Samples(labels, ids), widths, about) as file:
        for first in range(0, len(y), BLOCK):
            own = y[first : first + BLOCK]
            shape = len(objectives), len(own), d + dimensions
            x = random.standard_normal(shape[1:], dtype=np.float32) + centers[own]
            x = x + random.standard_normal(shape, dtype=np.float32)
            h, z = np.maximum(x[..., :d], 0), x[..., None, d:]
            views = z + 0.3 * random.standard_normal((*shape[:2], 2, dimensions), dtype=np.float32)
            z, views = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (z, views))
            file.write(first, h=h, z=z[:, :, 0], z_views=np.moveaxis(views, 2, 1))


def floor(counts: tuple[int, int], d: int, networks: int) -> float:
    """Seconds of the products of all pairs and own starts, raw and normalized."""
    x = torch.randn(4096, d, dtype=torch.float64)
    x.T @ x
    began = time.perf_counter()
    x.T @ x
    rate = (time.perf_counter() - began) / len(x)
    products = networks * (networks - 1) / 2 + networks / 2 + networks + 0.5
    return 2 * products * rate * sum(counts)


def measure(manifest: Path, threads: int, full: bool) -> tuple[list[float], float, float]:
    """Seconds of each checkpoint, CPU seconds of all, and GB at the peak, of `cltools measure`.

    Without `full`, it is stopped after the first checkpoint.
    """
    command = ["measure", manifest, "--done", manifest.parent / "done.json"]
    command += ["--threads", threads, "--device", "cpu"]
    began, ends = time.perf_counter(), []
    process = subprocess.Popen([sys.executable, "-m", "cltools.cli", *map(str, command)])
    while process.poll() is None:
        steps = list(manifest.parent.glob("measures/*-steps/step-*.parquet"))
        if len(steps) > len(ends) < 1:
            ends.append(time.perf_counter() - began)
            if not full:
                process.terminate()
        time.sleep(0.05)
    if process.returncode and (full or not ends):
        sys.exit(process.returncode)
    if full:
        ends.append(time.perf_counter() - began - ends[0])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    memory = used.ru_maxrss * 1024 / 1e9
    return ends, used.ru_utime + used.ru_stime, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=50_000, help="images")
    parser.add_argument("--test", type=int, default=10_000, help="images")
    parser.add_argument("--d", type=int, default=2048, help="features")
    parser.add_argument("--dimensions", type=int, default=128, help="of z")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--objectives", nargs="+", default=["dcl", "nscl", "scl", "ce"])
    parser.add_argument("--not-in-full", action="store_true", help="only the first checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    counts = args.train, args.test

    with tempfile.TemporaryDirectory() as name:
        manifest_path = trained(Path(name), args.dimensions, args.objectives)
        manifest, home = read_manifest(manifest_path), CellFolder.of(manifest_path)
        for step, hashes in saved_weights(manifest):
            path = home.embeddings(PLAIN).file(step)
            about = origin(manifest, step, hashes, PLAIN)
            made_up(path, about, list(hashes), counts, args.d, args.dimensions)
        size = path.stat().st_size / 1e9
        seconds, cpu, memory = measure(manifest_path, args.threads, not args.not_in_full)
    least = floor(counts, args.d, len(hashes))
    print(f"{args.train:,} + {args.test:,} images, d = {args.d}, {len(hashes)} networks, "
          f"{args.threads} threads; a file has {size:.2f} GB")  # fmt: skip
    print(json.dumps({
        "seconds": round(seconds[0], 1),
        "seconds_in_full": None if args.not_in_full else round(seconds[1], 1),
        "cpu_seconds": round(cpu, 1), "least_seconds": round(least, 1), "peak_gb": round(memory, 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
