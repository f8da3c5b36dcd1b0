"""The help of every command: whole phrases, defaults, an example; and completion of names."""

import re
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner
from waiting import HANGS

from cltools.cli import app
from cltools.cli.examples import PANELS
from cltools.figures import FIGURES

COMMANDS = get_command(app).commands
WIDE = {"COLUMNS": "400", "TERM": "dumb"}


def shown(*arguments):
    """The help on lines wide enough that nothing is wrapped, with single blanks."""
    done = CliRunner().invoke(app, [*arguments, "--help"], env=WIDE)
    assert done.exit_code == 0, done.output
    return re.sub(r"[ │]+", " ", done.output)


def test_all_commands_by_panel():
    text = shown()
    for panel, commands in PANELS.items():
        assert panel in text
        for command in commands:
            assert f"\n {command.__name__.replace('_', '-')} " in text
    assert len(COMMANDS) == sum(map(len, PANELS.values()))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command(name):
    command, text = COMMANDS[name], shown(name)
    assert command.help.strip().endswith(".")
    example = command.epilog.splitlines()[0]
    assert f"cltools {name} " in example or f"(cltools {name})" in example
    assert example in text
    for parameter in command.params:
        said = parameter.help
        assert said, parameter.name
        assert len(said.split()) > 2, said
        assert said.endswith("."), said
        # A pair of brackets is markup, which is eaten.
        assert not re.search(r"\[[^]]*\]", said), said
        assert not re.match(r"(Of|In|That|Their|Its)\b", said), said
        assert said in text
        if isinstance(parameter.default, str | int | float) and parameter.default is not False:
            assert f"[default: {parameter.default}]" in text, parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_an_example_exist(name):
    command = COMMANDS[name]
    known = {option for parameter in command.params for option in parameter.opts}
    own = command.epilog.split("\n")[0].split(f"cltools {name}")[1].split(" -- ")[0]
    own = own if name != "workflow-path" else ""
    given = set(re.findall(r"(?<!\S)--[a-z-]+", own))
    assert given <= known
    required = {max(p.opts, key=len) for p in command.params if p.required and p.opts[0][0] == "-"}
    assert required <= given


def test_figures_are_named_and_completed():
    text = shown("plot")
    assert all(name in text for name in FIGURES)
    shell = {
        "_CLTOOLS_COMPLETE": "complete_bash",
        "COMP_WORDS": "cltools plot few",
        "COMP_CWORD": "2",
    }
    done = CliRunner().invoke(app, [], env=shell, prog_name="cltools")
    assert done.output.split() == [name for name in FIGURES if name.startswith("few")]


def test_help_waits_for_no_numerical_library():
    code = (
        "import sys; sys.argv = ['cltools', '--help']\n"
        "from cltools.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'polars', 'matplotlib', 'jsonschema', 'timm', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS
    )
    assert done.stderr.strip() == "[]"
