"""Commands that are no stages: state of an experiment, partial figures, timings, GPUs."""

import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from cltools.cli.options import (
    CONFIG_HELP,
    Device,
    Workers,
    experiment_of,
    json_object,
    limit_threads,
)
from cltools.config.sharing import Share
from cltools.layout import RESULTS, Results
from cltools.runtime.errors import InputError
from cltools.runtime.shipped import Part, shipped

PLAIN_WIDTH = 200  # characters of the view of `cltools watch` in a file or a pipe
Channels = Annotated[int | None, typer.Option(min=1, max=3, help="Their channels, 1 or 3 [3].")]
Encoded = Annotated[
    bool, typer.Option("--encoded", help="Random images are photographs, decoded in training.")
]
On = Annotated[
    str | None, typer.Option(help="Time nothing, but predict: a100, h100, h200, l40s or v100.")
]


def status(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    results: Annotated[Path, typer.Option(help="Folder of all results.")] = RESULTS.path,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show how far an experiment is: what is done, running, failed or stale, cell by cell."""
    from cltools.stages import status as stage

    report = stage.run(experiment=experiment_of(config), results=results)
    for line in [json.dumps(report, indent=1)] if as_json else stage.status_lines(report):
        typer.echo(line)


def watch(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    results: Annotated[Path, typer.Option(help="Folder of all results.")] = RESULTS.path,
    seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Show the state once, and end.")] = False,
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
    results: Annotated[Path, typer.Option(help="Folder of all results.")] = RESULTS.path,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write [<results>/<experiment>/partial].")
    ] = None,
) -> None:
    """Draw figures of the cells that are done, while others are still running."""
    limit_threads(1)
    from cltools.cli.partial import draw_partial

    experiment = experiment_of(config)
    folder = output or Results(results).experiment(experiment.name).partial.path
    for line in draw_partial(experiment=experiment, results=results, output=folder):
        typer.echo(line)


def bench(
    config: Annotated[str | None, typer.Argument(help=CONFIG_HELP)] = None,
    cell: Annotated[
        str | None, typer.Option(help="A cell instead of a config, as for `cltools train`.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help=f"For a config, the folder of stores [{RESULTS.stores}]; for a cell, its store."
        ),
    ] = None,
    device: Device = "auto",
    steps: Annotated[int, typer.Option(min=1, help="Training steps to time.")] = 20,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Random images, like the store's if there is one.")
    ] = False,
    image_size: Annotated[int | None, typer.Option(min=1, help="Side of random images.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Random training images.")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Classes of random images.")] = None,
    channels: Channels = None,
    encoded: Encoded = False,
    output: Annotated[Path | None, typer.Option(help="File to write (JSON).")] = None,
    workers: Workers = None,
    share: Annotated[
        Share, typer.Option(help="What the processes of torchrun share, as for `cltools train`.")
    ] = "auto",
    on: On = None,
) -> None:
    """Time training steps on this machine, or predict them for a GPU that is not here (--on).

    Both estimate the time of a cell or of a whole config.
    """
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
        Part, typer.Argument(help="snakefile, its Slurm profile, or the folder of its configs.")
    ] = "snakefile",
) -> None:
    """Print where the workflow of this installation is, for `snakemake --snakefile`."""
    typer.echo(shipped(part))


def with_gpus(
    count: Annotated[int, typer.Argument(min=1, help="GPUs to wait for.")],
    command: Annotated[list[str], typer.Argument(help="What to run on them.")],
) -> None:
    """Run a command, such as torchrun, on GPUs that no other process of cltools uses."""
    from cltools.runtime.gpus import claim_gpus

    claim_gpus(count)
    os.execvp(command[0], command)
