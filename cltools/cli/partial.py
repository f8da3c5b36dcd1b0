"""Figures of the cells of an experiment that are measured, while Snakemake still makes the others.

It only reads the results of the cells and writes to its own folder. The workflow makes the tables
and figures of all cells at the end.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from cltools.config.experiment import OF_SOME_SWEEPS, Experiment
from cltools.figures import FIGURES, figures_of
from cltools.layout import COLLECTED, OF_CELLS, ExperimentFolder, Results, tables_of
from cltools.runtime.errors import InputError
from cltools.runtime.sealed import write_json
from cltools.stages import collect, plan, plot
from cltools.training.manifests import read_manifest

LISTED = ("measure", "theory", *OF_SOME_SWEEPS)
Tables = dict[str, dict[str, tuple[Path, Path]]]  # cell -> stage -> its manifest and its table


def draw_partial(*, experiment: Experiment, results: Path, output: Path) -> Iterator[str]:
    """Write tables and figures of all cells that are measured.

    Figures of bounds show those of them that have their theory, too. Yields one line of text for
    each thing that was done. Figures that need other cells are left out. Raises InputError when no
    cell is measured.
    """
    there = _tables_there(experiment, results)
    measured = {cell: found for cell, found in there.items() if "measure" in found}
    bounded = {cell: found for cell, found in measured.items() if "theory" in found}
    if not measured:
        raise InputError(
            f"no cell of {experiment.name} in {results} is measured yet: see `cltools status`"
        )
    cells = len(experiment.plans)
    yield f"{len(measured)} of {cells} cells are measured, {len(bounded)} have their theory, too"
    made = ExperimentFolder(output)
    planned = plan.summary(experiment)
    whole = len(bounded) == len(measured)
    tables = _collect(made, planned, measured, with_theory=whole)
    tables_of_bounds = tables
    if bounded and not whole:
        tables_of_bounds = _collect(made.with_theory, planned, bounded, with_theory=True)
    stages = {stage for found in measured.values() for stage in found}
    for name in figures_of(experiment, [stage for stage in OF_SOME_SWEEPS if stage in stages]):
        of_bounds = "theory" in FIGURES[name].tables
        if of_bounds and not bounded:
            yield f"{name}: waits for theory, which no measured cell has yet"
            continue
        try:
            plot.run(
                name=name,
                plan=made.plan if whole or not of_bounds else made.with_theory.plan,
                tables=tables_of_bounds if of_bounds else tables,
                output=made.figures / name,
                style=experiment.setting("figures"),
            )
            yield str(made.figure(name))
        except InputError as error:
            yield f"{name}: not yet ({error})"


def _tables_there(experiment: Experiment, results: Path) -> Tables:
    """The tables that exist, of the stages that the experiment asks for."""
    wanted = {
        stage: {cell for cells in experiment.batches_of(stage).values() for cell in cells}
        for stage in LISTED
    }
    there: Tables = {}
    for cell, planned in experiment.plans.items():
        manifest = Results(results).cell(cell).manifest(planned.until.slug)
        there[cell] = {}
        if manifest.exists():
            read_manifest(manifest)  # a damaged one is not the same as a cell that is not done
            found = tables_of(experiment, manifest)
            there[cell] = {
                stage: (manifest, table)
                for stage, table in found.items()
                if table.exists() and cell in wanted[stage]
            }
    return there


def _collect(
    made: ExperimentFolder, planned: Mapping[str, Any], cells: Tables, with_theory: bool
) -> dict[str, Path]:
    """Join the tables of these cells in a folder; the paths of the tables made, by name."""
    write_json(made.plan, {**planned, "cells": {cell: planned["cells"][cell] for cell in cells}})
    stages = [stage for stage in LISTED if with_theory or stage != "theory"]
    for stage in stages:
        found = [tables[stage] for tables in cells.values() if stage in tables]
        listed = {str(manifest): str(table) for manifest, table in found}
        write_json(made.partial_list(stage), {"stage": stage, "tables": listed})
    layers = any("layers" in tables for tables in cells.values())
    names: Collection[str] = COLLECTED if layers else OF_CELLS
    paths = {name: made.table(name) for name in names if with_theory or name != "theory"}
    collect.run(plan=made.plan, lists=[made.partial_list(stage) for stage in stages], **paths)
    return paths
