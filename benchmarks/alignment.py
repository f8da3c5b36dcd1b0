"""Time CKA and RSA of two representations: from d×d moments, from N×N matrices, as the authors do.

    python benchmarks/alignment.py                       # N = 10,000, d = 2048, float64
    python benchmarks/alignment.py --dtype float32       # N×N ways in float32

All methods compute biased cosine CKA and Pearson RSA of the same features, in one process and in
turns. Counting matrix products only, N×N matrices take N / 2d = 2.4 times as long as moments if
their symmetry is used, as numpy does, and 4.9 times if not. OMP_NUM_THREADS sets the number of
threads.
"""

import argparse
import math
from collections import defaultdict

import numpy as np
from measuring import Run, add_json, measured, threads, write_numbers
from scipy import stats

from cltools.maths.alignment import alignment


def moments(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The method of cltools, in float64 whatever the features are."""
    measures = [("cka", "cosine_biased"), ("rsa", "pearson_cosine")]
    values = alignment({"x": x, "y": y}, measures=measures)["x", "y"]
    return tuple(values[measure] for measure in measures)


def lean(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Two N×N matrices from symmetric products, all else in place and by calls on whole arrays."""
    n = len(x)
    k, l = (unit @ unit.T for unit in map(normalize, (x, y)))  # noqa: E741

    # Pearson over the off-diagonal entries: center by their mean, leave the diagonal at zero.
    for similarity in (k, l):
        similarity -= (similarity.sum(dtype=np.float64) - np.trace(similarity)) / (n * (n - 1))
    diagonals = np.diagonal(k).copy(), np.diagonal(l).copy()
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    rsa = np.vdot(k, l) / math.sqrt(np.vdot(k, k)) / math.sqrt(np.vdot(l, l))

    for similarity, diagonal in zip((k, l), diagonals, strict=True):
        np.fill_diagonal(similarity, diagonal)
        means = similarity.mean(axis=0)  # rows and columns have the same means
        similarity -= means
        similarity -= means[:, None] - means.mean()
    return np.vdot(k, l) / math.sqrt(np.vdot(k, k)) / math.sqrt(np.vdot(l, l)), rsa


def lean_torch(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The same in torch, which does not use the symmetry; most people would write it this way."""
    import torch

    n = len(x)
    grams = []
    for a in (x, y):
        unit = torch.nn.functional.normalize(torch.from_numpy(a), dim=1)
        grams.append(unit @ unit.T)
    for gram in grams:
        gram -= (gram.sum(dtype=torch.float64) - gram.trace()) / (n * (n - 1))
    diagonals = [gram.diagonal().clone() for gram in grams]
    for gram in grams:
        gram.fill_diagonal_(0)
    rsa = _cosine(*(gram.view(-1) for gram in grams))
    for gram, diagonal in zip(grams, diagonals, strict=True):
        gram.diagonal().copy_(diagonal)
        means = gram.mean(dim=0)
        gram -= means
        gram -= means[:, None] - means.mean()
    return _cosine(*(gram.view(-1) for gram in grams)), rsa


def _cosine(a, b) -> float:
    return float(a @ b / (a @ a).sqrt() / (b @ b).sqrt())


def authors(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """As in eval_utils/similarity_metrics.py of understanding-ssl-v2: float32, torch, on the CPU.

    Matrices of distances are made in chunks of rows. RSA is scipy's Pearson correlation of the
    lower triangles, taken with int64 indices. CKA is computed from traces of full N×N products.
    """
    import torch

    n = len(x)
    units = [torch.nn.functional.normalize(torch.from_numpy(a).float(), dim=1) for a in (x, y)]

    triangles = []
    for unit in units:
        rdm = torch.zeros(n, n)
        for i in range(0, n, 1024):
            rdm[i : i + 1024] = 1 - unit[i : i + 1024] @ unit.T
        rdm.fill_diagonal_(0).nan_to_num_(nan=0.0).clamp_(min=0)
        lower = torch.tril_indices(n, n, offset=-1)
        triangles.append(rdm[lower[0], lower[1]].numpy())
    rsa = stats.pearsonr(*triangles).statistic

    def centred(gram: torch.Tensor) -> torch.Tensor:
        return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()

    k, l = (centred(unit @ unit.T) for unit in units)  # noqa: E741
    cka = torch.trace(k @ l) / torch.sqrt(torch.trace(k @ k) * torch.trace(l @ l))
    return cka.item(), float(rsa)


def normalize(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="images")
    parser.add_argument("--d", type=int, default=2048, help="features")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--skip-authors", action="store_true")
    parser.add_argument(
        "--repeats", type=int, default=3, help="best of so many; the authors' code runs once"
    )
    add_json(parser)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    shared = rng.standard_normal((args.n, args.d))
    x, y = (
        np.maximum(shared + rng.standard_normal((args.n, args.d)), 0).astype(args.dtype)
        for _ in range(2)
    )
    del shared
    # The first call of each library starts its threads.
    moments(x[:100], y[:100])
    lean(x[:100], y[:100])
    lean_torch(x[:100], y[:100])

    ways = {  # all but the first with N×N matrices
        "moments": (moments, args.repeats),
        "numpy": (lean, args.repeats),
        "torch": (lean_torch, args.repeats),
    }
    if not args.skip_authors:
        authors(x[:100], y[:100])
        ways["authors"] = (authors, 1)

    # In turns, so that other load on the machine affects all methods.
    runs: dict[str, list[Run]] = defaultdict(list)
    for turn in range(args.repeats):
        for name, (way, repeats) in ways.items():
            if turn < repeats:
                runs[name].append(measured(lambda way=way: way(x, y)))

    print(f"N={args.n} d={args.d} {args.dtype}, cltools float64, authors float32")
    print(f"threads: {threads()}")
    print(f"{'way':18}{'seconds':>9}{'ratio':>7}{'CPU':>9}{'ratio':>7}{'extra GB':>10}"
          f"{'CKA':>12}{'RSA':>12}")  # fmt: skip
    ours, times = None, {}
    for name, way in runs.items():
        seconds, cpu = min(r.seconds for r in way), min(r.cpu for r in way)
        ours = ours or (seconds, cpu)
        times[name] = cpu / ours[1]
        cka, rsa = way[0].result
        print(f"{name:18}{seconds:9.2f}{seconds / ours[0]:7.2f}{cpu:9.2f}{cpu / ours[1]:7.2f}"
              f"{max(r.memory for r in way):10.2f}{cka:12.8f}{rsa:12.8f}")  # fmt: skip
    write_numbers(args.json, {"n": args.n, "d": args.d, "times_as_long": times})


if __name__ == "__main__":
    main()
