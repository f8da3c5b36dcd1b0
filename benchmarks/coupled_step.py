"""Time the coupled training step relative to a straightforward loop.

The straightforward loop is similar to the code of the papers. It applies torchvision's transforms
to each image on the CPU, once per step for all objectives. It trains the objectives one after the
other, with one forward pass per view, in NCHW layout and float32. For every contrastive loss it
broadcasts cosines to 2B x 2B x d numbers. "ours" is the trainer as the pipeline runs it. Networks,
images, recipe, objectives, optimizer and threads are the same. Each runs in a process of its own.
Seconds are those of the CPU, so that other programs on the machine do not change the ratios.

With `--parts`, the coupled step of eight objectives is compared with the sum of the steps of cells
that train one of them each. All step in turn in one process. The ratio is below 1: views are made
once.

    python benchmarks/coupled_step.py                                            # ResNet-18, B = 64
    python benchmarks/coupled_step.py --architecture small_resnet --batch 256
    python benchmarks/coupled_step.py --architecture small_resnet --parts
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2 as tv
from measuring import add_json, write_numbers
from torch import Tensor, nn

from cltools.config.cells import resolve_cell
from cltools.data.image_set import image_set, open_store
from cltools.data.store import write_store
from cltools.maths.objectives import cross_entropy, pair_masks
from cltools.maths.randomness import initialize
from cltools.training.networks import build_network
from cltools.training.optimizers import build_optimizer
from cltools.training.trainer import CoupledTrainer

CPU = torch.device("cpu")
OBJECTIVES = ["dcl", "nscl", "scl", "ce"]
EIGHT = ["dcl", "nscl", "scl", "ce", "vicreg", "barlow_twins", "byol", "simsiam"]
WAYS = ("straightforward", "ours", "ours in bfloat16")


def cell(
    architecture: str,
    batch: int,
    threads: int,
    precision: str = "float32",
    objectives: Sequence[str] = OBJECTIVES,
) -> dict:
    return resolve_cell(
        {
            "dataset": "random", "recipe": "cifar", "horizon": "1000 steps", "batch_size": batch,
            "architecture": architecture, "objectives": list(objectives), "optimizer": "sgd",
            "threads": threads, "precision": precision,
        }
    )  # fmt: skip


def transforms(recipe: dict) -> tv.Compose:
    jitter = tv.ColorJitter(
        recipe["brightness"], recipe["contrast"], recipe["saturation"], recipe["hue"]
    )
    return tv.Compose(
        [
            tv.ToPILImage(),
            tv.RandomResizedCrop(32, recipe["crop_scale"], recipe["crop_ratio"]),
            tv.RandomHorizontalFlip(recipe["flip_probability"]),
            tv.RandomApply([jitter], recipe["jitter_probability"]),
            tv.RandomGrayscale(recipe["grayscale_probability"]),
            tv.PILToTensor(),
            tv.ToDtype(torch.float32, scale=True),
            tv.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )


def broadcast_loss(objective: str, z: Tensor, labels: Tensor, tau: float) -> Tensor:
    """DCL, NSCL or SCL of both views' projections (2B, d), from a (2B, 2B, d) product."""
    masks, count = pair_masks(labels, 2), len(z)
    cosine = nn.CosineSimilarity(dim=2)(z[:, None], z[None]) / tau
    if objective == "scl":
        denominator = cosine.masked_fill(~masks.not_self, -torch.inf).logsumexp(dim=1)
        return (
            denominator - (cosine * masks.same_class).sum(dim=1) / masks.same_class.sum(dim=1)
        ).mean()
    negatives = masks.other_image if objective == "dcl" else masks.other_class
    partner = (torch.arange(count) + count // 2) % count
    denominator = cosine.masked_fill(~negatives, -torch.inf).logsumexp(dim=1)
    return (denominator - cosine[torch.arange(count), partner]).mean()


def straightforward(settings: dict, images: np.ndarray, labels: Tensor, steps: int) -> list[float]:
    networks = {o: build_network(settings, images.shape[1:], 10, o) for o in OBJECTIVES}
    for network in networks.values():
        initialize(network, 0)
    optimizers = {o: build_optimizer(settings, n) for o, n in networks.items()}
    view, size, order = transforms(settings["recipe"]), settings["batch_size"], torch.Generator()
    seconds = []
    for _ in range(steps):
        began = time.process_time()
        chosen = torch.randperm(len(labels), generator=order)[:size]
        views = [torch.stack([view(images[i]) for i in chosen]) for _ in range(2)]
        y = labels[chosen]
        for objective, network in networks.items():
            optimizers[objective].zero_grad()
            z = [network(one)[1] for one in views]
            if objective == "ce":
                loss = cross_entropy(network.class_logits(torch.stack(z)), y)
            else:
                loss = broadcast_loss(objective, torch.cat(z), y, settings["tau"])
            loss.backward()
            optimizers[objective].step()
        seconds.append(time.process_time() - began)
    return seconds


@contextmanager
def trainers(
    cells: Sequence[dict], images: np.ndarray, labels: Tensor
) -> Iterator[list[CoupledTrainer]]:
    """A trainer for each cell, all of the same images."""
    with tempfile.TemporaryDirectory() as folder:
        split = (images, labels.numpy())
        names = [str(number) for number in range(10)]
        write_store(Path(folder), "random", names, {"train": split, "test": split}, {})
        store = open_store(Path(folder), cells[0])
        yield [CoupledTrainer(c, image_set(store, c, "train", CPU), CPU) for c in cells]


def ours(settings: dict, images: np.ndarray, labels: Tensor, steps: int) -> list[float]:
    with trainers([settings], images, labels) as (trainer,):
        seconds = []
        for _ in range(steps):
            began = time.process_time()
            trainer.train_step()
            seconds.append(time.process_time() - began)
        trainer.flush()
        return seconds


def made_up(batch: int) -> tuple[np.ndarray, Tensor]:
    """Random images and labels of ten classes."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (4 * batch, 32, 32, 3), np.uint8), torch.arange(4 * batch) % 10


def compare_parts(architecture: str, batch: int, steps: int, threads: int) -> None:
    """Print the CPU seconds of a step of eight objectives, and of a step of each alone."""
    torch.set_num_threads(threads)
    lists = [EIGHT, *([objective] for objective in EIGHT)]
    # These losses of random images grow with the usual learning rate, which takes no less time.
    cells = [{**cell(architecture, batch, threads, objectives=o), "lr": 1e-3} for o in lists]
    seconds: list[list[float]] = [[] for _ in cells]
    with trainers(cells, *made_up(batch)) as all_of_them:
        for _ in range(steps + 2):
            for taken, trainer in zip(seconds, all_of_them, strict=True):
                began = time.process_time()
                trainer.train_step()
                taken.append(time.process_time() - began)
    together, *alone = (float(np.median(taken[2:])) for taken in seconds)
    print(f"{architecture}, B = {batch}, {threads} thread(s): CPU seconds per step")
    for objective, taken in zip(EIGHT, alone, strict=True):
        print(f"{objective:>18}: {taken:8.3f}")
    print(f"{'sum of the parts':>18}: {sum(alone):8.3f}")
    print(f"{'coupled':>18}: {together:8.3f}   {together / sum(alone):5.2f} of the sum")


def measure(way: str, architecture: str, batch: int, steps: int, threads: int) -> None:
    """Print the median CPU seconds of a step, without the first two steps."""
    torch.set_num_threads(threads)
    images, labels = made_up(batch)
    precision = "bfloat16" if way.endswith("bfloat16") else "float32"
    settings = cell(architecture, batch, threads, precision)
    step = straightforward if way == "straightforward" else ours
    print(np.median(step(settings, images, labels, steps + 2)[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--parts", action="store_true", help="one cell of eight, and eight of one")
    add_json(parser)
    chosen = parser.parse_args()
    shared = (chosen.architecture, chosen.batch, chosen.steps, chosen.threads)
    if chosen.parts:
        compare_parts(*shared)
        return
    if chosen.way:
        measure(chosen.way, *shared)
        return
    options = [
        part
        for name, value in zip(("architecture", "batch", "steps", "threads"), shared, strict=True)
        for part in (f"--{name}", str(value))
    ]
    print(f"{chosen.architecture}, B = {chosen.batch}, {', '.join(OBJECTIVES)}, {chosen.threads} "
          "thread(s): CPU seconds per step")  # fmt: skip
    seconds = {}
    for way in WAYS:
        command = [sys.executable, __file__, *options, "--way", way]
        seconds[way] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        ratio = seconds[WAYS[0]] / seconds[way]
        print(f"{way:>18}: {seconds[way]:8.3f}   {ratio:5.1f} times as fast", flush=True)
    ratios = {way.replace(" ", "_"): seconds[WAYS[0]] / seconds[way] for way in WAYS[1:]}
    write_numbers(chosen.json, {"times_as_fast": ratios})


if __name__ == "__main__":
    main()
