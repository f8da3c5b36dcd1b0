"""Time the coupled training step relative to a straightforward loop.

The straightforward loop is similar to the code of the papers. It applies torchvision's transforms
to each image on the CPU, once per step for all objectives. It trains the objectives one after the
other, with one forward pass per view, in NCHW layout and float32. For every contrastive loss it
broadcasts cosines to 2B x 2B x d numbers. "ours" is the trainer as the pipeline runs it. Networks,
images, recipe, objectives, optimizer and threads are the same. Each runs in a process of its own.

    python benchmarks/coupled_step.py                                            # ResNet-18, B = 64
    python benchmarks/coupled_step.py --architecture small_resnet --batch 256
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2 as tv
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
WAYS = ("straightforward", "ours", "ours in bfloat16")


def cell(architecture: str, batch: int, threads: int, precision: str = "float32") -> dict:
    return resolve_cell(
        {
            "dataset": "random", "recipe": "cifar", "horizon": "1000 steps", "batch_size": batch,
            "architecture": architecture, "objectives": OBJECTIVES, "optimizer": "sgd",
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
        began = time.perf_counter()
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
        seconds.append(time.perf_counter() - began)
    return seconds


def ours(settings: dict, images: np.ndarray, labels: Tensor, steps: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        split = (images, labels.numpy())
        names = [str(number) for number in range(10)]
        write_store(Path(folder), "random", names, {"train": split, "test": split}, {})
        data = image_set(open_store(Path(folder), settings), settings, "train", CPU)
        trainer = CoupledTrainer(settings, data, CPU)
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            trainer.train_step()
            seconds.append(time.perf_counter() - began)
        trainer.flush()
        return seconds


def measure(way: str, architecture: str, batch: int, steps: int, threads: int) -> None:
    """Print the median seconds of a step, without the first two steps."""
    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4 * batch, 32, 32, 3), np.uint8)
    labels = torch.arange(4 * batch) % 10
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
    chosen = parser.parse_args()
    shared = (chosen.architecture, chosen.batch, chosen.steps, chosen.threads)
    if chosen.way:
        measure(chosen.way, *shared)
        return
    options = [
        part
        for name, value in zip(("architecture", "batch", "steps", "threads"), shared, strict=True)
        for part in (f"--{name}", str(value))
    ]
    print(f"{chosen.architecture}, B = {chosen.batch}, {', '.join(OBJECTIVES)}, {chosen.threads} "
          "thread(s): seconds per step")  # fmt: skip
    seconds = {}
    for way in WAYS:
        command = [sys.executable, __file__, *options, "--way", way]
        seconds[way] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        ratio = seconds[WAYS[0]] / seconds[way]
        print(f"{way:>18}: {seconds[way]:8.3f}   {ratio:5.1f} times as fast", flush=True)


if __name__ == "__main__":
    main()
