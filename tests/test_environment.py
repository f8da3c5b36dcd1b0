"""What is installed, what must be there for which command, and the wheel outside the repository."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from places import ROOT
from small import small_config
from waiting import HANGS

from cltools.runtime.extras import EXTRAS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
NAME = re.compile(r"[A-Za-z0-9._-]+")


def run(command, folder, code=0, **variables):
    """What a command prints, in an environment that knows nothing of the repository."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env={**outside, **variables},
        capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def without(modules, script, folder, code=0):
    """The output of a script in a Python that cannot import these modules."""
    missing = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in modules)
    command = [sys.executable, "-c", missing + script]
    return run(command, folder, code, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")


def test_both_lists_of_versions_are_the_same():
    listed = PROJECT["tool"]["uv"]["constraint-dependencies"]
    assert listed == [f"{name}=={version}" for name, version in PINNED.items()]


def test_every_package_that_is_named_has_a_floor_and_an_exact_version():
    project = PROJECT["project"]
    for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
        name, floor = requirement.split(">=")
        ours = PINNED[name].split(".")
        assert list(map(int, floor.split("."))) <= [int(part) for part in ours], requirement
    grouped = chain(*PROJECT["dependency-groups"].values())
    assert {NAME.match(requirement)[0] for requirement in grouped} <= PINNED.keys()


def test_development_has_the_extras():
    extras = PROJECT["project"]["optional-dependencies"]
    names = {NAME.match(r)[0] for extra in ("workflow", "plots") for r in extras[extra]}
    assert names <= set(PROJECT["dependency-groups"]["dev"])
    assert set(EXTRAS.values()) <= extras.keys()


OF_UNIX = ("fcntl", "resource", "pwd", "grp", "termios")
TRAIN = """
import json
from cltools.cli import main
from small import SMALL
sys.argv = ["cltools", "train", "--store", "digits", "--run", "cell/run", "--device", "cpu",
            "--manifest", "cell/trained.json", "--cell", json.dumps({**SMALL, "horizon": 1})]
main()
"""


@pytest.mark.slow
def test_training_needs_no_modules_of_linux(digits, tmp_path):
    """A cell is trained without them, and says that nobody is kept from training it, too."""
    (tmp_path / "digits").symlink_to(digits)
    tests = f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
    said = without(OF_UNIX, tests + TRAIN, tmp_path)
    assert (tmp_path / "cell/trained.json").exists()
    assert "cannot be locked" in said


@pytest.mark.parametrize(
    ("package", "module"),
    [("matplotlib", "cltools.figures.alignment"), ("plotly", "cltools.report.page")],
)
def test_a_missing_package_is_one_sentence(package, module, tmp_path):
    script = f"""
from cltools.cli import main
from cltools.cli.app import app

@app.command("needy")
def needy() -> None:
    import {module}

sys.argv = ["cltools", "needy"]
main()
"""
    said = without([package], script, tmp_path, 2)
    assert f"Error: the package {package} is not installed: it belongs to the extra `plots`" in said
    assert "Traceback" not in said


LIGHT = """
from cltools.cli import main
sys.argv = ["cltools", "plan", "tiny.yaml"]
main()
"""


def test_a_plan_needs_no_extra_and_no_torch(tmp_path):
    (tmp_path / "tiny.yaml").write_text(small_config())
    said = without([*EXTRAS, *OF_UNIX, "snakemake", "torch", "polars"], LIGHT, tmp_path)
    assert "tiny" in said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the files that git knows."""
    if shutil.which("uv") is None:
        pytest.skip("needs uv")
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT)
    for name in listed.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    run(["uv", "build", "--quiet", "--wheel", "--out-dir", made, source], source)
    return next(made.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_the_workflow_and_nothing_of_the_site(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    workflow = ("Snakefile", "rules/common.smk", "logged.sh", "report/report.rst")
    shipped = [f"workflow/{name}" for name in workflow]
    for name in (
        *shipped,
        "config/config.yaml",
        "config/README.md",
        "slurm/config.yaml",
        "slurm/head.sbatch",
    ):
        assert f"cltools/shipped/{name}" in names
    assert "cltools/figures/papers/p2_classes.csv" in names
    assert "cltools/py.typed" in names
    assert not [name for name in names if name.endswith("site.yaml") or name.startswith("tests")]


@pytest.mark.slow
def test_the_wheel_works_outside_the_repository(wheel, tmp_path):
    """In an environment of its own, which shares the packages of this one, but not the project."""
    run(["uv", "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], tmp_path)
    python = tmp_path / "venv/bin/python"
    run(["uv", "pip", "install", "--quiet", "--no-deps", "--python", python, wheel], tmp_path)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    for path in map(Path, sys.path):
        for package in path.glob("*") if path.name == "site-packages" else ():
            if not package.name.startswith(("cltools", "_cltools", "__")):
                (site / package.name).exists() or (site / package.name).symlink_to(package)
    commands = {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "mine.yaml").write_text(small_config())
    where = run([python, "-c", "import cltools; print(cltools.__file__)"], empty)
    assert where.startswith(str(site))
    losses = "import torch; from cltools.maths.objectives import checked_contrastive_loss as loss; "
    z = "torch.nn.functional.normalize(torch.randn(2, 8, 4), dim=-1)"
    run([python, "-c", f"{losses}print(loss('dcl', {z}, torch.arange(8) % 2, 0.5))"], empty)
    run(["cltools", "plan", "mine.yaml"], empty, **commands)
    snakefile = run(["cltools", "workflow-path"], empty, **commands).strip()
    assert snakefile == str(site / "cltools/shipped/workflow/Snakefile")
    call = [python, "-m", "snakemake", "--snakefile", snakefile, "--cores", "2", "--dry-run"]
    said = run([*call, "--configfile", "mine.yaml"], empty, **commands)
    assert re.search(r"^train +1$", said, re.M)
    assert re.search(r"^train +16$", run(call, empty, **commands), re.M)
