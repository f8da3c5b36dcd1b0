"""Alignment with the reference: during training, and at its end against C, τ and B."""

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from cltools import tidy
from cltools.figures import sheet, style, tables
from cltools.figures.style import Look
from cltools.figures.tables import ExperimentTables

SHUFFLED = "nscl:shuffled"  # the control
PAPER, DEBIASED, RSA = "cosine_biased", "cosine_debiased", "pearson_cosine"
# The last one is a control: is the network still near its start?
METRICS = ("cka", "rsa", "cka_to_init")
THIN = {"linestyle": (0, (2.5, 1.5)), "linewidth": 0.9, "zorder": 4}  # of the debiased CKA
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
    names = style.ordered(table["objective"])
    for name, shift in zip(names, style.shifts(len(names)), strict=True):
        one = table.filter(metric=metric, objective=name)
        if not one.is_empty():
            shift = shift if bars else 1.0
            style.curve(ax, one, x, style.look_of(name), bars=bars, shift=shift)


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

    figure, axes = sheet.panels(METRICS, splits, height=1.9, sharex=True, sharey="row")
    for row, (metric, title) in zip(axes, panels(experiment).items(), strict=True):
        for ax, split in zip(row, splits, strict=True):
            panel = plotted.filter(split=split)
            _draw(ax, panel.filter(pl.col("variant") != DEBIASED), "epoch", metric, bars=False)
            if metric == "cka":
                for (name,), thin in panel.filter(variant=DEBIASED).group_by(
                    "objective", maintain_order=True
                ):
                    means = thin.unique("epoch").sort("epoch")
                    ax.plot(means["epoch"], means["mean"], color=style.darker(name), **THIN)
            if metric != "cka_to_init":
                ax.axhline(1, color=style.look_of(experiment.reference).color, linewidth=1.4)
            for name in style.ordered(plotted["objective"]):
                theirs = papers.filter(metric=metric, split=split, objective=name)
                style.paper_curve(ax, theirs, "epoch", style.look_of(name))
            ax.set_title(f"{title}, {'training' if split == 'train' else 'test'} images")
            ax.set_ylabel(title.split()[0])
            style.epoch_axis(ax, plotted["epoch"])
            style.alignment_axis(ax, plotted["mean"])
    thin = style.handle(Look("CKA, debiased", style.THEORY, ""), **THIN)
    sheet.finish(
        figure,
        f"Alignment of each objective with {experiment.reference_label} during training",
        [*_handles(plotted), thin, *style.paper_handles(papers)],
        f"{tidy.setting(cells)}. Encoder features h. "
        f"{tables.seeds_note(plotted, cells, 'band')} CKA: cosine similarities, biased estimator "
        f"(as in the paper); RSA: Pearson correlation of cosine distances. "
        f"{experiment.reference_label} with itself is 1. {CONTROL_NOTE}"
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
    figure, axes = sheet.panels(len(arms), METRICS, height=1.9, sharex=True, sharey=True)
    for row, arm in zip(axes, arms, strict=True):
        for ax, (metric, panel) in zip(row, panels(experiment).items(), strict=True):
            _draw(ax, plotted.filter(arm=arm), factor, metric, bars=True)
            ax.set_title(f"{panel}\n{arm}" if len(arms) > 1 else panel)
            ax.set_ylabel("Similarity")
            style.factor_axis(ax, plotted[factor], label)
            style.alignment_axis(ax, plotted["value"])
    sheet.finish(
        figure,
        f"Alignment of each objective with {experiment.reference_label} against {words}",
        _handles(plotted),
        f"{tidy.setting(cells, leave_out)}. Test images, encoder features h, each run at its "
        f"last step. {tables.seeds_note(plotted, cells)} Objectives at the same "
        f"{label.split()[-1]} are drawn side by side. {CONTROL_NOTE}{note}",
    )
    return figure, plotted.drop("panel")


def alignment_classes(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """One row of panels per sweep over the number of classes."""
    note = (
        " With more classes an epoch has more images and more steps, so that training for the same "
        "number of epochs is longer."
    )
    return _against(experiment, "classes", "Classes C", "the number of classes", note)


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
        mean = papers.with_columns(mean=pl.col("value"), seeds=pl.lit(None, pl.UInt32))
        maps.append((f"{papers['figure'][0]}, CKA of raw features", mean, "epoch", "Epoch"))
    tall = max(part["classes"].n_unique() for _, part, _, _ in maps)
    figure, axes = sheet.panels(
        len(maps), splits, height=0.24 * tall + 0.6, flatter=1, sharey="row"
    )
    lowest = max(0.0, np.floor(10 * min(part["mean"].min() for _, part, _, _ in maps)) / 10)
    pair = f"NSCL with {experiment.reference_label}"
    white = False
    for row, (title, part, clock, label) in zip(axes, maps, strict=True):
        for ax, split in zip(row, splits, strict=True):
            image, gaps = _heat_map(ax, part.filter(split=split), clock, lowest)
            white |= gaps
            images = "training" if split == "train" else "test"
            ax.set_title(f"{title}, {images} images" if len(maps) > 1 else f"{images} images")
            ax.set(xlabel=label, ylabel="Classes C (runs)")
    sheet.finish(
        figure,
        f"CKA of {pair} by number of classes and epoch",
        [],
        f"{tidy.setting(cells, ['classes'])}. Encoder features h, cosine similarities, biased "
        f"estimator. {tables.means_note(plotted)}" + " White: no checkpoint." * white,
        bar=(image, f"CKA of {pair}"),
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


def _heat_map(ax: Axes, part: pl.DataFrame, clock: str, lowest: float) -> tuple[AxesImage, bool]:
    """Draw the means as colors and numbers; returns also whether there are gaps."""
    part = part.unique(["classes", clock]).sort("classes", clock)
    runs = dict(part.group_by("classes").agg(pl.col("seeds").max()).iter_rows())
    classes, times = (part[column].unique().sort().to_list() for column in ("classes", clock))
    field = np.full((len(classes), len(times)), np.nan)
    for c, time, mean in part.select("classes", clock, "mean").iter_rows():
        field[classes.index(c), times.index(time)] = mean
    labels = [f"{c} ({runs[c]})" if runs[c] else f"{c}" for c in classes]
    image = style.heat_map(ax, field, [f"{time:g}" for time in times], labels, lowest=lowest)
    return image, bool(np.isnan(field).any())


def alignment_schedules(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """CKA with the reference against the epoch. Rows: schedules of the rate; columns: other arms.

    Of the objectives with labels of their own, only NSCL with shuffled labels is shown.
    """
    experiment = experiment.without_own_labels(SHUFFLED)
    measures = experiment.over(experiment.measures, "lr_schedule")
    cells = tidy.rows(
        experiment.against_reference(measures), metric="cka", variant=PAPER, features="h",
        split="test",
    )  # fmt: skip
    plotted = tidy.spread(cells, ["panel", "arm", "lr_schedule", "metric", "objective", "epoch"])
    arms = plotted.sort("panel")["arm"].unique(maintain_order=True)
    schedules = plotted["lr_schedule"].unique().sort(descending=True)

    figure, axes = sheet.panels(len(schedules), len(arms), height=1.9, sharex=True, sharey=True)
    for row, schedule in zip(axes, schedules, strict=True):
        words = tidy.in_words("lr_schedule", [schedule])
        for ax, arm in zip(row, arms, strict=True):
            one = plotted.filter(arm=arm, lr_schedule=schedule)
            _draw(ax, one, "epoch", "cka", bars=False)
            ax.set_title(f"{words}, {arm}" if len(arms) > 1 else words)
            ax.set_ylabel("CKA")
            style.epoch_axis(ax, plotted["epoch"])
            style.alignment_axis(ax, plotted["value"])
    sheet.finish(
        figure,
        f"Alignment with {experiment.reference_label} for a learning rate that falls and one that "
        "stays",
        _handles(plotted),
        f"{tidy.setting(cells)}. Test images, encoder features h. CKA: cosine similarities, biased "
        f"estimator. {tables.seeds_note(plotted, cells, 'band')}",
    )
    return figure, plotted.drop("panel")
