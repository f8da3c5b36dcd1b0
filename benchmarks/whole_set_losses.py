"""Time both losses of a whole data set at two τ, relative to the products and exponentials alone.

    python benchmarks/whole_set_losses.py                      # N = 20,000: half a minute
    python benchmarks/whole_set_losses.py --images 50000       # 2 minutes

"bare" computes one matrix product over all ordered pairs of the KN embeddings, and one exponential
per pair and τ. It does not divide by τ, and has no masks and no sums. It works in tiles that stay
in the cache, with the best of four sizes and the faster of torch's e^x and 2^x. `whole_set_losses`
computes each pair once only, and everything that the losses need.
"""

import argparse
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from measuring import measured
from torch import Tensor

from cltools.maths.whole_set import whole_set_losses

TAUS = (0.5, 1.0)


def bare(z: Tensor, tile: int, power: Callable[..., Tensor]) -> None:
    similarities, terms = z.new_empty(tile, tile), z.new_empty(tile, tile)
    for rows in z.split(tile):
        for columns in z.split(tile):
            shape = len(rows), len(columns)
            sim, exp = (buffer.view(-1)[: shape[0] * shape[1]].view(shape)
                        for buffer in (similarities, terms))  # fmt: skip
            torch.mm(rows, columns.T, out=sim)
            for _ in TAUS:
                power(sim, out=exp)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=1, help="best of so many, in turns")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(args.classes, (args.images,), generator=draw)
    centres = torch.randn(args.classes, args.dim, generator=draw)
    image = centres[labels] + torch.randn(args.images, args.dim, generator=draw)
    z = torch.randn(args.views, args.images, args.dim, generator=draw).add_(image)
    z = F.normalize(z, dim=2)
    flat = z.flatten(0, 1)

    few = flat[:8192]
    bare(few[:1024], 512, torch.exp)
    tile, power = min(
        product((256, 512, 1024, 2048), (torch.exp, torch.exp2)),
        key=lambda way: min(measured(lambda: bare(few, *way)).cpu for _ in range(2)),
    )
    whole_set_losses(z[:, :100], labels[:100], TAUS)
    ours, ordered = [], []
    for _ in range(args.repeats):
        ours.append(measured(lambda: whole_set_losses(z, labels, TAUS)))
        ordered.append(measured(lambda: bare(flat, tile, power)))

    print(f"N={args.images} K={args.views} d={args.dim} {len(TAUS)} τ, float32, "
          f"{args.threads} thread(s); bare: tile {tile}, {power.__name__}")  # fmt: skip
    print(f"{'way':22}{'seconds':>10}{'CPU':>10}{'extra GB':>10}")
    best = []
    for name, way in {"whole_set_losses": ours, "bare, ordered pairs": ordered}.items():
        seconds, cpu = min(r.seconds for r in way), min(r.cpu for r in way)
        best.append((seconds, cpu))
        print(f"{name:22}{seconds:10.2f}{cpu:10.2f}{max(r.memory for r in way):10.2f}")
    print(f"{'ratio':22}" + "".join(f"{a / b:10.2f}" for a, b in zip(*best, strict=True)))
    for tau, (dcl, nscl) in ours[0].result.items():
        print(f"τ = {tau}: DCL {dcl:.6f}, NSCL {nscl:.6f}")


if __name__ == "__main__":
    main()
