"""Options that several commands share, and what commands do before they import a stage."""

import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cltools.config.schema import check
from cltools.objectives import names
from cltools.runtime.errors import InputError
from cltools.runtime.faults import memory_fault

CONFIG_HELP = "Config file (YAML), its content as JSON, or the name of an experiment in config/."
RESULTS_HELP = "Folder of all results."
CONFIGS = Path("config")  # where experiments are looked up by name
Store = Annotated[Path, typer.Option(help="Folder of the image store that `cltools prepare` made.")]
Stores = Annotated[
    list[Path], typer.Option(help="Folder of an image store; repeat the option for each data set.")
]
Manifests = Annotated[
    list[Path], typer.Argument(help="Training manifests (trained-….json) of the cells.")
]
Tables = Annotated[
    Path, typer.Option(help="File to write at the end (JSON): the list of the tables made.")
]
PlanFile = Annotated[
    Path, typer.Option(help="Plan of the experiment, which `cltools plan` wrote (JSON).")
]
Settings = Annotated[
    str,
    typer.Option(
        help="Settings as JSON or in a JSON file, with the keys of this stage in the config."
    ),
]
EmbeddingType = Literal["float32", "float16"]
EmbeddingPrecision = Annotated[
    Literal["float32", "training"],
    typer.Option(help="Precision of the networks on a GPU while they make the embeddings."),
]
FullAt = Literal["last", "all"]


def table(what: str) -> Any:
    """The option for a table of an experiment."""
    return typer.Option(help=f"Table of {what} (parquet).")


Measures = Annotated[Path | None, table("all measures")]
Logs = Annotated[Path | None, table("all training logs")]
Bounds = Annotated[Path | None, table("all bounds, which `theory` makes")]
Surrogate = Annotated[Path | None, table("the surrogate dynamics")]
Minimise = Annotated[Path | None, table("free embeddings")]
Regularity = Annotated[Path | None, table("the regularity of steps")]


def _objective(name: str) -> str:
    try:
        check(name, "objective", "")
    except InputError:
        raise InputError(
            f"--reference {name} is no objective: choose one of {', '.join(names())}, or one with "
            "labels of its own, such as nscl:shuffled"
        ) from None
    return name


Reference = Annotated[
    str,
    typer.Option(callback=_objective, help="Objective that all others are compared with."),
]
Recalibrate = Annotated[
    bool,
    typer.Option(
        "--recalibrate",
        help="Compute the statistics of batch normalization again, from training images.",
    ),
]
Device = Annotated[str, typer.Option(help="Device to compute on: auto, cpu, cuda, cuda:N or mps.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Threads that decode images of an encoded store; without it, one per core."
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Number of CPU threads to compute with.")]

# Of `cltools embed --model`.
_of_model = partial(typer.Option, rich_help_panel="With --model, for a model of another library")
Model = Annotated[
    str | None,
    _of_model(help="Model to embed with: timm:NAME, torchvision:NAME, hf:REPO or MODULE:FUNCTION."),
]
FeatureFile = Annotated[
    Path | None, _of_model(help="Embeddings file to write (.nc), which `cltools compare` reads.")
]
Weights = Annotated[
    str,
    _of_model(
        help="Weights of the model: 'default' (the library's own, which it downloads), 'none' "
        "(random ones) or a file: .safetensors, .pt, .pth."
    ),
]
Seed = Annotated[int, _of_model(min=0, help="Seed of random weights.")]
Layers = Annotated[
    str | None,
    _of_model(
        help="Names of the modules whose outputs are wanted, as a,b,…; without it, the features "
        "before the classifier."
    ),
]
Split = Annotated[Literal["train", "test", "all"], _of_model(help="Split of the images to embed.")]
ImageSize = Annotated[
    int | None,
    _of_model(min=1, help="Side of the images in pixels; without it, what the model asks for."),
]


def limit_threads(count: int) -> None:
    """Set the number of threads of all numerical libraries; call it before they are imported.

    Two jobs that each start one thread per core are many times slower than with one thread each.
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
                     "POLARS_MAX_THREADS"):  # fmt: skip
        os.environ[variable] = str(count)


@contextmanager
def memory_remedy(remedy: str) -> Iterator[None]:
    """Raise InputError with this remedy when the block runs out of memory."""
    try:
        yield
    except Exception as error:
        if (fault := memory_fault(error, remedy)) is not None:
            raise fault from error
        raise


def only_given(context: typer.Context, names: Collection[str], remedy: str) -> None:
    """Raise InputError if an option or argument of these names stands on the command line."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            shown = name if name == "manifests" else f"--{name.replace('_', '-')}"
            raise InputError(f"{shown} {remedy}")


def own_gpu(device: str, cells: int = 1) -> None:
    """For device "auto", reserve a GPU that no other process of cltools uses; see `runtime.gpus`.

    With `cells` above 1, it is a place on a GPU, which so many processes share.

    Ranks that torchrun started use the GPUs of their torchrun instead.
    """
    if device == "auto" and "LOCAL_RANK" not in os.environ:
        from cltools.runtime.gpus import claim_gpus, claim_place

        if cells > 1:
            claim_place(cells)
        else:
            claim_gpus(1)


def json_object(text: str, what: str) -> Any:
    """The JSON that was given on the command line, or is in the file named there.

    `what` names the argument in messages. Raises InputError for anything that is not JSON.
    """
    if not text.lstrip().startswith(("{", "[")):
        try:
            text = Path(text).read_text()
        except (OSError, ValueError):  # not UTF-8, or a zero byte in its name
            raise InputError(f"{what} {text!r} is neither JSON nor a readable file") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # integers or levels beyond Python's limits too
        raise InputError(f"{what} is not valid JSON ({error}): correct it") from None


def experiment_of(config: str) -> Any:
    """The experiment of a config file, of its content as JSON, or of a name. Raises InputError."""
    from cltools.config.experiment import load_experiment, read_config

    path = config_file(config)
    if path is None:
        return load_experiment(json_object(config, "the config"))
    return load_experiment(read_config(path))


def config_file(config: str) -> Path | None:
    """The file of a config as `experiment_of` takes it; None for JSON. Raises InputError."""
    if config.lstrip().startswith("{"):
        return None
    path = Path(config)
    if re.fullmatch(r"[A-Za-z][\w-]*", config) and not path.exists():
        return _config_named(config)
    return path


def _config_named(experiment: str) -> Path:
    """The config file below `CONFIGS` of the experiment with this name. Raises InputError."""
    from cltools.config.experiment import read_config

    found = []
    for path in sorted(CONFIGS.rglob("*.yaml")):
        with suppress(InputError):  # another file that is no config
            if read_config(path).get("experiment") == experiment:
                found.append(path)
    if not found:
        raise InputError(
            f"{experiment} is neither a file nor the experiment of a config in {CONFIGS}/: "
            "give the path of a config file"
        )
    if len(found) > 1:
        them = " and ".join(map(str, found))
        raise InputError(f"{them} are configs of the experiment {experiment}: give one of them")
    return found[0]
