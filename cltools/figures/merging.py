"""Networks whose weights are interpolated between those of the reference and of another."""

import polars as pl
from matplotlib.figure import Figure

from cltools import tidy
from cltools.figures import sheet, style, tables
from cltools.figures.style import Look, look_of
from cltools.figures.tables import ExperimentTables
from cltools.runtime.errors import InputError

PANELS = {
    "merged_nccc": "Nearest class center",
    "merged_linear_probe": "Linear probe",
    "merged_cka": "CKA with {reference}",
}


def merging(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Accuracies and CKA with the reference against the other's weight λ; the base sweep."""
    measures = experiment.base(experiment.measures)
    if "merged_nccc" not in measures["metric"]:
        raise InputError("the base sweep has no merged networks: add it to merge.sweeps")
    splits = {"test": "-", "train": ":"}
    cells = pl.concat(
        [tidy.rows(measures, metric=metric, features="h", split=list(splits)) for metric in PANELS]
    ).with_columns(weight=pl.col("variant").str.strip_prefix("lambda_").cast(pl.Float64))
    plotted = tidy.spread(cells, ["metric", "split", "objective", "weight"])
    objectives = style.ordered(plotted["objective"])

    start, single = experiment.reference_label, len(objectives) == 1
    other = _label(objectives) if single else "the other objective"
    end = f"1\n{other}" if single else "1"
    figure, (row,) = sheet.panels(1, ["nccc", "linear_probe", "cka"], height=2.2)
    for ax, (metric, title) in zip(row, PANELS.items(), strict=True):
        for name in objectives:
            for split, dash in splits.items():
                one = plotted.filter(metric=metric, split=split, objective=name)
                face = look_of(name).color if split == "test" else "white"
                line = {"linestyle": dash, "markerfacecolor": face, "points": split == "test"}
                if split == "train":  # a second band of the same color would say nothing
                    one = one.with_columns(sd=None)
                style.curve(ax, one, "weight", look_of(name), **line)
        ax.set(title=title.format(reference=start), xlabel=f"λ, weight of {other}")
        ax.set_xticks([0, 0.5, 1], [f"0\n{start}", "0.5", end])
        ax.set_xticks([0.25, 0.75], minor=True)
        ax.set_ylabel("CKA" if metric == "merged_cka" else "Accuracy")
    gray = Look("", style.FOOTNOTE, "o")
    sheet.finish(
        figure,
        f"Networks between the weights of {start} and of {other}",
        [
            *(style.handle(look_of(name), f"{start} to {_label([name])}") for name in objectives),
            style.handle(gray, "test images"),
            style.handle(gray, "training images", linestyle=":", markerfacecolor="white"),
        ],
        f"{tidy.setting(cells)}. Weights: (1\u00a0−\u00a0λ)\u00a0×\u00a0{start} + "
        f"λ\u00a0×\u00a0other, each run at its last step; "
        "BatchNorm statistics computed again from training images for every λ. Encoder "
        f"features h. {tables.seeds_note(plotted, cells, 'band (test images)')}",
    )
    return figure, plotted


def _label(objectives: list[str]) -> str:
    return look_of(objectives[0]).label
