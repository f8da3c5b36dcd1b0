"""Time all measures of alignment of four networks, relative to the d×d products that they need.

    python benchmarks/alignment_large.py                 # N = 50,000, d = 2048: 5 minutes
    python benchmarks/alignment_large.py --n 5000

One call computes every measure of every pair. It needs at least XᵀX of each network and XᵀY of each
pair, for raw and for normalized features. The second row of the output is the time of these
products alone, by BLAS and in float64 as in `alignment`, from matrices that already have this type.
Of XᵀX only one triangle is computed (syrk). OMP_NUM_THREADS sets the number of threads.
"""

import argparse
from itertools import combinations

import numpy as np
from alignment import normalize
from measuring import add_json, measured, threads, write_numbers
from scipy.linalg.blas import get_blas_funcs

from cltools.maths.alignment import MEASURES, alignment


def networks(n: int, d: int, count: int) -> dict[str, np.ndarray]:
    """Features after a ReLU, in float32, that share part of their variance."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((n, d), dtype=np.float32)
    features = {}
    for i in range(count):
        x = features[f"network {i}"] = rng.standard_normal((n, d), dtype=np.float32)
        x *= 0.5 + i / 2
        x += shared
        np.maximum(x, 0, out=x)
    return features


def products(arrays: list[np.ndarray]) -> None:
    """The products XᵀX and XᵀY. The sums of their squares are left out, since they are fast."""
    syrk, gemm = get_blas_funcs(("syrk", "gemm"), arrays)
    for x in arrays:
        syrk(1, x.T)
    for x, y in combinations(arrays, 2):
        gemm(1, x.T, y.T, trans_b=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50_000, help="images")
    parser.add_argument("--d", type=int, default=2048, help="features")
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1, help="best of so many, in turns")
    add_json(parser)
    args = parser.parse_args()

    features = networks(args.n, args.d, args.networks)
    alignment({name: x[:100] for name, x in features.items()})  # starts threads
    ours, bare = [], []
    for _ in range(args.repeats):
        ours.append(measured(lambda: alignment(features)))
        arrays = [x.astype(np.float64) for x in features.values()]
        raw = measured(lambda arrays=arrays: products(arrays))
        for x in arrays:
            x[...] = normalize(x)
        cosine = measured(lambda arrays=arrays: products(arrays))
        bare.append((raw.seconds + cosine.seconds, raw.cpu + cosine.cpu))
        del arrays

    size = sum(x.nbytes for x in features.values()) / 1e9
    print(f"N={args.n} d={args.d}, {args.networks} networks of float32 ({size:.2f} GB)")
    print(f"{len(MEASURES)} measures of {len(ours[0].result)} pairs")
    print(f"threads: {threads()}")
    print(f"{'way':22}{'seconds':>10}{'CPU':>10}{'extra GB':>10}")
    seconds, cpu = min(r.seconds for r in ours), min(r.cpu for r in ours)
    memory = max(r.memory for r in ours)
    print(f"{'alignment':22}{seconds:10.2f}{cpu:10.2f}{memory:10.2f}")
    bare_seconds, bare_cpu = (min(times) for times in zip(*bare, strict=True))
    print(f"{'its d×d products alone':22}{bare_seconds:10.2f}{bare_cpu:10.2f}")
    print(f"{'ratio':22}{seconds / bare_seconds:10.2f}{cpu / bare_cpu:10.2f}")
    numbers = {"n": args.n, "d": args.d, "of_products": cpu / bare_cpu, "gigabytes": memory}
    write_numbers(args.json, numbers)
    for (a, b), values in ours[0].result.items():
        print(f"{a}, {b}: ", *(f"{value:9.5f}" for value in values.values()))


if __name__ == "__main__":
    main()
