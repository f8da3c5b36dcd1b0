"""What people are told of a comparison: a few of its measures, and which one to cite."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from cltools.maths.alignment import Measure
from cltools.maths.alignment.measures import RSA

CITED: Measure = ("cka", "cosine_debiased")
BIASED: Measure = ("cka", "cosine_biased")
# Measure -> what it is called.
SHOWN: dict[Measure, str] = {
    CITED: "CKA, debiased",
    BIASED: "CKA, biased (the papers' definition)",
    ("cka", "raw_biased"): "CKA, biased, features not normalized",
    RSA: "RSA, Pearson",
    ("rsa", "spearman_cosine"): "RSA, Spearman",
    ("cka", "residual_debiased"): "CKA within classes, debiased",
    ("cka_null", CITED[1]): "CKA, debiased, of class means alone",
}
HARDLY = 0.005  # a difference that needs no reason
INTERVAL = "90 % interval"
Cell = tuple[float, float | None, float | None]  # value, and the limits of its interval


@dataclass(frozen=True)
class Comparison:
    """The tidy rows of representations of the same n images, and their dimensions by name.

    The first name is the reference of the measures that not all pairs have.
    """

    table: pl.DataFrame
    widths: Mapping[str, int]
    n: int

    def cells(self, measure: Measure) -> dict[tuple[str, str], Cell]:
        """Value and interval of a measure, for each pair (reference, name) that has it."""
        metric, variant = measure
        found = self.table.filter(pl.col("reference") != "", metric=metric, variant=variant)
        columns = found.select("reference", "objective", "value", "ci_low", "ci_high")
        return {(a, b): (value, low, high) for a, b, value, low, high in columns.iter_rows()}

    def matrices(self) -> dict[str, np.ndarray]:
        """The measures of all pairs, (names, names) each, by what they are called."""
        names = list(self.widths)
        found = {}
        for measure in (CITED, RSA):
            matrix = np.eye(len(names))
            for (a, b), (value, *_) in self.cells(measure).items():
                i, j = names.index(a), names.index(b)
                matrix[i, j] = matrix[j, i] = value
            found[SHOWN[measure]] = matrix
        return found

    def about(self) -> str:
        """What was compared, in words."""
        widths = {*self.widths.values()}
        told = f"{min(widths)}" if len(widths) == 1 else f"{min(widths)} to {max(widths)}"
        return f"{len(self.widths)} representations of {self.n:,} images in {told} dimensions."

    def measures(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the table of the first two names: measures, values, intervals."""
        first, second, *_ = self.widths
        rows = []
        for measure, label in SHOWN.items():
            if (cell := self.cells(measure).get((first, second))) is not None:
                rows.append([label, f"{cell[0]:.3f}", interval(cell)])
        return [f"{second} against {first}", "value", INTERVAL], rows

    def against_first(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the table of all names with the first: CKA and RSA with intervals."""
        first, *others = self.widths
        cited, biased, rsa = (self.cells(measure) for measure in (CITED, BIASED, RSA))
        head = [f"against {first}", f"{SHOWN[CITED]} (90 %)", f"{SHOWN[RSA]} (90 %)", "CKA, biased"]
        rows = []
        for name in others:
            cka, other, (value, *_) = (found[first, name] for found in (cited, rsa, biased))
            rows.append([name, with_interval(cka), with_interval(other), f"{value:.3f}"])
        return head, rows

    def advice(self) -> str:
        """One sentence: which value to cite, and why the biased CKA is larger."""
        cited, biased = self.cells(CITED), self.cells(BIASED)
        excess = [biased[pair][0] - value for pair, (value, *_) in cited.items()]
        largest = max((one for one in excess if np.isfinite(one)), default=np.nan)
        if not np.isfinite(largest):
            return "Cite none of these: CKA is undefined here."
        told = "Cite the debiased CKA with its interval"
        if len(cited) == 1:
            told += f", {with_interval(*cited.values())}"
        if largest < HARDLY:
            return f"{told}; the biased one is nearly the same for this many images."
        larger = f"{largest:.3f}" if len(cited) == 1 else f"up to {largest:.3f}"
        return (
            f"{told}; the biased one is {larger} larger, because it also counts the similarity "
            f"that any features of so many dimensions have by chance on only {self.n:,} images."
        )


def with_interval(cell: Cell) -> str:
    """A value and the limits of its interval, where it has one."""
    limits = interval(cell)
    return f"{cell[0]:.3f} ({limits})" if limits else f"{cell[0]:.3f}"


def interval(cell: Cell) -> str:
    """The limits of an interval, "" where there are none."""
    _, low, high = cell
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
