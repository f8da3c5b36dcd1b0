"""YAML that people write: what YAML would read in an unexpected way is refused, with its line."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from cltools.runtime.errors import InputError

MOST_VALUES = 100_000  # in a file, aliases written out
MOST_LEVELS = 50  # of values in values

_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "seq", "map")}
_MERGE = _TAG + "merge"  # the key <<
_DATE = _TAG + "timestamp"
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML or JSON file, None if nothing is in it; `what` describes the file.

    See `parse_yaml`. Raises InputError also when the file is missing or is not text in UTF-8.
    """
    where = f"{what} {path}"
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{where} does not exist: check its path") from None
    except IsADirectoryError:
        raise InputError(f"{where} is a folder: name a file") from None
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror}): check it") from None
    try:
        return parse_yaml(content.decode("utf-8-sig"), where)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{where}, line {line}: this is not UTF-8: save the file as UTF-8"
        ) from None


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML or JSON text; messages begin with `where`.

    Raises InputError for what is not YAML, and for what YAML reads in an unexpected way: a key
    that stands twice, a key that is not text (`no`, `on`, `1`), numbers such as 010 (8) and 1:30
    (90), dates. Also for aliases that stand for too many values, and values nested too deeply.
    """
    try:
        value = _json(text, where) if text.lstrip().startswith("{") else None
        if value is None:
            value = _yaml(text, where)
        if _levels(value) > MOST_LEVELS:
            raise RecursionError
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(
            f"{where}, line {line}: the character U+{error.character:04X} cannot stand in YAML: "
            "save the file as text in UTF-8"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" at line {mark.line + 1}" if mark else ""
        problem = (error.problem or "").removeprefix("but ")
        raise InputError(f"{where} is not valid YAML{at} ({problem}): correct it") from None
    except RecursionError:
        raise InputError(
            f"{where} has values nested more than {MOST_LEVELS} levels deep: nest them less deeply"
        ) from None
    return value


def _yaml(text: str, where: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _Check(loader, where).count(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _levels(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_levels, parts), default=0)


def _json(text: str, where: str) -> Any:
    """The value of a JSON text, or None. JSON with tabs, or with 1e-3, is no YAML with that value.

    Raises InputError for a key that stands twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise InputError(f"{where}: the key {key} stands twice in the same place: keep one")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except ValueError:
        return None


class _Loader(yaml.SafeLoader):
    """The safe loader, whose errors are all YAML errors."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. Raises ConstructorError also for text such as `!!int one`."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, KeyError, ValueError):
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value[:40]!r} cannot be read", node.start_mark
            ) from None


class _Check:
    """Refuses what YAML reads in an unexpected way, before values are made of the nodes."""

    def __init__(self, loader: _Loader, where: str) -> None:
        self._loader, self._where = loader, where
        self._counts: dict[yaml.Node, int | None] = {}  # None while a node is looked at

    def count(self, node: yaml.Node) -> int:
        """The number of values in a node, aliases written out. Raises InputError."""
        if node in self._counts:  # an alias
            if (known := self._counts[node]) is None:
                raise self._fault(node, "a value holds itself by an alias: write it out")
            return known
        self._counts[node] = None
        count = 1 + sum(self.count(part) for part in self._parts(node))
        if count > MOST_VALUES:
            raise self._fault(
                node,
                f"more than {MOST_VALUES:,} values begin here, aliases (*name) written out: "
                "write fewer",
            )
        self._counts[node] = count
        return count

    def _parts(self, node: yaml.Node) -> list[yaml.Node]:
        """The values that a node holds, after a check of the node itself and its keys."""
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            parts = [value for _, value in node.value]
        else:
            parts = list(node.value) if isinstance(node, yaml.SequenceNode) else []
        self._check_value(node)
        return parts

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._fault(key, "a key is a list or a mapping: write a text")
            if key.tag not in (_TAG + "str", _MERGE):
                name = f"the key {key.value}" if key.value else "an empty key"
                raise self._fault(key, f"YAML reads {name} as {self._read(key)}: put it in quotes")
            if key.value in lines:
                raise self._fault(
                    key,
                    f"the key {key.value} stands in line {lines[key.value]} already: keep one of "
                    "the two",
                )
            lines[key.value] = key.start_mark.line + 1

    def _check_value(self, node: yaml.Node) -> None:
        text = node.value
        if node.tag == _DATE:
            raise self._fault(node, f"YAML reads {text} as a date: put it in quotes")
        if node.tag not in _PLAIN:
            kind = node.tag.replace(_TAG, "!!")
            if kind in ("!!merge", "!!value"):  # a lone << or =
                raise self._fault(node, f"YAML does not read {text} as text: put it in quotes")
            raise self._fault(node, f"the type {kind} is not for this file: remove it")
        if node.tag in (_TAG + "int", _TAG + "float"):
            number = self._loader.construct_object(node)
            octal = _OCTAL.fullmatch(text) and int(text.replace("_", "")) != number
            if octal or ":" in text:
                raise self._fault(
                    node,
                    f"YAML reads {text} as the number {number}: write {number} if you mean it, "
                    f"otherwise put {text} in quotes or write it without the "
                    f"{'colon' if ':' in text else 'leading 0'}",
                )

    def _read(self, key: yaml.ScalarNode) -> str:
        """What YAML reads a key as, in words."""
        kind = key.tag.removeprefix(_TAG)
        if kind in ("int", "float"):
            return "a number"
        if kind == "bool":
            return str(self._loader.construct_object(key)).lower()
        return {"null": "null", "timestamp": "a date"}.get(kind, f"a value of the type {kind}")

    def _fault(self, node: yaml.Node, sentence: str) -> InputError:
        return InputError(f"{self._where}, line {node.start_mark.line + 1}: {sentence}")
