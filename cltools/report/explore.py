"""What the interactive parts of a report draw, from the tidy table of measures."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from cltools.figures.style import OBJECTIVES

# Measures of alignment to choose from: name -> metric, variant.
ALIGNMENT = {
    "CKA": ("cka", "cosine_biased"),
    "CKA, debiased": ("cka", "cosine_debiased"),
    "CKA, class means removed": ("cka", "residual_biased"),
    "RSA": ("rsa", "pearson_cosine"),
    "RSA, class means removed": ("rsa", "residual_pearson"),
}


def exploration(measures: pl.DataFrame, sweeps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows for the page, as JSON has them. `sweeps`: as in the plan.

    gap: whole-set gaps of the DCL network on test images, by sweep, C, τ and epoch. alignment: of
    every pair of objectives in the sweep that varies the seed alone, or else in the first.
    geometry: cosines between class means in the cells of the first seed, for up to ten classes,
    those of the same sweep first.
    """
    base = next((s for s in sweeps if set(s["factors"]) <= {"seed"}), sweeps[0])
    known = measures["objective"].unique().to_list()
    return {
        "objectives": {
            name: {"label": look.label, "colour": look.colour}
            for name, look in OBJECTIVES.items()
            if name in known
        },
        "gap": [row for sweep in sweeps for row in _gaps(measures, sweep)],
        "alignment": _alignment(measures.filter(_of(base))),
        "alignment_sweep": base["label"],
        "geometry": _geometry(measures, base),
    }


def _of(sweep: Mapping[str, Any]) -> pl.Expr:
    return pl.col("sweeps").list.contains(sweep["name"])


def _gaps(measures: pl.DataFrame, sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = measures.filter(
        _of(sweep), metric="gap", variant="training_tau", objective="dcl", split="test"
    )
    value = pl.col("value")
    found = rows.group_by("dataset", "classes", "tau", "epoch").agg(
        mean=value.mean(), low=value.min(), high=value.max()
    )
    return [
        {"sweep": sweep["label"], **_rounded(row)}
        for row in found.sort("dataset", "classes", "tau", "epoch").iter_rows(named=True)
    ]


def _alignment(measures: pl.DataFrame) -> list[dict[str, Any]]:
    found = []
    for name, (metric, variant) in ALIGNMENT.items():
        rows = measures.filter(metric=metric, variant=variant, features="h")
        value = pl.col("value")
        over_seeds = rows.group_by("reference", "objective", "split", "epoch").agg(
            mean=value.mean(), sd=value.std().fill_null(0.0), seeds=pl.col("seed").n_unique()
        )
        for row in over_seeds.sort("reference", "objective", "split", "epoch").iter_rows(
            named=True
        ):
            pair = [row.pop("reference"), row.pop("objective")]
            found.append({"measure": name, "pair": pair, **_rounded(row)})
    return found


def _geometry(measures: pl.DataFrame, base: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = measures.filter(
        pl.col("metric") == "class_mean_cosine", pl.col("seed") == pl.col("seed").min()
    )
    keys = ["cell", "split", "objective", "epoch"]
    order = pl.Enum(list(OBJECTIVES))
    rows = rows.sort(~_of(base), "cell", "split", pl.col("objective").cast(order), "epoch")
    found = []
    for key, pairs in rows.group_by(keys, maintain_order=True):
        places = [tuple(map(int, v.split("_")[1:])) for v in pairs["variant"]]
        classes = 1 + max(j for _, j in places)
        cosines = [[1.0] * classes for _ in range(classes)]
        for (i, j), value in zip(places, pairs["value"], strict=True):
            cosines[i][j] = cosines[j][i] = round(value, 3)
        about = dict(zip(keys, key, strict=True))
        found.append({**about, "epoch": round(about["epoch"], 6), "cosines": cosines})
    return found


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Five digits are more than a plot shows, and half the bytes."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
