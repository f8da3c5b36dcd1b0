"""Files that carry a hash of themselves, so that a reader knows that they are whole and whose.

A sealed file holds, somewhere among its bytes, the text `cltools-seal:` and 64 hexadecimal digits:
the SHA-256 of all its bytes, taken while those digits are zeros. JSON has this text under the key
"seal", a parquet table in its metadata, a netCDF file in an attribute; all three are read as usual
by programs that know nothing of it. Tables also say what they are `of`, so that one that was copied
over another is found as well.

Files whose hash stands in a training manifest (weights, logs) or in `store.json` (images) have no
seal: `check_hash` compares them with what stands there.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cltools.runtime.errors import InputError
from cltools.runtime.files import canonical_json, sha256_file, whole_file

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("cltools")

_MARK = b"cltools-seal:"
_DIGITS = 64
_BLOCK = 1 << 22  # bytes of a file that are read at a time
BLANK = (_MARK + b"0" * _DIGITS).decode()  # what a writer puts where the seal will stand
KEY = "seal"  # in JSON
METADATA = "cltools"  # in parquet and netCDF

Of = Mapping[str, Any]


class Damaged(ValueError):
    """A file is not as it was written, or is of something else. The message continues "FILE …"."""


def sealed(content: bytes) -> bytes:
    """These bytes, which hold `BLANK` once, with the seal in its place.

    Raises ValueError where it stands there never or twice: no reader could find the seal.
    """
    if content.count(_MARK) != 1:
        raise ValueError("a file to be sealed holds the blank seal exactly once")
    digest = hashlib.sha256(content).hexdigest().encode()
    return content.replace(BLANK.encode(), _MARK + digest)


def seal(path: Path) -> None:
    """Put the seal into a file that holds `BLANK` once; `sealed` for a file of any size.

    Raises ValueError where it stands there never or twice.
    """
    with open(path, "r+b") as file:
        places = list(_marks(file))
        if len(places) != 1:
            raise ValueError("a file to be sealed holds the blank seal exactly once")
        digest = _digest(file, places[0])
        file.seek(places[0] + len(_MARK))
        file.write(digest)


def check_seal(path: Path) -> None:
    """Raise Damaged unless the file is as it was sealed; OSError where it cannot be read."""
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            raise Damaged("is empty")
        place = next(_marks(file), None)
        if place is None:
            raise Damaged("is damaged, or was written by an older version")
        file.seek(place + len(_MARK))
        if file.read(_DIGITS) != _digest(file, place):
            raise Damaged("is damaged (its content does not fit its hash)")


def _marks(file: IO[bytes]) -> Iterator[int]:
    """Where the text before a seal begins, as often as it stands in a file, read in blocks."""
    file.seek(0)
    before, start = b"", 0  # the end of the block before, in which half of the text may stand
    while block := file.read(_BLOCK):
        content = before + block
        place = content.find(_MARK)
        while place >= 0:
            yield start + place
            place = content.find(_MARK, place + 1)
        before = content[-(len(_MARK) - 1) :]
        start += len(content) - len(before)


def _digest(file: IO[bytes], mark: int) -> bytes:
    """The SHA-256 of a file with zeros for the digits after this place, read in blocks."""
    first = mark + len(_MARK)
    digest = hashlib.sha256()
    file.seek(0)
    for size in (first, None):
        left = size
        while block := file.read(_BLOCK if left is None else min(_BLOCK, left)):
            digest.update(block)
            left = None if left is None else left - len(block)
        if size is not None:
            digest.update(b"0" * len(file.read(_DIGITS)))
    return digest.hexdigest().encode()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as sorted, indented and sealed JSON, whole or not at all."""
    text = json.dumps({**value, KEY: BLANK}, sort_keys=True, indent=1, allow_nan=False) + "\n"
    with whole_file(path) as scratch:
        scratch.write_bytes(sealed(text.encode()))


def read_json(path: Path, made_by: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """What `write_json` wrote; `made_by` names the command that writes it, `keys` some of its keys.

    Raises InputError when the file is missing, not as it was written, or one without these keys.
    """
    try:
        value = json.loads(Path(path).read_bytes())
        check_seal(path)
        del value[KEY]
        if not value.keys() >= set(keys):
            raise Damaged(f"is not a file of `{made_by}`")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run `{made_by}` first") from None
    except Damaged as error:
        raise InputError(f"{path} {error}: {_again(made_by)}") from None
    except (ValueError, RecursionError, TypeError, KeyError, IsADirectoryError):
        raise InputError(f"{path} is damaged: {_again(made_by)}") from None
    found: dict[str, Any] = value
    return found


def write_table(path: Path, table: "pl.DataFrame", of: Of) -> None:
    """Write a sealed parquet table, whole or not at all. `of`, a mapping for JSON, says whose."""
    buffer = BytesIO()  # polars does not say of what kind an error of the disk is; Python does
    table.write_parquet(buffer, metadata={METADATA: canonical_json({"of": of, KEY: BLANK})})
    with whole_file(path) as scratch:
        scratch.write_bytes(sealed(buffer.getvalue()))


def read_table(path: Path, remedy: str, of: Of) -> "pl.DataFrame":
    """A table that `write_table` wrote; `remedy` ends the message, as "run … again".

    `of` are entries which those of the file must equal; it may have others too. Raises InputError
    when the file is missing, not as it was written, or of something else.
    """
    try:
        return _table(path, of)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {remedy}") from None
    except Damaged as error:
        raise InputError(f"{path} {error}: {remedy}") from None


def read_any_table(path: Path, made_by: str, of: Of) -> "pl.DataFrame":
    """The same, but a table that bears no trace of cltools is taken as it is.

    People draw figures from tables that they filtered or made themselves. `made_by` is the command
    that makes the table.
    """
    import polars as pl

    remedy = _again(made_by)
    try:
        if METADATA.encode() not in Path(path).read_bytes():
            return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, IsADirectoryError):
        raise InputError(f"{path} is damaged or is no parquet file: {remedy}") from None
    except FileNotFoundError:
        remedy = f"run `{made_by}` first"
    return read_table(path, remedy, of)


def usable(path: Path, check: Callable[[], None]) -> bool:
    """Whether `check`, which raises Damaged or FileNotFoundError, has nothing against a file.

    One that is damaged is named in the log, since its writer makes it again.
    """
    try:
        check()
    except FileNotFoundError:
        return False
    except Damaged as error:
        log.warning("%s %s: it is made again", path, error)
        return False
    return True


def usable_table(path: Path, of: Of) -> bool:
    """Whether this table is there as `write_table` wrote it; one that is not is named in the log.

    For tables that are made once and kept: those that are not usable are made again.
    """
    return usable(path, lambda: _check_table(path, of))


def _table(path: Path, of: Of) -> "pl.DataFrame":
    import polars as pl

    _check_table(path, of)
    try:
        return pl.read_parquet(path, glob=False)
    except pl.exceptions.PolarsError as error:
        raise Damaged("is damaged") from error


def _check_table(path: Path, of: Of) -> None:
    import polars as pl

    try:
        check_seal(path)
        about = json.loads(pl.read_parquet_metadata(path)[METADATA])["of"]
    except IsADirectoryError:
        raise Damaged("is a folder") from None
    except (pl.exceptions.PolarsError, ValueError, KeyError, TypeError) as error:
        raise error if isinstance(error, Damaged) else Damaged("is damaged") from None
    expected = json.loads(canonical_json(of))
    if other := sorted(key for key, value in expected.items() if about.get(key) != value):
        raise Damaged(f"is of another {' and '.join(other)} than expected")


def check_hash(path: Path, sha256: str, remedy: str) -> None:
    """Raise InputError unless the file is there with this SHA-256, which was noted elsewhere."""
    try:
        if sha256_file(path) == sha256:
            return
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {remedy}") from None
    except IsADirectoryError:
        pass
    raise InputError(f"{path} is damaged (its hash is not the one that was noted): {remedy}")


def _again(made_by: str) -> str:
    return f"delete it and run `{made_by}` again"
