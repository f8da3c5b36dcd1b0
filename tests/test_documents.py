"""What the pages, rules and benchmarks name exists: files, links, sections, modules.

Measured numbers in the pages come from docs/data/.
"""

import ast
import importlib
import io
import re
import tokenize
import tomllib
from functools import cache
from pathlib import Path

import measured
import pytest
import yaml
from places import ROOT
from test_architecture import MAY_IMPORT

import cltools
from cltools.layout import VERSIONS

FOLDERS = "cltools|tests|docs|config|workflow|benchmarks|slurm"
# A path from the root of the project. Where it goes on with a placeholder its folder must exist.
PATH = re.compile(rf"(?<![\w./<>{{}}-])((?:{FOLDERS})/[\w./-]*[\w/])")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```\w*\n.*?^```$", re.M | re.S)
MODULE = re.compile(r"(?<![\w./-])cltools(?:\.[a-z]\w*)+")
# A file that a user writes, and one of the authors' repository.
ELSEWHERE = {"slurm/site.yaml", "docs/evaluation.md"}
NAME = re.compile(r"`(\w+)`")
SAYING = ast.Module | ast.ClassDef | ast.FunctionDef
SUFFIXES = (".md", ".py", ".yaml", ".smk", ".sh", ".rst")


FILES = sorted(
    file
    for part in ("docs", "config", "workflow", "benchmarks", "slurm", "tests", "cltools")
    for file in (ROOT / part).rglob("*")
    if file.suffix in SUFFIXES
)
FILES += [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Snakefile")]
PAGES = [file for file in FILES if file.suffix == ".md"]


def text_of(file):
    """What a file says to its readers: of code its comments and docstrings, of pages no patches."""
    text = file.read_text()
    if file.suffix == ".md":
        return re.sub(r"^```diff\n.*?^```$", "", text, flags=re.M | re.S)
    if file.suffix != ".py":
        return text
    tree = ast.parse(text)
    said = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, SAYING)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    said += [token.string for token in tokens if token.type == tokenize.COMMENT]
    return "\n".join(filter(None, said))


def name_of(file):
    return str(file.relative_to(ROOT))


def exists(path):
    return path in ELSEWHERE or (ROOT / path).exists()


@cache
def anchors(file):
    """The sections of a page, as GitHub's links name them."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", file.read_text()), re.M)
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", t)) for t in titles)
    return {title.lower().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_paths_exist(file):
    missing = [path for path in PATH.findall(text_of(file)) if not exists(path)]
    assert missing == []


@pytest.mark.parametrize("file", PAGES, ids=name_of)
def test_links_lead_somewhere(file):
    for link in LINK.findall(text_of(file)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, section = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        if section:
            assert section in anchors(target), link


@pytest.mark.parametrize("file", PAGES, ids=name_of)
def test_modules_exist(file):
    for name in MODULE.findall(text_of(file)):
        module = Path(*name.split("."))
        if not ((ROOT / module).is_dir() or (ROOT / module).with_suffix(".py").is_file()):
            parent, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(parent), attribute), name


def test_contributing_says_what_may_import_what():
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("| part | may import |")[2]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", section.partition("\n\n")[0], re.M)
    said = {part: {*NAME.findall(may)} for parts, may in rows for part in NAME.findall(parts)}
    assert said.pop("stages") == said.pop("cli") | {"api", "cli"}
    assert said == {part: may for part, may in MAY_IMPORT.items() if part != "stages"}


def test_contributing_says_how_tests_with_markers_are_run():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = {marker.partition(":")[0] for marker in options["markers"]}
    said = re.findall(r"`uv run pytest -m (\w+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert sorted(said) == sorted(markers)


def test_the_version_stands_in_one_place():
    """Pages that repeat it say the same; the package's metadata comes from there."""
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == cltools.__version__
    latest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert latest[1] == cltools.__version__


def test_every_number_of_a_stage_has_a_line_that_says_why():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| .+ \|$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    numbers = [(stage, n + 1) for stage, last in sorted(VERSIONS.items()) for n in range(last)]
    assert [(stage, int(number)) for stage, number in rows] == numbers


@pytest.fixture(scope="module")
def written():
    return measured.written()


@pytest.mark.parametrize("page", measured.PAGES)
def test_pages_with_measured_numbers_are_up_to_date(written, page):
    remedy = "change its template in docs/templates/, then run: python docs/measured.py write"
    assert (ROOT / page).read_text() == written[page], remedy


def test_every_measured_benchmark_is_a_current_one():
    """Each has its numbers, made by the command that stands in docs/measured.py now."""
    found = {name: about["command"] for name, about in measured.benchmarks().items()}
    assert found == {name: measured.command_of(name) for name in measured.BENCHMARKS}


@pytest.mark.parametrize("file", sorted(measured.DATA.glob("*.csv")), ids=name_of)
def test_tables_of_measured_numbers_are_small(file):
    assert file.stat().st_size <= 200_000, "keep fewer rows: SELECTIONS in docs/measured.py"


# What looks like a measured number, outside of code.
NUMBER = re.compile(r"\d\.\d|\d %|± \d|\d (?:times|orders of magnitude)")
CONSTANTS = [
    r"[τCB] [=≥] [\d., ]+",  # settings of cells
    r"arXiv \d+\.\d+|Python 3\.\d+(, 3\.\d+ or 3\.\d+)?|(CUDA|driver) \d+\S*",
    r"\b90 % t interval|Intervals\*\* \(90 %",  # levels of intervals
    r"at most 5 % of their|at most 5 %;",  # error rates of the claims
    r"1\.5 × the measured time",  # what jobs request
    r"32 and 181 times below",  # learning-rate rules at B = 1024, from their formulas
    r"objectives are 1\.6 GB",  # the size of an array
    r"6\.6 GB of disk, most of it",  # the size of an installation
]
# Pages with measured numbers.
MEASURED = [
    "docs/definitions.md",
    *(
        f"docs/templates/{name}.j2"
        for name in ("README.md", "findings.md", "how_it_works.md", "limits.md")
    ),
]


def sentences(text):
    """The sentences and table rows of a page, without code, links and what templates fill in."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|`[^`]*`|\]\([^)]*\)", "~", text, flags=re.S)
    for block in re.split(r"\n\s*\n|\n(?= *[-|] ?)", text):
        block = " ".join(block.split())
        yield from (
            [block] if block.startswith("|") else re.split(r"(?<=[.?!:;]) (?=\W*[A-Z])", block)
        )


@pytest.mark.parametrize("name", MEASURED)
def test_measured_numbers_are_made_from_data(name):
    found = [
        sentence
        for sentence in sentences((ROOT / name).read_text())
        if NUMBER.search(re.sub("|".join(CONSTANTS), "", sentence))
    ]
    assert found == []
