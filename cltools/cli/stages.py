"""The commands of the stages: options, types and help. `cltools.stages` does the work."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cltools.cli.options import (
    CONFIG_HELP,
    Bounds,
    Device,
    EmbeddingPrecision,
    EmbeddingType,
    FeatureFile,
    FullAt,
    ImageSize,
    Layers,
    Logs,
    Manifests,
    Measures,
    Minimise,
    Model,
    PlanFile,
    Recalibrate,
    Reference,
    Regularity,
    Seed,
    Settings,
    Split,
    Store,
    Stores,
    Surrogate,
    Tables,
    Threads,
    Weights,
    Workers,
    experiment_of,
    json_object,
    limit_threads,
    memory_remedy,
    only_given,
    own_gpu,
    table,
)
from cltools.config.durations import Duration
from cltools.config.sharing import Share
from cltools.config.tracking import Tracker
from cltools.figures import FIGURES
from cltools.layout import RESULTS, Embeddings, MeasureSettings
from cltools.runtime.errors import InputError

SaveSeconds = Annotated[
    float | None,
    typer.Option(
        help="Seconds between saves of the resume state; without it 120, and 600 after an hour."
    ),
]
SaveSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Number of steps after which the resume state is saved, too."),
]
CellsPerGpu = Annotated[
    int, typer.Option(min=1, help="Number of cells that may train on one GPU at the same time.")
]


def figure_names(incomplete: str) -> list[str]:
    """The figures whose names begin so, for the completion of a shell."""
    return [name for name in FIGURES if name.startswith(incomplete)]


def plan(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    output: Annotated[
        Path | None, typer.Option(help="File to write (JSON); without it, the cells are printed.")
    ] = None,
) -> None:
    """Check a config and list its cells."""
    experiment = experiment_of(config)
    if output is None:
        for identity, cell in experiment.plans.items():
            typer.echo(f"{identity}  until {cell.until}  in {', '.join(cell.sweeps)}")
        typer.echo(f"{experiment.name}: {len(experiment.plans)} cells")
    else:
        from cltools.stages import plan as stage

        stage.run(experiment=experiment, output=output)


def prepare(
    name: Annotated[str, typer.Option(help="Name of the data set.")],
    definition: Annotated[
        str,
        typer.Option(
            help="Where the images come from, as JSON or in a JSON file, with the keys of datasets "
            "in the config."
        ),
    ],
    store: Annotated[Path, typer.Option(help="Folder of the image store to write.")],
    workers: Workers = None,
) -> None:
    """Read a data set and write it as an image store."""
    limit_threads(1)
    from cltools.stages import prepare as stage

    described = json_object(definition, "--definition")
    stage.run(name=name, definition=described, store=store, workers=workers)


def train(
    cell: Annotated[
        str,
        typer.Option(
            help="Settings of the cell as JSON or in a JSON file, with the keys under base in the "
            "config."
        ),
    ],
    store: Store,
    run: Annotated[Path, typer.Option(help="Folder to write weights, log and resume state to.")],
    manifest: Annotated[Path, typer.Option(help="Training manifest to write at the end (JSON).")],
    until: Annotated[
        str | None,
        typer.Option(
            help="Where training stops: '20 epochs' or '300 steps'; without it, at the horizon."
        ),
    ] = None,
    device: Device = "auto",
    save_every_seconds: SaveSeconds = None,
    save_every_steps: SaveSteps = None,
    workers: Workers = None,
    share: Annotated[
        Share, typer.Option(help="What the processes of torchrun share: objectives or batches.")
    ] = "auto",
    cells_per_gpu: CellsPerGpu = 1,
    tracker: Annotated[
        Tracker | None, typer.Option(help="Program to send losses to while training.")
    ] = None,
) -> None:
    """Train the objectives of one cell together; continue an earlier run if there is one."""
    from cltools.config.cells import resolve_cell

    settings = resolve_cell(json_object(cell, "--cell"))
    try:
        stop = None if until is None else Duration.parse(until)
    except ValueError as error:
        raise InputError(f"--until: {error}") from None
    limit_threads(settings["threads"])
    own_gpu(device, cells_per_gpu)
    from cltools.stages import train as stage

    with memory_remedy(
        "lower batch_size, set precision to bfloat16, raise gpus_per_cell with share: batch, "
        "or give the job more"
    ):
        stage.run(
            cell=settings,
            store=store,
            run=run,
            manifest=manifest,
            until=stop,
            device=device,
            saves=stage.Saves(save_every_seconds, save_every_steps),
            workers=workers,
            share=share,
            tracker=tracker,
        )


# Arguments of `cltools embed` that only one of its two forms has.
OF_CELLS = ("manifests", "done", "dtype", "recalibrate", "unless_measured", "reference", "keep",
            "precision")  # fmt: skip
OF_MODELS = ("output", "weights", "seed", "layers", "split", "image_size")


def embed(
    context: typer.Context,
    store: Stores,
    manifests: Annotated[
        list[Path] | None, typer.Argument(help="Training manifests (trained-….json) of the cells.")
    ] = None,
    done: Annotated[
        Path | None,
        typer.Option(help="File to write at the end (JSON): the list of the embeddings made."),
    ] = None,
    dtype: Annotated[
        EmbeddingType, typer.Option(help="Type in which numbers are stored.")
    ] = "float32",
    recalibrate: Recalibrate = False,
    unless_measured: Annotated[
        FullAt | None,
        typer.Option(
            help="Leave out the cells that `measure` has already measured with this --full-at."
        ),
    ] = None,
    reference: Reference = "dcl",
    keep: Annotated[bool, typer.Option("--keep", help="Keep embeddings after measuring.")] = False,
    precision: EmbeddingPrecision = "float32",
    model: Model = None,
    output: FeatureFile = None,
    weights: Weights = "default",
    seed: Seed = 0,
    layers: Layers = None,
    split: Split = "test",
    image_size: ImageSize = None,
    device: Device = "auto",
    threads: Threads = 1,
    workers: Workers = None,
) -> None:
    """Embed the images of trained cells at every checkpoint, or a store's by another model.

    Embeddings of cells are put into a folder of each cell.
    """
    if model is not None:
        only_given(context, OF_CELLS, "is for trained cells: leave it out, or leave out --model")
        chosen = model, weights, seed, image_size
        _embed_by_model(chosen, store, output, layers, split, (device, threads, workers))
        return
    only_given(context, OF_MODELS, "is for a model of another library: name one with --model")
    if not manifests or done is None:
        raise InputError("give training manifests and --done, or --model")
    limit_threads(threads)
    own_gpu(device)
    from cltools.stages import embed as stage

    with memory_remedy("lower images_per_class, use --device cpu, or give the job more"):
        stage.run(
            manifests=manifests,
            stores=store,
            done=done,
            embeddings=Embeddings(dtype, recalibrate, precision),
            unless_measured=unless_measured and MeasureSettings(unless_measured, reference),
            keep=keep,
            device=device,
            threads=threads,
            workers=workers,
        )


def _embed_by_model(
    chosen: tuple[str, str, int, int | None],
    stores: list[Path],
    output: Path | None,
    layers: str | None,
    split: str,
    machine: tuple[str, int, int | None],
) -> None:
    """`cltools embed --model`; `chosen` as in `models.sources.Wanted`."""
    device, threads, workers = machine
    if output is None or len(stores) != 1:
        raise InputError("--model needs --output and one --store: give both")
    limit_threads(threads)
    own_gpu(device)
    from cltools.models.sources import Wanted
    from cltools.stages import embed_model as stage

    with memory_remedy("lower --image-size, use --device cpu, or give the job more"):
        stage.run(
            wanted=Wanted(*chosen),
            store=stores[0],
            output=output,
            layers=layers.split(",") if layers else (),
            split=split,
            device=device,
            threads=threads,
            workers=workers,
        )


def export(
    manifest: Annotated[
        Path, typer.Argument(help="Training manifest (trained-….json) of the cell.")
    ],
    objective: Annotated[
        str, typer.Option(help="Objective whose network is exported, such as dcl.")
    ],
    to: Annotated[
        Literal["timm", "torchvision", "safetensors"],
        typer.Option(
            help="Library to write for; safetensors has all weights, under the names of cltools."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    store: Annotated[
        Path | None,
        typer.Option(help="Image store of the cell; without it, that in the same results folder."),
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Step of the checkpoint; without it, the last one.")
    ] = None,
) -> None:
    """Write a trained encoder for timm or torchvision: weights, config and model card."""
    limit_threads(1)
    from cltools.stages import export as stage

    stage.run(manifest=manifest, objective=objective, to=to, output=output, store=store, step=step)


def measure(
    manifests: Manifests,
    done: Tables,
    full_at: Annotated[
        FullAt, typer.Option(help="Checkpoints that also get the slow measures, such as probes.")
    ] = "last",
    reference: Reference = "dcl",
    discard_embeddings: Annotated[
        bool, typer.Option("--discard-embeddings", help="Delete the embeddings after measuring.")
    ] = False,
    recalibrated: Annotated[
        bool, typer.Option("--recalibrated", help="Set if `embed` used --recalibrate.")
    ] = False,
    dtype: Annotated[
        EmbeddingType, typer.Option(help="Type in which the numbers of the embeddings are stored.")
    ] = "float32",
    precision: EmbeddingPrecision = "float32",
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Measure embedded cells: alignment, losses, collapse, accuracies, weights, bounds.

    "auto" takes a GPU if a CPU would need more than a minute.
    """
    limit_threads(threads)
    from cltools.stages import measure as stage

    with memory_remedy("use --device cpu, or give the job more"):
        stage.run(
            manifests=manifests,
            done=done,
            settings=MeasureSettings(full_at, reference),
            embeddings=Embeddings(dtype, recalibrated, precision),
            discard_embeddings=discard_embeddings,
            device=device,
            threads=threads,
        )


def theory(
    manifests: Manifests,
    measured: Annotated[
        Path, typer.Option(help="List of tables that `cltools measure` wrote (JSON).")
    ],
    store: Stores,
    done: Tables,
    settings: Settings = "{}",
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Compare the papers' bounds with the measured values of trained cells."""
    limit_threads(threads)
    own_gpu(device)
    from cltools.stages import theory as stage

    chosen = json_object(settings, "--settings")
    with memory_remedy("lower theory.curvature_images, use --device cpu, or give the job more"):
        stage.run(
            manifests=manifests,
            measured=measured,
            stores=store,
            done=done,
            settings=chosen,
            device=device,
            threads=threads,
        )


def merge(
    manifests: Manifests,
    store: Stores,
    done: Tables,
    settings: Settings = "{}",
    reference: Reference = "dcl",
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Measure networks on the line between the weights of the reference and of others."""
    limit_threads(threads)
    own_gpu(device)
    from cltools.stages import merge as stage

    chosen = json_object(settings, "--settings")
    with memory_remedy("use --device cpu, or give the job more"):
        stage.run(
            manifests=manifests,
            stores=store,
            done=done,
            settings=chosen,
            reference=reference,
            device=device,
            threads=threads,
        )


def layers(
    manifests: Manifests,
    store: Stores,
    done: Tables,
    settings: Settings = "{}",
    reference: Reference = "dcl",
    recalibrate: Recalibrate = False,
    device: Device = "auto",
    threads: Threads = 1,
    workers: Workers = None,
) -> None:
    """Compare every layer of the networks with those of the reference, and with its start."""
    limit_threads(threads)
    own_gpu(device)
    from cltools.stages import layers as stage

    chosen = json_object(settings, "--settings")
    with memory_remedy("use --device cpu, or give the job more"):
        stage.run(
            manifests=manifests,
            stores=store,
            done=done,
            settings=chosen,
            reference=reference,
            recalibrate=recalibrate,
            device=device,
            threads=threads,
            workers=workers,
        )


def project(
    manifest: Annotated[
        Path, typer.Argument(help="Training manifest (trained-….json) of the cell.")
    ],
    store: Store,
    output: Annotated[Path, typer.Option(help="Tidy table to write (parquet).")],
    settings: Settings = "{}",
    recalibrate: Recalibrate = False,
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Project features of some images to the plane, for every objective and checkpoint."""
    limit_threads(threads)
    own_gpu(device)
    from cltools.stages import project as stage

    chosen = json_object(settings, "--settings")
    with memory_remedy("lower project.images_per_class, use --device cpu, or give the job more"):
        stage.run(
            manifest=manifest,
            store=store,
            output=output,
            settings=chosen,
            recalibrate=recalibrate,
            device=device,
            threads=threads,
        )


def compare(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Embeddings of the same images: .npy, .npz, .safetensors, .pt, .nc, .csv, "
            ".parquet; FILE:NAME is one array of a file."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Tidy table of all measures to write: .parquet or .csv.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Classes of the images, if no file of these holds them.")
    ] = None,
    heatmap: Annotated[
        Path | None, typer.Option(help="CKA and RSA of all pairs to draw: .png, .pdf or .svg.")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Compare embeddings that any software made: CKA, RSA and more, with intervals."""
    limit_threads(threads)
    from cltools.runtime.text_table import write
    from cltools.stages import compare as stage

    comparison = stage.run(files=files, output=output, labels_file=labels, heatmap=heatmap)
    write(stage.report(comparison))


def collect(
    plan: PlanFile,
    lists: Annotated[
        list[Path],
        typer.Argument(
            help="Lists of tables that `cltools measure`, `merge`, `theory` and `layers` wrote."
        ),
    ],
    measures: Annotated[Path, typer.Option(help="Tidy table of all measures to write.")],
    log: Annotated[Path, typer.Option(help="Table of all training logs to write.")],
    theory: Annotated[Path | None, typer.Option(help="Table of all bounds to write.")] = None,
    layers: Annotated[Path | None, typer.Option(help="Table of all layers to write.")] = None,
) -> None:
    """Join the tables of an experiment's cells."""
    limit_threads(1)
    from cltools.stages import collect as stage

    stage.run(plan=plan, lists=lists, measures=measures, log=log, theory=theory, layers=layers)


def plot(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of the figure; all names stand below.", autocompletion=figure_names
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="Path of the figure without its ending: .pdf, .png, .csv and .txt are added."
        ),
    ],
    plan: PlanFile,
    measures: Measures = None,
    log: Logs = None,
    theory: Bounds = None,
    surrogate: Surrogate = None,
    minimise: Minimise = None,
    regularity: Regularity = None,
    project: Annotated[Path | None, table("images in the plane")] = None,
    layers: Annotated[Path | None, table("layers")] = None,
    papers: Annotated[
        list[Path] | None,
        typer.Option(help="File of a paper's numbers to draw as well (CSV); may be repeated."),
    ] = None,
    style: Annotated[
        str,
        typer.Option(
            help="Style as JSON or in a JSON file, with the keys of figures in the config."
        ),
    ] = "{}",
) -> None:
    """Draw one figure of an experiment from its tables."""
    limit_threads(1)
    from cltools.stages import plot as stage

    given = {
        "measures": measures,
        "log": log,
        "theory": theory,
        "surrogate": surrogate,
        "minimise": minimise,
        "regularity": regularity,
        "project": project,
        "layers": layers,
    }
    tables = {table: path for table, path in given.items() if path is not None}
    stage.run(
        name=name,
        plan=plan,
        tables=tables,
        output=output,
        style=json_object(style, "--style"),
        papers=papers or (),
    )


def claims(
    plan: PlanFile,
    output: Annotated[
        Path,
        typer.Option(help="Table of verdicts to write (parquet), with a readable .md beside it."),
    ],
    measures: Measures = None,
    theory: Bounds = None,
    log: Logs = None,
    surrogate: Surrogate = None,
    minimise: Minimise = None,
    regularity: Regularity = None,
    claims: Annotated[
        Path | None,
        typer.Option(help="File of the claims to test; without it, those of the papers."),
    ] = None,
) -> None:
    """Test which of the papers' claims hold in an experiment."""
    limit_threads(1)
    from cltools.claims import FILE
    from cltools.stages import claims as stage

    tables = {"measures": measures, "theory": theory, "training_log": log, "surrogate": surrogate,
              "minimise": minimise, "regularity": regularity}  # fmt: skip
    stage.run(plan=plan, tables=tables, output=output, claims=claims or FILE)


def report(
    manifests: Manifests,
    plan: PlanFile,
    measures: Annotated[
        Path, typer.Option(help="Table of all measures of the experiment (measures.parquet).")
    ],
    claims: Annotated[
        Path, typer.Option(help="Table of verdicts of the experiment (claims.parquet).")
    ],
    figures: Annotated[Path, typer.Option(help="Folder of the figures of the experiment.")],
    output: Annotated[Path, typer.Option(help="HTML file to write.")],
    config: Annotated[str, typer.Option(help="Config to show, as JSON or in a JSON file.")] = "{}",
    theory: Annotated[
        Path | None, typer.Option(help="Table of bounds (theory.parquet), for the loss gap.")
    ] = None,
    project: Annotated[
        Path | None, typer.Option(help="Table of images as points (project.parquet), to show them.")
    ] = None,
    show: Annotated[
        list[str] | None,
        typer.Option(help="Name of a figure to show (repeatable); default: those of the plan."),
    ] = None,
    benchmarks: Annotated[
        Path | None,
        typer.Option(
            help=f"Folder with time and memory of the jobs, such as {RESULTS.benchmarks}."
        ),
    ] = None,
) -> None:
    """Write one HTML file with the claims, figures, tables and software of an experiment."""
    limit_threads(1)
    from cltools.stages import report as stage

    stage.run(
        plan=plan,
        measures=measures,
        claims=claims,
        figures=figures,
        manifests=manifests,
        config=json_object(config, "--config"),
        output=output,
        theory=theory,
        project=project,
        shown=show or (),
        benchmarks=benchmarks,
    )


def surrogate(
    output: Annotated[Path, typer.Option(help="Tidy table to write (parquet).")],
    settings: Settings = "{}",
) -> None:
    """Run similarity descent for a grid of settings: drift of CL and NSCL, and its bounds."""
    limit_threads(1)
    from cltools.stages import surrogate as stage

    stage.run(settings=json_object(settings, "--settings"), output=output)


def minimise(
    output: Annotated[Path, typer.Option(help="Tidy table to write (parquet).")],
    settings: Settings = "{}",
) -> None:
    """Minimize the objectives over free embeddings: which collapse, to what, and when."""
    limit_threads(1)
    from cltools.stages import minimise as stage

    stage.run(settings=json_object(settings, "--settings"), output=output)


def regularity(
    cell: Annotated[
        str,
        typer.Option(
            help="Settings of the cell as JSON or in a JSON file, as for `cltools train`."
        ),
    ],
    store: Store,
    output: Annotated[Path, typer.Option(help="Tidy table to write (parquet).")],
    settings: Settings = "{}",
    device: Device = "auto",
) -> None:
    """Compare a network's similarities under SGD with those of the surrogate, step by step."""
    from cltools.config.cells import resolve_cell

    chosen = resolve_cell(json_object(cell, "--cell"))
    limit_threads(chosen["threads"])
    own_gpu(device)
    from cltools.stages import regularity as stage

    stage.run(
        cell=chosen,
        store=store,
        output=output,
        settings=json_object(settings, "--settings"),
        device=device,
    )
