"""The commands of the pages: each exists, and a test runs it or a reason is given why not.

tests/models/test_page.py runs those of docs/models.md, tests/api/test_names.py what is Python.
"""

import re
import shlex
import shutil

import click
import numpy as np
import pytest
import typer
from commands import cltools, snakemake
from PIL import Image
from places import ROOT

from cltools.cli.app import app

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "config/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# Beginnings of commands that no test runs as they stand -> why.
NOT_RUN = {
    "pip install": "needs a network, as does what uv installs",
    "uv venv": "needs a network",
    "uv pip install": "needs a network",
    "export ": "belongs to the command before it",
    "cd ": "belongs to the commands after it",
    "pytest": "is the test; .ci/run runs it",
    "ruff": ".ci/run runs it",
    "mypy": ".ci/run runs it",
    "uvx snakefmt": ".ci/run runs it",
    "--only-group docs mkdocs": ".ci/run runs it",
    "python docs/": "tests compare the pages that it writes",
    "python -m cltools.config.reference": "tests/config/test_reference.py compares the page",
    "python benchmarks/": "takes long; tests run the functions",
    "snakemake --cores 2 --configfile config/laptop/": "takes minutes, and most need CIFAR-10",
    "snakemake -n --configfile config/laptop/": "needs CIFAR-10; test_workflow.py has dry runs",
    "snakemake -s": "tests/workflow/test_elsewhere.py runs it in an installed package",
    "snakemake --profile slurm": "needs a cluster: tests/workflow/test_slurm.py runs a small one",
    "sbatch": "needs a cluster: tests/workflow/test_slurm.py runs it",
    "torchrun": "needs GPUs or a cell of one's own: tests/training/test_distributed.py runs it",
    "docker": "needs a container engine",
    "apptainer": "needs a container engine",
    "cltools bench config/paper/": "takes minutes; test_predict.py predicts smaller cells",
}  # fmt: skip
# Pages whose other commands the walk below runs, in this order.
WALKED = ("README", "docs/images", "docs/configs", "docs/quickstart", "docs/claims",
          "docs/embeddings", "docs/how_it_works")  # fmt: skip
DEFAULT = "snakemake --cores 2"  # takes minutes; tests/workflow/ runs smaller experiments
OF_ANOTHER_TEST = ("docs/models",)


def commands_of(page):
    """The commands in a page's blocks of shell code, without `uv run` and comments."""
    for block in re.findall(r"^ *```bash\n(.+?)^ *```", page.read_text(), re.M | re.S):
        text = re.sub(r" +#.*$", "", block.replace("\\\n", " "), flags=re.M)
        # A command may be quoted over several lines.
        for command in re.split(r"\n(?=\S)", text.strip()):
            yield re.sub(r"\s+", " ", command).removeprefix("uv run ")


COMMANDS = [
    (str(page.relative_to(ROOT).with_suffix("")), command)
    for page in PAGES
    for command in commands_of(page)
]


def is_left_out(command):
    return command == DEFAULT or command.startswith(tuple(NOT_RUN))


def test_every_command_is_run_or_has_a_reason():
    left = [
        (page, command)
        for page, command in COMMANDS
        if page not in (*WALKED, *OF_ANOTHER_TEST) and not is_left_out(command)
    ]
    assert left == []
    unused = [b for b in NOT_RUN if not any(command.startswith(b) for _, command in COMMANDS)]
    assert unused == []


OURS = sorted({command for _, command in COMMANDS if command.startswith("cltools ")})


@pytest.mark.parametrize("command", OURS)
def test_commands_and_options_exist(command):
    _, name, *arguments = shlex.split(command)
    found = typer.main.get_command(app).commands[name]
    parser = found.make_parser(click.Context(found, info_name=name))
    parser.parse_args(arguments)


def test_an_unknown_option_is_noticed():
    with pytest.raises(Exception, match="--no-such-option"):
        test_commands_and_options_exist("cltools plan photos.yaml --no-such-option")


def images(folder):
    """Five classes of 26 images, of which 20 % become test images."""
    rng = np.random.default_rng(0)
    for label in range(5):
        (folder / str(label)).mkdir(parents=True)
        for number in range(26):
            pixels = rng.integers(0, 156, (40, 48, 3)) + 20 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{label}/{number}.png")


@pytest.mark.slow
def test_the_commands_run(tmp_path, monkeypatch):
    """Those of the pages on own images, own embeddings and cells by hand, one after the other."""
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "photos")
    page = (ROOT / "docs/images.md").read_text()
    (config,) = re.findall(r"^```yaml\n(.+?)^```", page, re.M | re.S)
    for theirs, ours in {
        "/data/photos": str(tmp_path / "photos"), "[0, 1, 2]": "[0]", "horizon: 12": "horizon: 3",
    }.items():  # fmt: skip
        assert theirs in config
        config = config.replace(theirs, ours)
    (tmp_path / "photos.yaml").write_text(config)
    shutil.copy(ROOT / "cltools/claims/claims.yaml", "my.yaml")
    np.savez("theirs.npz", features=np.random.rand(50, 4))
    np.save("first.npy", np.random.rand(50, 4))
    np.save("second.npy", np.random.rand(50, 4))
    here = {  # in this order, as the project may lie below /tmp
        "/tmp/": f"{tmp_path}/", "config/config.yaml": "photos.yaml",
        "results/quickstart": "results/photos", "config/laptop": str(ROOT / "config/laptop"),
        "ours.safetensors": "first.npy", "bench my.yaml": "bench photos.yaml",
    }  # fmt: skip
    done = 0
    for page in WALKED:
        for command in (command for name, command in COMMANDS if name == page):
            if is_left_out(command):
                continue
            for theirs, ours in here.items():
                command = command.replace(theirs, ours)
            program, *arguments = shlex.split(command)
            if program == "cltools":
                cltools(*arguments)
            else:
                assert arguments == ["--cores", "2", "--configfile", "photos.yaml"]
                snakemake(tmp_path, config=(tmp_path / "photos.yaml").read_text())
            done += 1
    assert done >= 16
    for name in ("results/photos/report.html", "bench.json", "mine.parquet", "cell/theory.json"):
        assert (tmp_path / name).exists(), name
