"""Time of `cltools layers` as a ratio to that of `cltools embed`, for networks of any depth.

    python benchmarks/layers.py                                        # ResNet-50: 17 blocks
    python benchmarks/layers.py --architecture small_resnet --images 5000

A cell with made-up images is trained for one step. Then both commands run on its two checkpoints.
Both take a time proportional to the number of images, so that a few hundred tell the ratio; what
both take before and after them (imports, one norm of each pair of layers) counts as well here.
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
from PIL import Image

from cltools.config.cells import resolve_cell
from cltools.config.durations import Duration
from cltools.stages import prepare, train

CLASSES = 2


def images(folder: Path, each: int, side: int) -> Path:
    """Two splits with `each` images of noise per class, as PNG files."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in range(CLASSES):
            place = folder / split / f"class{name}"
            place.mkdir(parents=True)
            for number in range(each if split == "train" else 20):
                pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def timed(command: str, manifest: Path, store: Path, *more: object) -> dict[str, float]:
    """Seconds, CPU seconds, and GB at the peak of all commands so far."""
    line = [sys.executable, "-m", "cltools.cli", command, manifest, "--store", store, *more]
    line += ["--done", manifest.parent / f"{command}.json", "--device", "cpu"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(part) for part in line], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(after.ru_utime - before.ru_utime, 1),
        "peak_gb": round(after.ru_maxrss * 1024 / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--images", type=int, default=600, help="training images")
    parser.add_argument("--side", type=int, default=32, help="pixels")
    parser.add_argument("--objectives", nargs="+", default=["dcl", "nscl"])
    parser.add_argument("--at", default="all", choices=("all", "last"), help="checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        definition = {
            "source": "folder", "path": str(images(folder / "images", args.images // 2, args.side)),
            "size": args.side,
        }  # fmt: skip
        store = folder / "noise"
        prepare.run(name="noise", definition=definition, store=store)
        cell = resolve_cell({
            "dataset": "noise", "recipe": "cifar", "horizon": "1 steps", "checkpoints": ["0 steps"],
            "batch_size": 20, "warmup": 0, "architecture": args.architecture,
            "objectives": args.objectives,
        })  # fmt: skip
        manifest = folder / "cell/trained-1steps.json"
        train.run(
            cell=cell, store=store, run=folder / "cell/run", manifest=manifest,
            until=Duration.parse("1 steps"), device="cpu",
        )  # fmt: skip
        threads = "--threads", args.threads
        embed = timed("embed", manifest, store, *threads)
        settings = json.dumps({"sweeps": [], "at": args.at, "split": "train"})
        layers = timed("layers", manifest, store, *threads, "--settings", settings)
    ratio = layers["cpu_seconds"] / embed["cpu_seconds"]
    print(json.dumps({"embed": embed, "layers": layers, "ratio": round(ratio, 2)}, indent=2))


if __name__ == "__main__":
    main()
