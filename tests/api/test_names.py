"""The public names: what `import cltools` gives, their examples, and the page that shows them."""

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tables
from places import ROOT

import cltools
from cltools.layout import TABLES, ExperimentFolder
from cltools.runtime.sealed import write_json, write_table

PAGE = (ROOT / "docs/python.md").read_text()
SNIPPETS = [
    (page, snippet)
    for page in ("python", "quickstart", "embeddings", "tables")
    for snippet in re.findall(
        r"^```python\n(.+?)^```$", (ROOT / f"docs/{page}.md").read_text(), re.M | re.S
    )
]


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory):
    """A folder with made-up results of an experiment, below it in results/quickstart."""
    from cltools.layout import of_experiment

    folder = tmp_path_factory.mktemp("work")
    of = ExperimentFolder(folder / "results/quickstart")
    of.path.mkdir(parents=True)
    plan = {"experiment": "quickstart", "reference": "dcl", "cells": {}, "sweeps": {}}
    write_json(of.plan, plan)
    base = [tables.cell(seed=seed, sweeps=["base"]) for seed in range(3)]
    write_table(of.table("measures"), tables.measures(base), of_experiment("measures", of.plan))
    return folder


def test_importing_is_quick():
    """Neither torch nor polars is imported before a name needs it; tables need no torch."""
    script = (
        "import sys, cltools; dir(cltools); assert not {'torch', 'polars'} & set(sys.modules);"
        "cltools.read_results; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_all_names_are_there():
    assert set(cltools.__all__) < set(dir(cltools))
    for name in cltools.__all__:
        assert getattr(cltools, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = cltools.no_such_name


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(cltools.__file__).read_text())
    (seen,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        (f"{node.module}.{alias.name}", alias.asname) for node in seen.body for alias in node.names
    }
    assert imported == {(f"{module}.{name}", name) for name, module in cltools._HOME.items()}


@pytest.mark.parametrize("name", cltools.__all__)
def test_its_example_is_right(name, somewhere, monkeypatch):
    monkeypatch.chdir(somewhere)
    found = doctest.DocTestFinder(recurse=False).find(getattr(cltools, name), name, globs={})
    (test,) = found
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize(("page", "snippet"), SNIPPETS)
def test_the_snippets_of_the_pages_run(page, snippet, somewhere, monkeypatch):
    monkeypatch.chdir(somewhere)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    exec(compile(snippet, f"docs/{page}.md", "exec"), {})  # noqa: S102


def test_the_page_has_all_names():
    named = re.findall(r"^\| (`.+?) \| ", PAGE, re.M)
    assert sorted(n for cell in named for n in re.findall(r"`(\w+)`", cell)) == sorted(
        cltools.__all__
    )
    assert TABLES["measures"] in PAGE
