"""Objectives by name: one file and one page each, and those of installed packages."""

import os
import subprocess
import sys

import pytest
from places import ROOT

from cltools import objectives
from cltools.config.cells import resolve_cell
from cltools.figures.style import look_of
from cltools.maths.objectives import CONTRASTIVE, NEED_LABELS, NEED_TWO_CLASSES, QUEUE_OBJECTIVES
from cltools.objectives import built_in, find, names
from cltools.runtime.errors import InputError

CELL = {"dataset": "digits", "recipe": "digits", "horizon": 1}
MODULE = """
from cltools.objectives.declared import Objective

OBJECTIVE = Objective(name="own", loss=lambda outputs: outputs.z.sum(), label="Own")
OTHER = 3
"""


@pytest.mark.parametrize("name", built_in())
def test_file_page_and_name_agree(name):
    assert built_in()[name].name == name
    page = (ROOT / f"docs/objectives/{name}.md").read_text()
    for part in ("## Formula", "## Source", "## What it needs"):
        assert part in page, part


def test_they_agree_with_the_formulas_of_the_papers():
    found = built_in()
    for name in (*CONTRASTIVE, "ce"):
        assert found[name].labels == (name in NEED_LABELS)
        assert found[name].two_classes == (name in NEED_TWO_CLASSES)
        assert found[name].contrastive == (name in CONTRASTIVE)
        assert (found[name].queue is not None) == (name in QUEUE_OBJECTIVES)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that installs a package with such entry points, as files on the path of Python."""

    def install(points, package="theirs", module=MODULE):
        (tmp_path / f"{package}.py").write_text(module)
        about = tmp_path / f"{package}-1.2.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = [f"{name} = {package}:{what}" for name, what in points.items()]
        (about / "entry_points.txt").write_text("\n".join(["[cltools.objectives]", *lines, ""]))
        forget()

    def forget():
        for cached in (objectives._installed, names, find):
            cached.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    monkeypatch.undo()
    for package in ("theirs", "others"):
        sys.modules.pop(package, None)
    forget()


def test_of_an_installed_package(installed):
    before = names()
    installed({"own": "OBJECTIVE"})
    assert names() == (*before, "own")
    assert "theirs" not in sys.modules  # the name alone imports nothing
    assert resolve_cell({**CELL, "objectives": ["own", "nscl"]})["objectives"] == ["nscl", "own"]
    assert objectives.package_of("own") == "theirs 1.2"
    assert look_of("own").label == "Own"
    assert find("own").watched


@pytest.mark.parametrize(
    ("points", "named", "sentence"),
    [
        ({"own": "MISSING"}, "own", "of the package theirs cannot be imported"),
        ({"own": "OTHER"}, "own", "declares something else at theirs:OTHER"),
        ({"mine": "OBJECTIVE"}, "mine", "declares an objective own at theirs:OBJECTIVE, where"),
        ({"nscl": "OBJECTIVE"}, "nscl", "nscl is in the packages cltools and theirs: rename"),
        ({"Own": "OBJECTIVE"}, "Own", "objectives.1 is 'Own', but must be one of dcl, "),
        ({}, "theirs:OBJECTIVE", r"an installed one \(entry point in cltools.objectives\)"),
        ({"own": "OBJECTIVE"}, "own:shuffled", "is 'own:shuffled', but must be one of"),
    ],
)
def test_what_is_refused(installed, points, named, sentence):
    installed(points)
    with pytest.raises(InputError, match=sentence):
        resolve_cell({**CELL, "objectives": ["dcl", named]})


def test_two_packages_with_one_name(installed):
    installed({"own": "OBJECTIVE"})
    installed({"own": "OBJECTIVE"}, "others")
    with pytest.raises(InputError, match="own is in the packages others and theirs: rename"):
        find("own")


def test_a_config_runs_no_code(tmp_path):
    """Neither of the working directory, nor of a package that it does not name."""
    module = "import pathlib; pathlib.Path('ran').touch()\n" + MODULE
    (tmp_path / "theirs.py").write_text(module)
    about = tmp_path / "theirs-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[cltools.objectives]\nown = theirs:OBJECTIVE\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    for objective, fails in (("theirs:OBJECTIVE", True), ("nscl", False)):
        script = (
            "from cltools.config.cells import resolve_cell; "
            f"resolve_cell({ {**CELL, 'objectives': [objective]}!r})"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert ("InputError" in done.stderr) == fails, done.stderr
        assert (done.returncode != 0) == fails
    assert not (tmp_path / "ran").exists()
