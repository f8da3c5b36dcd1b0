"""Stage `report`: the results of an experiment in one HTML file."""

import json
import os
import platform
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import torch

import cltools
from cltools.figures import FIGURES
from cltools.figures.sheet import saved
from cltools.layout import VERSIONS, benchmarks_of
from cltools.maths.minimise import descent
from cltools.report.page import Drawn, Material, page
from cltools.runtime import processor
from cltools.runtime.commit import commit
from cltools.runtime.errors import InputError
from cltools.runtime.files import whole_file
from cltools.tidy import read_experiment, read_plan
from cltools.training.manifests import read_manifest

PACKAGES = ("torch", "numpy", "polars", "snakemake")
# Points that move freely on a sphere: 4 classes of 6 images, in three dimensions. From some starts
# NSCL ends in a local minimum there; from this one it reaches the simplex.
FREE_CLASSES, FREE_IMAGES = 4, 6
FREE_TAU, FREE_SEED = 1.0, 2
FREE_OBJECTIVES = ("dcl", "nscl", "scl", "ce")
FREE_SHOWN = (*range(9), 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)  # steps


def run(
    *,
    plan: Path,
    measures: Path,
    claims: Path,
    figures: Path,
    manifests: Iterable[Path],
    config: Mapping[str, Any],
    output: Path,
    theory: Path | None = None,
    project: Path | None = None,
    shown: Collection[str] = (),
    benchmarks: Path | None = None,
) -> None:
    """Write the report of an experiment.

    Args:
        plan: written by `cltools plan`.
        measures: written by `cltools collect`.
        claims: the table written by `cltools claims`.
        figures: folder that `cltools plot` wrote to.
        manifests: those of the experiment's trained cells.
        config: the experiment's config, shown unchanged.
        output: the HTML file.
        theory: written by `cltools collect`, for the bound on the loss gap.
        project: written by `cltools project`, for points that can be explored.
        shown: names of the figures to show; by default those of the plan.
        benchmarks: folder of Snakemake's benchmarks, for the time and memory of the jobs. With it,
            the reports of two runs differ, because their times do.

    Raises:
        InputError: a file is missing, damaged or of an earlier version, a cell of the plan has no
            manifest, or there is no figure of a name.
    """
    planned = read_plan(plan)
    cells = {manifest["id"]: manifest for manifest in map(read_manifest, manifests)}
    if missing := sorted(set(planned["cells"]) - set(cells)):
        raise InputError(f"cell {missing[0]} of {plan} has no manifest here: run `cltools train`")
    if unknown := sorted(set(shown) - set(FIGURES)):
        raise InputError(f"no figure is called {unknown[0]!r}: choose from {', '.join(FIGURES)}")
    tested = read_experiment(claims, "claims", plan)
    if "reading" not in tested.columns:
        raise InputError(f"{claims} was written by an earlier version: run `cltools claims` again")
    material = Material(
        name=planned["experiment"],
        plan=planned,
        measures=read_experiment(measures, "measures", plan),
        claims=tested,
        figures=[_drawn(figures, name) for name in shown or planned["figures"]],
        cells={identity: cells[identity] for identity in planned["cells"]},
        config=json.dumps(config, indent=2, ensure_ascii=False),
        made=_made(cells.values()),
        free=_free(),
        theory=read_experiment(theory, "theory", plan) if theory else None,
        project=read_experiment(project, "project", plan) if project else None,
        jobs=_jobs(benchmarks, planned) if benchmarks else (),
    )
    with whole_file(output) as scratch:
        scratch.write_text(page(material), encoding="utf-8")


def _drawn(folder: Path, name: str) -> Drawn:
    return Drawn(name, FIGURES[name].description, *saved(folder / name))


@cache
def _free() -> dict[str, Any]:
    """Free embeddings on the way down each objective, for JSON.

    labels: classes of the images. steps: those that are shown. runs: by objective, the distance of
    views, the spread within classes, and for each step x, y and z of all points in turn: first of
    all first views, then of all second views.
    """
    labels = torch.arange(FREE_CLASSES * FREE_IMAGES) % FREE_CLASSES
    runs = {}
    for objective in FREE_OBJECTIVES:
        found = descent(objective, labels, 3, FREE_TAU, FREE_SEED, FREE_SHOWN[-1])
        points = found.z[list(FREE_SHOWN)].flatten(1).numpy()
        runs[objective] = {
            "views": found.view_distance[list(FREE_SHOWN)].round(4).tolist(),
            "spread": found.within_class_spread[list(FREE_SHOWN)].round(4).tolist(),
            "points": points.round(3).tolist(),
        }
    return {"labels": labels.tolist(), "steps": FREE_SHOWN, "tau": FREE_TAU, "runs": runs}


def _made(manifests: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Lines about software, machine and images."""
    manifests = list(manifests)
    stages = ", ".join(f"{stage} {number}" for stage, number in VERSIONS.items())
    trained = sorted({_trained(manifest["made_by"]) for manifest in manifests})
    stores = sorted({f"{m['cell']['dataset']}: {m['store']}" for m in manifests})
    return [
        ("cltools", f"{cltools.__version__}{f', commit {here}' if (here := commit()) else ''}"),
        ("versions of the stages", stages),
        ("packages", ", ".join(f"{name} {version(name)}" for name in PACKAGES)),
        ("cells were trained with", "; ".join(trained)),
        ("hashes of the images", "; ".join(stores)),
        ("this page was made on", f"{platform.platform()}, Python {platform.python_version()}, "
         f"{processor.name()}, {os.cpu_count()} cores"),
    ]  # fmt: skip


def _trained(made_by: Mapping[str, Any]) -> str:
    """The software and processor of a training; older manifests do not name the processor."""
    where = f" on {made_by['processor']}" if "processor" in made_by else ""
    return f"cltools {made_by['cltools']}, torch {made_by['torch']}{where}"


def _jobs(folder: Path, plan: Mapping[str, Any]) -> list[tuple[str, int, str, str, str]]:
    """By stage: number of jobs, minutes, CPU minutes and peak memory in GB, of this experiment."""
    stores = {entry["cell"]["dataset"] for entry in plan["cells"].values()}
    lines = []
    for stage, files in benchmarks_of(folder, plan["experiment"], plan["cells"], stores):
        if files:
            jobs = pl.concat(map(_benchmark, files))
            minutes, cpu = jobs["s"].sum() / 60, jobs["cpu_time"].sum() / 60
            memory = (jobs.select(pl.col("max_rss").max()).item() or 0) / 1024
            lines.append((stage, len(jobs), f"{minutes:.1f}", f"{cpu:.1f}", f"{memory:.2f}"))
    return lines


def _benchmark(file: Path) -> pl.DataFrame:
    """Seconds, CPU seconds and MB of a job, as Snakemake noted them."""
    columns = pl.col("s", "cpu_time", "max_rss").cast(pl.Float64)
    try:
        return pl.read_csv(file, separator="\t", null_values="NA", glob=False).select(columns)
    except (pl.exceptions.PolarsError, FileNotFoundError):
        raise InputError(f"{file} is no benchmark of Snakemake: delete it") from None
