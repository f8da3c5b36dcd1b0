"""The `cltools` command: one subcommand per stage, and how errors are reported."""

import logging
import os
import sys
import time
from contextlib import suppress

import typer

from cltools.cli import everyday, stages
from cltools.cli.examples import PANELS
from cltools.figures import FIGURES
from cltools.runtime.errors import InputError, Stopped
from cltools.runtime.extras import missing_extra
from cltools.runtime.faults import device_fault, disk_fault, memory_fault

SECONDS_FOR_RANK_0 = 20.0

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train CL and NSCL under shared randomness and measure how closely they stay aligned. "
    "CL is contrastive learning, NSCL the same with labels: negatives are of other classes.",
    epilog="The whole way from images to a report is `snakemake --cores 2`; it runs the stages.",
)
for panel, commands in PANELS.items():
    for command, example in commands.items():
        figures = f"\n\nFigures: {', '.join(FIGURES)}" if command is stages.plot else ""
        app.command(
            rich_help_panel=panel,
            epilog=f"Example: {example}{figures}",
            # The options of the command that `with-gpus` runs are not its own.
            context_settings={"ignore_unknown_options": command is everyday.with_gpus},
        )(command)


def main() -> None:
    """Entry point. Errors that the user can correct give one sentence on stderr and exit code 2.

    Those are wrong input, a package that is not installed, a disk that is full or not writable, too
    little memory, and what a device cannot compute. Any other error is a mistake in the program and
    shows a traceback. When a signal ended training, the exit code is 128 plus the signal's number.
    Of several ranks that torchrun started, rank 0 reports errors that all of them have.
    """
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # Other libraries log warnings only.
    logging.getLogger("cltools").setLevel(logging.INFO if first else logging.ERROR)
    try:
        app()
    except Stopped as stopped:
        if first:
            _say(str(stopped))
        sys.exit(stopped.code)
    except Exception as error:
        fault = error if isinstance(error, InputError) else missing_extra(error)
        fault = fault or disk_fault(error) or memory_fault(error, "give the job more")
        fault = fault or device_fault(error)
        if fault is None:
            raise
        if not first:
            # Most errors occur on all ranks. Rank 0 then reports them, and torchrun ends this
            # process while it waits. Otherwise the error is this rank's alone.
            time.sleep(SECONDS_FOR_RANK_0)
        _say(f"Error: {fault}")
        sys.exit(2)


def _say(sentence: str) -> None:
    """Write to stderr. Where that was a terminal and is closed by now, the exit code says enough.

    This is not `typer.echo`, which imports modules: that fails where no file can be opened.
    """
    with suppress(OSError):
        print(sentence, file=sys.stderr)
