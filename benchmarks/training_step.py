"""Where the time of a training step goes, for the base cell of a config, on one thread.

python benchmarks/training_step.py [config/config.yaml] [--steps 60]
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import torch

from cltools.engine.data import image_set, open_store
from cltools.engine.trainer import CoupledTrainer
from cltools.experiment import load_experiment, read_config
from cltools.stages.prepare import prepare

PURE = ("forward", "backward", "optimizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", default="config/config.yaml")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()

    experiment = load_experiment(read_config(Path(args.config)))
    cell = next(iter(experiment.plans.values())).cell
    torch.set_num_threads(cell["threads"])
    store = Path("results/stores") / cell["dataset"]
    if not (store / "store.json").exists():
        prepare(cell["dataset"], experiment.stores[cell["dataset"]], store)
    device = torch.device("cpu")
    trainer = CoupledTrainer(
        cell, image_set(open_store(store, cell), cell, "train", device), device
    )
    for _ in range(10):
        trainer.train_step()
    parts: dict[str, float] = defaultdict(float)
    last = began = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal last
        now = time.perf_counter()
        parts[part] += now - last
        last = now

    trainer.lap = lap
    for _ in range(args.steps):
        trainer.train_step()
    total = time.perf_counter() - began
    for part, seconds in parts.items():
        print(f"{part:>10}: {1e3 * seconds / args.steps:7.2f} ms  {seconds / total:6.1%}")
    pure = sum(parts[part] for part in PURE) / total
    print(
        f"{1e3 * total / args.steps:.1f} ms a step of {len(trainer.networks)} objectives, "
        f"B = {cell['batch_size']}, {cell['threads']} thread(s): {pure:.1%} in the models"
    )


if __name__ == "__main__":
    main()
