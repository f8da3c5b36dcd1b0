"""The answer that a report opens with: three sentences and a table, from the tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from cltools.config.sweeps import base_or_first
from cltools.figures.style import look_of, ordered
from cltools.tidy import in_words, last_step, with_setting

# Columns of the table about the end of training: heading -> metric, variant, features. {} is the
# label of the reference.
SUMMARY = {
    "CKA with {}": ("cka", "cosine_biased", "h"),
    "RSA with {}": ("rsa", "pearson_cosine", "h"),
    "CKA with {}, class means removed": ("cka", "residual_biased", "h"),
    "NCCC accuracy": ("nccc", "accuracy", "h"),
    "Linear probe accuracy": ("linear_probe", "accuracy", "h"),
    "CDNV": ("cdnv", "pairs", "h"),
    "Loss gap, nats": ("gap", "training_tau", "z"),
    "Weight gap to {}": ("weight_gap", "mean_layer", ""),
}
WITH_REFERENCE = ("cka", "rsa", "weight_gap")
NONE, ITSELF = "–", "itself"
# Objective of CL -> its supervised counterpart.
COUNTERPARTS = {"dcl": "nscl", "nt_xent": "nscl_with_positive"}
# Controls: objective -> how a sentence names it.
CONTROLS = {
    "dcl_twin": "a second DCL network with batches and views of its own",
    "nscl:shuffled": "NSCL with shuffled labels",
}


@dataclass(frozen=True)
class End:
    """The end of training in one setting, on test images: `rows` of measures and of theory.

    `setting` says which cells these are, if the sweep has several.
    """

    rows: pl.DataFrame
    theory: pl.DataFrame | None
    reference: str
    setting: str = ""

    def by_seed(self, objective: str, metric: str, variant: str, features: str) -> pl.DataFrame:
        """Columns seed and value of an objective, as a mean over class draws."""
        found = self.rows.filter(
            pl.col("reference").is_in(["", self.reference]), pl.col("value").is_finite(),
            objective=objective, metric=metric, variant=variant, features=features,
        )  # fmt: skip
        return found.group_by("seed").agg(pl.col("value").mean()).sort("seed")

    def cka(self, objective: str) -> pl.DataFrame:
        """CKA of an objective with the reference, by seed."""
        return self.by_seed(objective, *SUMMARY["CKA with {}"])


def ends(
    measures: pl.DataFrame, plan: Mapping[str, Any], theory: pl.DataFrame | None = None
) -> list[End]:
    """The end of training in every setting of the base sweep, or of the first sweep without one."""
    sweep = base_or_first(plan["sweeps"])
    here = pl.col("sweeps").list.contains(sweep["name"])
    rows = last_step(measures.filter(here)).filter(pl.col("split").is_in(["test", ""]))
    rows = with_setting(rows)
    bounds = None if theory is None else last_step(theory.filter(here))
    found = []
    for part in rows.partition_by("setting", maintain_order=True):
        own = None if bounds is None else bounds.join(part.select("cell").unique(), on="cell")
        found.append(End(part, own, plan["reference"], part["setting"][0]))
    return found


def sentences(end: End) -> list[str]:
    """How close CL and NSCL are, what the controls say, and the loss gap against its bound."""
    return [_closeness(end), _control(end), _gap(end)]


def _label(objective: str) -> str:
    return look_of(objective).label


def _closeness(end: End) -> str:
    reference, rows = _label(end.reference), end.rows
    nearest = COUNTERPARTS.get(end.reference, "nscl")
    where = f"After {_epochs(rows)} on {in_words('dataset', rows['dataset'].unique())}"
    where += f" ({end.setting})" if end.setting else ""
    seeds = end.cka(nearest)
    if seeds.is_empty():
        return (
            f"{where}, the table below describes {reference}. Nothing compares it with its "
            f"supervised counterpart {_label(nearest)}: their CKA on test images was not measured."
        )
    count = len(seeds)
    over = f"mean ± standard deviation over {count} seeds" if count > 1 else "one seed"
    text = (
        f"{where}, the features of contrastive learning ({reference}) and of its supervised "
        f"counterpart {_label(nearest)} have a CKA of {spread(seeds['value'])} on test images "
        f"({over}; 1 would mean equal similarities between all images)"
    )
    others = [(_label(o), end.cka(o)["value"]) for o in ("scl", "ce") if o != end.reference]
    said = [f"{label} is at {spread(values)}" for label, values in others if len(values)]
    return f"{text}; {' and '.join(said)}." if said else f"{text}."


def _epochs(rows: pl.DataFrame) -> str:
    last = sorted(set(rows["epoch"]))
    if last == [0]:
        return "no training"
    numbers = f"{last[0]:.3g}" if len(last) == 1 else f"{last[0]:.3g} to {last[-1]:.3g}"
    return f"{numbers} epoch{'' if numbers == '1' else 's'}"


def _control(end: End) -> str:
    nearest = COUNTERPARTS.get(end.reference, "nscl")
    ours = end.cka(nearest)
    found = {name: end.cka(name) for name in CONTROLS if name != end.reference}
    found = {name: seeds for name, seeds in found.items() if len(seeds)}
    if ours.is_empty():
        return "So there is nothing that a control could be compared with."
    if not found:
        return (
            "There is no control here (a second DCL network, or NSCL with shuffled labels), so it "
            "stays open how much of this closeness is due to the shared start and batches."
        )
    each = [f"{CONTROLS[name]} is at {spread(seeds['value'])}" for name, seeds in found.items()]
    compared = [_compared(end, name, ours, seeds) for name, seeds in found.items()]
    return f"As a control, {' and '.join(each)}: {_label(nearest)} is {' and '.join(compared)}."


def _compared(end: End, name: str, ours: pl.DataFrame, other: pl.DataFrame) -> str:
    """Whether ours is larger, or for how many of the seeds that both have."""
    both = ours.join(other, on="seed", suffix="_other")
    count = int((both["value"] > both["value_other"]).sum())
    than = "that second network" if name == "dcl_twin" else "NSCL with shuffled labels"
    to = f"to {_label(end.reference)} than {than}"
    if len(both) == 1:
        return f"closer {to}" if count else f"no closer {to}"
    return f"closer {to} in {count} of {len(both)} seeds"


def _gap(end: End) -> str:
    gap = end.by_seed(end.reference, *SUMMARY["Loss gap, nats"])["value"]
    if gap.is_empty():
        return "The gap between the DCL and the NSCL loss was not measured."
    text = (
        f"On the projections of the {_label(end.reference)} network, over all test images, the DCL "
        f"loss is {spread(gap)} nats above the NSCL loss"
    )
    bound = None if end.theory is None else _bound(end.theory, end.reference)
    if bound is None:
        return f"{text}."
    return (
        f"{text}; the theory allows at most {bound:.3g} nats, of which this is "
        f"{100 * gap.to_numpy().mean() / bound:.0f} %."
    )


def _bound(theory: pl.DataFrame, reference: str) -> float | None:
    """The mean bound on the whole-set gap, of P1's Theorem 1."""
    found = theory.filter(
        source="P1 Theorem 1", quantity="gap", variant="training_tau", side="upper", split="test",
        objective=reference,
    )["bound"]  # fmt: skip
    return float(found.to_numpy().mean()) if len(found) else None


def spread(values: pl.Series) -> str:
    """Mean ± standard deviation, or the one value; at least two decimals, and a digit of the ±."""
    mean = float(values.to_numpy().mean())
    if len(values) == 1:
        return f"{mean:.3g}" if abs(mean) >= 1000 else f"{mean:.2f}"
    sd = float(values.to_numpy().std(ddof=1))
    decimals = 2
    while decimals < 5 and 0 < sd < 0.5 * 10**-decimals:
        decimals += 1
    # Spaces that do not break keep the two numbers on one line.
    return f"{mean:.{decimals}f}\u00a0±\u00a0{sd:.{decimals}f}"


def summary(parts: Sequence[End], label: str) -> dict[str, Any]:
    """A table of means ± standard deviations over seeds: title, columns and rows.

    A column that would have no number is left out.
    """
    reference = parts[0].reference
    found = []
    for end in parts:
        for objective in ordered(end.rows["objective"].unique().to_list()):
            seeds = end.rows.filter(objective=objective)["seed"].n_unique()
            line = [end.setting, _label(objective), str(seeds)]
            found.append(line + [_entry(end, objective, *which) for which in SUMMARY.values()])
    headings = [heading.format(_label(reference)) for heading in SUMMARY]
    columns = ["Cells", "Network", "Seeds", *headings]
    empty = {"", NONE, ITSELF}
    kept = [i for i, _ in enumerate(columns) if {row[i] for row in found} - empty]
    several = any(int(row[2]) > 1 for row in found)
    return {
        "title": f"End of training, test images, sweep “{label}”"
        + (": mean ± standard deviation over seeds" if several else ": one seed"),
        "columns": [columns[i] for i in kept],
        "rows": [[row[i] for i in kept] for row in found],
        "words": 2 if 0 in kept else 1,  # columns that hold no numbers
    }


def _entry(end: End, objective: str, metric: str, variant: str, features: str) -> str:
    if objective == end.reference and metric in WITH_REFERENCE:
        return ITSELF
    values = end.by_seed(objective, metric, variant, features)["value"]
    return spread(values) if len(values) else NONE
