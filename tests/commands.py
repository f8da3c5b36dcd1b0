"""Commands as users run them, without importing every package once for each of them."""

import collections
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from places import ROOT
from snakemake.api import SnakemakeApi
from snakemake.settings.enums import Quietness
from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings

from cltools import cli

STAGES = (
    "prepare", "train", "embed", "measure", "theory", "merge", "project", "surrogate", "minimise",
    "regularity", "collect", "claims", "plot", "report",
)  # fmt: skip
# A server that has imported everything once, and forks: one import for all processes.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*(f"cltools.stages.{stage}" for stage in STAGES), "torch._dynamo"])


def _command(arguments: list[str], output: str) -> None:
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["cltools", *arguments]
    cli.main()


def cltools(*arguments: object, code: int = 0) -> str:
    """Run the command in a process of its own; returns what it wrote, to stderr too."""
    with tempfile.NamedTemporaryFile("r") as output:
        process = SERVER.Process(target=_command, args=(list(map(str, arguments)), output.name))
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
        written = output.read()
    assert process.exitcode == code, written
    return written


def snakemake(
    folder: Path, *arguments: object, config: dict[str, Any] | str | None = None, code: int = 0
) -> str:
    """Run Snakemake in `folder`; returns all that it printed."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", folder, "--cores", "2", *arguments]
    if config is not None:
        command += ["--configfile", _written(folder, config)]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def planned(folder: Path, config: dict[str, Any] | str, **resources: Any) -> dict[str, int]:
    """Jobs by rule that a dry run plans in `folder` for a config, without the target rule.

    In this process: the packages are imported once for all runs.
    """
    path = _written(folder, config)
    before = Path.cwd()
    try:
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
            workflow = api.workflow(
                resource_settings=ResourceSettings(cores=2, **resources),
                config_settings=ConfigSettings(configfiles=[path]),
                snakefile=ROOT / "Snakefile",
                workdir=folder,
            )
            workflow.dag().execute_workflow(executor="dryrun")
            dag = workflow._workflow.dag
            jobs = [job.rule.name for job in dag.jobs if dag.finished(job)]
            return dict(collections.Counter(job for job in jobs if job != "all"))
    finally:
        os.chdir(before)


def _written(folder: Path, config: dict[str, Any] | str) -> Path:
    path = folder / "config.yaml"
    text = config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False)
    path.write_text(text)
    return path
