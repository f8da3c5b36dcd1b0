"""An experiment's report as one HTML page: answer, interactive plots, claims, figures, sources.

The page contains everything that it shows, including the plotting library. It forbids the browser
to load anything else. Its parts are in `assets/`.
"""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from io import BytesIO
from typing import Any

import jinja2
import polars as pl
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from cltools.claims.evaluate import PRIMARY, UNTESTED, VERDICTS
from cltools.claims.report import because, in_sweeps, part_verdict, result, seeds
from cltools.claims.words import counted
from cltools.config.sweeps import base_or_first
from cltools.report.answer import ends, sentences, summary
from cltools.report.explore import exploration

# The figure of the answer is the first of these that the experiment has.
FIRST = ("alignment_training", "label_effect", "gap_classes")
LARGE = 150_000  # bytes
LEAST_TITLE = 10  # characters
SCRIPTS = ("common", "points", "sphere", "images", "means", "negatives", "gap", "alignment")


@dataclass(frozen=True)
class Drawn:
    """A figure: its description, the PNG file and the CSV file of the plotted numbers."""

    name: str
    description: str
    png: bytes
    csv: bytes

    @property
    def title(self) -> str:
        """The description up to its first colon or comma, or all of it where this is short."""
        whole = self.description.rstrip(".")
        start = re.split("[:,]", whole)[0]
        return start if len(start) >= LEAST_TITLE else whole

    @property
    def picture(self) -> str:
        """The PNG file in base64, with at most 256 colors, which makes it a third as large."""
        with Image.open(BytesIO(self.png)) as image:
            few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        written = BytesIO()
        few.save(written, "PNG", optimize=True)
        return base64.b64encode(written.getvalue()).decode()

    @property
    def numbers(self) -> str:
        """The CSV file in base64; empty for large files, which would make the page too heavy."""
        return base64.b64encode(self.csv).decode() if len(self.csv) <= LARGE else ""


@dataclass(frozen=True)
class Material:
    """Everything that a report is made from; tables are those of `results/<experiment>/`.

    `cells` maps ids of trained cells to their manifests. `made` and `jobs` are the lines of the
    section “How it was made”. `free` has points that move on a sphere, see `stages.report`.
    """

    name: str
    plan: Mapping[str, Any]
    measures: pl.DataFrame
    claims: pl.DataFrame
    figures: Sequence[Drawn]
    cells: Mapping[str, Mapping[str, Any]]
    config: str
    made: Sequence[tuple[str, str]]
    free: Mapping[str, Any]
    jobs: Sequence[tuple[str, int, str, str, str]] = field(default=())
    theory: pl.DataFrame | None = None
    project: pl.DataFrame | None = None


CELL_COLUMNS = ("Cell", "C", "τ", "B", "Rule", "Seed", "Networks", "Images", "Steps", "Sweeps")


def page(material: Material) -> str:
    """The HTML. Raises jinja2.UndefinedError when the template uses a name that is not defined."""
    plan = material.plan
    explore = exploration(material.measures, plan["sweeps"], material.project, plan["reference"])
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cltools.report", "assets"),
        undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    parts = ends(material.measures, plan, material.theory)
    drawn = {figure.name: figure for figure in material.figures}
    first = next((name for name in FIRST if name in drawn), next(iter(drawn), ""))
    return environment.get_template("page.html").render(
        name=material.name,
        datasets=sorted(set(material.measures["dataset"])),
        css=_asset("report.css"),
        scripts=[_asset(f"{name}.js") for name in SCRIPTS],
        plotly=Markup(get_plotlyjs()),
        # Labels come from users. With <, > and & as \u003c and the like, none can end the script.
        data=htmlsafe_json_dumps({**explore, "free": material.free}, allow_nan=False),
        explore=explore,
        answer=sentences(parts[0]),
        numbers=summary(parts, base_or_first(plan["sweeps"])["label"]),
        first=drawn.get(first),
        groups=_groups(material.claims, drawn),
        figures=[figure for figure in material.figures if figure.name != first],
        cell_columns=CELL_COLUMNS,
        cells=list(_cells(material)),
        made=material.made,
        jobs=material.jobs,
        config=material.config,
    )


def _asset(name: str) -> Markup:
    return Markup((resources.files("cltools.report") / "assets" / name).read_text())


def _groups(claims: pl.DataFrame, drawn: Mapping[str, Drawn]) -> list[dict[str, Any]]:
    """The claims by verdict. Those that hold and those that do not are open at the start."""
    found = [_claim(rows, drawn) for _, rows in claims.group_by("claim", maintain_order=True)]
    groups = []
    for verdict in VERDICTS:
        those = [claim for claim in found if claim["verdict"] == verdict]
        about = {"verdict": verdict, "title": counted(verdict, len(those)), "claims": those}
        groups.append(about | {"open": verdict in VERDICTS[:2]})
    return groups


def _claim(rows: pl.DataFrame, drawn: Mapping[str, Drawn]) -> dict[str, Any]:
    first = rows.row(0, named=True)
    tested = rows.filter(pl.col("part_verdict") != UNTESTED)
    parts = [
        {
            "sweep": ", ".join(filter(None, (row["dataset"], row["sweep"], row["cells"]))),
            "found": result(row | {"reason": ""}) or "–",
            "verdict": part_verdict(row),
            "seeds": seeds(row),
            "rows": f"{row['rows']:,}",
        }
        for row in tested.iter_rows(named=True)
    ]
    about = {key: first[key] for key in ("statement", "source", "verdict", "paper")}
    about |= {"because": because(rows), "sweeps": in_sweeps(rows), "parts": parts}
    about |= {"figure": drawn.get(first["figure"]), "primary": first["family"] == PRIMARY}
    return about


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
