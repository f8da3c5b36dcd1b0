"""Accuracy of simple classifiers on features."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from cltools.maths.few_shot import FewShot, few_shot, few_shot_one_split, knn
from cltools.maths.intervals import accuracy_interval
from cltools.maths.probes import linear_probe, nccc
from cltools.measurements.table import Features, Row, rows_of

SHOTS = (1, 5, 10, 20, 50, 100, 500)
Probe = Literal["nccc", "linear"]
# Few draws for the linear probe, which is fitted anew at each draw. The papers use five.
REPEATS: dict[Probe, int] = {"nccc": 20, "linear": 5}
METRICS: dict[Probe, str] = {"nccc": "few_shot_nccc", "linear": "few_shot_linear_probe"}
ONE_SPLIT = "few_shot_nccc_one_split"  # labeled images are test images, too
WAYS = {"all_way": None, "two_way": 2}
NEIGHBOURS = 20
Sets = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # train x, y, test x, y


def downstream_rows(
    train: Features,
    y: np.ndarray,
    test: Features,
    test_y: np.ndarray,
    full: bool,
    features: str = "h",
) -> Iterator[Row]:
    """Accuracies in [0, 1]: nearest class center; with `full` also the slower ones.

    Intervals (90 %) are over test images, for this one classifier. Few-shot accuracies vary more
    with the draw of the support set, so their limits are the 5 and 95 % quantiles of the draws.
    """
    for objective, x in train.items():
        sets = (x, y, test[objective], test_y)
        on_train, on_test = {}, {}
        on_train["nccc", "accuracy"], on_test["nccc", "accuracy"] = nccc(*sets)
        if full:
            probe = linear_probe(*sets)
            on_train["linear_probe", "accuracy"], on_test["linear_probe", "accuracy"] = probe[:2]
            on_test["knn", f"k_{NEIGHBOURS}"] = knn(*sets, NEIGHBOURS)
        about = {"objective": objective, "features": features}
        for split, values, n in (("train", on_train, len(y)), ("test", on_test, len(test_y))):
            for row in rows_of(values, split=split, n=n, **about):
                yield row | dict(
                    zip(("ci_low", "ci_high"), accuracy_interval(row["value"], n), strict=True)
                )
        if full:
            for row in _few_shot_rows(sets):
                yield {"split": "test", "n": len(test_y), **about, **row}


def _few_shot_rows(sets: Sets) -> Iterator[Row]:
    for probe, metric in METRICS.items():
        for name, ways in WAYS.items():
            found = few_shot(*sets, SHOTS, REPEATS[probe], ways, probe=probe)
            yield from _rows_of_shots(f"{metric}_{name}", found)
    for name, ways in WAYS.items():
        found = few_shot_one_split(*sets[2:], SHOTS, REPEATS["nccc"], ways)
        yield from _rows_of_shots(f"{ONE_SPLIT}_{name}", found)


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
