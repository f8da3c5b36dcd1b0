# The checked experiment, and the functions that name files and settings for the rules.

import json
import sys
from pathlib import Path

from cltools.cells import canonical_cell
from cltools.errors import InputError
from cltools.experiment import load_experiment
from cltools.figures import FIGURES
from cltools.files import canonical_json
from cltools.versions import VERSIONS

try:
    EXPERIMENT = load_experiment(config)
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


def experiment_targets():
    return expand(
        "results/{experiment}/figures/{figure}.pdf",
        experiment=EXPERIMENT.name,
        figure=[
            name for name, spec in FIGURES.items() if spec.needs(EXPERIMENT.sweeps)
        ],
    )


def manifest_of(cell):
    until = EXPERIMENT.plans[cell].until.slug
    return f"results/cells/{cell}/trained-{until}.json"


def manifests(wildcards):
    return [manifest_of(cell) for cell in EXPERIMENT.batches[wildcards.batch]]


def store_of(cell):
    return f"results/stores/{EXPERIMENT.plans[cell].cell['dataset']}/store.json"


def store_of_cell(wildcards):
    return store_of(wildcards.cell)


def stores(wildcards):
    return sorted({store_of(cell) for cell in EXPERIMENT.batches[wildcards.batch]})


def store_options(wildcards):
    return [f"--store {Path(path).parent}" for path in stores(wildcards)]


def definition(wildcards):
    return canonical_json(EXPERIMENT.stores[wildcards.store])


def cell_settings(wildcards):
    return canonical_cell(EXPERIMENT.plans[wildcards.cell].cell)


def cell_threads(wildcards):
    return EXPERIMENT.plans[wildcards.cell].cell["threads"]


def plan_config(wildcards):
    # The order of sweeps is kept, since figures follow it; that of all other keys means nothing.
    used = {key: config[key] for key in ("experiment", "datasets", "base")}
    sweeps = {
        name: json.loads(canonical_json(config["sweeps"][name]))
        for name in config["sweeps"]
    }
    return json.dumps({**json.loads(canonical_json(used)), "sweeps": sweeps})
