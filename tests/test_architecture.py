"""The house rules: what may import what, where paths are spelled, how long a function may be."""

import ast
import re
from pathlib import Path

import pytest

import cltools

PACKAGE = Path(cltools.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
# A part of the package -> what else of it may be imported there. What is not below may import all.
MAY_IMPORT = {
    "runtime": set(),
    "maths": set(),
    "objectives": {"maths", "runtime"},
    "config": {"objectives", "runtime"},
    "layout": {"config", "runtime"},
    "models": {"config", "data", "maths", "runtime"},
    "cluster": {"config", "models", "runtime"},
    "tidy": {"config", "layout", "runtime"},
    "data": {"config", "layout", "maths", "runtime"},
    "training": {"config", "data", "layout", "maths", "models", "objectives", "runtime"},
    "measurements": {"maths", "objectives"},
    "api": {"config", "layout", "maths", "measurements", "runtime", "tidy", "training"},
    "figures": {"config", "layout", "objectives", "runtime", "tidy"},
    "claims": {"config", "maths", "runtime", "tidy"},
    "report": {"claims", "config", "figures", "runtime", "tidy"},
    "stages": {
        "claims", "cluster", "config", "data", "figures", "layout", "maths", "measurements",
        "models", "objectives", "report", "runtime", "tidy", "training",
    },
}  # fmt: skip
LONGEST = 60  # lines of a function without its docstring
# A path below results/, in the text of a program or of a rule.
PATHS = re.compile(
    r"\bresults/|^results$|\btrained-(?:$|\{)|\b(?:cells|stores|run|logs|benchmarks)/"
)


def parts(file):
    """The part of the package that a file is in, e.g. "maths", and its name."""
    inside = file.relative_to(PACKAGE).with_suffix("").parts
    return inside[0], inside[-1]


def imports(file):
    """The modules that a file imports anywhere, as dotted names."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def docstrings(tree):
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    bodies = (node.body for node in ast.walk(tree) if isinstance(node, kinds))
    return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def test_few_modules_at_the_root():
    assert sorted(file.stem for file in PACKAGE.glob("*.py")) == ["__init__", "layout", "tidy"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    part, _ = parts(file)
    names = {name.split(".")[1] for name in imports(file) if re.match(r"cltools\.\w", name)}
    known = {parts(other)[0] for other in FILES}
    if part in MAY_IMPORT:
        assert (names & known) - {part} <= MAY_IMPORT[part]
    elif part != "__init__":
        assert part == "cli"


def test_no_stage_imports_another():
    stages = {file.stem for file in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
    for name in stages:
        found = {i.split(".")[2] for i in imports(PACKAGE / f"stages/{name}.py")
                 if i.startswith("cltools.stages.")}  # fmt: skip
        assert not found & stages, name


@pytest.mark.parametrize("name", sorted(f.stem for f in (PACKAGE / "stages").glob("[a-z]*.py")))
def test_every_stage_is_run_by_keywords(name):
    tree = ast.parse((PACKAGE / f"stages/{name}.py").read_text())
    (run,) = (node for node in tree.body if getattr(node, "name", "") == "run")
    assert not run.args.args
    assert run.args.kwonlyargs


def test_snakemake_is_never_imported():
    assert not [file for file in FILES for name in imports(file) if name.startswith("snakemake")]


def test_no_private_name_is_imported():
    for file in FILES:
        found = [
            n for n in imports(file) if re.match(r"cltools\..*\._[a-z]|cltools\..*\._[A-Z]", n)
        ]
        assert not found, file


def test_functions_are_short():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                doc = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
                lines = node.end_lineno - node.lineno + 1 - doc
                assert lines <= LONGEST, f"{node.name} in {file} has {lines} lines"


def test_paths_of_results_are_spelled_in_one_module():
    for file in FILES:
        tree = ast.parse(file.read_text())
        said = docstrings(tree)
        texts = [node.value for node in ast.walk(tree)
                 if isinstance(node, ast.Constant) and isinstance(node.value, str)
                 and id(node) not in said]  # fmt: skip
        if file.name != "layout.py":
            assert not list(filter(PATHS.search, texts)), file
    for file in (ROOT / "workflow/Snakefile", *(ROOT / "workflow").rglob("*.smk")):
        code = re.sub(r"#.*", "", file.read_text())
        assert not PATHS.findall(code), file


def test_tests_wait_by_no_clock():
    """A limit is against hanging, the same one everywhere: see tests/waiting.py."""
    limit = re.compile(r"timeout=\d|\.(?:join|wait|get|communicate)\(\d")
    for file in (ROOT / "tests").rglob("*.py"):
        assert not limit.search(file.read_text()), file
