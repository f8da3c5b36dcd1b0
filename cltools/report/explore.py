"""The data for the interactive parts of a report, from the tables of an experiment."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from cltools.config.sweeps import base_or_first
from cltools.figures.pictures import CLASSES
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


def exploration(
    measures: pl.DataFrame,
    sweeps: Sequence[Mapping[str, Any]],
    project: pl.DataFrame | None = None,
    reference: str = "dcl",
) -> dict[str, Any]:
    """The data of the page, as a mapping for JSON. `sweeps` is as in the plan.

    reference: the objective that others are compared with.
    objectives: their labels and colors; colors: those of classes.
    gap: whole-set gaps of the reference's network on test images, for the sweeps that vary C, the
        base sweep and those that vary τ; by C, τ, other settings that the sweep varies, and epoch;
        means over seeds of the finite values. `start` has C and τ of the base sweep.
    alignment: of every pair of objectives, by sweep and its settings, a series over epochs each;
        means over seeds of the finite values. `sd` is null for a single seed. The base sweep comes
        first.
    means: cosines between class means in the cells of the first seed, for up to ten classes. The
        cells of the base sweep come first.
    images: features of images in the plane, from the table of stage `project`; None without it.
    """
    base = base_or_first(sweeps)
    known = measures["objective"].unique().to_list()
    return {
        "reference": reference,
        "objectives": {
            name: {"label": look_of(name).label, "color": look_of(name).color}
            for name in ordered(known)
        },
        "colors": CLASSES,
        "start": _start(measures.filter(_of(base))),
        "gap": [row for sweep in sweeps for row in _gaps(measures, sweep, base, reference)],
        "alignment": [
            row
            for sweep in sorted(sweeps, key=lambda sweep: sweep is not base)
            for row in _alignment(_rows(measures, sweep), sweep["label"])
        ],
        "means": _means(measures, base),
        "images": None if project is None else _images(project),
    }


def _of(sweep: Mapping[str, Any]) -> pl.Expr:
    return pl.col("sweeps").list.contains(sweep["name"])


def _rows(measures: pl.DataFrame, sweep: Mapping[str, Any]) -> pl.DataFrame:
    """The rows of a sweep, without the columns that follow from C where the sweep varies C.

    Draws of classes have different numbers of images, and are averaged nonetheless.
    """
    follow = ["train_images", "total_steps"] if "classes" in sweep["factors"] else []
    return measures.filter(_of(sweep)).drop(follow)


def _start(base: pl.DataFrame) -> dict[str, Any]:
    return dict(base.select("classes", "tau").row(0, named=True))


def _gaps(
    measures: pl.DataFrame, sweep: Mapping[str, Any], base: Mapping[str, Any], reference: str
) -> list[dict[str, Any]]:
    """The gaps of one sweep.

    `line` says whether its cells differ in C, so that they form a line, and `base` whether it is
    the base sweep. `progress` is the share of the training that is over.
    """
    line = "classes" in sweep["factors"]
    if not (line or sweep is base or "tau" in sweep["factors"]):
        return []
    value, epoch = pl.col("value"), pl.col("epoch")
    rows = _rows(measures, sweep).with_columns(
        progress=pl.when(epoch.max().over("cell") > 0)
        .then(epoch / epoch.max().over("cell"))
        .otherwise(1.0)
    )
    rows = rows.filter(
        value.is_finite(), metric="gap", variant="training_tau", objective=reference, split="test"
    )
    rows = with_setting(rows, ["dataset", "classes", "tau"])
    # Draws of classes that differ in their number of images differ in their epochs, too, if steps
    # are equal; so checkpoints are those of one share of the training.
    by = ["dataset", "classes", "tau", "setting", "progress"]
    rows = rows.with_columns(pl.col("progress").round(3))
    found = rows.group_by(by).agg(
        epoch=epoch.mean(), mean=value.mean(), low=value.min(), high=value.max(),
        seeds=pl.col("seed").n_unique(),
    )  # fmt: skip
    found = found.sort(by).with_columns(
        sweep=_titled(sweep["label"]), line=pl.lit(line), base=pl.lit(sweep is base)
    )
    found = found.drop("setting")
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
    by = ["cells", "reference", "objective", "split"]
    for name, (metric, variant) in ALIGNMENT.items():
        rows = measures.filter(value.is_finite(), metric=metric, variant=variant, features="h")
        over_seeds = rows.group_by(*by, "epoch").agg(
            mean=value.mean().round(4), sd=value.std().round(4), seeds=pl.col("seed").n_unique()
        )
        over_seeds = over_seeds.sort(pl.col("cells").cast(pl.Enum(order)), *by[1:], "epoch")
        for key, series in over_seeds.group_by(by, maintain_order=True):
            cells, reference, objective, split = key
            about = {"measure": name, "cells": cells, "pair": [reference, objective]}
            columns = series.select(pl.col("epoch").round(4), "mean", "sd", "seeds")
            found.append({**about, "split": split, **columns.to_dict(as_series=False)})
    return found


def _means(measures: pl.DataFrame, base: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = measures.filter(
        pl.col("metric") == "class_mean_cosine",
        pl.col("features") == "h",
        pl.col("seed") == pl.col("seed").min(),
    )
    keys = ["cell", "split", "objective", "epoch"]
    order = pl.Enum(ordered(rows["objective"]))
    rows = with_setting(rows, ["dataset"])
    rows = rows.sort(~_of(base), "cell", "split", pl.col("objective").cast(order), "epoch")
    found = []
    for key, pairs in rows.group_by(keys, maintain_order=True):
        cosines = [round(v, 3) for v in pairs["value"] if math.isfinite(v)]
        about = dict(zip(keys, key, strict=True))
        classes = pairs["classes"][0]
        about |= {"name": pairs["setting"][0] or f"C = {classes}", "classes": classes}
        found.append({**about, "epoch": round(about["epoch"], 4), "cosines": cosines})
    return found


def _images(project: pl.DataFrame) -> dict[str, Any]:
    """The classes of the images and, by objective and epoch, x and y of all of them in turn."""
    project = project.sort("step", "sample")
    labels = project.unique("sample", maintain_order=True)["class"].to_list()
    points = [
        {
            "objective": objective,
            "epoch": round(epoch, 4),
            "share": panel["share"][0],
            "xy": panel.select("x", "y").to_numpy().round(2).flatten().tolist(),
        }
        for (objective, epoch), panel in project.group_by(
            ["objective", "epoch"], maintain_order=True
        )
    ]
    method, split = project.select("method", "split").row(0)
    return {"labels": labels, "method": method, "split": split, "points": points}


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with six digits per number. A plot shows fewer, and the page becomes smaller."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
