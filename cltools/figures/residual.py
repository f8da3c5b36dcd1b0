"""How much of the alignment remains when class means are removed."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cltools import tidy
from cltools.figures import sheet, style, tables
from cltools.figures.alignment import PAPER, RSA
from cltools.figures.style import Look
from cltools.figures.tables import ExperimentTables

# Kinds of alignment: name -> label, marker, whether it is filled, and height within a row.
KINDS = {
    "plain": ("all of the features", "o", True, -0.22),
    "null": ("class means only", "|", True, -0.22),
    "residual": ("without class means", "s", False, 0.22),
}
MEASURES = {
    "CKA": {
        "plain": ("cka", PAPER),
        "null": ("cka_null", PAPER),
        "residual": ("cka", "residual_biased"),
    },
    "RSA": {
        "plain": ("rsa", RSA),
        "null": ("rsa_null", RSA),
        "residual": ("rsa", "residual_pearson"),
    },
}


SPLITS = {"test": "test images", "train": "training images"}


def residual_alignment(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Rows: test and training images; columns: CKA and RSA; for the base sweep."""
    cells = _cells(experiment)
    plotted = tidy.spread(cells, ["measure", "split", "objective", "kind"])
    objectives = style.ordered(plotted["objective"])

    figure, axes = sheet.panels(
        list(SPLITS), ["cka", "rsa"], height=0.42 * len(objectives) + 0.5, flatter=1, sharex=True,
        sharey=True,
    )  # fmt: skip
    for row, (split, images) in zip(axes, SPLITS.items(), strict=True):
        for ax, measure in zip(row, MEASURES, strict=True):
            for y, name in enumerate(objectives):
                _line(ax, plotted.filter(measure=measure, split=split, objective=name), y, name)
            ax.set_title(f"{measure}, {images}")
            ax.set_yticks(range(len(objectives)), [style.look_of(o).label for o in objectives])
            ax.set_ylim(len(objectives) - 0.4, -0.6)
            ax.grid(axis="y", visible=False)
            ax.set_xlabel(f"Similarity with {experiment.reference_label}")
    lowest = min(0.0, float(plotted["value"].min()))
    axes[0, 0].set_xlim(lowest - 0.05 if lowest < 0 else 0, 1.03)
    gray = style.FOOTNOTE
    sheet.finish(
        figure,
        f"Alignment with {experiment.reference_label} beyond the classes",
        [
            style.handle(
                Look(label, gray, marker),
                linestyle="",
                markerfacecolor=gray if filled else "white",
                markersize=9 if marker == "|" else 5,
            )
            for label, marker, filled, _ in KINDS.values()
        ],
        f"{tidy.setting(cells)}. Encoder features h, each run at its last step. "
        f"{tables.seeds_note(plotted, cells)} Without class means: CKA and RSA of the "
        "differences between each image and the mean of its class. Class means only: one network "
        "keeps its images, the other gets them in a random order within each class, so that only "
        "the class means can still agree (mean over orders).",
    )
    return figure, plotted


def _cells(experiment: ExperimentTables) -> pl.DataFrame:
    """The rows for all measures and kinds, at the end of training."""
    others = experiment.against_reference(tidy.last_step(experiment.base(experiment.measures)))
    return pl.concat(
        [
            tidy.rows(
                others, metric=metric, variant=variant, features="h", split=list(SPLITS)
            ).with_columns(measure=pl.lit(measure), kind=pl.lit(kind))
            for measure, kinds in MEASURES.items()
            for kind, (metric, variant) in kinds.items()
        ]
    )


def _line(ax: Axes, plotted: pl.DataFrame, y: int, name: str) -> None:
    """One objective, with all kinds around the height y."""
    color = style.look_of(name).color
    for kind, (_, marker, filled, shift) in KINDS.items():
        one = plotted.filter(kind=kind)
        if one.is_empty():
            continue
        ax.errorbar(
            one["mean"][0], y + shift, xerr=one["sd"][0] or 0.0, fmt=marker,
            color=color, markerfacecolor=color if filled else "white",
            markersize=9 if marker == "|" else 5, elinewidth=0.9,
        )  # fmt: skip
        if len(one) > 1:
            places = [y + shift + 0.16] * len(one)
            ax.plot(one["value"], places, "o", color=color, **style.SEED)
