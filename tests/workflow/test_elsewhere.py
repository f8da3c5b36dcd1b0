"""The workflow where it is not the one at the root of the working directory."""

import json
import re
import shlex
import shutil
from collections import Counter

import pytest
import yaml
from commands import cltools, dry_run, snakemake
from places import ROOT

from cltools.layout import Results
from cltools.runtime.shipped import shipped

CONFIG = {
    "experiment": "tiny",
    "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
    "base": {
        "dataset": "digits",
        "images_per_class": 15,
        "test_images_per_class": 10,
        "batch_size": 50,
        "projector_hidden": 16,
        "projector_dim": 8,
        "optimizer": "sgd",
        "horizon": 2,
        "checkpoints": [0],
    },
    "sweeps": {"base": {"vary": {"seed": [0]}}},
    "merge": {"sweeps": ["base"]},
    "project": {},
    "regularity": {},
}
MODULE = """
configfile: "config/config.yaml"

module cltools:
    snakefile: {snakefile!r}
    config: {config}
    {prefix}

use rule * from cltools as {names}
"""
STAGES = {
    "prepare", "train", "embed", "measure", "theory", "merge", "project", "regularity", "plan",
    "collect", "plot", "claims", "report",
}  # fmt: skip


@pytest.fixture
def outer(tmp_path):
    """Writes the layout that snakedeploy makes: a Snakefile with a module, and a config."""

    def write(
        snakefile=ROOT / "workflow/Snakefile", prefix="", names="*", below=None, config=CONFIG
    ):
        if below is not None:
            config = {below: config, "experiment": "of the outer workflow"}
        for name in ("config", "workflow"):
            (tmp_path / name).mkdir()
        (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        text = MODULE.format(
            snakefile=str(snakefile),
            config="config" if below is None else f"config[{below!r}]",
            prefix=prefix,
            names=names,
        )
        (tmp_path / "workflow/Snakefile").write_text(text)
        return tmp_path / "workflow/Snakefile"

    return write


def stages(jobs):
    return {job.rule.name for job in jobs} - {"all"}


def commands(jobs):
    return [shlex.split(job.shellcmd) for job in jobs if job.shellcmd]


@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])
def test_a_config_of_the_working_directory_comes_first(snakefile, tmp_path):
    assert {job.rule.name for job in dry_run(tmp_path, [], ROOT / snakefile)} >= {"train", "report"}
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert Counter(job.rule.name for job in dry_run(tmp_path, [], ROOT / snakefile))["train"] == 1


@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])
def test_a_module(outer, snakefile, tmp_path):
    assert stages(dry_run(tmp_path, [], outer(ROOT / snakefile))) == STAGES


def test_a_part_of_the_outer_config(outer, tmp_path):
    """Its rules may have other names, and what --config says is the outer workflow's."""
    snakefile = outer(names="cl_*", below="cltools")
    text = snakemake(tmp_path, "--dry-run", "--snakefile", snakefile, "--config", "base={tau: 9}")
    named = set(re.findall(r"^(?:local)?rule (\w+):", text, re.M))
    assert named == {f"cl_{stage}" for stage in (*STAGES, "all")}
    assert "tau0.5" in text
    assert "tau9" not in text


@pytest.mark.parametrize(
    ("prefix", "place"),
    [
        ("prefix: 'cl'", "cl/results"),
        ("replace_prefix: {'results/': 'made/'}", "made"),
        ("replace_prefix: {'results': 'made'}", "made"),
    ],
)
def test_a_prefix_moves_all_paths(outer, prefix, place, tmp_path):
    usual = commands(dry_run(tmp_path, [], outer()))
    for name in ("workflow", "config"):
        shutil.rmtree(tmp_path / name)
    moved = commands(dry_run(tmp_path, [], outer(prefix=prefix)))
    expected = [[re.sub("^results/", f"{place}/", word) for word in words] for words in usual]
    assert sorted(moved) == sorted(expected) != sorted(usual)


def test_a_site_file_of_the_working_directory(tmp_path):
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/site.yaml").write_text("gpu: {slurm_partition: mine}\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    jobs = dry_run(tmp_path, [tmp_path / "config.yaml"])
    asked = {job.rule.name: job.resources.get("slurm_partition") for job in jobs}
    assert (asked["train"], asked["prepare"]) == ("mine", None)


def test_a_container_is_for_those_who_ask(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "container": "containers/cltools.sif"}))
    images = {job.container_img_url for job in dry_run(tmp_path, [path]) if job.shellcmd}
    assert images == {"containers/cltools.sif"}
    said = cltools("plan", json.dumps({**CONFIG, "container": "a.sif; touch b"}), code=2)
    assert "config key container is 'a.sif; touch b', but must be the path of an image" in said


@pytest.mark.parametrize(
    ("part", "path"),
    [("snakefile", "workflow/Snakefile"), ("profile", "slurm"), ("configs", "config")],
)
def test_parts_of_the_workflow(part, path):
    assert shipped(part) == ROOT / path


def test_the_workflow_is_described_for_the_catalog():
    about = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert about["software-stack-deployment"].keys() == {"conda", "apptainer", "apptainer+conda"}
    assert about["report"] is True
    assert (ROOT / "config/README.md").exists()


@pytest.mark.slow
def test_a_module_with_a_prefix_runs(outer, tmp_path):
    config = {key: value for key, value in CONFIG.items() if key != "regularity"}
    snakefile = outer(prefix="prefix: 'cl'", names="cl_*", config=config)
    text = snakemake(tmp_path, "--snakefile", snakefile)
    made = Results(tmp_path / "cl/results")
    experiment = made.experiment(config["experiment"])
    assert experiment.report.exists()
    assert experiment.figure("alignment_training").exists()
    assert not (tmp_path / "results").exists()
    (cell,) = json.loads(experiment.plan.read_text())["cells"]
    assert made.cell(cell).run.all_weights.is_dir()
    assert "train" in experiment.report.read_text()
    assert "Nothing to be done" in snakemake(tmp_path, "--snakefile", snakefile), text


def test_nothing_is_read_from_the_outer_folder():
    """`workflow.basedir` is the folder of the outer workflow."""
    for file in (ROOT / "workflow").rglob("*"):
        if file.is_file():
            assert "workflow.basedir" not in re.sub("#.*", "", file.read_text()), file
