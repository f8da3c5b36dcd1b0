"""Commands as users run them, without importing every package once for each of them."""

import atexit
import collections
import functools
import json
import multiprocessing
import os
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from places import ROOT
from snakemake.api import SnakemakeApi
from snakemake.settings.enums import Quietness
from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings
from waiting import HANGS

from cltools import cli

STAGES = (
    "prepare", "train", "embed", "embed_model", "export", "measure", "theory", "merge", "layers",
    "project", "surrogate", "minimise", "regularity", "collect", "claims", "plot", "report",
)  # fmt: skip
# A server that has imported everything once, and forks: one import for all processes.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*(f"cltools.stages.{stage}" for stage in STAGES), "torch._dynamo"])


# What stands for `cltools` on the path of Snakemake's jobs: it has a forked process do the work.
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    connection.sendall(json.dumps([sys.argv[1:], os.getcwd()]).encode())
    connection.shutdown(socket.SHUT_WR)
    code, written = json.load(connection.makefile())
sys.stdout.write(written)
sys.exit(code)
"""


def _command(arguments: list[str], folder: str, output: str) -> None:
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["cltools", *arguments]
    cli.main()


def _forked(arguments: list[str], folder: str) -> tuple[int, str]:
    """Exit code and output of a command in a forked process."""
    with tempfile.NamedTemporaryFile("r") as output:
        process = SERVER.Process(target=_command, args=(arguments, folder, output.name))
        process.start()
        process.join(HANGS)
        if process.is_alive():
            process.kill()
            process.join()
        return process.exitcode, output.read()


class _Service(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        answer = _forked(*json.load(self.rfile))
        self.wfile.write(json.dumps(answer).encode())


@functools.cache
def _path_with_service() -> str:
    """A PATH on which `cltools` is the client of this process, which forks for every command."""
    folder = Path(tempfile.mkdtemp(prefix="cltools-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(folder / "socket")
    client = folder / "cltools"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    service = socketserver.ThreadingUnixStreamServer(address, _Service)
    service.daemon_threads = True
    threading.Thread(target=service.serve_forever, daemon=True).start()
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def cltools(*arguments: object, code: int = 0) -> str:
    """Run the command in a process of its own; returns what it wrote, to stderr too."""
    exit_code, written = _forked(list(map(str, arguments)), os.getcwd())
    assert exit_code == code, written
    return written


def snakemake(
    folder: Path, *arguments: object, config: dict[str, Any] | str | None = None, code: int = 0
) -> str:
    """Run Snakemake in `folder`; returns all that it printed.

    Its jobs are forked from a process that has imported everything. The tests of Slurm, of signals
    and of extensions run the command itself.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", folder, "--cores", "2", *arguments]
    if config is not None:
        command += ["--configfile", _written(folder, config)]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=HANGS,
        env={**os.environ, "PATH": _path_with_service()},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def planned(folder: Path, config: dict[str, Any] | str, **resources: Any) -> dict[str, int]:
    """Jobs by rule that a dry run plans in `folder` for a config, without the target rule."""
    jobs = dry_run(folder, [_written(folder, config)], **resources)
    return dict(collections.Counter(job.rule.name for job in jobs if job.rule.name != "all"))


def dry_run(
    folder: Path, configs: Sequence[Path], snakefile: Path = ROOT / "Snakefile", **resources: Any
) -> list[Any]:
    """Snakemake's jobs that a dry run plans in `folder`.

    In this process: the packages are imported once for all runs.
    """
    before = Path.cwd()
    try:
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
            workflow = api.workflow(
                resource_settings=ResourceSettings(cores=2, **resources),
                config_settings=ConfigSettings(configfiles=configs),
                snakefile=snakefile,
                workdir=folder,
            )
            workflow.dag().execute_workflow(executor="dryrun")
            dag = workflow._workflow.dag
            return [job for job in dag.jobs if dag.finished(job)]
    finally:
        os.chdir(before)


def _written(folder: Path, config: dict[str, Any] | str) -> Path:
    path = folder / "config.yaml"
    text = config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False)
    path.write_text(text)
    return path
