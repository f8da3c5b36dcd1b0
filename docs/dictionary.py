"""docs/tables.md: every table, column and metric, made from the code.

    uv run python docs/dictionary.py

The words are in `cltools/measurements/descriptions.py`, those of settings in the schema of configs.
A test compares the page, and the names in tables that the stages write, with these words.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import jinja2
import polars as pl

from cltools.config.schema import schema
from cltools.figures import FIGURES
from cltools.layout import RESULTS
from cltools.layout import TABLES as FILES
from cltools.measurements.descriptions import (
    CELL_COLUMNS,
    COLUMNS,
    METRICS,
    QUANTITIES,
    TABLES,
    Described,
)
from cltools.stages.collect import SETTINGS

ROOT = Path(__file__).parents[1]
TEMPLATE, PAGE = ROOT / "docs/templates/tables.md.j2", ROOT / "docs/tables.md"
HEAD = (
    "<!-- Made from docs/templates/tables.md.j2 and the code: edit these, then "
    "`uv run python docs/dictionary.py` -->\n"
)
OF_CELLS = ("measures", "log", "theory", "layers")  # tables whose first columns are the cell's
# Table -> its column that names what is measured, and the words for that.
NAMED = {
    "measures": ("metric", METRICS),
    "layers": ("metric", METRICS),
    "theory": ("quantity", QUANTITIES),
}
# Figure -> the line of Python that gives its main numbers from the tables.
FOLDER, BIASED = RESULTS.experiment("quickstart"), 'variant="cosine_biased"'
LINES = {
    "alignment_training": f'curve(measures, "cka", sweep="base", {BIASED})',
    "alignment_classes": (
        f'curve(measures, "cka", x="classes", sweep="classes_equal_steps", {BIASED})'
    ),
    "alignment_classes_epochs": (
        f'curve(measures, "cka", "nscl", sweep="classes_equal_steps", {BIASED})'
    ),
    "alignment_temperature": f'curve(measures, "cka", x="tau", sweep="temperature", {BIASED})',
    "alignment_batch_size": (
        f'curve(measures, "cka", x="batch_size", sweep="batch_size", {BIASED})'
    ),
    "residual_alignment": 'curve(measures, "cka", sweep="base", variant="residual_biased")',
    "label_effect": f'curve(measures, "cka", ["nscl", "nscl:shuffled"], sweep="base", {BIASED})',
    "losses_training": f'read_results("{FOLDER.path}", "log")',
    "nscl_losses": 'curve(measures, "nscl_loss", sweep="base", variant="training_tau")',
    "gap_classes": (
        'curve(measures, "gap", "dcl", x="classes", sweep="classes_equal_steps", '
        'variant="training_tau")'
    ),
    "cdnv_training": 'curve(measures, "cdnv", sweep="base")',
    "weights_representations": 'curve(measures, "weight_gap", sweep="base")',
    "bound_tightness": f'read_results("{FOLDER.path}", "theory")',
    "downstream": 'curve(measures, "nccc", sweep="base")',
    "layers_training": f'read_results("{FOLDER.path}", "layers")',
    "surrogate_drift": f'read_results("{FOLDER.path}", "surrogate")',
    "collapse_geometry": 'curve(measures, "etf_deviation", sweep="base")',
    "collapse_order": f'read_results("{FOLDER.path}", "minimise")',
}


def missing(name: str, table: pl.DataFrame) -> list[str]:
    """What a table holds without a description: columns, metrics and `metric/variant`."""
    known = {*COLUMNS[name], *(cell_columns() if name in OF_CELLS else ())}
    found = [column for column in table.columns if column not in known]
    if name in NAMED:
        column, described = NAMED[name]
        for metric, variant in table.select(column, "variant").unique().sort(pl.all()).iter_rows():
            if metric not in described:
                found.append(metric)
            elif not _is_variant(variant, described[metric]):
                found.append(f"{metric}/{variant}")
    return list(dict.fromkeys(found))


def _is_variant(variant: str, described: Described) -> bool:
    return any(fnmatchcase(variant, pattern) for pattern in described.variants)


def cell_columns() -> dict[str, str]:
    """The columns that say which cell a row belongs to; those of settings from the schema."""
    said = schema()["$defs"]["cell"]["properties"]
    return CELL_COLUMNS | {name: said[name]["description"] for name in SETTINGS}


def page() -> str:
    """The text of docs/tables.md."""
    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    jinja.filters["cell"] = lambda text: text.replace("|", "\\|")
    text: str = jinja.from_string(TEMPLATE.read_text()).render(
        tables=_tables(),
        columns=COLUMNS,
        cell=cell_columns(),
        metrics=METRICS,
        quantities=QUANTITIES,
        figures=dict(_figures()),
    )
    return HEAD + text


def _tables() -> Mapping[str, tuple[str, str]]:
    """Table -> its file and what it holds."""
    live, claims = RESULTS.cell("<cell>").run.live(), RESULTS.experiment("").claims
    file = {**FILES, "claims": claims.name, "live": str(live)}
    return {name: (file[name], TABLES[name]) for name in TABLES}


def _figures() -> Iterator[tuple[str, tuple[str, str]]]:
    """Figure -> what it shows, and the line of Python."""
    for name, spec in FIGURES.items():
        csv = f'polars.read_csv("{FOLDER.figure(name, "csv")}")'
        yield name, (spec.description.rstrip("."), LINES.get(name, csv))


if __name__ == "__main__":
    PAGE.write_text(page())
