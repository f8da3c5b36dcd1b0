"""The exact versions of the environment: constraints.txt, and the same list in pyproject.toml.

    uv run python .ci/constraints.py            resolve again, keeping the versions that still fit
    uv run python .ci/constraints.py --upgrade  the newest versions
    uv run python .ci/constraints.py --check    compare the two lists and what is installed here

`uv run` and `uv sync` take the list in pyproject.toml; constraints.txt is for `pip install -c` and
`uv pip install -c`. They hold all packages on all systems, and no place to download them from.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE, PROJECT = ROOT / "constraints.txt", ROOT / "pyproject.toml"
LIST = re.compile(r"^constraint-dependencies = \[\n.*?^\]\n", re.M | re.S)


def resolved(upgrade: bool) -> list[str]:
    """All packages that the project, its extras and its development need, with their versions."""
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--no-header", "--no-annotate"]
    command += ["--all-extras", "--group", "dev", "--group", "docs", PROJECT.name]
    # uv reads the old list in pyproject.toml, too.
    with_old = PROJECT.read_text()
    try:
        if upgrade:
            write([])
        text = subprocess.run(
            command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    finally:
        PROJECT.write_text(with_old)
    # A constraint says nothing of packages that nothing needs, so it needs no condition, unless
    # there is a version for each of several conditions.
    lines = text.splitlines()
    names = [line.partition("==")[0] for line in lines]
    once = {name for name in names if names.count(name) == 1}
    return [line.partition(" ;")[0] if name in once else line
            for name, line in zip(names, lines, strict=True)]  # fmt: skip


def write(lines: Sequence[str]) -> None:
    FILE.write_text("".join(f"{line}\n" for line in lines))
    entries = "".join(f'    "{line}",\n' for line in lines)
    text = f"constraint-dependencies = [\n{entries}]\n"
    PROJECT.write_text(LIST.sub(lambda _: text, PROJECT.read_text()))


def differences() -> list[str]:
    """What does not fit together, a sentence each."""
    pinned = FILE.read_text().splitlines()
    found = []
    if tomllib.loads(PROJECT.read_text())["tool"]["uv"]["constraint-dependencies"] != pinned:
        found.append("pyproject.toml has another list: run .ci/constraints.py")
    for line in pinned:
        name, _, wanted = line.partition("==")
        try:
            if (here := version(name)) != wanted:
                found.append(f"{name} is {here} here, not {wanted}")
        except PackageNotFoundError:  # of another system
            continue
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(differences()) or 0)
    write(resolved(sys.argv[1:] == ["--upgrade"]))
