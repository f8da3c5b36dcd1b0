"""Alignment with the reference: during training, and at its end against C, τ and B."""

import textwrap
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from cltools import tidy
from cltools.figures import style, tables
from cltools.figures.tables import ExperimentTables

PAPER, DEBIASED, RSA = "cosine_biased", "cosine_debiased", "pearson_cosine"
# The last one is a control: is the network still near its start?
METRICS = ("cka", "rsa", "cka_to_init")
LABEL_WIDTH = 26  # characters per line of an arm's name, so that a line fits the panel's height
CONTROL_NOTE = (
    "CKA with own initial weights: if it is near 1, the network has hardly changed, and alignment "
    "says little."
)


def alignments(experiment: ExperimentTables, measures: pl.DataFrame, **wanted: Any) -> pl.DataFrame:
    """CKA and RSA of every objective with the reference on h, and the control; one row per value.

    The control is the CKA of every network, the reference included, with itself at its initial
    weights.
    """
    wanted["features"] = "h"
    others = experiment.against_reference(measures)
    return pl.concat(
        [
            tidy.rows(others, metric="cka", variant=PAPER, **wanted),
            tidy.rows(others, metric="rsa", variant=RSA, **wanted),
            tidy.rows(measures, metric="cka_to_init", variant=PAPER, **wanted),
        ]
    )


def panels(experiment: ExperimentTables) -> dict[str, str]:
    """Metric -> title of its panel."""
    other = experiment.reference_label
    titles = (f"CKA with {other}", f"RSA with {other}", "CKA with own initial weights")
    return dict(zip(METRICS, titles, strict=True))


def _draw(ax: Axes, table: pl.DataFrame, x: str, metric: str, *, bars: bool) -> None:
    """One panel with a curve for every objective."""
    drawn = table.filter(pl.col("metric") == metric)
    for name in style.ordered(drawn["objective"]):
        look = style.look_of(name)
        style.curve(ax, drawn.filter(pl.col("objective") == name), x, look, bars=bars)


def _handles(table: pl.DataFrame) -> list[Line2D]:
    return [style.handle(style.look_of(name)) for name in style.ordered(table["objective"])]


def alignment_training(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Rows: CKA, RSA and the control; columns: training and test images; for the base sweep."""
    measures = experiment.base(experiment.measures)
    splits = ["train", "test"]
    cells = alignments(experiment, measures, split=splits)
    others = experiment.against_reference(measures)
    debiased = tidy.rows(others, metric="cka", variant=DEBIASED, features="h", split=splits)
    by = ["metric", "variant", "split", "objective", "epoch"]
    plotted = tidy.spread(pl.concat([cells, debiased]), by)
    papers = tables.papers_rows(
        experiment, cells, metric=["cka", "rsa"], reference=experiment.reference, split=splits
    )

    figure, axes = style.panels(len(METRICS), 2, height=1.9, sharex=True, sharey="row")
    for row, (metric, title) in zip(axes, panels(experiment).items(), strict=True):
        for ax, split in zip(row, splits, strict=True):
            panel = plotted.filter(split=split)
            _draw(ax, panel.filter(pl.col("variant") != DEBIASED), "epoch", metric, bars=False)
            if metric == "cka":
                for (name,), thin in panel.filter(variant=DEBIASED).group_by(
                    "objective", maintain_order=True
                ):
                    means = thin.unique("epoch").sort("epoch")
                    color = style.look_of(name).color
                    ax.plot(means["epoch"], means["mean"], "--", color=color, linewidth=0.8)
            for name in style.ordered(plotted["objective"]):
                theirs = papers.filter(metric=metric, split=split, objective=name)
                style.paper_curve(ax, theirs, "epoch", style.look_of(name))
            ax.set_title(f"{title}, {'training' if split == 'train' else 'test'} images")
            style.epoch_axis(ax, plotted["epoch"])
            style.alignment_axis(ax, plotted["mean"])
            ax.label_outer()
        row[0].set_ylabel(title.split()[0])
    thin = style.handle(style.NEUTRAL, "CKA, debiased", marker="", linestyle="--", linewidth=0.8)
    style.finish(
        figure,
        f"Alignment of each objective with {experiment.reference_label} during training",
        [*_handles(plotted), thin, *style.paper_handles(papers)],
        f"{tidy.setting(cells)}. Encoder features h. "
        f"{tables.seeds_note(plotted, cells, 'band')} CKA: cosine similarities, biased estimator "
        f"(as in the paper); RSA: Pearson correlation of cosine distances. {CONTROL_NOTE}"
        + " The CKA in P2’s figures is of raw features."
        * (not papers.is_empty()),
    )
    return figure, tables.with_papers(plotted, papers)


def _against(
    experiment: ExperimentTables, factor: str, label: str, words: str, note: str = ""
) -> tuple[Figure, pl.DataFrame]:
    """Columns: CKA, RSA and control at the end; rows: the arms of the sweeps over `factor`."""
    ended = tidy.last_step(experiment.measures)
    cells = alignments(experiment, experiment.over(ended, factor), split="test")
    by = ["panel", "arm", "metric", "variant", "split", "objective", factor]
    plotted = tidy.spread(cells, by)

    # The footnote does not repeat what an axis or the panel titles show.
    leave_out = [factor, "lr_rule"] if factor == "batch_size" else [factor]
    arms = plotted["arm"].unique(maintain_order=True)
    figure, axes = style.panels(len(arms), len(METRICS), sharex=True, sharey=True)
    for row, arm in zip(axes, arms, strict=True):
        for ax, (metric, panel) in zip(row, panels(experiment).items(), strict=True):
            _draw(ax, plotted.filter(arm=arm), factor, metric, bars=True)
            ax.set_title(panel)
            ax.set_ylabel(textwrap.fill(arm, LABEL_WIDTH) if len(arms) > 1 else "Similarity")
            style.factor_axis(ax, plotted[factor], label)
            style.alignment_axis(ax, plotted["value"])
            ax.label_outer()
    style.finish(
        figure,
        f"Alignment of each objective with {experiment.reference_label} against {words}",
        _handles(plotted),
        f"{tidy.setting(cells, leave_out)}. Test images, encoder features h, each run at its "
        f"last step. {tables.seeds_note(plotted, cells)} {CONTROL_NOTE}{note}",
    )
    return figure, plotted.drop("panel")


def alignment_classes(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """One row of panels per sweep over the number of classes."""
    note = (
        " With more classes an epoch has more images and more steps, so that training for the same "
        "number of epochs is longer."
    )
    return _against(experiment, "classes", "Number of classes C", "the number of classes", note)


def alignment_temperature(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """One row of panels per sweep over the temperature."""
    return _against(experiment, "tau", "Temperature τ", "the temperature")


def alignment_batch_size(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """One row of panels per sweep over the batch size and learning-rate rule."""
    return _against(experiment, "batch_size", "Batch size B", "the batch size")


def alignment_classes_epochs(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Heat maps number of classes × epoch of NSCL's CKA with the reference, by sweep over C.

    If the runs of a sweep have the same number of steps, not of epochs, the axes are C × step.
    """
    splits = ["train", "test"]
    wanted = {"metric": "cka", "objective": "nscl", "features": "h", "split": splits}
    measures = experiment.against_reference(experiment.over(experiment.measures, "classes"))
    cells = tidy.rows(measures, variant=PAPER, **wanted)
    papers = tables.papers_rows(experiment, cells, "classes", **wanted).with_columns(
        classes=pl.col("factor_value").cast(pl.Int64)
    )
    maps = []
    for arm in cells.sort("panel")["arm"].unique(maintain_order=True):
        part = cells.filter(arm=arm)
        clock, label = _clock(part)
        # Class draws differ in their images, so runs at the same step may be at different epochs.
        means = tidy.spread(part, ["panel", "arm", "split", "classes", clock])
        maps.append((arm, _comparable(means, clock), clock, label))
    plotted = pl.concat([part for _, part, _, _ in maps], how="diagonal")
    if not papers.is_empty():
        mean = papers.with_columns(mean=pl.col("value"))
        maps.append((f"{papers['figure'][0]}, CKA of raw features", mean, "epoch", "Epoch"))
    tall = max(part["classes"].n_unique() for _, part, _, _ in maps)
    figure, axes = style.panels(len(maps), 2, height=0.24 * tall + 0.6, sharey="row")
    image, pair = None, f"NSCL with {experiment.reference_label}"
    for row, (title, part, clock, label) in zip(axes, maps, strict=True):
        for ax, split in zip(row, splits, strict=True):
            image = _heat_map(ax, part.filter(split=split), clock)
            images = "training" if split == "train" else "test"
            ax.set_title(f"{title}, {images} images" if len(maps) > 1 else f"{images} images")
            ax.set(xlabel=label, ylabel="Number of classes C")
            if ax is not row[0]:
                ax.set_ylabel("")
    figure.colorbar(image, ax=axes, label=f"CKA of {pair}", aspect=30, pad=0.01)
    style.finish(
        figure,
        f"CKA of {pair} by number of classes and epoch",
        [],
        f"{tidy.setting(cells, ['classes'])}. Encoder features h, cosine similarities, biased "
        f"estimator. {tables.means_note(plotted)} White: no checkpoint.",
    )
    return figure, tables.with_papers(plotted.drop("panel"), papers)


def _clock(arm: pl.DataFrame) -> tuple[str, str]:
    """The column in which most runs end together, steps or epochs, and its label."""
    last = arm.group_by("classes").agg(pl.col("epoch").max(), pl.col("step").max())
    if last["step"].n_unique() < last["epoch"].round(6).n_unique():
        return "step", "Step"
    return "epoch", "Epoch"


def _comparable(arm: pl.DataFrame, clock: str) -> pl.DataFrame:
    """The checkpoints that at least two numbers of classes have; all if there is only one."""
    return arm.filter(
        (pl.col("classes").n_unique().over(clock) > 1) | (pl.col("classes").n_unique() == 1)
    )


def _heat_map(ax: Axes, part: pl.DataFrame, clock: str) -> AxesImage:
    """Draw the means as colors and numbers."""
    part = part.unique(["classes", clock]).sort("classes", clock)
    classes, times = (part[column].unique().sort().to_list() for column in ("classes", clock))
    field = np.full((len(classes), len(times)), np.nan)
    for c, time, mean in part.select("classes", clock, "mean").iter_rows():
        field[classes.index(c), times.index(time)] = mean
    return style.heat_map(ax, field, [f"{time:g}" for time in times], [f"{c}" for c in classes])
