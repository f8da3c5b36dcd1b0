"""Time measures of class collapse at the size of ImageNet's validation set, and the authors' code.

    python benchmarks/collapse.py                    # N = 50,000, C = 1000, d = 512 and 2048

For CDNV and directional CDNV, the authors loop over pairs of classes in Python. Some hundred pairs
are timed, and the time of all pairs is estimated from them.
"""

import argparse
import time
from collections import defaultdict
from itertools import islice, permutations

import numpy as np
import torch
from measuring import Run, measured, threads

from cltools.maths.collapse import (
    ClassStatistics,
    cdnv,
    class_statistics,
    directional_cdnv,
    etf_deviation,
    nc1,
    nc1_quotient,
    nc2_equiangularity,
    nc2_equinorm,
    within_class_spread,
)

MEASURES = (
    cdnv,
    directional_cdnv,
    nc1,
    nc1_quotient,
    nc2_equinorm,
    nc2_equiangularity,
    etf_deviation,
    within_class_spread,
)


def clusters(n: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features after a ReLU, in float32, whose classes overlap."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % classes)
    x = rng.standard_normal((classes, d), dtype=np.float32)[labels] / 2
    x += rng.standard_normal((n, d), dtype=np.float32)
    return np.maximum(x, 0, out=x), labels


def authors(
    features: np.ndarray, labels: np.ndarray, pairs: list[tuple[int, int]]
) -> tuple[float, float, float]:
    """As in eval_utils/geometry.py of understanding-ssl-v2: float32, torch, on the CPU.

    Returns:
        CDNV and directional CDNV, averaged over `pairs`, and estimated seconds for all pairs.
    """
    start = time.process_time()
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    classes = int(y.max()) + 1
    members = [x[(y == c).nonzero(as_tuple=True)[0]] for c in range(classes)]
    means = [m.mean(dim=0) for m in members]
    moments = [(m**2).mean(dim=0) for m in members]
    prepared = time.process_time()

    undirected = torch.zeros(())
    for i, j in pairs:
        distance = torch.norm(means[i] - means[j]) ** 2
        variance_i = (moments[i] - means[i] ** 2).sum()
        variance_j = (moments[j] - means[j] ** 2).sum()
        undirected += 0.5 * (variance_i + variance_j) / distance
    halfway = time.process_time()

    directed = torch.zeros(())
    for i, j in pairs:
        line = means[j] - means[i]
        length = torch.norm(line)
        projections = (members[i] - means[i]) @ (line / length)
        directed += torch.mean(projections**2) / length**2
    end = time.process_time()

    # CDNV is the same for (i, j) and (j, i), and computed once.
    per_pair = ((halfway - prepared) / 2 + end - halfway) / len(pairs)
    seconds = prepared - start + per_pair * classes * (classes - 1)
    return float(undirected) / len(pairs), float(directed) / len(pairs), seconds


def of_pairs(s: ClassStatistics, pairs: list[tuple[int, int]]) -> tuple[float, float]:
    """CDNV and directional CDNV, averaged over `pairs`, from the statistics of cltools."""
    i, j = np.transpose(pairs)
    undirected = (s.variances[i] + s.variances[j]) / 2 / s.distances[i, j]
    return float(undirected.mean()), float((s.along[i, j] / s.distances[i, j] ** 2).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50_000, help="images")
    parser.add_argument("--d", type=int, nargs="+", default=[512, 2048], help="features")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=500, help="pairs for the authors' code")
    parser.add_argument("--repeats", type=int, default=3, help="best of; authors' code: 1")
    args = parser.parse_args()
    torch.set_num_threads(1)

    # The order of the authors' loop. In it, the features of a class stay in the cache.
    pairs = list(islice(permutations(range(args.classes), 2), args.pairs))
    print(f"N={args.n} C={args.classes} float32, threads: {threads()}")
    for d in args.d:
        x, y = clusters(args.n, d, args.classes)
        authors(x, y, pairs[:10])
        runs: dict[str, list[Run]] = defaultdict(list)
        for _ in range(args.repeats):
            runs["class_statistics"].append(measured(lambda x=x, y=y: class_statistics(x, y)))
            s = runs["class_statistics"][-1].result
            for measure in MEASURES:
                runs[measure.__name__].append(measured(lambda f=measure, s=s: f(s)))

        print(f"\n{f'd={d}':25}{'seconds':>10}{'CPU':>10}{'extra GB':>10}")
        total = 0.0
        for name, way in runs.items():
            seconds, cpu = min(r.seconds for r in way), min(r.cpu for r in way)
            total += cpu
            print(f"{name:25}{seconds:10.3f}{cpu:10.3f}{max(r.memory for r in way):10.3f}", end="")
            values = np.atleast_1d(way[0].result) if name != "class_statistics" else ()
            print(*(f"{value:12.5f}" for value in values))
        *theirs, seconds = authors(x, y, pairs)
        print(f"{'total':25}{'':10}{total:10.3f}")
        print(f"{'authors, two CDNVs only':25}{'':10}{seconds:10.3f}{'':10}"
              f"  from {len(pairs)} pairs; {seconds / total:.1f} times as long")  # fmt: skip
        ours = of_pairs(s, pairs)
        gap = max(abs(a - b) / b for a, b in zip(theirs, ours, strict=True))
        print(f"largest relative difference of the two results on these pairs: {gap:.1e}")


if __name__ == "__main__":
    main()
