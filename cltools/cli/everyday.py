"""Commands that are no stages: state of an experiment, partial figures, timings, GPUs."""

import json
import os
import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from cltools.cli.options import (
    CONFIG_HELP,
    RESULTS_HELP,
    Device,
    Workers,
    config_file,
    experiment_of,
    json_object,
    limit_threads,
)
from cltools.config.sharing import Share
from cltools.layout import RESULTS, Results
from cltools.runtime.errors import InputError
from cltools.runtime.shipped import Part, shipped

PLAIN_WIDTH = 200  # characters of the view of `cltools watch` in a file or a pipe
Channels = Annotated[
    int | None, typer.Option(min=1, max=3, help="Color channels of random images, 1 or 3.")
]
Encoded = Annotated[
    bool,
    typer.Option(
        "--encoded", help="Make random images as photographs (JPEG), which training decodes."
    ),
]
OneCell = Annotated[
    str | None,
    typer.Option(help="Settings of one cell instead of a config, as for `cltools train`."),
]
StoreOrStores = Annotated[
    Path | None,
    typer.Option(
        help=f"Folder of all image stores of a config, {RESULTS.stores} without it; "
        "with --cell, the image store of the cell."
    ),
]
RandomImages = Annotated[
    bool,
    typer.Option(
        "--synthetic", help="Time random images, of the sizes of the store if there is one."
    ),
]
Side = Annotated[int | None, typer.Option(min=1, help="Side of random images in pixels.")]
ImageCount = Annotated[int | None, typer.Option(min=1, help="Number of random training images.")]
ClassCount = Annotated[int | None, typer.Option(min=1, help="Number of classes of random images.")]
On = Annotated[
    str | None,
    typer.Option(
        help="GPU to predict for, instead of timing this machine: a100, h100, h200, l40s or v100."
    ),
]


def status(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    results: Annotated[Path, typer.Option(help=RESULTS_HELP)] = RESULTS.path,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the state as JSON instead of text.")
    ] = False,
) -> None:
    """Show how far an experiment is: what is done, running, failed or stale, cell by cell."""
    from cltools.stages import status as stage

    report = stage.run(experiment=experiment_of(config), results=results)
    for line in [json.dumps(report, indent=1)] if as_json else stage.status_lines(report):
        typer.echo(line)


def watch(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    results: Annotated[Path, typer.Option(help=RESULTS_HELP)] = RESULTS.path,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks at the files.")
    ] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Show the state once and end.")] = False,
) -> None:
    """Watch an experiment on the terminal: cells in numbers, losses, speed, time left, errors."""
    from rich.console import Console

    from cltools.cli.watch import watch as show

    # Without a terminal there is no width to keep to.
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    with suppress(KeyboardInterrupt):
        show(experiment_of(config), results, seconds, once, console)


def partial(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    results: Annotated[Path, typer.Option(help=RESULTS_HELP)] = RESULTS.path,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write; without it, partial/ in the folder of the experiment."),
    ] = None,
) -> None:
    """Draw the figures of the cells that are measured, while others are still running."""
    limit_threads(1)
    from cltools.cli.partial import draw_partial

    experiment = experiment_of(config)
    folder = output or Results(results).experiment(experiment.name).partial.path
    for line in draw_partial(experiment=experiment, results=results, output=folder):
        typer.echo(line)


def bench(
    config: Annotated[str | None, typer.Argument(help=CONFIG_HELP)] = None,
    cell: OneCell = None,
    store: StoreOrStores = None,
    device: Device = "auto",
    steps: Annotated[int, typer.Option(min=1, help="Number of training steps to time.")] = 20,
    synthetic: RandomImages = False,
    image_size: Side = None,
    images: ImageCount = None,
    classes: ClassCount = None,
    channels: Channels = None,
    encoded: Encoded = False,
    output: Annotated[
        Path | None, typer.Option(help="File to write (JSON), for the config key bench.")
    ] = None,
    workers: Workers = None,
    share: Annotated[
        Share, typer.Option(help="What the processes of torchrun share: objectives or batches.")
    ] = "auto",
    on: On = None,
) -> None:
    """Estimate how long a config takes, all stages: by timing training, or for a GPU (--on)."""
    from cltools.config.cells import resolve_cell

    if (config is None) == (cell is None):
        raise InputError("cltools bench takes either a config or --cell: give one of the two")
    sizes = (image_size, images, classes, channels)
    if not synthetic and (encoded or any(size is not None for size in sizes)):
        raise InputError("sizes and numbers of images are for random ones: add --synthetic")
    settings = resolve_cell(json_object(cell, "--cell")) if cell else {"threads": 1}
    experiment = experiment_of(config) if config else None
    limit_threads(settings["threads"])
    if on is not None:
        one = settings if cell else None
        _predict(on, experiment, one, store, (*sizes, encoded), workers, output)
        return
    from cltools.stages import bench as stage

    stores = store or RESULTS.stores
    if experiment and not synthetic and (missing := stage.not_prepared(experiment, stores)):
        file = shlex.quote(str((config and config_file(config)) or "CONFIG"))
        raise InputError(
            f"{stores} has no images of {', '.join(missing)} yet: run `snakemake --until prepare "
            f"--configfile {file} --cores 1` first, or give --synthetic"
        )
    made = stage.Synthetic(*sizes, encoded) if synthetic else None
    report = stage.run(
        experiment=experiment,
        cell=settings if cell else None,
        store=store,
        device=device,
        steps=steps,
        synthetic=made,
        workers=workers,
        share=share,
    )
    if int(os.environ.get("RANK", "0")):
        return  # of the processes that torchrun started, the first writes
    _tell(stage.report_lines(report), report, output)


def _predict(
    on: str,
    experiment: Any,
    cell: dict[str, Any] | None,
    store: Path | None,
    sizes: tuple[Any, ...],
    workers: int | None,
    output: Path | None,
) -> None:
    """`cltools bench --on GPU`; `sizes` as in `stages.predict.Given`."""
    from cltools.stages import predict as stage

    report = stage.run(
        on=on,
        experiment=experiment,
        cell=cell,
        store=store or (RESULTS.stores if experiment else None),
        given=stage.Given(*sizes),
        workers=workers,
    )
    _tell(stage.report_lines(report), report, output)


def _tell(lines: Iterable[str], report: dict[str, Any], output: Path | None) -> None:
    """Print a report, and write it to a file if one is wanted."""
    from cltools.runtime.sealed import write_json

    for line in lines:
        typer.echo(line)
    if output:
        write_json(output, report)


def workflow_path(
    part: Annotated[
        Part,
        typer.Argument(
            help="Part to print the path of: the Snakefile, its Slurm profile, or the configs."
        ),
    ] = "snakefile",
) -> None:
    """Print where the workflow of this installation is, for `snakemake --snakefile`."""
    typer.echo(shipped(part))


def with_gpus(
    count: Annotated[int, typer.Argument(min=1, help="Number of GPUs to wait for.")],
    command: Annotated[list[str], typer.Argument(help="Command to run on them, after two dashes.")],
) -> None:
    """Run a command, such as torchrun, on GPUs that no other process of cltools uses."""
    from cltools.runtime.gpus import claim_gpus

    claim_gpus(count)
    os.execvp(command[0], command)
