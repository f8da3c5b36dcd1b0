"""Collapse onto class means and a simplex: of networks, and of embeddings that are free to move."""

import polars as pl
from matplotlib.figure import Figure

from cltools.figures import style, tables
from cltools.figures.tables import Experiment

CDNV = {"pairs": "CDNV", "directional": "Directional CDNV"}


def cdnv_training(experiment: Experiment) -> tuple[Figure, pl.DataFrame]:
    """Rows CDNV and directional CDNV, columns training and test images; the base sweep."""
    measures = experiment.base(experiment.measures)
    splits = ["train", "test"]
    wanted = {"metric": "cdnv", "variant": list(CDNV), "split": splits}
    cells = tables.rows(measures, features="h", **wanted)
    plotted = tables.spread(cells, ["variant", "split", "objective", "epoch"])
    papers = tables.papers_rows(experiment, cells, **wanted)
    objectives = style.ordered(plotted["objective"])

    figure, axes = style.panels(len(CDNV), 2, sharex=True, sharey="row")
    for row, (variant, title) in zip(axes, CDNV.items(), strict=True):
        for ax, split in zip(row, splits, strict=True):
            for name in objectives:
                one = {"variant": variant, "split": split, "objective": name}
                look = style.OBJECTIVES[name]
                style.curve(ax, plotted.filter(**one), "epoch", look)
                style.paper_curve(ax, papers.filter(**one), "epoch", look)
            ax.set_title(f"{title}, {'training' if split == 'train' else 'test'} images")
            style.epoch_axis(ax, plotted["epoch"])
            style.log_axis(ax)
            ax.label_outer()
        row[0].set_ylabel(f"{title}\n(log scale)")
    style.finish(
        figure,
        "Variance within classes over the distance between them during training",
        [*(style.handle(style.OBJECTIVES[o]) for o in objectives), *style.paper_handles(papers)],
        f"{tables.setting(cells)}. Encoder features h. "
        f"{tables.seeds_note(plotted, cells, 'band')} CDNV: mean over pairs of classes of (v + v′) "
        "/ (2 d²), v being a class’s variance and d the distance of the two means; 0 is collapse. "
        "Directional: the variance along the line between the two means only."
        + " P1 does not say whether its CDNV is of h or z."
        * ("P1 CDNV" in papers["figure"]),
    )
    return figure, tables.with_papers(plotted, papers)
