"""The two losses, the gap between them, and the bound on that gap."""

import math

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from cltools import tidy
from cltools.figures import sheet, style, tables
from cltools.figures.style import THEORY, Look, look_of
from cltools.figures.tables import ExperimentTables
from cltools.runtime.errors import InputError

POINTS = 400  # more points per curve would make the file larger, but the curve no clearer
# A bound is not drawn if it is higher above the losses than this multiple of their range. With such
# a bound in the panel, the curves would look like one line.
FAR = 4.0


def _smoothed(log: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The log with running means of the losses, and the width of the means in steps.

    Only about `POINTS` rows per run are kept.
    """
    run = ["cell", "model"]
    length = log.group_by(run).len()["len"].max()
    window = length // 25 | 1  # odd, so that it is centered
    losses = ["dcl", "nscl", "gap_bound"]
    means = pl.col(losses).fill_nan(None).rolling_mean(window, min_samples=1, center=True)
    row = pl.int_range(pl.len()).over(run, order_by="step")
    # The last step of the longest run is kept too. Those of shorter runs are not: other runs may
    # have no row there, and the mean over runs would be of one run only.
    last = pl.col("step") == log["step"].max()
    smooth = log.with_columns(means.over(run, order_by="step"))
    return smooth.filter((row % max(1, length // POINTS) == 0) | last), window


def losses_training(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Left: both losses and the bound on the DCL network; right: NSCL loss of two networks."""
    log = experiment.base(experiment.log)
    smooth, window = _smoothed(log)
    wanted = {
        ("dcl", "dcl loss"): pl.col("dcl"),
        ("dcl", "nscl loss"): pl.col("nscl"),
        ("dcl", "nscl loss + bound"): pl.col("nscl") + pl.col("gap_bound"),
        ("nscl", "nscl loss"): pl.col("nscl"),
    }
    series = [
        smooth.filter(model=model).with_columns(quantity=pl.lit(name), value=value)
        for (model, name), value in wanted.items()
    ]
    by = ["model", "quantity", "step", "epoch"]
    finite = pl.concat(series).filter(pl.col("value").is_finite())
    plotted = tidy.spread(finite, by).unique(by, keep="first", maintain_order=True)
    plotted = plotted.drop("seed", "value")
    for model, quantity in wanted:
        # A bound that is never defined (batches of one class) is not drawn.
        missing = plotted.filter(model=model, quantity=quantity).is_empty()
        if missing and "bound" not in quantity:
            raise InputError(
                f"the training log holds no finite {quantity} of the {model} network: "
                f"train the base sweep with both dcl and nscl"
            )
    return _draw_losses(log, plotted, window), plotted


# Quantity -> label and line style; colors are those of the networks.
DASHES = {
    "dcl loss": ("DCL loss", "-"),
    "nscl loss": ("NSCL loss", (0, (4, 1.5))),
    "nscl loss + bound": ("NSCL loss + bound on the gap", (0, (1, 1.2))),
}


def _draw_losses(log: pl.DataFrame, plotted: pl.DataFrame, window: int) -> Figure:
    figure, (row,) = sheet.panels(1, ["gap", "nscl"], height=2.3)
    bound = plotted.filter(model="dcl", quantity="nscl loss + bound")
    losses = plotted.filter(pl.col("quantity") != "nscl loss + bound")["mean"]
    top = losses.max() + FAR * (losses.max() - losses.min())
    shown = {
        ("dcl", "dcl loss"): row[:1],
        ("dcl", "nscl loss"): row,
        ("nscl", "nscl loss"): row[1:],
    }
    note = ""
    if not bound.is_empty() and bound["mean"].min() < top:
        shown["dcl", "nscl loss + bound"] = row[:1]
    elif not bound.is_empty():
        least = bound["mean"].min()
        note = f" NSCL loss + bound is above the first panel (at least {least:.3g})."
    for (model, quantity), axes in shown.items():
        one = plotted.filter(model=model, quantity=quantity)
        for ax in axes:
            line = {"linestyle": DASHES[quantity][1], "marker": ""}
            style.curve(ax, one, "epoch", look_of(model), **line)
    row[0].set(title="Two losses of the DCL-trained network", ylabel="Loss of a batch (nats)")
    row[1].set(title="NSCL loss of two networks", ylabel="NSCL loss of a batch (nats)")
    last = math.ceil(plotted["epoch"].max())  # the last step begins shortly before this epoch
    decades = [m * 10.0**k for k in range(6) for m in (1, 2, 5)]
    for ax in row:
        style.epoch_axis(ax, [0, *(e for e in decades if e < last), last])
    trained = [(look_of(model), f"network trained with {look_of(model).label}")
               for model in ("dcl", "nscl")]  # fmt: skip
    gray = Look("", THEORY, "")
    sheet.finish(
        figure,
        "Training losses: DCL against NSCL on the same batches",
        [
            *(style.handle(look, label, marker="") for look, label in trained),
            *(
                style.handle(gray, DASHES[quantity][0], linestyle=DASHES[quantity][1])
                for quantity in dict.fromkeys(quantity for _, quantity in shown)
            ),
        ],
        f"{tidy.setting(log)}. Running mean over {window} steps. "
        f"{tables.seeds_note(plotted, log, 'band', points=False)}{note}",
    )
    return figure


GAP_VARIANTS = {"training_tau": "at the training τ", "tau_1": "at τ = 1"}
# Quantity -> look and line style.
GAP_LOOKS = {
    "bound": (Look("its upper bound", THEORY, ""), "-"),
    "gap, trained": (look_of("dcl"), "-"),
    "gap, untrained": (Look("gap before training", "#7A7A7A", "o"), ""),
}


def gap_classes(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Gap of the DCL network, untrained and trained, and its bound; a row per sweep over C."""
    cells = _gaps(experiment)
    by = ["panel", "arm", "variant", "quantity", "classes"]
    plotted = tidy.spread(cells, by)

    arms = plotted["arm"].unique(maintain_order=True)
    figure, axes = sheet.panels(
        len(arms), ["training_tau", "tau_1"], height=2.2, sharex=True, sharey=True
    )
    for row, arm in zip(axes, arms, strict=True):
        for ax, (variant, where) in zip(row, GAP_VARIANTS.items(), strict=True):
            _draw_gaps(ax, plotted.filter(arm=arm, variant=variant), plotted["classes"])
            ax.set_title(f"Gap {where}\n{arm}" if len(arms) > 1 else f"Gap {where}")
    handles = [
        style.handle(look_of("dcl"), "gap after DCL training"),
        style.handle(GAP_LOOKS["gap, untrained"][0], linestyle="", markerfacecolor="white"),
        style.handle(GAP_LOOKS["bound"][0]),
        style.handle(Look("gap if all images looked alike", "#7A7A7A", ""), linestyle=":"),
    ]
    sheet.finish(
        figure,
        "Loss gap DCL − NSCL and its bound against the number of classes",
        handles,
        f"{tidy.setting(cells, ['classes'])}. Losses of the whole training set. "
        f"{tables.seeds_note(plotted, cells)} Most bars are smaller than their markers. Bound (P1, "
        "Theorem 1): log(1 + n exp(2/τ) / (N − n)) for N images of which n are in the largest "
        "class. If all similarities were equal, the gap would be log(C / (C − 1)).",
    )
    return figure, plotted.drop("panel")


def _gaps(experiment: ExperimentTables) -> pl.DataFrame:
    """Gaps at the start and at the end of training, and the bound; `quantity` says which."""
    wanted = {"variant": list(GAP_VARIANTS), "objective": "dcl", "split": "train"}
    measures = experiment.over(experiment.measures, "classes")
    ended, untrained = tidy.last_step(measures), measures.filter(step=0)
    return pl.concat(
        [
            tidy.rows(table, metric=metric, **wanted).with_columns(quantity=pl.lit(quantity))
            for quantity, metric, table in (
                ("gap, trained", "gap", ended),
                ("gap, untrained", "gap", untrained),
                ("bound", "gap_bound", ended),
            )
        ]
    )


def _draw_gaps(ax: Axes, panel: pl.DataFrame, classes: pl.Series) -> None:
    """One panel. `classes` are the numbers of classes in all panels."""
    at = np.geomspace(classes.min(), classes.max(), 200)
    ax.plot(at, np.log(at / (at - 1)), ":", color="#7A7A7A", linewidth=1.1)
    for quantity, (look, dash) in GAP_LOOKS.items():
        empty = {"markerfacecolor": "white"} if quantity == "gap, untrained" else {}
        line = {"linestyle": dash, "points": quantity != "bound"} | empty
        style.curve(ax, panel.filter(quantity=quantity), "classes", look, bars=True, **line)
    ax.set_yscale("log")
    style.factor_axis(ax, classes, "Classes C")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel("Gap (nats, log scale)")


def nscl_losses(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """NSCL loss of the DCL-trained and of the NSCL-trained network at every checkpoint.

    Rows: the loss of the whole set at the training τ, and the loss as the authors compute it;
    columns: training and test images; for the base sweep.
    """
    measures = experiment.base(experiment.measures)
    models, splits = ["dcl", "nscl"], ["train", "test"]
    losses = {
        ("nscl_loss", "training_tau"): "Whole set",
        ("authors_nscl_loss", "tau_1"): "As in the authors’ code",
    }
    about = {"features": "z", "split": splits}
    cells = pl.concat(
        [
            tidy.rows(measures, metric=metric, variant=variant, objective=model, **about)
            for metric, variant in losses
            for model in models
        ]
    )
    plotted = tidy.spread(cells, ["metric", "variant", "split", "objective", "epoch"])
    papers = tables.papers_rows(
        experiment, cells, metric="authors_nscl_loss", objective=models, split=splits
    )

    figure, axes = sheet.panels(["whole", "authors"], splits, sharex=True, sharey="row")
    for row, ((metric, variant), title) in zip(axes, losses.items(), strict=True):
        for ax, split in zip(row, splits, strict=True):
            panel = plotted.filter(metric=metric, variant=variant, split=split)
            for model in models:
                look = look_of(model)
                style.curve(ax, panel.filter(objective=model), "epoch", look)
                if metric in papers["metric"]:
                    theirs = papers.filter(split=split, objective=model)
                    style.paper_curve(ax, theirs, "epoch", look)
            images = "training" if split == "train" else "test"
            ax.set_title(f"{title}, {images} images" + _correlation(panel))
            ax.set_ylabel("NSCL loss (nats)")
            style.epoch_axis(ax, plotted["epoch"])
    handles = [
        style.handle(look_of(model), f"network trained with {look_of(model).label}")
        for model in models
    ]
    sheet.finish(
        figure,
        "NSCL loss of the DCL-trained and of the NSCL-trained network",
        [*handles, *style.paper_handles(papers)],
        f"{tidy.setting(cells)}. {tables.seeds_note(plotted, cells, 'band')} r: Pearson "
        "correlation of the two curves over their checkpoints. Whole set: all images are "
        "negatives, τ as in training. As in the authors’ code: positive in the denominator, τ = 1, "
        "an augmented and a plain view, batches of the training size.",
    )
    return figure, tables.with_papers(plotted, papers)


def _correlation(panel: pl.DataFrame) -> str:
    """A line with the correlation of the two curves; empty for fewer than three checkpoints."""
    curves = panel.unique(["objective", "epoch"]).pivot("objective", index="epoch", values="mean")
    curves = curves.drop_nulls()
    if len(curves) < 3 or not all(curves[model].std() for model in ("dcl", "nscl")):
        return ""
    r = np.corrcoef(curves["dcl"], curves["nscl"])[0, 1]
    return f"\nr = {r:.2f} over {len(curves)} checkpoints"
