"""The claims of the papers as data, and the tests of an experiment's tables that decide them.

`claims.yaml` holds the claims and `schema.json` describes its keys. `statistics` computes effects,
and `evaluate` decides. The module imports quickly: it uses no numerical library.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema

from cltools.claims.words import claimed_in_words, reading_of, scale_of
from cltools.runtime.errors import InputError
from cltools.runtime.yaml_text import read_yaml

FILE = Path(str(resources.files("cltools") / "claims" / "claims.yaml"))
EXPRESSIONS = ("value", "lower", "upper")

Where = Mapping[str, Any]


@dataclass(frozen=True)
class Test:
    """One test; a claim may have several.

    Fields are the keys of `schema.json`, but a test with `each` or `pairs` is split into one test
    for each entry. `terms` are the two things that a difference, share, halving or correlation
    compares.
    """

    label: str
    kind: str
    reading: str = ""
    table: str = "measures"
    sweep: str | None = None
    base_too: bool = False
    where: Where = field(default_factory=dict)
    only: str | None = None
    value: str = "value"
    lower: str | None = None
    upper: str | None = None
    proved: bool = False
    at: str = "last"
    from_epoch: float = 0.0
    until_epoch: float = math.inf
    terms: tuple[Where, ...] = ()
    along: str | None = None
    x: str | None = None
    column: str | None = None
    clock: str | None = None
    unit: str = ""
    region: tuple[float, float] = (-math.inf, math.inf)
    matters: float = 0.0
    needs: Mapping[str, float] = field(default_factory=dict)

    def named(self, key: str) -> str:
        """The column that the key x, along, column or clock names.

        Raises InputError when the test does not have this key.
        """
        column = getattr(self, key)
        if not isinstance(column, str):
            raise InputError(f"a claim's {self.kind} test names no {key}: add {key} to the test")
        return column

    @property
    def said(self) -> str:
        """The effect and what is claimed of it, as a sentence that `words.sentence` fills in."""
        if self.kind == "bound":
            return ""
        unit = f" {self.unit}" if self.unit else ""
        lead = f"{self.label[:1].upper()}{self.label[1:]}: " if self.label else ""
        reading = self.reading or f"{lead}{{value}}{unit}"
        claimed = claimed_in_words(self.region, scale_of(reading))
        return f"{reading}{{interval}}; claimed: {claimed}."

    @property
    def claimed(self) -> str:
        """The region in words."""
        low, high = self.region
        if self.kind == "bound":
            return "no violation"
        if math.isinf(high):
            words = f"> {low:g}"
        else:
            words = f"< {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"
        return words.replace("-", "−")


@dataclass(frozen=True)
class Claim:
    """One claim. It holds if all its tests pass.

    The few `primary` claims are corrected among themselves only, and more strictly than the others.
    """

    id: str
    statement: str
    source: str
    figure: str
    paper: str
    of_paper: tuple[int, ...]
    tests: tuple[Test, ...]
    primary: bool = False

    @property
    def over_seeds(self) -> bool:
        """Whether a test of it uses effects over seeds. Bounds are checked in every row."""
        return any(test.kind != "bound" for test in self.tests)


@dataclass(frozen=True)
class Claims:
    """A file of claims."""

    error_rate: float
    claims: tuple[Claim, ...]


def schema() -> dict[str, Any]:
    """The JSON schema of a file of claims."""
    text = (resources.files("cltools") / "claims" / "schema.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def load_claims(path: Path = FILE) -> Claims:
    """Read and check a file of claims. Raises InputError that names the wrong key."""
    found = read_yaml(path, "claims file")
    error = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema()).iter_errors(found)
    )
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path) or "the top level"
        raise InputError(f"claims file {path}: {where} is wrong: {error.message}")
    claims = tuple(_claim(name, about) for name, about in found["claims"].items())
    for claim in claims:
        if claim.primary and not claim.over_seeds:
            raise InputError(
                f"claims file {path}: claims.{claim.id}.primary is for tests over seeds, and "
                "bounds are checked in every row: remove primary"
            )
    return Claims(found["error_rate"], claims)


def _claim(name: str, about: Mapping[str, Any]) -> Claim:
    tests = about.get("tests") or {"": about["test"]}
    said = {key: about[key] for key in ("statement", "figure", "paper")}
    return Claim(
        id=name,
        **said,
        source=", ".join(about["source"]),
        of_paper=tuple(about.get("of_paper", ())),
        primary=about.get("primary", False),
        tests=tuple(one for label, spec in tests.items() for one in _tests(label, spec)),
    )


def _tests(label: str, spec: Mapping[str, Any]) -> Iterator[Test]:
    """One test for each combination of entries of `each` and `pairs`."""
    spec = dict(spec)
    each = spec.pop("each", {"": {}})
    pairs = spec.pop("pairs", [spec.pop("of", ())])
    region = spec.pop("region", {})
    one_sided = region.get("above", -math.inf), region.get("below", math.inf)
    over_epochs = "epoch" in (spec.get("x"), spec.get("along"))
    if over_epochs or spec["kind"] in ("bound", "change", "share", "halving"):
        spec.setdefault("at", "all")
    for (name, more), pair in product(each.items(), pairs):
        parts = [label, name, _pair_label(pair) if len(pairs) > 1 else ""]
        chosen = {key: value for key, value in more.items() if key in EXPRESSIONS}
        where = {key: value for key, value in more.items() if key not in EXPRESSIONS}
        reading = reading_of(spec.get("reading", ""), name or label, pair)
        yield Test(
            **{
                **spec,
                "reading": reading,
                **chosen,
                "label": ", ".join(part for part in parts if part),
                "where": {**spec.get("where", {}), **where},
                "terms": tuple(pair),
                "region": tuple(region.get("within", one_sided)),
                "matters": region.get("matters", 0.0),
            }
        )


def _pair_label(pair: list[Where]) -> str:
    return " − ".join(" ".join(map(str, term.values())) for term in pair)
