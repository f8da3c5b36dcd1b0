"""What the reports of `cltools bench` share, whether it measures or predicts. Imports quickly."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from cltools.cluster.estimates import Costs, Run, disk_mb, kind_of, training_seconds
from cltools.config.experiment import Experiment
from cltools.runtime.files import canonical_json


def by_kind(runs: Iterable[Run]) -> list[list[Run]]:
    """Cells of the same kind together; kinds in the order of their first cells."""
    kinds: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        kinds[canonical_json(kind_of(run.cell))].append(run)
    return list(kinds.values())


def kept_bytes(experiment: Experiment) -> int:
    """Bytes of each number of the embeddings that stay on the disk; 0 if none stay."""
    if not experiment.setting("keep_embeddings"):
        return 0
    return {"float32": 4, "float16": 2}[experiment.setting("embedding_type")]


def entry_of(
    cell: Mapping[str, Any],
    runs: list[Run],
    costs: Costs,
    shares: dict[str, float],
    embedding_bytes: int = 0,
) -> dict[str, Any]:
    """One kind of cells in a report: its costs, and sums over the runs of its cells."""
    seconds = [training_seconds(costs, run) for run in runs]
    return {
        "kind": kind_of(cell),
        "cells": len(runs),
        "costs": asdict(costs),
        "shares": shares,
        "steps_per_second": rounded(1 / costs.seconds_per_step),
        "images_per_second": rounded(cell["batch_size"] / costs.seconds_per_step),
        "seconds": rounded(sum(seconds)),
        "longest_seconds": rounded(max(seconds)),
        "disk_mb": rounded(sum(disk_mb(costs, run, embedding_bytes) for run in runs)),
    }


def totals(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Cells, hours of training and MB on disk of all entries."""
    return {
        "cells": sum(entry["cells"] for entry in entries),
        "hours": rounded(sum(entry["seconds"] for entry in entries) / 3600),
        "disk_mb": rounded(sum(entry["disk_mb"] for entry in entries)),
    }


def rounded(value: float) -> float:
    """Four significant digits; timings are not more precise."""
    return float(f"{value:.4g}")
