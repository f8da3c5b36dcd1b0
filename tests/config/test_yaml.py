"""YAML that people write: each odd thing in it is one sentence with its line."""

import re

import pytest
import yaml
from places import ROOT

from cltools.config.experiment import nested_settings
from cltools.runtime.errors import InputError
from cltools.runtime.yaml_text import MOST_LEVELS, MOST_VALUES, parse_yaml, read_yaml

TWICE = "the key {} stands in line {} already: keep one of the two"
KEY = "YAML reads the key {} as {}: put it in quotes"
NUMBER = "YAML reads {} as the number {}: write {} if you mean it"
# Each line stands for nine times as many values as the one before it.
LISTS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 12))
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{f'*a{n - 1}, ' * 9}]}}\n" for n in range(1, 12)
)


def refused(text, folder):
    """The sentence about a file with that content, without its beginning."""
    path = folder / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as raised:
        read_yaml(path, "config file")
    sentence = str(raised.value)
    assert sentence.startswith(f"config file {path}")
    assert "\n" not in sentence
    return sentence.removeprefix(f"config file {path}")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3", 3, TWICE.format("a", 1)),
        ("a:\n  b: {vary: {c: 1,\n    c: 2}}", 3, TWICE.format("c", 2)),
        ("a: 1\n'a': 3", 2, TWICE.format("a", 1)),
        ("- a: 1\n  a: 1", 2, TWICE.format("a", 1)),
        ("a:\n  no: 1", 2, KEY.format("no", "false")),
        ("on: 1", 1, KEY.format("on", "true")),
        ("Yes: 1", 1, KEY.format("Yes", "true")),
        ("1: a", 1, KEY.format("1", "a number")),
        ("a: {1.5: b}", 1, KEY.format("1.5", "a number")),
        ("2024-01-31: a", 1, KEY.format("2024-01-31", "a date")),
        ("~: a", 1, KEY.format("~", "null")),
        ("? \n: a", 1, "YAML reads an empty key as null: put it in quotes"),
        ("? [a]\n: 1", 1, "a key is a list or a mapping: write a text"),
        ("a:\n  b: 010", 2, NUMBER.format("010", 8, 8)),
        ("a: [1, -0_17]", 1, NUMBER.format("-0_17", -15, -15)),
        ("a: 1:30", 1, NUMBER.format("1:30", 90, 90)),
        ("a: 1:30.5", 1, NUMBER.format("1:30.5", 90.5, 90.5)),
        ("a: 2024-01-31", 1, "YAML reads 2024-01-31 as a date: put it in quotes"),
        ("a: 2024-13-31", 1, "YAML reads 2024-13-31 as a date: put it in quotes"),
        ("a: =", 1, "YAML does not read = as text: put it in quotes"),
        ("a: !!binary aGk=", 1, "the type !!binary is not for this file: remove it"),
        ("a: !!python/object:os.system {}", 1, "the type !!python/object:os.system is not for"),
        ("a: 1\nb: &b [*b]", 2, "a value holds itself by an alias: write it out"),
        (LISTS, 6, f"more than {MOST_VALUES:,} values begin here"),
        (MERGED, 6, f"more than {MOST_VALUES:,} values begin here"),
        ("a: 1\nb: é".encode("latin-1"), 2, "this is not UTF-8: save the file as UTF-8"),
        ("a: 1".encode("utf-16"), 1, "this is not UTF-8: save the file as UTF-8"),
        ("a: 1".encode("utf-16-le"), 1, "the character U+0000 cannot stand in YAML: save the file"),
        (bytes(range(256)), 2, "this is not UTF-8: save the file as UTF-8"),
    ],
)
def test_what_yaml_reads_in_an_unexpected_way(text, line, message, tmp_path):
    assert refused(text, tmp_path).startswith(f", line {line}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\nb: }", " is not valid YAML at line 2 ("),
        ("a: 1\n---\nb: 2", " is not valid YAML at line 2 (found another document): correct it"),
        ("a:\n\t- b", " is not valid YAML at line 2 (found character '\\t' that cannot"),
        ("a: *b", " is not valid YAML at line 1 (found undefined alias 'b'): correct it"),
        ("<<: 3", " is not valid YAML at line 1 (expected a mapping"),
        ("a: !!int one", " is not valid YAML at line 1 ('one' cannot be read): correct it"),
        ("a: !!bool one", " is not valid YAML at line 1 ('one' cannot be read): correct it"),
        ("a: 0b_", " is not valid YAML at line 1 ('0b_' cannot be read): correct it"),
        ("a: " + "9" * 5000, f" is not valid YAML at line 1 ('{'9' * 40}' cannot be read)"),
        ('{"a": 1, "a": 2}', ": the key a stands twice in the same place: keep one"),
        ("[" * 60 + "]" * 60, f" has values nested more than {MOST_LEVELS} levels deep"),
        ("[" * 5000 + "]" * 5000, f" has values nested more than {MOST_LEVELS} levels deep"),
        ('{"a":' * 60 + "1" + "}" * 60, f" has values nested more than {MOST_LEVELS} levels"),
        ('{"a":' * 9000 + "1" + "}" * 9000, f" has values nested more than {MOST_LEVELS} levels"),
    ],
)  # fmt: skip
def test_what_is_not_valid(text, message, tmp_path):
    assert refused(text, tmp_path).startswith(message)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"", None),
        (b"# nothing yet\n", None),
        (b"\xef\xbb\xbfa: 1", {"a": 1}),
        (b"'no': [007, 0, 0x10, 1_000, -3, 1.5]", {"no": [7, 0, 16, 1000, -3, 1.5]}),
        (b"a: yes\nb: 'yes'\nc: ~\nd: '010'", {"a": True, "b": "yes", "c": None, "d": "010"}),
        (b"a: {b: 1}\nc: {b: 1}", {"a": {"b": 1}, "c": {"b": 1}}),
        (b"a: &a {b: 1, c: 1}\nd: {<<: *a, b: 2}",
         {"a": {"b": 1, "c": 1}, "d": {"b": 2, "c": 1}}),
        (b'{"a":\t1e-3}', {"a": 0.001}),  # JSON, and no YAML
        ("a: [é, \U0001f600]".encode(), {"a": ["é", "\U0001f600"]}),
    ],
)  # fmt: skip
def test_what_is_read(text, value, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_bytes(text)
    assert read_yaml(path, "config file") == value


@pytest.mark.parametrize(
    "path", [*(ROOT / "config").rglob("*.yaml"), ROOT / "cltools/claims/claims.yaml"], ids=str
)
def test_shipped_files_are_read_as_by_any_other_loader(path):
    assert read_yaml(path, "config file") == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "is a folder: name a file"),
        ("none.yaml", "does not exist: check its path"),
        ("file/my.yaml", "cannot be read (Not a directory): check it"),
        ("x" * 300, "cannot be read (File name too long): check it"),
    ],
)
def test_what_is_no_file(name, message, tmp_path):
    (tmp_path / "file").write_text("a: 1")
    with pytest.raises(InputError, match=re.escape(message)):
        read_yaml(tmp_path / name, "config file")


def test_text_that_is_in_no_file():
    with pytest.raises(InputError, match=r"^--config base, line 1: YAML reads 010 as the number 8"):
        parse_yaml("{tau: 010}", "--config base")


def test_settings_of_the_command_line_are_read_as_in_a_file():
    """Snakemake takes what is in braces for text."""
    given = ["experiment=010", "base={tau: 0.2, label: '1', threads: 2}", "base=tau: 0.3"]
    read = {"experiment": "010", "base": {"tau": "0.3", "label": "1", "threads": "2"}}
    assert list(nested_settings(given, read)) == [
        {"base": {"tau": 0.2, "label": "1", "threads": 2}},
        {"base": {"tau": 0.3}},
    ]
    with pytest.raises(InputError, match=r"^--config base, line 1: the key tau stands in line 1"):
        list(nested_settings(["base={tau: 0.2, tau: 0.3}"], read))
