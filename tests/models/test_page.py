"""The commands of docs/models.md, one after the other, in a folder of their own."""

import re
import shlex

import pytest
from commands import cltools
from places import ROOT

PAGE = (ROOT / "docs/models.md").read_text()


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [
        shlex.split(command, comments=True)[1:]
        for block in re.findall(r"^```bash\n(.+?)^```$", PAGE, re.M | re.S)
        for command in re.split(r"^(?=cltools )", block.replace("\\\n", ""), flags=re.M)
        if command
    ]
    assert len(commands) == 7
    for command in commands:
        cltools(*command)
    assert (tmp_path / "compared.csv").exists()
    assert (tmp_path / "exported.nc").exists()
