"""Accuracy of simple classifiers on features."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import numpy as np
import torch

from cltools.maths.blocks import CPU
from cltools.maths.few_shot import FewShot, few_shot_one_split, few_shots, knn
from cltools.maths.intervals import accuracy_interval
from cltools.maths.probes import linear_probes, nccc
from cltools.measurements.table import Row, Sources, rows_of

SHOTS = (1, 5, 10, 20, 50, 100, 500)
Probe = Literal["nccc", "linear"]
# Few draws for the linear probe, which is fitted anew at each draw. The papers use five.
REPEATS: dict[Probe, int] = {"nccc": 20, "linear": 5}
METRICS: dict[Probe, str] = {"nccc": "few_shot_nccc", "linear": "few_shot_linear_probe"}
ONE_SPLIT = "few_shot_nccc_one_split"  # labeled images are test images, too
WAYS = {"all_way": None, "two_way": 2}
NEIGHBOURS = 20
Sets = tuple[Sources, np.ndarray, Sources, np.ndarray]  # train x, y, test x, y


def downstream_rows(
    train: Sources,
    y: np.ndarray,
    test: Sources,
    test_y: np.ndarray,
    full: bool,
    features: str = "h",
    device: torch.device = CPU,
) -> Iterator[Row]:
    """Accuracies in [0, 1]: nearest class center; with `full` also the slower ones.

    Intervals (90 %) are over test images, for this one classifier. Few-shot accuracies vary more
    with the draw of the support set, so their limits are the 5 and 95 % quantiles of the draws.

    train, test: objective -> features (n, d), which are read in blocks. The probes of small
    features are fitted side by side.
    """
    sets = train, y, test, test_y
    probes = linear_probes(*sets, device=device) if full else {}
    of_shots = dict(_few_shot(sets, device)) if full else {}
    for objective, x in train.items():
        own = x, y, test[objective], test_y
        on_train, on_test = {}, {}
        on_train["nccc", "accuracy"], on_test["nccc", "accuracy"] = nccc(*own, device)
        if full:
            probe = probes[objective]
            on_train["linear_probe", "accuracy"] = probe.train
            on_test["linear_probe", "accuracy"] = probe.test
            on_test["knn", f"k_{NEIGHBOURS}"] = knn(*own, NEIGHBOURS, device)
        about = {"objective": objective, "features": features}
        for split, values, n in (("train", on_train, len(y)), ("test", on_test, len(test_y))):
            for row in rows_of(values, split=split, n=n, **about):
                yield row | dict(
                    zip(("ci_low", "ci_high"), accuracy_interval(row["value"], n), strict=True)
                )
        for metric, found in of_shots.items():
            for row in _rows_of_shots(metric, found[objective]):
                yield {"split": "test", "n": len(test_y), **about, **row}


def _few_shot(sets: Sets, device: torch.device) -> Iterator[tuple[str, dict[str, FewShot]]]:
    """Metrics in the order of their rows, with what was found for each objective."""
    for probe, metric in METRICS.items():
        for name, ways in WAYS.items():
            found = few_shots(*sets, SHOTS, REPEATS[probe], ways, probe=probe, device=device)
            yield f"{metric}_{name}", found
    for name, ways in WAYS.items():
        one_split = partial(few_shot_one_split, device=device)
        found = {
            objective: one_split(x, sets[3], SHOTS, REPEATS["nccc"], ways)
            for objective, x in sets[2].items()
        }
        yield f"{ONE_SPLIT}_{name}", found


def _rows_of_shots(metric: str, found: FewShot) -> Iterator[Row]:
    limits = np.quantile(found.accuracies, (0.05, 0.95), axis=1).T
    for shots, mean, (low, high) in zip(SHOTS, found.mean, limits, strict=True):
        yield {
            "metric": metric,
            "variant": f"shots_{shots}",
            "value": float(mean),
            "ci_low": float(low),
            "ci_high": float(high),
        }
