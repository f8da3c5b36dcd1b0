"""The gallery page: it has every figure, and pictures that exist."""

import re

from gallery import ELSEWHERE, PAGE, PICTURES, command

from cltools.figures import FIGURES
from cltools.layout import TABLES

TEXT = PAGE.read_text()


def test_every_figure_has_its_section():
    remedy = "run: python docs/gallery.py results/laptop_digits"
    names = re.findall(r"^## (\w+)$", TEXT, re.MULTILINE)
    assert [name for name in names if name != "Style"] == list(FIGURES), remedy
    for name, spec in FIGURES.items():
        assert spec.description in TEXT, remedy
        assert any(command(name, experiment) in TEXT for experiment in experiments(name)), remedy


def experiments(name):
    return re.findall(rf"R=results/(\w+)\nuv run cltools plot {name} ", TEXT)


def test_pictures_are_of_the_figures():
    shown = re.findall(r"!\[.*\]\(figures/(\w+)\.png\)", TEXT)
    assert set(shown) <= {*FIGURES, *ELSEWHERE.values()}
    assert all((PICTURES / f"{name}.png").exists() for name in shown)


def test_commands_give_tables_that_exist():
    for name in FIGURES:
        options = re.findall(r"--(\w+) \$R/(\w+\.parquet)", command(name, "x"))
        assert options
        assert all(TABLES[table] == file for table, file in options)
