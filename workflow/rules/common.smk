# The checked experiment, and the functions that name files and settings for the rules.

import json
import shutil
import sys
import time
from pathlib import Path

from snakemake.logging import logger
from snakemake.utils import update_config

from cltools.claims import FILE as CLAIMS
from cltools.cli.console import (
    OneLinePerJob,
    Started,
    end_lines,
    failure_lines,
    start_lines,
)
from cltools.cluster.estimates import (
    LONG,
    SHORT,
    Bench,
    Run,
    Task,
    cpu_seconds_of_measuring,
    decoding_cpus,
    embed_needs,
    embedding_cpus,
    grows,
    layers_needs,
    measure_needs,
    merge_needs,
    prepare_cpus,
    prepare_needs,
    theory_needs,
    theory_seconds,
    train_needs,
)
from cltools.cluster.images import images_of_cell, images_of_set
from cltools.cluster.launch import Gpus, launched, training_options
from cltools.cluster.site import Site
from cltools.config.cells import canonical_cell
from cltools.config.durations import Duration
from cltools.config.experiment import (
    identity_of,
    load_experiment,
    nested_settings,
    read_config,
)
from cltools.config.sharing import splits_batch
from cltools.figures import FIGURES, figures_of, papers_file
from cltools.layout import RESULTS, VERSIONS, Results
from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_file

# A module may be given a part of the outer workflow's config. Then its files and its --config say
# other things, too.
WHOLE_CONFIG = config is workflow.modifier_stack[0].globals["config"]

try:
    # Snakemake has read the files by itself, and is silent where YAML reads something unexpected.
    for path in map(Path, workflow.configfiles if WHOLE_CONFIG else ()):
        if path.is_file():  # a pipe is read only once
            read_config(path)
    for settings in nested_settings(
        workflow.config_settings.config_args if WHOLE_CONFIG else (),
        workflow.config_settings.config,
    ):
        update_config(config, settings)
    EXPERIMENT = load_experiment(config)
    FIGURES_DRAWN = figures_of(EXPERIMENT)
    BENCH = Bench(EXPERIMENT.config.get("bench"))
    THEORY = EXPERIMENT.settings_of("theory")
    MERGE = EXPERIMENT.settings_of("merge")
    LAYERS = EXPERIMENT.settings_of("layers")
    MERGED = EXPERIMENT.batches_of("merge")
    WITH_LAYERS = EXPERIMENT.batches_of("layers")
    WORKERS = EXPERIMENT.config.get("workers")
    FULL_AT = EXPERIMENT.setting("measure", "full_at")
    SITE = Site.of(".", BESIDE)
except InputError as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(2)


GPUS = Gpus.of(EXPERIMENT.setting)
STARTED = time.time()


def say(lines):
    """Through Snakemake's log, which also goes to its file and to other loggers."""
    logger.info("\n".join(["", *lines, ""]))


def how_started():
    """What the console has to know to name commands that watch this run."""
    return Started(
        cores=workflow.cores if workflow.local_exec else None,
        configs=[Path(path).absolute() for path in workflow.configfiles],
        changed=bool(workflow.config_settings.config_args),
        # Older versions of Snakemake do not know where they were started.
        folder=Path(getattr(workflow, "rundir", ".")).absolute(),
    )


def be_brief():
    """One line for each job, on the console of a run on this machine; the file has all of them."""
    wanted = workflow.output_settings
    if workflow.local_exec and not (wanted.verbose or wanted.printshellcmds):
        for handler in logger.handlers:
            if handler.name == "DefaultStreamHandler":
                handler.addFilter(OneLinePerJob(logger.info))


# These run in no job, and in no module. The first one runs before all jobs, but not for a dry run,
# which needs no Slurm.
onstart:
    if GPUS.nodes > 1 and workflow.executor_plugin.name != "slurm":
        print(
            f"Error: config key nodes_per_cell is {GPUS.nodes}, but only Slurm starts a cell on several "
            "nodes: give --profile slurm, or set it to 1",
            file=sys.stderr,
        )
        sys.exit(2)
    if workflow.executor_plugin.name == "slurm" and shutil.which("sbatch") is None:
        print(
            "Error: this machine has no Slurm, as the command sbatch is missing: run on a login node "
            "of the cluster, or give --cores 2 in the place of --profile slurm to run here",
            file=sys.stderr,
        )
        sys.exit(2)
    be_brief()
    say(start_lines(EXPERIMENT, RESULTS.path, how_started()))


onsuccess:
    say(end_lines(EXPERIMENT, RESULTS.path))


onerror:
    say(failure_lines(RESULTS.path, STARTED, log))


wildcard_constraints:
    store="[^/]+",
    cell="[^/]+",
    until=r"\d+(epochs|steps)",
    experiment=EXPERIMENT.name,
    batch="[^/]+",
    figure="[a-z_]+",


# A module's `prefix` is put before inputs, outputs and logs by Snakemake, but not before parameters.
# These, and what is read while rules are made, take their paths from here. The slash is for
# `replace_prefix`.
PLACED = Results(
    Path(workflow.modifier.path_modifier.replace_prefix(f"{RESULTS.path}/"))
)
# The name of the rule `embed` in an outer workflow may be another one.
EMBED = workflow.modifier.modify_rulename("embed")


# Patterns of what is made from many cells, and the same files of the experiment at hand.
HERE = RESULTS.experiment("{experiment}")
OWN = RESULTS.experiment(EXPERIMENT.name)


def experiment_targets():
    return [
        OWN.report,
        *(OWN.figure(figure) for figure in FIGURES_DRAWN),
        OWN.table("theory"),
        OWN.claims,
        *(OWN.table(stage) for stage in EXPERIMENT.without_cells),
        *([OWN.table("layers")] if WITH_LAYERS else []),
    ]


def figure_tables(wildcards):
    spec = FIGURES.get(wildcards.figure)
    tables = spec.tables_of(EXPERIMENT.further_stages) if spec else []
    folder = RESULTS.experiment(wildcards.experiment)
    return {name: folder.table(name) for name in tables}


def figure_papers(wildcards):
    spec = FIGURES.get(wildcards.figure)
    return list(map(papers_file, spec.papers)) if spec else []


# Options are lists of words, each of which the shell command quotes by itself ({params.tables:q}).
def options(pairs):
    return [word for name, value in pairs for word in (f"--{name}", str(value))]


def figure_options(wildcards, input):
    tables = [(name, input[name]) for name in figure_tables(wildcards)]
    return options([*tables, *(("papers", path) for path in input.papers)])


def report_tables(wildcards):
    # The tables that the interactive parts of the report show, beside the measures.
    shown = ["theory", *(["project"] if "project" in config else [])]
    return [RESULTS.experiment(wildcards.experiment).table(name) for name in shown]


def report_options(wildcards, input):
    tables = [(Path(path).stem, path) for path in input.tables]
    return options([*tables, *(("show", name) for name in FIGURES_DRAWN)])


def options_of_tables(wildcards, input):
    return options((Path(path).stem, path) for path in input.without_cells)


def stage_settings(stage, without=()):
    """A stage's own settings, defaults included: a default that changes is a change."""
    settings = EXPERIMENT.settings_of(stage)
    return canonical_json({k: v for k, v in settings.items() if k not in without})


def manifest_of(cell):
    until = EXPERIMENT.plans[cell].until.slug
    return RESULTS.cell(cell).manifest(until)


def store_of(cell, results=RESULTS):
    return results.store(EXPERIMENT.plans[cell].cell["dataset"]).manifest


def store_of_cell(wildcards):
    return store_of(wildcards.cell)


# Inputs and options of the jobs that work through one of `batches`.
def manifests_in(batches):
    return lambda wildcards: [manifest_of(cell) for cell in batches[wildcards.batch]]


def stores_in(batches, results=RESULTS):
    return lambda wildcards: sorted(
        {store_of(cell, results) for cell in batches[wildcards.batch]}
    )


def store_options_in(batches):
    stores = stores_in(batches, PLACED)
    return lambda wildcards: options(
        ("store", path.parent) for path in stores(wildcards)
    )


def pictured_manifest(wildcards):
    return manifest_of(EXPERIMENT.pictured_cell)


def pictured_store(wildcards):
    return store_of(EXPERIMENT.pictured_cell)


def regularity_store(wildcards):
    return RESULTS.store(EXPERIMENT.regularity_cell["dataset"]).manifest


def regularity_cell(wildcards):
    return canonical_cell(EXPERIMENT.regularity_cell)


def store_identity(wildcards):
    return canonical_json(identity_of(EXPERIMENT.stores[wildcards.store]))


def definition(wildcards, output):
    # The place of the files does not change the data set. Snakemake does not compare parameters that
    # are functions of outputs with those of an earlier run, so moving the files runs nothing again.
    return canonical_json(EXPERIMENT.stores[wildcards.store])


def run_folder(wildcards):
    return str(PLACED.cell(wildcards.cell).run.path)


def cell_settings(wildcards):
    return canonical_cell(EXPERIMENT.plans[wildcards.cell].cell)


def cell_threads(wildcards):
    # The setting is the number of threads of each process. Slurm counts them by node.
    return EXPERIMENT.plans[wildcards.cell].cell["threads"] * GPUS.each


def train_cpus(wildcards):
    # Where processes train different objectives, each of them decodes all images.
    gpus = GPUS.nodes * GPUS.each
    objectives = len(EXPERIMENT.plans[wildcards.cell].cell["objectives"])
    split = splits_batch(EXPERIMENT.setting("share"), gpus, objectives)
    decoding = decoding_cpus_of(wildcards.cell, gpus) * (1 if split else gpus)
    return max(cell_threads(wildcards), decoding // GPUS.nodes)


# Snakemake starts a job on one node, unless it is told that the job's command starts the others.
def on_nodes():
    if GPUS.nodes == 1:
        return {"nodes": 1}
    return {
        "nodes": GPUS.nodes,
        "mpi": "srun",
        "tasks": GPUS.nodes,
        "tasks_per_gpu": 0,
    }


# Another number of GPUs starts other processes but trains nothing again: Snakemake does not compare
# parameters that are functions of resources with those of an earlier run.
def cltools_on_gpus(wildcards, resources):
    return launched(GPUS, resources.get("cpus_per_task", cell_threads(wildcards)))


def train_options(wildcards, resources):
    return training_options(EXPERIMENT.setting)


def images_of(plan):
    """The images of a cell, as far as they are known before its store is made."""
    store = plan.cell["dataset"]
    return images_of_cell(
        plan.cell, EXPERIMENT.stores[store], PLACED.store(store).manifest
    )


def decoding_cpus_of(cell, gpus=1):
    """Cores that decode images while a cell trains; 0 if its images are not encoded."""
    plan = EXPERIMENT.plans[cell]
    return decoding_cpus(plan.cell, images_of(plan), WORKERS, gpus)


def task_of(plan):
    """A cell as the estimates of time and memory know it."""
    return Task(BENCH.of(plan.cell), Run(plan.cell, plan.until), images_of(plan))


# The number of threads that decode changes no result. Snakemake does not compare parameters that are
# functions of resources with those of an earlier run.
def workers_option(wildcards, resources):
    return "" if WORKERS is None else f"--workers {WORKERS}"


def embedding_options(recalibrate):
    """How embeddings are made, for `cltools embed` and `cltools measure`."""
    precision = EXPERIMENT.setting("embedding_precision")
    words = [recalibrate] if EXPERIMENT.setting("recalibrate_batchnorm") else []
    words += [f"--precision {precision}"] if precision != "float32" else []
    return " ".join(words)


# Time and memory that jobs request. They are not parameters, so a new estimate runs nothing again.
def train_resources(wildcards, attempt):
    task = task_of(EXPERIMENT.plans[wildcards.cell])
    until = Duration.parse(wildcards.until)
    return train_needs(task._replace(run=Run(task.run.cell, until)), attempt)


def train_memory(wildcards, attempt):
    # Every process holds the images.
    return train_resources(wildcards, attempt).mem_mb * GPUS.each


def train_minutes(wildcards, attempt):
    return train_resources(wildcards, attempt).runtime


def memory_of(needs, batches):
    """What the jobs of a stage that works through `batches` ask for; `needs` is its estimate."""
    return lambda wildcards, attempt: needs(work_in(batches, wildcards), attempt).mem_mb


def minutes_of(needs, batches):
    return lambda wildcards, attempt: needs(
        work_in(batches, wildcards), attempt
    ).runtime


def embed_estimate(work, attempt):
    return embed_needs(work, EXPERIMENT.setting("embedding_precision"), attempt)


def measure_estimate(work, attempt):
    return measure_needs(work, FULL_AT, MEASURED_ON_GPU, attempt)


def theory_estimate(work, attempt):
    return theory_needs(work, THEORY, attempt)


def merge_estimate(work, attempt):
    return merge_needs(work, MERGE, attempt)


def layers_estimate(work, attempt):
    return layers_needs(work, LAYERS, attempt)


def work_in(batches, wildcards):
    return [task_of(EXPERIMENT.plans[cell]) for cell in batches[wildcards.batch]]


def cpus_for(batches):
    """Cores that decode while networks see all images of the cells of a job."""
    precision = EXPERIMENT.setting("embedding_precision")
    return lambda wildcards: embedding_cpus(
        work_in(batches, wildcards), precision, WORKERS
    )


def images_to_prepare(wildcards):
    definition = EXPERIMENT.stores[wildcards.store]
    return images_of_set(definition, PLACED.store(wildcards.store).manifest)


def prepare_minutes(wildcards, attempt):
    return prepare_needs(images_to_prepare(wildcards), attempt).runtime


def prepare_memory(wildcards, attempt):
    return prepare_needs(images_to_prepare(wildcards), attempt).mem_mb


def cpus_for_preparing(wildcards):
    return prepare_cpus(images_to_prepare(wildcards), WORKERS)


# Where a stage takes no longer than a job waits in the queue, it joins the job of `embed`, if the
# profile puts that into a group. Otherwise its job begins when that one has given back its GPU. A
# measure job asks for a GPU of its own where a CPU would take hours.
def longest(seconds):
    """The longest time of `seconds` that the cells of one job take."""
    tasks = {cell: task_of(plan) for cell, plan in EXPERIMENT.plans.items()}
    return max(
        sum(seconds(tasks[cell]) for cell in batch)
        for batch in EXPERIMENT.batches.values()
    )


MEASURING = longest(lambda task: cpu_seconds_of_measuring(task, FULL_AT))
MEASURED_ON_GPU = MEASURING > LONG
MEASURED_AT_ONCE = MEASURING <= SHORT
THEORY_AT_ONCE = (
    MEASURED_AT_ONCE and longest(lambda task: theory_seconds(task, THEORY)) <= SHORT
)


def group_of_embed(wildcards):
    return workflow.group_settings.overwrite_groups.get(EMBED)


def measure_site():
    if MEASURED_AT_ONCE:
        return SITE.resources("gpu")  # one job has one partition
    if MEASURED_ON_GPU:
        return SITE.resources("gpu", gpus=1)
    return SITE.resources("cpu")


def plan_config(wildcards):
    # Figures follow the order of sweeps, so it is kept. The order of all other keys and the place of
    # the data sets' files change nothing.
    datasets = {
        name: {**identity_of(about), "recipe": about["recipe"]}
        for name, about in config["datasets"].items()
    }
    used = {
        **{key: config[key] for key in ("experiment", "base")},
        "datasets": datasets,
    }
    sweeps = {
        name: json.loads(canonical_json(config["sweeps"][name]))
        for name in config["sweeps"]
    }
    return json.dumps({**json.loads(canonical_json(used)), "sweeps": sweeps})


def figures_folder(wildcards):
    return str(PLACED.experiment(wildcards.experiment).figures)


def shown_config(wildcards):
    # The report shows all settings that its numbers depend on.
    how = ("bench", "cells_per_job", "figures", "gpus_per_cell", "share", "workers")
    how += (
        "nodes_per_cell",
        "cells_per_gpu",
        "save_every_seconds",
        "tracker",
        "container",
    )
    others = {key: value for key, value in config.items() if key not in how}
    return json.dumps({**others, **json.loads(plan_config(wildcards))}, sort_keys=True)
