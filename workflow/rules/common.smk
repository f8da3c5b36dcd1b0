# The checked experiment, and the functions that name files and settings for the rules.

import json
import sys
from pathlib import Path

from cltools.cells import canonical_cell, with_defaults
from cltools.durations import Duration
from cltools.errors import InputError
from cltools.estimates import Bench, Run, embed_needs, train_needs
from cltools.experiment import load_experiment
from cltools.figures import FIGURES, TABLES, base_sweep
from cltools.files import canonical_json
from cltools.versions import VERSIONS

try:
    EXPERIMENT = load_experiment(config)
    BENCH = Bench(EXPERIMENT.config.get("bench"))
except InputError as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(2)


wildcard_constraints:
    store="[^/]+",
    cell="[^/]+",
    until=r"\d+(epochs|steps)",
    experiment=EXPERIMENT.name,
    batch="[^/]+",
    figure="[a-z_]+",


# Stages that need no trained cell; an experiment has them when its config names them.
WITHOUT_CELLS = [
    stage
    for stage in ("surrogate", "minimise", "regularity")
    if stage in EXPERIMENT.config
]
MERGED = EXPERIMENT.setting("merge").get("sweeps", ())
# Stages whose work figures show where it is there.
FURTHER_STAGES = [
    *WITHOUT_CELLS,
    *["merge"] * (base_sweep(EXPERIMENT.sweeps) in MERGED),
    *["project"] * ("project" in EXPERIMENT.config),
]
PAPERS = Path(workflow.basedir) / "config/paper/expected"


def experiment_targets():
    name = EXPERIMENT.name
    figures = [
        figure
        for figure, spec in FIGURES.items()
        if spec.needs(EXPERIMENT.sweeps, FURTHER_STAGES)
    ]
    return [
        *expand("results/{name}/figures/{figure}.pdf", name=name, figure=figures),
        f"results/{name}/theory.parquet",
        *expand("results/{name}/{stage}.parquet", name=name, stage=WITHOUT_CELLS),
    ]


def figure_tables(wildcards):
    spec = FIGURES.get(wildcards.figure)
    tables = spec.tables_of(FURTHER_STAGES) if spec else []
    return {name: f"results/{wildcards.experiment}/{TABLES[name]}" for name in tables}


def figure_papers(wildcards):
    spec = FIGURES.get(wildcards.figure)
    return [PAPERS / f"{name}.csv" for name in spec.papers] if spec else []


def figure_options(wildcards, input):
    tables = [f"--{name} {input[name]}" for name in figure_tables(wildcards)]
    return [*tables, *(f"--papers {path}" for path in input.papers)]


def stage_settings(stage, without=()):
    """A stage's own settings, defaults included: a default that changes is a change."""
    settings = with_defaults(EXPERIMENT.setting(stage), stage)
    return canonical_json({k: v for k, v in settings.items() if k not in without})


def manifest_of(cell):
    until = EXPERIMENT.plans[cell].until.slug
    return f"results/cells/{cell}/trained-{until}.json"


def store_of(cell):
    return f"results/stores/{EXPERIMENT.plans[cell].cell['dataset']}/store.json"


def store_of_cell(wildcards):
    return store_of(wildcards.cell)


# Inputs and options of the jobs that work through one of `batches`.
def manifests_in(batches):
    return lambda wildcards: [manifest_of(cell) for cell in batches[wildcards.batch]]


def stores_in(batches):
    return lambda wildcards: sorted(
        {store_of(cell) for cell in batches[wildcards.batch]}
    )


def store_options_in(batches):
    stores = stores_in(batches)
    return lambda wildcards: [
        f"--store {Path(path).parent}" for path in stores(wildcards)
    ]


def pictured_manifest(wildcards):
    return manifest_of(EXPERIMENT.pictured_cell)


def pictured_store(wildcards):
    return store_of(EXPERIMENT.pictured_cell)


def regularity_store(wildcards):
    return f"results/stores/{EXPERIMENT.regularity_cell['dataset']}/store.json"


def regularity_cell(wildcards):
    return canonical_cell(EXPERIMENT.regularity_cell)


def definition(wildcards):
    return canonical_json(EXPERIMENT.stores[wildcards.store])


def cell_settings(wildcards):
    return canonical_cell(EXPERIMENT.plans[wildcards.cell].cell)


def gpus_per_cell(wildcards):
    return EXPERIMENT.setting("gpus_per_cell")


def cell_threads(wildcards):
    # The threads of a cell are those of each of its processes.
    return EXPERIMENT.plans[wildcards.cell].cell["threads"] * gpus_per_cell(wildcards)


def several_gpus(resources):
    return isinstance(resources.gpu, int) and resources.gpu > 1


def cltools_on_gpus(wildcards, resources):
    # A function of resources, whose changes train nothing again. Without the two dashes torchrun
    # takes --run for one of its own options.
    if not several_gpus(resources):
        return "cltools"
    return f"torchrun --standalone --nproc-per-node {resources.gpu} -m -- cltools.cli"


def what_went_wrong(wildcards, resources):
    # torchrun ends with a report of its own, after the line that says it.
    return "grep -m 1 Error:" if several_gpus(resources) else "tail -n 3"


# Time and memory that jobs ask for: no parameters, so that a new estimate runs nothing again.
def train_resources(wildcards, attempt):
    cell = EXPERIMENT.plans[wildcards.cell].cell
    run = Run(cell, Duration.parse(wildcards.until))
    return train_needs(BENCH.of(cell), run, attempt)


def train_memory(wildcards, attempt):
    # Of every process: each holds the images.
    return train_resources(wildcards, attempt).mem_mb * gpus_per_cell(wildcards)


def train_minutes(wildcards, attempt):
    return train_resources(wildcards, attempt).runtime


def embed_resources(wildcards, attempt):
    plans = [EXPERIMENT.plans[cell] for cell in EXPERIMENT.batches[wildcards.batch]]
    work = [(BENCH.of(plan.cell), Run(plan.cell, plan.until)) for plan in plans]
    return embed_needs(work, attempt)


def embed_memory(wildcards, attempt):
    return embed_resources(wildcards, attempt).mem_mb


def embed_minutes(wildcards, attempt):
    return embed_resources(wildcards, attempt).runtime


def plan_config(wildcards):
    # The order of sweeps is kept, since figures follow it; that of all other keys means nothing.
    used = {key: config[key] for key in ("experiment", "datasets", "base")}
    sweeps = {
        name: json.loads(canonical_json(config["sweeps"][name]))
        for name in config["sweeps"]
    }
    return json.dumps({**json.loads(canonical_json(used)), "sweeps": sweeps})
