"""The gallery: every figure, its caption and how to draw it, from a finished experiment.

    uv run python docs/gallery.py results/laptop_digits    # docs/gallery.md and docs/figures/

Figures for which the experiment has no cells keep the picture that they have, if any; the page
names a config that draws them.
"""

import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import jinja2
from PIL import Image

from cltools.config.experiment import load_experiment, read_config
from cltools.figures import FIGURES, draw, figures_of, papers_file
from cltools.figures.sheet import NO_METADATA, Sheet
from cltools.figures.style import applied
from cltools.layout import TABLES, ExperimentFolder
from cltools.runtime.errors import InputError
from cltools.runtime.files import whole_file
from cltools.stages.plot import read_for
from cltools.tidy import read_plan

ROOT = Path(__file__).parents[1]
PAGE, PICTURES = ROOT / "docs/gallery.md", ROOT / "docs/figures"
TEMPLATE = ROOT / "docs/templates/gallery.md.j2"
STYLE = {"dpi": 120, "footnote": False}
COLORS = 128  # of a picture, which makes its file less than half as large
# Figures whose picture is from an experiment that is not shipped with the page.
ELSEWHERE = {"alignment_coupling": "cifar10_alignment_coupling"}


def drawn(folder: Path, name: str) -> tuple[str, list[str]]:
    """Draw a figure of an experiment to docs/figures/; its caption and the names of its panels.

    Raises InputError as `cltools.stages.plot.run` does.
    """
    made = ExperimentFolder(folder)
    tables = {table: made.table(table) for table in TABLES if made.table(table).exists()}
    papers = [papers_file(paper) for paper in FIGURES[name].papers]
    experiment = read_for(name, made.plan, tables, papers)
    with applied(STYLE, name):
        sheet = draw(name, experiment)[0]
        picture = BytesIO()
        sheet.savefig(picture, metadata=NO_METADATA[".png"])
    with whole_file(PICTURES / f"{name}.png") as scratch:
        Image.open(picture).convert("RGB").quantize(COLORS).save(scratch, optimize=True)
    assert isinstance(sheet, Sheet)
    return sheet.caption, list(sheet.names.values())


def configs() -> dict[str, list[str]]:
    """The figures of every shipped config that runs on a laptop."""
    found = {}
    for path in [ROOT / "config/config.yaml", *sorted((ROOT / "config/laptop").glob("*.yaml"))]:
        found[str(path.relative_to(ROOT))] = figures_of(load_experiment(read_config(path)))
    return found


def command(name: str, experiment: str) -> str:
    """The command that draws a figure from the tables of an experiment."""
    spec = FIGURES[name]
    names = [*spec.tables, *spec.optional]
    tables = "".join(f" --{table} $R/{TABLES[table]}" for table in names)
    return (
        f"R=results/{experiment}\nuv run cltools plot {name} --plan $R/plan.json{tables} \\\n"
        f'  --output {name} --style \'{{"width": 3.3, "footnote": false}}\''
    )


def main(arguments: Sequence[str]) -> None:
    """Draw all figures of the experiment in the folder that is given, and write the page."""
    if len(arguments) != 1:
        raise InputError("give the folder of a finished experiment, e.g. results/laptop_digits")
    folder = Path(arguments[0])
    experiment = read_plan(ExperimentFolder(folder).plan)["experiment"]
    shipped = configs()
    of = {name: read_config(ROOT / name)["experiment"] for name in shipped}
    here = next(config for config, name in of.items() if name == experiment)
    shown = []
    for name, spec in FIGURES.items():
        caption, panels, config = "", [], here
        if name in shipped[here]:
            caption, panels = drawn(folder, name)
        else:
            config = next(path for path, figures in shipped.items() if name in figures)
        picture = name if caption else ELSEWHERE.get(name, "")
        shown.append({
            "name": name, "description": spec.description, "caption": caption, "panels": panels,
            "picture": picture, "config": config, "command": command(name, of[config]),
        })  # fmt: skip
    text = jinja2.Template(TEMPLATE.read_text(), keep_trailing_newline=True)
    PAGE.write_text(text.render(figures=shown, experiment=experiment, config=here))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
