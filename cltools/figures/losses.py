"""The two losses, the gap between them, and the bound on that gap."""

import math

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from cltools import tidy
from cltools.figures import style, tables
from cltools.figures.style import THEORY, Look, look_of
from cltools.figures.tables import ExperimentTables
from cltools.runtime.errors import InputError

POINTS = 400  # more points per curve would make the file larger, but the curve no clearer
BOUND = Look("NSCL loss + bound on the gap", THEORY, "")
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


def _draw_losses(log: pl.DataFrame, plotted: pl.DataFrame, window: int) -> Figure:
    figure, (row,) = style.panels(1, 2, height=2.6)
    plain = {"marker": ""}

    def one(model: str, quantity: str) -> pl.DataFrame:
        return plotted.filter(model=model, quantity=quantity)

    bound = one("dcl", "nscl loss + bound")
    losses = plotted.filter(pl.col("quantity") != "nscl loss + bound")["mean"]
    top = losses.max() + FAR * (losses.max() - losses.min())
    left = [
        ("dcl loss", look_of("dcl"), "DCL loss", "-"),
        ("nscl loss", look_of("nscl"), "NSCL loss", "-"),
    ]
    note = ""
    if not bound.is_empty() and bound["mean"].min() < top:
        left.append(("nscl loss + bound", BOUND, BOUND.label, "--"))
    elif not bound.is_empty():
        least = bound["mean"].min()
        note = f" NSCL loss + bound is above the left panel (at least {least:.3g})."
    for quantity, look, label, dash in left:
        line = {"label": label, "linestyle": dash}
        style.curve(row[0], one("dcl", quantity), "epoch", look, **line, **plain)
    for model in ("dcl", "nscl"):
        look = look_of(model)
        label = f"network trained with {look.label}"
        style.curve(row[1], one(model, "nscl loss"), "epoch", look, label=label, **plain)

    row[0].set_title("Two losses of the DCL-trained network")
    row[1].set_title("NSCL loss of two networks")
    row[0].set_ylabel("Loss of a batch (nats)")
    row[1].set_ylabel("NSCL loss of a batch (nats)")
    last = math.ceil(plotted["epoch"].max())  # the last step begins shortly before this epoch
    decades = [m * 10.0**k for k in range(6) for m in (1, 2, 5)]
    for ax in row:
        style.epoch_axis(ax, [0, *(e for e in decades if e < last), last])
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=1)
    style.finish(
        figure,
        "Training losses: DCL against NSCL on the same batches",
        [],
        f"{tidy.setting(log)}. Running mean over {window} steps. "
        f"{tables.seeds_note(plotted, log, 'band', points=False)}{note}",
    )
    return figure


GAP_VARIANTS = {"training_tau": "at the training τ", "tau_1": "at τ = 1"}
# Quantity -> look and line style.
GAP_LOOKS = {
    "bound": (Look("bound log(1 + n_max exp(2/τ) / (N − n_max))", THEORY, ""), "-"),
    "gap, trained": (look_of("dcl"), "-"),
    "gap, untrained": (Look("gap of the untrained network", "#7A7A7A", "o"), ""),
}


def gap_classes(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Gap of the DCL network, untrained and trained, and its bound; a row per sweep over C."""
    cells = _gaps(experiment)
    by = ["panel", "arm", "variant", "quantity", "classes"]
    plotted = tidy.spread(cells, by)

    arms = plotted["arm"].unique(maintain_order=True)
    figure, axes = style.panels(len(arms), 2, height=2.3, sharex=True, sharey=True)
    for row, arm in zip(axes, arms, strict=True):
        for ax, (variant, where) in zip(row, GAP_VARIANTS.items(), strict=True):
            _draw_gaps(ax, plotted.filter(arm=arm, variant=variant), plotted["classes"])
            ax.set_title(f"Gap {where} · {arm}" if len(arms) > 1 else f"Gap {where}")
    handles = [
        style.handle(look_of("dcl"), "gap after DCL training"),
        style.handle(GAP_LOOKS["gap, untrained"][0], linestyle="", markerfacecolor="white"),
        style.handle(GAP_LOOKS["bound"][0]),
        style.handle(Look("log(C / (C − 1))", "#7A7A7A", ""), linestyle=":", linewidth=1.1),
    ]
    style.finish(
        figure,
        "Loss gap DCL − NSCL and its bound against the number of classes",
        handles,
        f"{tidy.setting(cells, ['classes'])}. Losses of the whole training set. "
        f"{tables.seeds_note(plotted, cells)} log(C/(C − 1)): the gap when all similarities are "
        f"equal.",
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
    style.factor_axis(ax, classes, "Number of classes C")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel("DCL − NSCL loss\n(nats, log scale)")
    ax.label_outer()


def nscl_losses(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """NSCL loss of the DCL-trained and of the NSCL-trained network at every checkpoint.

    Rows: the loss of the whole set at the training τ, and the loss as the authors compute it;
    columns: training and test images; for the base sweep.
    """
    measures = experiment.base(experiment.measures)
    models, splits = ["dcl", "nscl"], ["train", "test"]
    losses = {
        ("nscl_loss", "training_tau"): "Whole set",
        ("authors_nscl_loss", "tau_1"): "As the authors",
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

    figure, axes = style.panels(len(losses), 2, sharex=True, sharey="row")
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
            style.epoch_axis(ax, plotted["epoch"])
            ax.label_outer()
        row[0].set_ylabel("NSCL loss (nats)")
    handles = [
        style.handle(look_of(model), f"network trained with {look_of(model).label}")
        for model in models
    ]
    style.finish(
        figure,
        "NSCL loss of the DCL-trained and of the NSCL-trained network",
        [*handles, *style.paper_handles(papers)],
        f"{tidy.setting(cells)}. {tables.seeds_note(plotted, cells, 'band')} r: Pearson "
        "correlation of the two curves over the checkpoints. Whole set: all images are negatives, "
        "τ as in training. As the authors: positive in the denominator, τ = 1, an augmented and a "
        "plain view, batches of the training size.",
    )
    return figure, tables.with_papers(plotted, papers)


def _correlation(panel: pl.DataFrame) -> str:
    """ ", r = 0.99", the correlation of the two curves; empty for fewer than three checkpoints."""
    curves = panel.unique(["objective", "epoch"]).pivot("objective", index="epoch", values="mean")
    curves = curves.drop_nulls()
    if len(curves) < 3 or not all(curves[model].std() for model in ("dcl", "nscl")):
        return ""
    return f", r = {np.corrcoef(curves['dcl'], curves['nscl'])[0, 1]:.2f}"
