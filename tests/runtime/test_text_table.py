"""Tables of text: aligned lines, and parts that fit a terminal."""

import os
import pty
import re
import subprocess
import sys

from cltools.runtime.text_table import TextTable, write

NAMES = ["name", *map(str, range(1, 13))]
TABLE = TextTable(NAMES, [[f"run {row}", *["0.123"] * 12] for row in range(3)])


def test_plain_lines_are_aligned(capsys):
    write([TextTable(["", "value"], [["first", "1"], ["x", "10.5"]]), "A sentence."])
    assert capsys.readouterr().out == "       value\nfirst      1\nx       10.5\n\nA sentence.\n"


def test_parts_have_all_columns_and_fit():
    parts = list(TABLE.parts(40))
    assert [head for part in parts for head in part.head[1:]] == NAMES[1:]
    assert {part.head[0] for part in parts} == {"name"}
    assert all(len(part.head) * 8 <= 48 for part in parts)
    assert list(TABLE.parts(1000)) == [TABLE]
    assert len(list(TABLE.parts(1))) == 12


def test_no_number_is_cut_on_a_narrow_terminal():
    script = "from test_text_table import TABLE; from cltools.runtime.text_table import write; "
    ours, theirs = pty.openpty()
    here = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    subprocess.run(
        [sys.executable, "-c", script + "write([TABLE])"], stdout=theirs, check=True,
        env={**os.environ, "PYTHONPATH": here, "COLUMNS": "50", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = re.sub(r"\x1b\[\d*m", "", os.read(ours, 100_000).decode())
    assert shown.count("0.123") == 36
    assert max(map(len, shown.splitlines())) <= 50
