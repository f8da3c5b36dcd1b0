"""The data for the interactive parts of a report, from the tidy table of measures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from cltools.config.sweeps import base_or_first
from cltools.figures.style import look_of, ordered
from cltools.tidy import with_setting

# The measures of alignment that a reader can choose: name -> metric, variant.
ALIGNMENT = {
    "CKA": ("cka", "cosine_biased"),
    "CKA, debiased": ("cka", "cosine_debiased"),
    "CKA, class means removed": ("cka", "residual_biased"),
    "RSA": ("rsa", "pearson_cosine"),
    "RSA, class means removed": ("rsa", "residual_pearson"),
}


def exploration(measures: pl.DataFrame, sweeps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The data of the page, as a mapping for JSON. `sweeps` is as in the plan.

    objectives: their labels and colors.
    gap: whole-set gaps of the DCL network on test images, by sweep, C, τ, other settings that the
        sweep varies, and epoch; means over seeds of the finite values.
    alignment: of every pair of objectives, by sweep and its settings; means over seeds of the
        finite values. The base sweep comes first.
    geometry: cosines between class means in the cells of the first seed, for up to ten classes.
        The cells of the base sweep come first.
    """
    base = base_or_first(sweeps)
    known = measures["objective"].unique().to_list()
    return {
        "objectives": {
            name: {"label": look_of(name).label, "color": look_of(name).color}
            for name in ordered(known)
        },
        "gap": [row for sweep in sweeps for row in _gaps(measures, sweep)],
        "alignment": [
            row
            for sweep in sorted(sweeps, key=lambda sweep: sweep is not base)
            for row in _alignment(measures.filter(_of(sweep)), sweep["label"])
        ],
        "geometry": _geometry(measures, base),
    }


def _of(sweep: Mapping[str, Any]) -> pl.Expr:
    return pl.col("sweeps").list.contains(sweep["name"])


def _gaps(measures: pl.DataFrame, sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    value = pl.col("value")
    rows = measures.filter(
        _of(sweep), value.is_finite(),
        metric="gap", variant="training_tau", objective="dcl", split="test",
    )  # fmt: skip
    rows = with_setting(rows, ["dataset", "classes", "tau"])
    by = ["dataset", "classes", "tau", "setting", "epoch"]
    found = rows.group_by(by).agg(mean=value.mean(), low=value.min(), high=value.max())
    found = found.sort(by).with_columns(sweep=_titled(sweep["label"])).drop("setting")
    return [_rounded(row) for row in found.iter_rows(named=True)]


def _titled(label: str) -> pl.Expr:
    """The name of a sweep, followed by the setting if there is one."""
    titled = pl.format("{}: {}", pl.lit(label), "setting")
    return pl.when(pl.col("setting") == "").then(pl.lit(label)).otherwise(titled)


def _alignment(measures: pl.DataFrame, label: str) -> list[dict[str, Any]]:
    found = []
    value = pl.col("value")
    measures = with_setting(measures).with_columns(cells=_titled(label))
    order = measures["cells"].unique(maintain_order=True)
    by = ["cells", "reference", "objective", "split", "epoch"]
    for name, (metric, variant) in ALIGNMENT.items():
        rows = measures.filter(value.is_finite(), metric=metric, variant=variant, features="h")
        over_seeds = rows.group_by(by).agg(
            mean=value.mean(), sd=value.std().fill_null(0.0), seeds=pl.col("seed").n_unique()
        )
        over_seeds = over_seeds.sort(pl.col("cells").cast(pl.Enum(order)), *by[1:])
        for row in over_seeds.iter_rows(named=True):
            pair = [row.pop("reference"), row.pop("objective")]
            found.append({"measure": name, "pair": pair, **_rounded(row)})
    return found


def _geometry(measures: pl.DataFrame, base: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = measures.filter(
        pl.col("metric") == "class_mean_cosine",
        pl.col("features") == "h",
        pl.col("seed") == pl.col("seed").min(),
    )
    keys = ["cell", "split", "objective", "epoch"]
    order = pl.Enum(ordered(rows["objective"]))
    rows = rows.sort(~_of(base), "cell", "split", pl.col("objective").cast(order), "epoch")
    found = []
    for key, pairs in rows.group_by(keys, maintain_order=True):
        places = [tuple(map(int, v.split("_")[1:])) for v in pairs["variant"]]
        classes = 1 + max(j for _, j in places)
        cosines: list[list[float | None]] = [[1.0] * classes for _ in range(classes)]
        for (i, j), value in zip(places, pairs["value"], strict=True):
            known = round(value, 3) if math.isfinite(value) else None
            cosines[i][j] = cosines[j][i] = known
        about = dict(zip(keys, key, strict=True))
        found.append({**about, "epoch": round(about["epoch"], 6), "cosines": cosines})
    return found


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with six digits per number. A plot shows fewer, and the page becomes smaller."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
