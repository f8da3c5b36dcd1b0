"""What the pages, rules and benchmarks name exists: files, links, sections, modules."""

import ast
import importlib
import io
import re
import tokenize
import tomllib
from functools import cache
from pathlib import Path

import pytest
from places import ROOT
from test_architecture import MAY_IMPORT

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
FILES += [ROOT / "README.md", ROOT / "Snakefile"]
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


def test_the_main_page_says_what_may_import_what():
    section = (ROOT / "README.md").read_text().partition("| part | may import |")[2]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", section.partition("\n\n")[0], re.M)
    said = {part: {*NAME.findall(may)} for parts, may in rows for part in NAME.findall(parts)}
    assert said.pop("stages") == said.pop("cli") | {"cli"}
    assert said == {part: may for part, may in MAY_IMPORT.items() if part != "stages"}


def test_the_main_page_says_how_tests_with_markers_are_run():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = {marker.partition(":")[0] for marker in options["markers"]}
    said = re.findall(r"`uv run pytest -m (\w+)`", (ROOT / "README.md").read_text())
    assert sorted(said) == sorted(markers)
