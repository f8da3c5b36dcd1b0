"""The `cltools` command: one subcommand per stage, thin. Errors of the user's input exit with 2."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cltools.runtime.errors import InputError, Stopped
from cltools.runtime.faults import disk_fault, memory_fault

SECONDS_FOR_RANK_0 = 20.0

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train CL and NSCL under shared randomness and measure how closely they stay aligned.",
)

CONFIG_HELP = "Config file (YAML), or its content as JSON."
Store = Annotated[Path, typer.Option(help="Image store made by `cltools prepare`.")]
Stores = Annotated[list[Path], typer.Option(help="Image store; one for each data set.")]
Manifests = Annotated[list[Path], typer.Argument(help="Training manifests (trained-*.json).")]
Table = Annotated[Path | None, typer.Option(help="Tidy table of an experiment (parquet).")]
Tables = Annotated[Path, typer.Option(help="List of the tables made, to write at the end.")]
Settings = Annotated[str, typer.Option(help="JSON or a file with it; keys as in the config.")]
EmbeddingType = Literal["float32", "float16"]
FullAt = Literal["last", "all"]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Threads that decode images of an encoded store; default: the cores."),
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


def limit_threads(count: int) -> None:
    """Set the thread count of every numerical library; call it before they are imported.

    Two jobs that each start a thread per core run many times slower than with one thread each.
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
                     "POLARS_MAX_THREADS"):  # fmt: skip
        os.environ[variable] = str(count)


@contextmanager
def memory_remedy(remedy: str) -> Iterator[None]:
    """Say what the user can do where the block runs out of memory."""
    try:
        yield
    except Exception as error:
        if (fault := memory_fault(error, remedy)) is not None:
            raise fault from error
        raise


def own_gpu(device: str) -> None:
    """Where the device is left open, a GPU that no other process of cltools has; see `gpus`.

    Ranks that torchrun started share those of their torchrun.
    """
    if device == "auto" and "LOCAL_RANK" not in os.environ:
        from cltools.runtime.gpus import claim_gpus

        claim_gpus(1)


def _json_object(text: str, what: str) -> Any:
    """JSON given on the command line, or in the file that is named there."""
    if not text.lstrip().startswith(("{", "[")):
        try:
            text = Path(text).read_text()
        except OSError:
            raise InputError(f"{what} {text!r} is neither JSON nor a readable file") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{what} is not valid JSON ({error}): correct it") from None


def _experiment(config: str) -> Any:
    """The checked experiment of a config file, or of its content as JSON."""
    from cltools.config.experiment import load_experiment, read_config

    inline = config.lstrip().startswith("{")
    return load_experiment(
        _json_object(config, "the config") if inline else read_config(Path(config))
    )


@app.command()
def plan(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    output: Annotated[Path | None, typer.Option(help="File to write (JSON).")] = None,
) -> None:
    """Check a config and list the cells that it asks for."""
    from cltools.runtime.files import write_json

    experiment = _experiment(config)
    if output is None:
        for identity, cell in experiment.plans.items():
            typer.echo(f"{identity}  until {cell.until}  in {', '.join(cell.sweeps)}")
        typer.echo(f"{experiment.name}: {len(experiment.plans)} cells")
    else:
        from cltools.figures import figures_of

        write_json(output, {**experiment.summary(), "figures": figures_of(experiment)})


@app.command()
def status(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    results: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Say how far an experiment is: what is done, running, failed or stale, cell by cell."""
    from cltools.stages import status as stage

    report = stage.status(_experiment(config), results)
    for line in [json.dumps(report, indent=1)] if as_json else stage.status_lines(report):
        typer.echo(line)


@app.command()
def partial(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    results: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("results"),
    output: Annotated[
        Path | None, typer.Option(help="Folder to write [<results>/<experiment>/partial].")
    ] = None,
) -> None:
    """Draw the figures of the cells that are done, while others are still at work."""
    limit_threads(1)
    from cltools.stages.partial import draw_partial

    experiment = _experiment(config)
    for line in draw_partial(experiment, results, output or results / experiment.name / "partial"):
        typer.echo(line)


@app.command()
def prepare(
    name: Annotated[str, typer.Option(help="Name of the data set in the store.")],
    definition: Annotated[
        str, typer.Option(help='JSON or a file with it: {"source": "folder", "path": "photos"}.')
    ],
    store: Annotated[Path, typer.Option(help="Folder to write.")],
    workers: Workers = None,
) -> None:
    """Read a data set and write it as an image store."""
    limit_threads(1)
    from cltools.stages.prepare import prepare as run_stage

    run_stage(name, _json_object(definition, "--definition"), store, workers)


@app.command()
def train(
    cell: Annotated[
        str, typer.Option(help='JSON or a file with it: {"dataset": "digits", "horizon": 20, ...}.')
    ],
    store: Store,
    run: Annotated[Path, typer.Option(help="Folder for weights, log and resume state.")],
    manifest: Annotated[Path, typer.Option(help="Manifest to write when training is done.")],
    until: Annotated[
        str | None, typer.Option(help="'20 epochs' or '300 steps'; default: the horizon.")
    ] = None,
    device: Device = "auto",
    save_every_seconds: Annotated[
        float, typer.Option(help="Time between saves of the resume state.")
    ] = 120.0,
    save_every_steps: Annotated[
        int | None, typer.Option(min=1, help="Also save the resume state every so many steps.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Train the objectives of one cell together, from wherever an earlier run stopped."""
    from cltools.config.cells import resolve_cell
    from cltools.config.durations import Duration

    settings = resolve_cell(_json_object(cell, "--cell"))
    try:
        stop = None if until is None else Duration.parse(until)
    except ValueError as error:
        raise InputError(f"--until: {error}") from None
    limit_threads(settings["threads"])
    own_gpu(device)
    from cltools.stages.train import train as run_stage

    with memory_remedy(
        "lower batch_size, set precision to bfloat16, raise gpus_per_cell, or give the job more"
    ):
        run_stage(
            settings,
            store,
            run,
            manifest,
            until=stop,
            device_name=device,
            save_every_seconds=save_every_seconds,
            save_every_steps=save_every_steps,
            workers=workers,
        )


@app.command()
def embed(
    manifests: Manifests,
    store: Stores,
    done: Annotated[Path, typer.Option(help="List of the files made, to write at the end.")],
    dtype: Annotated[EmbeddingType, typer.Option(help="How numbers are stored.")] = "float32",
    recalibrate: Annotated[
        bool,
        typer.Option("--recalibrate", help="Work out batch statistics anew on training images."),
    ] = False,
    unless_measured: Annotated[
        FullAt | None,
        typer.Option(help="Leave out cells that are measured, with this --full-at, already."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Let no `cltools measure` discard them.")
    ] = False,
    device: Device = "auto",
    threads: Threads = 1,
    workers: Workers = None,
) -> None:
    """Embed the images of trained cells, at every checkpoint, into each cell's embeddings/."""
    limit_threads(threads)
    own_gpu(device)
    from cltools.stages.embed import embed_cells

    with memory_remedy("lower images_per_class, use --device cpu, or give the job more"):
        embed_cells(
            manifests, store, done, device, dtype, threads, recalibrate, workers, unless_measured,
            keep,
        )  # fmt: skip


@app.command()
def measure(
    manifests: Manifests,
    done: Tables,
    full_at: Annotated[FullAt, typer.Option(help="Checkpoints measured in full.")] = "last",
    discard_embeddings: Annotated[
        bool, typer.Option("--discard-embeddings", help="Delete embeddings once measured.")
    ] = False,
    recalibrated: Annotated[
        bool, typer.Option("--recalibrated", help="Of embeddings made with --recalibrate.")
    ] = False,
    dtype: Annotated[EmbeddingType, typer.Option(help="That of the embeddings.")] = "float32",
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Measure embedded cells: alignment, losses, collapse, accuracies, weights, bounds.

    The losses of whole data sets are worked out on the device (auto: on a GPU if they are of
    100,000 images or more), all else on the CPU.
    """
    limit_threads(threads)
    from cltools.stages.measure import measure_cells

    with memory_remedy("use --device cpu, or give the job more"):
        measure_cells(
            manifests, done, full_at, discard_embeddings, threads, recalibrated, dtype, device
        )


@app.command()
def theory(
    manifests: Manifests,
    measured: Annotated[Path, typer.Option(help="List written by `cltools measure`.")],
    store: Stores,
    done: Tables,
    settings: Settings = "{}",
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Set the papers' bounds beside what was measured of trained cells."""
    limit_threads(threads)
    own_gpu(device)
    from cltools.stages.theory import theory_cells

    chosen = _json_object(settings, "--settings")
    with memory_remedy("lower theory.curvature_images, use --device cpu, or give the job more"):
        theory_cells(manifests, measured, store, done, chosen, device, threads)


@app.command()
def merge(
    manifests: Manifests,
    store: Stores,
    done: Tables,
    settings: Settings = "{}",
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Measure networks on the line between the weights of DCL and of other objectives."""
    limit_threads(threads)
    own_gpu(device)
    from cltools.stages.merge import merge_cells

    chosen = _json_object(settings, "--settings")
    with memory_remedy("use --device cpu, or give the job more"):
        merge_cells(manifests, store, done, chosen, device, threads)


@app.command()
def project(
    manifest: Annotated[Path, typer.Argument(help="Training manifest (trained-*.json).")],
    store: Store,
    output: Annotated[Path, typer.Option(help="Tidy table to write (parquet).")],
    settings: Settings = "{}",
    recalibrate: Annotated[
        bool,
        typer.Option("--recalibrate", help="Work out batch statistics anew on training images."),
    ] = False,
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Project features of some images to the plane, for every objective and checkpoint."""
    limit_threads(threads)
    own_gpu(device)
    from cltools.stages.project import run_project

    chosen = _json_object(settings, "--settings")
    with memory_remedy("lower project.images_per_class, use --device cpu, or give the job more"):
        run_project(manifest, store, output, chosen, device, threads, recalibrate)


@app.command()
def compare(
    files: Annotated[
        list[Path], typer.Argument(help="Two or more: .npy, .npz, .safetensors, .nc.")
    ],
    output: Annotated[Path, typer.Option(help="Tidy table to write (parquet).")],
    labels: Annotated[Path | None, typer.Option(help="Classes of the images (.npy).")] = None,
    threads: Threads = 1,
) -> None:
    """Measure embeddings that other software made, against the first file."""
    limit_threads(threads)
    from cltools.stages.compare import compare as run_stage

    run_stage(files, output, labels)


@app.command()
def collect(
    plan: Annotated[Path, typer.Option(help="Written by `cltools plan`.")],
    lists: Annotated[
        list[Path], typer.Argument(help="Lists written by `cltools measure`, merge and theory.")
    ],
    measures: Annotated[Path, typer.Option(help="Tidy table of all measures to write.")],
    log: Annotated[Path, typer.Option(help="Table of all training logs to write.")],
    theory: Annotated[Path | None, typer.Option(help="Table of all bounds to write.")] = None,
) -> None:
    """Join the tables of an experiment's cells."""
    limit_threads(1)
    from cltools.stages.collect import collect as run_stage

    run_stage(plan, lists, measures, log, theory)


@app.command()
def plot(
    name: Annotated[str, typer.Argument(help="Name of the figure.")],
    output: Annotated[Path, typer.Option(help="Path without ending: .pdf, .png, .csv are added.")],
    plan: Annotated[Path, typer.Option(help="Written by `cltools plan`.")],
    measures: Table = None,
    log: Table = None,
    theory: Table = None,
    surrogate: Table = None,
    minimise: Table = None,
    regularity: Table = None,
    project: Table = None,
    papers: Annotated[
        list[Path] | None, typer.Option(help="File of the papers' numbers to draw beside (CSV).")
    ] = None,
    style: Annotated[str, typer.Option(help='JSON, e.g. {"dpi": 300}.')] = "{}",
) -> None:
    """Draw one figure of an experiment from its tables."""
    limit_threads(1)
    from cltools.runtime.files import read_json
    from cltools.stages.plot import plot as run_stage

    given = {
        "measures": measures,
        "log": log,
        "theory": theory,
        "surrogate": surrogate,
        "minimise": minimise,
        "regularity": regularity,
        "project": project,
    }
    tables = {table: path for table, path in given.items() if path is not None}
    sweeps = {sweep["name"]: sweep for sweep in read_json(plan, made_by="cltools plan")["sweeps"]}
    run_stage(name, tables, sweeps, output, _json_object(style, "--style"), papers or ())


@app.command()
def claims(
    plan: Annotated[Path, typer.Option(help="Written by `cltools plan`.")],
    output: Annotated[Path, typer.Option(help="Table to write (parquet); a readable .md beside.")],
    measures: Annotated[Path | None, typer.Option(help="measures.parquet.")] = None,
    theory: Annotated[Path | None, typer.Option(help="theory.parquet.")] = None,
    log: Annotated[Path | None, typer.Option(help="training_log.parquet.")] = None,
    surrogate: Annotated[Path | None, typer.Option(help="surrogate.parquet.")] = None,
    minimise: Annotated[Path | None, typer.Option(help="minimise.parquet.")] = None,
    regularity: Annotated[Path | None, typer.Option(help="regularity.parquet.")] = None,
    claims: Annotated[
        Path | None, typer.Option(help="Claims to test; default: those of the papers.")
    ] = None,
) -> None:
    """Say which of the papers' claims hold in an experiment."""
    limit_threads(1)
    from cltools.claims import FILE
    from cltools.stages.claims import run_claims

    tables = {"measures": measures, "theory": theory, "training_log": log, "surrogate": surrogate,
              "minimise": minimise, "regularity": regularity}  # fmt: skip
    run_claims(plan, tables, claims or FILE, output)


@app.command()
def report(
    manifests: Manifests,
    plan: Annotated[Path, typer.Option(help="Written by `cltools plan`.")],
    measures: Annotated[Path, typer.Option(help="measures.parquet of an experiment.")],
    claims: Annotated[Path, typer.Option(help="claims.parquet of it.")],
    figures: Annotated[Path, typer.Option(help="Folder of its figures.")],
    output: Annotated[Path, typer.Option(help="HTML file to write.")],
    config: Annotated[str, typer.Option(help="The config to show: JSON or a file with it.")] = "{}",
    benchmarks: Annotated[
        Path | None, typer.Option(help="results/benchmarks, for time and memory of the jobs.")
    ] = None,
) -> None:
    """Put claims, figures, tables and origins of an experiment into one HTML file."""
    limit_threads(1)
    from cltools.stages.report import report as run_stage

    shown = _json_object(config, "--config")
    run_stage(plan, measures, claims, figures, manifests, shown, output, benchmarks)


@app.command()
def surrogate(
    output: Annotated[Path, typer.Option(help="Tidy table to write (parquet).")],
    settings: Settings = "{}",
) -> None:
    """Run the papers' similarity descent over a grid: drift of CL and NSCL beside its bounds."""
    limit_threads(1)
    from cltools.stages.surrogate import run_surrogate

    run_surrogate(_json_object(settings, "--settings"), output)


@app.command()
def minimise(
    output: Annotated[Path, typer.Option(help="Tidy table to write (parquet).")],
    settings: Settings = "{}",
) -> None:
    """Minimise the objectives over free embeddings: which of them collapse, to what, and when."""
    limit_threads(1)
    from cltools.stages.minimise import run_minimise

    run_minimise(_json_object(settings, "--settings"), output)


@app.command()
def regularity(
    cell: Annotated[str, typer.Option(help="JSON or a file with it, as for `cltools train`.")],
    store: Store,
    output: Annotated[Path, typer.Option(help="Tidy table to write (parquet).")],
    settings: Settings = "{}",
    device: Device = "auto",
) -> None:
    """Follow a network's similarities under SGD, step by step, beside their surrogate."""
    from cltools.config.cells import resolve_cell

    chosen = resolve_cell(_json_object(cell, "--cell"))
    limit_threads(chosen["threads"])
    own_gpu(device)
    from cltools.stages.regularity import run_regularity

    run_regularity(chosen, store, output, _json_object(settings, "--settings"), device)


@app.command()
def bench(
    config: Annotated[str | None, typer.Argument(help=CONFIG_HELP)] = None,
    cell: Annotated[
        str | None, typer.Option(help="In its place: a cell, as for `cltools train`.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="A config's folder of stores [results/stores]; a cell's.")
    ] = None,
    device: Device = "auto",
    steps: Annotated[int, typer.Option(min=1, help="Training steps to time.")] = 20,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Random images, like the store's if there is one.")
    ] = False,
    image_size: Annotated[int | None, typer.Option(min=1, help="Their side in pixels.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Training images.")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Classes among them.")] = None,
    channels: Annotated[int | None, typer.Option(min=1, max=3, help="1 or 3 [3].")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write (JSON).")] = None,
    workers: Workers = None,
) -> None:
    """Time training steps on this machine: what a cell, or all cells of a config, will take."""
    from cltools.config.cells import resolve_cell
    from cltools.runtime.files import write_json

    if (config is None) == (cell is None):
        raise InputError("cltools bench takes a config or --cell, one of the two: give one")
    sizes = (image_size, images, classes, channels)
    if not synthetic and any(size is not None for size in sizes):
        raise InputError("the sizes of images are those of the store: add --synthetic")
    settings = resolve_cell(_json_object(cell, "--cell")) if cell else {"threads": 1}
    experiment = _experiment(config) if config else None
    limit_threads(settings["threads"])
    from cltools.stages import bench as stage

    made = stage.Synthetic(*sizes) if synthetic else None
    if experiment:
        folder = store or Path("results/stores")
        report = stage.bench_experiment(experiment, folder, device, steps, made, workers)
    else:
        report = stage.bench_cell(settings, store, device, steps, made, workers)
    for line in stage.report_lines(report):
        typer.echo(line)
    if output:
        write_json(output, report)


@app.command(context_settings={"ignore_unknown_options": True})
def with_gpus(
    count: Annotated[int, typer.Argument(min=1, help="GPUs to wait for.")],
    command: Annotated[list[str], typer.Argument(help="What to run on them.")],
) -> None:
    """Run a command on GPUs that no other process of cltools uses; for torchrun."""
    from cltools.runtime.gpus import claim_gpus

    claim_gpus(count)
    os.execvp(command[0], command)


def main() -> None:
    """Entry point: log lines to stderr, one sentence and exit code 2 for what the user can mend.

    That is wrong input, a disk that is full or closed, too little memory. What else goes wrong is a
    mistake of the program and has a traceback. After a signal that training obeyed, the exit code
    is 128 and the signal's number. Of several ranks that torchrun started, rank 0 speaks for all.
    """
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # Other libraries stay at warnings.
    logging.getLogger("cltools").setLevel(logging.INFO if first else logging.ERROR)
    try:
        app()
    except Stopped as stopped:
        if first:
            typer.echo(str(stopped), err=True)
        sys.exit(stopped.code)
    except Exception as error:
        fault = error if isinstance(error, InputError) else disk_fault(error)
        fault = fault or memory_fault(error, "give the job more")
        if fault is None:
            raise
        if not first:
            # Most errors are all ranks' errors. When rank 0 says so, torchrun ends this process
            # while it waits; otherwise the fault is this rank's own.
            time.sleep(SECONDS_FOR_RANK_0)
        typer.echo(f"Error: {fault}", err=True)
        sys.exit(2)
