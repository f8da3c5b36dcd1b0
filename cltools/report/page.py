"""An experiment's report as one HTML page: claims, interactive plots, figures, tables, sources.

The page contains everything that it shows, including the plotting library. It forbids the browser
to load anything else.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import polars as pl
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from cltools.claims.evaluate import PRIMARY, UNTESTED, VERDICTS
from cltools.claims.report import because, effect, in_sweeps, part_verdict, seeds
from cltools.config.sweeps import base_or_first
from cltools.report.explore import exploration
from cltools.tidy import last_step, with_setting


@dataclass(frozen=True)
class Drawn:
    """A figure: its description, the PNG file and the CSV file of the plotted numbers."""

    name: str
    description: str
    png: bytes
    csv: bytes


@dataclass(frozen=True)
class Material:
    """Everything that a report is made from; tables are those of `results/<experiment>/`.

    `cells` maps ids of trained cells to their manifests. `made` and `jobs` are the lines of the
    section “How it was made”.
    """

    name: str
    plan: Mapping[str, Any]
    measures: pl.DataFrame
    claims: pl.DataFrame
    figures: Sequence[Drawn]
    cells: Mapping[str, Mapping[str, Any]]
    config: str
    made: Sequence[tuple[str, str]]
    jobs: Sequence[tuple[str, int, str, str, str]] = field(default=())


# Columns of the table about the end of training: heading -> metric, variant, features.
SUMMARY = {
    "CKA with DCL": ("cka", "cosine_biased", "h"),
    "RSA with DCL": ("rsa", "pearson_cosine", "h"),
    "CKA, class means removed": ("cka", "residual_biased", "h"),
    "NCCC": ("nccc", "accuracy", "h"),
    "linear probe": ("linear_probe", "accuracy", "h"),
    "CDNV": ("cdnv", "pairs", "h"),
    "loss gap in nats": ("gap", "training_tau", "z"),
    "weight gap to DCL": ("weight_gap", "mean_layer", ""),
}
CELL_COLUMNS = ("cell", "C", "τ", "B", "rule", "seed", "objectives", "images", "steps", "sweeps")


def page(material: Material) -> str:
    """The HTML. Raises jinja2.UndefinedError when the template uses a name that is not defined."""
    explore = exploration(material.measures, material.plan["sweeps"])
    files = resources.files("cltools.report")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files / "template.html").read_text())
    drawn = {figure.name for figure in material.figures}
    return template.render(
        name=material.name,
        datasets=sorted(set(material.measures["dataset"])),
        css=Markup((files / "report.css").read_text()),
        script=Markup((files / "report.js").read_text()),
        plotly=Markup(get_plotlyjs()),
        # Labels come from users. With <, > and & as \u003c and the like, none can end the script.
        data=htmlsafe_json_dumps(explore, allow_nan=False),
        explore=explore,
        counts=_counts(material.claims),
        claims=_claims(material.claims, drawn),
        figures=[_encoded(figure) for figure in material.figures],
        tables=[summary(material.measures, material.plan)],
        cell_columns=CELL_COLUMNS,
        cells=list(_cells(material)),
        made=material.made,
        jobs=material.jobs,
        config=material.config,
    )


def _counts(claims: pl.DataFrame) -> list[tuple[str, int]]:
    verdicts = claims.unique("claim")["verdict"].to_list()
    return [(verdict, verdicts.count(verdict)) for verdict in VERDICTS]


def _claims(claims: pl.DataFrame, drawn: set[str]) -> list[dict[str, Any]]:
    """The claims in the order of their list, but those that were not tested at the end."""
    found = []
    for _, rows in claims.group_by("claim", maintain_order=True):
        first = rows.row(0, named=True)
        tested = rows.filter(pl.col("part_verdict") != UNTESTED)
        parts = [
            {
                "sweep": ", ".join(filter(None, (row["dataset"], row["sweep"], row["cells"]))),
                "part": row["part"],
                "verdict": part_verdict(row),
                "claimed": " ".join(filter(None, (row["claimed"], row["unit"]))),
                "effect": effect(row),
                "seeds": seeds(row),
                "rows": f"{row['rows']:,}",
            }
            for row in tested.iter_rows(named=True)
        ]
        keys = ("statement", "source", "verdict", "paper", "figure")
        about = {key: first[key] for key in keys}
        about |= {"because": because(rows), "sweeps": in_sweeps(rows), "parts": parts}
        about |= {"drawn": first["figure"] in drawn, "primary": first["family"] == PRIMARY}
        found.append(about)
    return sorted(found, key=lambda claim: claim["verdict"] == UNTESTED)


def _encoded(figure: Drawn) -> dict[str, str]:
    coded = {kind: base64.b64encode(getattr(figure, kind)).decode() for kind in ("png", "csv")}
    return {"name": figure.name, "description": figure.description, **coded}


def summary(measures: pl.DataFrame, plan: Mapping[str, Any]) -> dict[str, Any]:
    """A table of means ± standard deviations over seeds, on test images at the end of training.

    It shows the base sweep, or the first sweep if there is no base sweep.
    """
    sweep = base_or_first(plan["sweeps"])
    rows = measures.filter(pl.col("sweeps").list.contains(sweep["name"]), split="test")
    rows = with_setting(last_step(rows))
    found = []
    for (words, objective), part in rows.group_by(["setting", "objective"], maintain_order=True):
        line = [words, objective, part["seed"].n_unique()]
        for metric, variant, features in SUMMARY.values():
            values = part.filter(
                pl.col("reference").is_in(["", plan["reference"]]),
                metric=metric, variant=variant, features=features,
            )["value"]  # fmt: skip
            line.append(_mean(values))
        found.append(line)
    columns = ["cells", "objective", "seeds", *SUMMARY]
    if not any(words for words, *_ in found):
        found, columns = [line[1:] for line in found], columns[1:]
    return {
        "title": f"End of training, test images, sweep “{sweep['label']}”: mean ± standard "
        "deviation over seeds",
        "columns": columns,
        "rows": found,
    }


def _mean(values: pl.Series) -> str:
    if not len(values):
        return "–"
    spread = f" ± {values.std():.2g}" if len(values) > 1 else ""
    return f"{values.to_numpy().mean():.3g}{spread}"


def _cells(material: Material) -> Iterable[tuple[Any, ...]]:
    for identity, manifest in material.cells.items():
        cell = manifest["cell"]
        yield (
            identity,
            len(manifest["class_ids"]),
            cell["tau"],
            cell["batch_size"],
            cell["lr_rule"],
            cell["seed"],
            ", ".join(cell["objectives"]),
            f"{manifest['train_images']:,}",
            f"{manifest['steps']:,}",
            ", ".join(material.plan["cells"][identity]["sweeps"]),
        )
