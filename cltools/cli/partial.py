"""Figures of the cells of an experiment that are done, while Snakemake still makes the others.

It only reads the results of the cells and writes to its own folder. The workflow makes the tables
and figures of all cells at the end.
"""

from collections.abc import Iterator
from pathlib import Path

from cltools.config.experiment import OF_SOME_SWEEPS, Experiment
from cltools.figures import figures_of
from cltools.layout import COLLECTED, OF_CELLS, ExperimentFolder, Results, tables_of
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import write_json
from cltools.stages import collect, plan, plot
from cltools.training.manifests import read_manifest

LISTED = ("measure", "theory", *OF_SOME_SWEEPS)


def draw_partial(*, experiment: Experiment, results: Path, output: Path) -> Iterator[str]:
    """Write tables and figures of all cells that have both their measures and their theory.

    Yields one line of text for each thing that was done. Figures that need other cells are left
    out. Raises InputError when no cell is done.
    """
    planned = plan.summary(experiment)
    tables: dict[str, dict[str, str]] = {stage: {} for stage in LISTED}
    wanted = {
        stage: {cell for cells in experiment.batches_of(stage).values() for cell in cells}
        for stage in LISTED
    }
    done = {}
    for identity, planned_cell in experiment.plans.items():
        manifest = Results(results).cell(identity).manifest(planned_cell.until.slug)
        found = {}
        if manifest.exists():
            read_manifest(manifest)  # a damaged one is not the same as a cell that is not done
            found = tables_of(experiment, manifest)
        there = {stage: path for stage, path in found.items() if path.exists()}
        if "measure" in there and "theory" in there:
            done[identity] = planned["cells"][identity]
            for stage, path in there.items():
                if identity in wanted[stage]:
                    tables[stage][str(manifest)] = str(path)
    if not done:
        raise InputError(
            f"no cell of {experiment.name} in {results} is measured yet: see `cltools status`"
        )
    yield f"{len(done)} of {len(experiment.plans)} cells are done"
    made = ExperimentFolder(output)
    write_json(made.plan, {**planned, "cells": done})
    lists = [made.partial_list(stage) for stage in LISTED]
    for stage, path in zip(LISTED, lists, strict=True):
        write_json(path, {"stage": stage, "tables": tables[stage]})
    names = COLLECTED if tables["layers"] else OF_CELLS
    tables_made = {name: made.table(name) for name in names}
    collect.run(plan=made.plan, lists=lists, **tables_made)
    further = [stage for stage in OF_SOME_SWEEPS if tables[stage]]
    for name in figures_of(experiment, further):
        try:
            plot.run(
                name=name,
                plan=made.plan,
                tables=tables_made,
                output=made.figures / name,
                style=experiment.setting("figures"),
            )
            yield str(made.figure(name))
        except InputError as error:
            yield f"{name}: not yet ({error})"
