"""Distance of the objectives from the reference, in weights and in representations."""

import polars as pl
from matplotlib.figure import Figure

from cltools import tidy
from cltools.figures import sheet, style, tables
from cltools.figures.alignment import PAPER
from cltools.figures.tables import ExperimentTables


def weights_representations(experiment: ExperimentTables) -> tuple[Figure, pl.DataFrame]:
    """Weight gap and 1 − CKA with the reference against the epoch, for the base sweep."""
    measures = experiment.base(experiment.measures)
    others = experiment.against_reference(measures)
    weights = tidy.rows(others, metric="weight_gap", variant="mean_layer")
    cka = tidy.rows(others, metric="cka", variant=PAPER, features="h", split="test")
    gaps = {"weight gap": weights, "1 - CKA": cka.with_columns(value=1 - pl.col("value"))}
    cells = pl.concat([rows.with_columns(quantity=pl.lit(name)) for name, rows in gaps.items()])
    plotted = tidy.spread(cells, ["quantity", "objective", "epoch"])
    papers = tables.papers_rows(
        experiment, cells, metric="weight_gap", variant="mean_layer"
    ).with_columns(quantity=pl.lit("weight gap"))

    figure, (row,) = sheet.panels(1, ["weights", "representations"], height=2.3, sharex=True)
    objectives = style.ordered(plotted["objective"])
    for ax, quantity in zip(row, gaps, strict=True):
        for name in objectives:
            one = plotted.filter(quantity=quantity, objective=name)
            style.curve(ax, one, "epoch", style.look_of(name))
            theirs = papers.filter(quantity=quantity, objective=name)
            style.paper_curve(ax, theirs, "epoch", style.look_of(name))
        style.epoch_axis(ax, plotted["epoch"])
        ax.set_ylim(bottom=0)
    other = experiment.reference_label
    row[0].set(title="Weights", ylabel=f"Weight gap to {other}")
    row[1].set(title="Representations of test images", ylabel=f"1 − CKA with {other}")
    sheet.finish(
        figure,
        f"Distance of each objective from {other}: weights against representations",
        [
            *(style.handle(style.look_of(name)) for name in objectives),
            *style.paper_handles(papers),
        ],
        f"{tidy.setting(cells)}. {tables.seeds_note(plotted, cells, 'band')} Weight gap: "
        f"‖W − W′‖ / mean of ‖W‖ and ‖W′‖, averaged over layers; it would be √2 for two "
        f"independent random layers. The panels have scales of their own. CKA: encoder features "
        f"h, cosine similarities, biased estimator.",
    )
    return figure, tables.with_papers(plotted, papers)
