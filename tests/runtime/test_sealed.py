"""Files that carry a hash of themselves: what they were written as, or nothing."""

import json
import random

import polars as pl
import pytest

from cltools.runtime.errors import InputError
from cltools.runtime.sealed import (
    BLANK,
    Damaged,
    check_hash,
    check_seal,
    read_any_table,
    read_json,
    read_table,
    seal,
    sealed,
    usable_table,
    write_json,
    write_table,
)

TABLE = pl.DataFrame({"step": range(300), "value": [step / 7 for step in range(300)]})
OF = {"table": "measures/1.parquet", "manifest": "ab"}


@pytest.fixture
def table(tmp_path):
    write_table(tmp_path / "table.parquet", TABLE, OF)
    return tmp_path / "table.parquet"


@pytest.fixture
def document(tmp_path):
    write_json(tmp_path / "plan.json", {"cells": {"a": [1, 2.5, None]}, "é": "\n"})
    return tmp_path / "plan.json"


def test_written_and_read(table, document):
    assert read_table(table, "", OF).equals(TABLE)
    assert read_table(table, "", {"table": OF["table"]}).equals(TABLE)
    assert pl.read_parquet(table).equals(TABLE)  # as anyone else reads it
    assert read_json(document, "x") == {"cells": {"a": [1, 2.5, None]}, "é": "\n"}
    assert json.loads(document.read_text())["cells"] == {"a": [1, 2.5, None]}
    assert usable_table(table, OF)


def test_the_same_content_gives_the_same_bytes(table, document, tmp_path):
    write_table(tmp_path / "again.parquet", TABLE, OF)
    write_json(tmp_path / "again.json", read_json(document, "x"))
    assert (tmp_path / "again.parquet").read_bytes() == table.read_bytes()
    assert (tmp_path / "again.json").read_bytes() == document.read_bytes()


def readers(table, document):
    return [
        (table, lambda: read_table(table, "run it again", OF)),
        (table, lambda: read_any_table(table, "cltools collect", OF)),
        (document, lambda: read_json(document, "cltools plan")),
    ]


def test_every_changed_byte_is_noticed(table, document):
    draw = random.Random(0)
    for path, read in readers(table, document):
        intact = path.read_bytes()
        places = range(len(intact)) if path == document else draw.sample(range(len(intact)), 300)
        for place in places:
            damaged = bytearray(intact)
            damaged[place] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=f"{path.name} is damaged"):
                read()
        path.write_bytes(intact)
        read()


def test_every_cut_and_every_zeroed_block_is_noticed(table, document):
    for path, read in readers(table, document):
        intact = path.read_bytes()
        for place in range(0, len(intact), 64):
            zeroed = intact[:place] + bytes(min(64, len(intact) - place)) + intact[place + 64 :]
            for damaged in (intact[:place], zeroed):
                path.write_bytes(damaged)
                with pytest.raises(InputError, match=path.name):
                    read()
        path.write_bytes(intact)
        read()


def test_what_is_not_there_or_is_a_folder(table, document):
    for path, read in readers(table, document):
        path.unlink(missing_ok=True)
        with pytest.raises(InputError, match="does not exist: run"):
            read()
    assert not usable_table(table, OF)
    table.mkdir()
    document.mkdir()
    for _, read in readers(table, document):
        with pytest.raises(InputError, match=r"is (damaged|a folder)"):
            read()


def test_a_table_of_something_else_is_refused(table, caplog):
    for key in OF:
        with pytest.raises(InputError, match=f"is of another {key} than expected: run it again"):
            read_table(table, "run it again", {**OF, key: "other"})
    caplog.clear()
    assert not usable_table(table, {**OF, "manifest": "other"})
    assert f"{table} is of another manifest than expected: it is made again" in caplog.text


def test_tables_of_other_programs_serve_for_figures_only(tmp_path):
    path = tmp_path / "own.parquet"
    TABLE.write_parquet(path)
    assert read_any_table(path, "cltools collect", OF).equals(TABLE)
    with pytest.raises(InputError, match="is damaged, or was written by an older version: again"):
        read_table(path, "again", OF)


def test_the_place_of_the_seal_must_be_unique():
    for content in (b"none", f"{BLANK} and {BLANK}".encode()):
        with pytest.raises(ValueError, match="exactly once"):
            sealed(content)


@pytest.mark.parametrize("block", [1, 3, 64, 80, 1000])
def test_a_file_is_sealed_in_blocks_as_in_memory(tmp_path, monkeypatch, block):
    """Wherever the blocks end: within the text of the seal, or its digits."""
    monkeypatch.setattr("cltools.runtime.sealed._BLOCK", block)
    path = tmp_path / "file"
    for content in (f"a{BLANK}", f"{'x' * 70}{BLANK}end", f"cltools-{BLANK}cltools-sea"):
        path.write_text(content)
        seal(path)
        assert path.read_bytes() == sealed(content.encode())
        check_seal(path)
        with open(path, "ab") as file:
            file.write(b"!")
        with pytest.raises(Damaged, match="does not fit its hash"):
            check_seal(path)
    for content in ("none", f"{BLANK} and {BLANK}"):
        path.write_text(content)
        with pytest.raises(ValueError, match="exactly once"):
            seal(path)
    path.write_text("none")
    with pytest.raises(Damaged, match="older version"):
        check_seal(path)


def test_a_hash_that_stands_elsewhere(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    check_hash(path, known, "train again")
    path.write_bytes(b"abd")
    with pytest.raises(InputError, match=r"log is damaged .*: train again"):
        check_hash(path, known, "train again")
    path.unlink()
    with pytest.raises(InputError, match="log does not exist: train again"):
        check_hash(path, known, "train again")
