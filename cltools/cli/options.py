"""Options that several commands have, and what commands do before a stage is imported."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cltools.runtime.errors import InputError
from cltools.runtime.faults import memory_fault

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


def json_object(text: str, what: str) -> Any:
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


def experiment_of(config: str) -> Any:
    """The checked experiment of a config file, or of its content as JSON."""
    from cltools.config.experiment import load_experiment, read_config

    inline = config.lstrip().startswith("{")
    return load_experiment(
        json_object(config, "the config") if inline else read_config(Path(config))
    )
