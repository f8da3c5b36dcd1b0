"""Alignment with DCL: during training, and at its end against C, τ and B."""

from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cltools.figures import style, tables
from cltools.figures.tables import Experiment

PAPER, DEBIASED, RSA = "cosine_biased", "cosine_debiased", "pearson_cosine"
TITLES = {"cka": "CKA", "rsa": "RSA"}


def alignments(measures: pl.DataFrame, **wanted: Any) -> pl.DataFrame:
    """CKA and RSA of every objective with DCL on h, and the control, one row a value.

    The control is the CKA of the DCL network with its own initial weights: near 1 means that it
    has hardly moved, and an alignment near 1 then says little.
    """
    cka = {"metric": "cka", "variant": PAPER}
    rsa = {"metric": "rsa", "variant": RSA}
    control = {"metric": "cka_to_init", "variant": PAPER, "objective": "dcl"}
    others = tables.against_dcl(measures)
    wanted["features"] = "h"
    return pl.concat(
        [
            tables.rows(others, **cka, **wanted),
            tables.rows(others, **rsa, **wanted),
            tables.rows(measures, **control, **wanted),
        ]
    )


def _draw(ax: Axes, table: pl.DataFrame, x: str, metric: str, *, bars: bool) -> None:
    """One panel: every objective, and the control where it is the same metric."""
    control = table.filter(pl.col("metric") == "cka_to_init")
    if metric == "cka" and not control.is_empty():
        style.curve(ax, control, x, style.CONTROL, bars=bars, linestyle=":", linewidth=1.1)
    drawn = table.filter(pl.col("metric") == metric)
    for name in style.ordered(drawn["objective"]):
        look = style.OBJECTIVES[name]
        style.curve(ax, drawn.filter(pl.col("objective") == name), x, look, bars=bars)


def _handles(table: pl.DataFrame) -> list[Line2D]:
    aligned = table.filter(pl.col("metric") != "cka_to_init")
    looks = [style.OBJECTIVES[name] for name in style.ordered(aligned["objective"])]
    return [style.handle(look) for look in looks]


def _control() -> Line2D:
    return style.handle(style.CONTROL, linestyle=":", linewidth=1.1)


def alignment_training(experiment: Experiment) -> tuple[Figure, pl.DataFrame]:
    """Rows CKA and RSA, columns training and test images, x the epoch; the base sweep."""
    measures = experiment.base(experiment.measures)
    splits = ["train", "test"]
    cells = alignments(measures, split=splits)
    debiased = tables.rows(
        tables.against_dcl(measures), metric="cka", variant=DEBIASED, features="h", split=splits
    )
    by = ["metric", "variant", "split", "objective", "epoch"]
    plotted = tables.spread(pl.concat([cells, debiased]), by)

    figure, axes = style.panels(2, 2, sharex=True, sharey="row")
    for row, metric in zip(axes, TITLES, strict=True):
        for ax, split in zip(row, splits, strict=True):
            panel = plotted.filter(split=split)
            _draw(ax, panel.filter(pl.col("variant") != DEBIASED), "epoch", metric, bars=False)
            if metric == "cka":
                for (name,), thin in panel.filter(variant=DEBIASED).group_by(
                    "objective", maintain_order=True
                ):
                    means = thin.unique("epoch").sort("epoch")
                    colour = style.OBJECTIVES[name].colour
                    ax.plot(means["epoch"], means["mean"], "--", color=colour, linewidth=0.8)
            ax.set_title(f"{TITLES[metric]}, {'training' if split == 'train' else 'test'} images")
            style.epoch_axis(ax, plotted["epoch"])
            style.alignment_axis(ax, plotted["mean"])
            ax.label_outer()
        row[0].set_ylabel(f"{TITLES[metric]} with DCL")
    thin = style.handle(style.CONTROL, "CKA, debiased", marker="", linestyle="--", linewidth=0.8)
    style.finish(
        figure,
        "Alignment of each objective with DCL during training",
        [*_handles(plotted), thin, _control()],
        f"{tables.setting(cells)}. Encoder features h. "
        f"{tables.seeds_note(plotted, cells, 'band')} CKA and control: cosine similarities, biased "
        f"estimator (the paper’s); RSA: Pearson correlation of cosine distances.",
    )
    return figure, plotted


def _against(
    experiment: Experiment, factor: str, label: str, title: str, note: str = ""
) -> tuple[Figure, pl.DataFrame]:
    """Columns CKA and RSA, one row per arm of the sweeps over `factor`, at each last step."""
    ended = tables.last_step(experiment.measures)
    cells = alignments(experiment.over(ended, factor), split="test")
    by = ["panel", "arm", "metric", "variant", "split", "objective", factor]
    plotted = tables.spread(cells, by)

    # What the axis or the panel titles say, the footnote need not repeat.
    leave_out = [factor, "lr_rule"] if factor == "batch_size" else [factor]
    arms = plotted["arm"].unique(maintain_order=True)
    figure, axes = style.panels(len(arms), 2, sharex=True, sharey=True)
    for row, arm in zip(axes, arms, strict=True):
        for ax, metric in zip(row, TITLES, strict=True):
            _draw(ax, plotted.filter(arm=arm), factor, metric, bars=True)
            ax.set_title(f"{TITLES[metric]} · {arm}" if len(arms) > 1 else TITLES[metric])
            ax.set_ylabel("Alignment with DCL")
            style.factor_axis(ax, plotted[factor], label)
            style.alignment_axis(ax, plotted["value"])
            ax.label_outer()
    style.finish(
        figure,
        title,
        [*_handles(plotted), _control()],
        f"{tables.setting(cells, leave_out)}. Test images, encoder features h, each run at its "
        f"last step. {tables.seeds_note(plotted, cells)} Control (CKA panels): near 1, the network "
        f"has hardly moved.{note}",
    )
    return figure, plotted.drop("panel")


def alignment_classes(experiment: Experiment) -> tuple[Figure, pl.DataFrame]:
    """One row of panels per sweep over the number of classes."""
    title = "Alignment of each objective with DCL against the number of classes"
    note = (
        " With more classes an epoch has more images and so more steps: at equal epochs, C and the "
        "length of training grow together."
    )
    return _against(experiment, "classes", "Number of classes C", title, note)


def alignment_temperature(experiment: Experiment) -> tuple[Figure, pl.DataFrame]:
    """One row of panels per sweep over the temperature."""
    title = "Alignment of each objective with DCL against the temperature"
    return _against(experiment, "tau", "Temperature τ", title)


def alignment_batch_size(experiment: Experiment) -> tuple[Figure, pl.DataFrame]:
    """One row of panels per sweep over the batch size and learning-rate rule."""
    title = "Alignment of each objective with DCL against the batch size"
    return _against(experiment, "batch_size", "Batch size B", title)
