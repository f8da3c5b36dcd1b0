"""Time DCL and NSCL, forward and backward, relative to a broadcast cosine similarity.

The simplest code, which is also that of the authors, broadcasts the 2B projections against each
other for `nn.CosineSimilarity`: a tensor of 2B x 2B x d numbers. cltools uses one matrix product.
Each method runs in a process of its own, which reports its time and how much its memory grows.

    python benchmarks/contrastive_loss.py            # B = 1024, d = 128: minutes, 18 GB
    python benchmarks/contrastive_loss.py --batch 256
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cltools.maths.objectives import contrastive_loss, pair_masks, similarity_logits

TAU = 0.5


def ours(z: Tensor, labels: Tensor) -> Tensor:
    logits, masks = similarity_logits(z, TAU), pair_masks(labels, 2)
    return contrastive_loss("dcl", logits, masks) + contrastive_loss("nscl", logits, masks)


def broadcast(z: Tensor, labels: Tensor) -> Tensor:
    """The same two losses. Each computes its own similarities, as in the authors' code."""
    flat, masks, count = z.flatten(0, 1), pair_masks(labels, 2), 2 * len(labels)
    partner = (torch.arange(count) + len(labels)) % count
    total = torch.zeros(())
    for negatives in (masks.other_image, masks.other_class):
        cosine = nn.CosineSimilarity(dim=2)(flat[:, None], flat[None]) / TAU
        positive = cosine[torch.arange(count), partner]
        denominator = cosine.masked_fill(~negatives, -torch.inf).logsumexp(dim=1)
        total = total + (denominator - positive).mean()
    return total


def measure(way: str, batch: int, dim: int, repeats: int) -> None:
    """Print seconds of a forward and backward pass (best of `repeats`), peak MB, loss, gradient."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, batch, dim, generator=draw).requires_grad_()
    labels = torch.randint(10, (batch,), generator=draw)
    loss = {"ours": ours, "broadcast": broadcast}[way]
    loss(F.normalize(x[:, :8], dim=2), torch.arange(8) % 2).backward()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        x.grad = None
        value = loss(F.normalize(x, dim=2), labels)
        value.backward()
        seconds.append(time.perf_counter() - began)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
    print(min(seconds), peak, float(value), float(x.grad.norm()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=["ours", "broadcast"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.way:
        measure(args.way, args.batch, args.dim, repeats=5 if args.way == "ours" else 1)
        return
    results = {}
    for way in ("ours", "broadcast"):
        command = [sys.executable, __file__, "--way", way, "--batch", str(args.batch)]
        command += ["--dim", str(args.dim), "--threads", str(args.threads)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[way] = [float(word) for word in output.split()]
        seconds, peak, value, gradient = results[way]
        print(f"{way:>10}: {seconds:8.3f} s  {peak:8.0f} MB  loss {value:.5f}  grad {gradient:.6f}")
    time_ratio, memory_ratio = (
        b / a for a, b in zip(*(r[:2] for r in results.values()), strict=True)
    )
    print(f"B = {args.batch}, d = {args.dim}, float32, {args.threads} thread(s): "
          f"{time_ratio:.0f} times faster, {memory_ratio:.0f} times less memory")  # fmt: skip


if __name__ == "__main__":
    main()
