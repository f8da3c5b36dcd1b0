"""What the papers' experiments need, predicted: the headers of config/paper/ and docs/scale.md.

    uv run python docs/scale.py predict    # docs/scale.json, in some minutes on any machine
    uv run python docs/scale.py write      # headers and page from that file

A test compares both with the file, and the cells in the file with those of the configs.
"""

import json
import math
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from cltools.cluster.roofline import CONTEXT, GPUS
from cltools.config.experiment import Experiment, load_experiment, read_config
from cltools.config.schema import defaults
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_text
from cltools.stages import predict

ROOT = Path(__file__).parents[1]
FILE, PAGE = ROOT / "docs/scale.json", ROOT / "docs/scale.md"
TEMPLATE, CONFIGS = ROOT / "docs/templates/scale.md.j2", ROOT / "config/paper"
HEAD = (
    "<!-- Made from docs/templates/scale.md.j2: edit that, then "
    "`uv run python docs/scale.py write` -->\n"
)
GPU = "h100"
STEP = "p2_training_cifar100"  # the cell whose step is shown on several GPUs
SHOWN = ("a100", "h100", "h200")
# The authors' one time: 45 s per epoch of 48 steps, for two networks (ResNet-50, CIFAR-100,
# B = 1024), in a log of one H100 NVL. Other cells with these networks and batches scale with it.
AUTHORS_SECONDS = 45 / 48 / 2  # of a step of one network
AUTHORS = {"architecture": "resnet50", "width": 1, "stem": "cifar", "batch_size": 1024,
           "framework": "simclr"}  # fmt: skip
AUTHORS_DATA = ("cifar10", "cifar100")
STAGES = ("train", "embed", "measure", "theory", "merge")
NEEDS = re.compile(r"^# Needs .*?(?=^#$)", re.M | re.S)


def cells_of(experiment: Experiment) -> str:
    """Hash of all cells and of where they stop."""
    found = {identity: str(plan.until) for identity, plan in experiment.plans.items()}
    return sha256_text(canonical_json(found))


def predicted() -> dict[str, Any]:
    """What docs/scale.json holds: by config, predictions on one GPU for each kind of its cells."""
    found, experiments = {}, {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        experiments[path.stem] = load_experiment(read_config(path))
        found[path.stem] = summary(experiments[path.stem])
        print(path.stem, file=sys.stderr)
    steps = {}
    for name in SHOWN:
        (kind,) = predict.run(on=name, experiment=experiments[STEP])["kinds"]
        steps[name] = kind["costs"]["seconds_per_step"]
    return {"experiments": found, "gpu": GPU, "steps": steps}


def summary(experiment: Experiment) -> dict[str, Any]:
    """The predictions for one experiment."""
    report = predict.run(on=GPU, experiment=experiment)
    kinds = []
    for entry in report["kinds"]:
        cell, costs, found = {**defaults(), **entry["kind"]}, entry["costs"], entry["predicted"]
        hours = found["hours"]
        kinds.append(
            {
                "cells": entry["cells"],
                "train": hours["train"],
                "embed": hours["embed"],
                "measure": hours["measure"],
                "theory": hours["theory"],
                "merge": hours["merge"],
                "all": _short(predict.hours_of_all(entry)),
                "gb": _short(costs["gpu_memory_mb"] / 1e3),
                "saved_gb": found["saved_gb"],
                "limit": found["limit"],
                "step": costs["seconds_per_step"],
                "authors": authors_hours(cell, hours["train"], costs["seconds_per_step"]),
            }
        )
    return {"cells": cells_of(experiment), "kinds": kinds}


def authors_hours(cell: Mapping[str, Any], hours: float, step: float) -> float | None:
    """Hours of as many steps at the authors' pace, None where their log says nothing."""
    dataset = re.sub(r"-[0-9a-f]{8}$", "", cell["dataset"])
    if dataset not in AUTHORS_DATA or any(cell[key] != value for key, value in AUTHORS.items()):
        return None
    return _short(hours / step * AUTHORS_SECONDS * len(cell["objectives"]))


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def gpus_needed(kinds: Sequence[Mapping[str, Any]]) -> int:
    """GPUs among which batches have to be split, so that a cell fits into their memory."""
    memory, fixed = GPUS[GPU].memory, CONTEXT / 1e9
    needed = 1
    for kind in kinds:
        held = max(kind["gb"] - kind["saved_gb"], fixed)
        fits = math.ceil(kind["saved_gb"] / (memory - held))
        needed = max(needed, 1 << (fits - 1).bit_length())  # a power of two divides the batch
    return needed


def _range(values: Sequence[float]) -> str:
    low, high = (_number(edge) for edge in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    digits = 0 if value >= 9.95 else 1 if value >= 0.095 else 2
    return f"{value:.{digits}f}"


def header(experiment: Mapping[str, Any]) -> str:
    """The paragraph of a config's comment that says what it needs."""
    kinds = experiment["kinds"]
    cells, gpus = sum(kind["cells"] for kind in kinds), gpus_needed(kinds)
    hours = "GPU hours on H100s" if gpus > 1 else "hours on one H100"
    rest = [sum(kind[stage] for stage in STAGES[1:]) for kind in kinds]
    text = (
        f"Needs an H100. One cell: {_range([kind['train'] for kind in kinds])} {hours} (predicted, "
        f"docs/scale.md) and {_range(rest)} more for its other stages, "
        f"{_range([kind['gb'] for kind in kinds])} GB of GPU memory"
    )
    if gpus > 1:
        text = text.replace("Needs an H100", f"Needs {gpus} H100s")
        text += f", more than an H100 has: set gpus_per_cell: {gpus} and share: batch"
    authors = [kind["authors"] for kind in kinds if kind["authors"] is not None]
    log = f"{_range(authors)} hours" if authors else "none"
    text += f"; the authors' log: {log}."
    if cells > 1:
        text += f" All {cells} of them: {_number(sum(kind['all'] for kind in kinds))} hours."
    return (
        textwrap.fill(
            text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
        + "\n"
    )


def with_header(text: str, experiment: Mapping[str, Any]) -> str:
    """The text of a config with its generated paragraph. Raises InputError if it has no place."""
    found, count = NEEDS.subn(lambda _: header(experiment), text, count=1)
    if not count:
        raise InputError("a config has no paragraph in its comment that begins with Needs")
    return found


def page(content: Mapping[str, Any]) -> str:
    """docs/scale.md."""
    steps = content["steps"]
    shown = "\n".join(f"| {GPUS[name].name} | {steps[name]:.2f} |" for name in steps)
    pace = AUTHORS_SECONDS * 2 / (steps[GPU] / 2)
    rows = "\n".join(_rows(content["experiments"]))
    template = jinja2.Template(
        TEMPLATE.read_text(), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    text: str = template.render(shown=shown, rows=rows, pace=pace, two=steps[GPU] / 2 * 48)
    return HEAD + text


def _rows(experiments: Mapping[str, Any]) -> Iterator[str]:
    for name, experiment in experiments.items():
        kinds = experiment["kinds"]
        authors = [kind["authors"] for kind in kinds if kind["authors"] is not None]
        cells = (
            f"`{name}`",
            str(sum(kind["cells"] for kind in kinds)),
            *(_range([kind[stage] for kind in kinds]) for stage in STAGES[:-1]),
            _range([kind["merge"] for kind in kinds]) if any(k["merge"] for k in kinds) else "–",
            _range([kind["gb"] for kind in kinds]),
            str(gpus_needed(kinds)),
            ", ".join(dict.fromkeys(kind["limit"] for kind in kinds)),
            _number(sum(kind["all"] for kind in kinds)),
            _range(authors) if authors else "–",
        )
        yield f"| {' | '.join(cells)} |"


def main(command: Sequence[str]) -> None:
    """`predict` or `write`."""
    match command:
        case ["predict"]:
            FILE.write_text(json.dumps(predicted(), indent=1) + "\n")
        case ["write"]:
            content = json.loads(FILE.read_text())
            PAGE.write_text(page(content))
            for name, experiment in content["experiments"].items():
                path = CONFIGS / f"{name}.yaml"
                path.write_text(with_header(path.read_text(), experiment))
        case _:
            raise InputError("give `predict` or `write`")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
