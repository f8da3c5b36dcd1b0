"""What a site's file makes jobs ask for, and what is said of a wrong one."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from places import ROOT

from cltools.cluster.site import Site
from cltools.runtime.errors import InputError

EXAMPLE = ROOT / "slurm/site.example.yaml"


@pytest.fixture
def site(tmp_path):
    def write(text):
        path = tmp_path / "site.yaml"
        path.write_text(text)
        return Site(path)

    return write


def test_without_a_file_jobs_ask_for_gpus_only(tmp_path):
    site = Site(tmp_path / "site.yaml")
    assert site.resources("cpu") == {}
    assert site.resources("gpu", gpus=4) == {"gpu": 4}


def test_the_example():
    site = Site(EXAMPLE)
    cpu = {"slurm_partition": "cpu", "slurm_account": "my_account"}
    gpu = {"slurm_partition": "gpu", "slurm_account": "my_account", "constraint": "a100_80gb"}
    assert site.resources("cpu") == cpu
    assert site.resources("gpu") == gpu
    assert site.resources("gpu", gpus=2) == {**gpu, "gpu": 2, "gpu_model": "a100"}


def test_the_example_names_every_key():
    """Those that are commented out too."""
    text = re.sub(r"^( *)# (\w+: )", r"\1\2", EXAMPLE.read_text(), flags=re.M)
    with_all = yaml.safe_load(text)["gpu"]
    from cltools.cluster.site import OF_GPUS, PASSED

    assert set(with_all) == {*PASSED, *OF_GPUS}


@pytest.mark.parametrize(
    ("text", "gres"),
    [("gpu: {gpu_request: gres}", "gpu:2"),
     ("gpu: {gpu_request: gres, gpu_model: a100}", "gpu:a100:2")],
)  # fmt: skip
def test_gres_in_the_place_of_gpus(site, text, gres):
    assert site(text).resources("gpu", gpus=2) == {"gres": gres}


def test_several_nodes_have_as_many_gpus_each(site):
    """`--gpus` would leave it to Slurm how many are on each."""
    found = site("gpu: {gpu_model: a100}").resources("gpu", gpus=8, nodes=2)
    assert found == {"gres": "gpu:a100:8"}


def test_an_account_of_digits_is_text(site):
    assert site("cpu: {slurm_account: 42}").resources("cpu") == {"slurm_account": "42"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus: {qos: long}", "config key gpus is unknown: did you mean gpu?"),
        ("cpu: {partition: x}", "config key cpu.partition is unknown: did you mean slurm_partit"),
        ("cpu: {gpu_model: a100}", "config key cpu.gpu_model is unknown"),
        ("gpu: {qos: [a]}", "config key gpu.qos is ['a'], but must be text"),
        ("gpu: {gpu_request: all}", "config key gpu.gpu_request must be one of 'gpus', 'gres'"),
        ("gpu: fast", "holds no settings by class"),
        ("- gpu", "holds no settings by class"),
        ("gpu: {", "is not valid YAML"),
        ("gpu: {slurm_account: 042}", "line 1: YAML reads 042 as the number 34"),
    ],
)
def test_wrong_files(site, text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        site(text)


def test_an_empty_file_wishes_nothing(site):
    assert site("# nothing yet\n").resources("gpu", gpus=1) == {"gpu": 1}


@pytest.fixture
def slurm_profile(tmp_path):
    """`snakemake --profile slurm` in a fresh copy, where no Slurm is found: code, and its words."""
    for name in ("workflow", "slurm", "config"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    commands = tmp_path / "commands"  # all that the PATH has
    commands.mkdir()
    for name in ("bash", "which"):
        (commands / name).symlink_to(shutil.which(name))

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--profile", "slurm", *arguments], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": str(commands)},
            capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return run


def test_without_slurm_no_job_is_begun(slurm_profile, tmp_path):
    code, text = slurm_profile()
    assert code == 2, text
    (said,) = re.findall("^Error: .*", text, re.M)
    assert "the command sbatch is missing: run on a login node of the cluster, or give" in said
    assert "Traceback" not in text
    assert not (tmp_path / "results").exists()
    assert not list(tmp_path.glob(".snakemake/locks/*"))


def test_the_profile_and_the_site_reach_the_jobs(slurm_profile, tmp_path):
    """A dry run, as a user types it; it needs no Slurm."""
    (tmp_path / "slurm/site.yaml").write_text(EXAMPLE.read_text())
    code, text = slurm_profile("--dry-run")
    assert code == 0, text
    jobs = re.findall(r"^ *(?:local)?rule (\w+):\n(?: .*\n)*? +resources: (.*)$", text, re.M)
    asked = {rule: dict(part.split("=") for part in found.split(", ")) for rule, found in jobs}
    gpu = {"slurm_partition": "gpu", "slurm_account": "my_account", "constraint": "a100_80gb"}
    on_gpus = {"gpu": "1", "gpu_model": "a100", **gpu}
    for rule in ("train", "embed", "theory", "merge"):
        assert asked[rule].items() >= on_gpus.items()
    assert asked["measure"].items() >= gpu.items()
    assert "gpu" not in asked["measure"]
    assert asked["embed"]["cpus_per_task"] == asked["prepare"]["cpus_per_task"] == "1"
    for rule in ("prepare", "surrogate", "minimise", "regularity"):
        assert asked[rule]["slurm_partition"] == "cpu"
        assert "gpu" not in asked[rule]
    assert asked["train"]["nodes"] == "1"
    assert "nodes" not in asked["surrogate"]
    for rule, found in asked.items():
        assert rule == "all" or {"mem_mb", "runtime"} <= found.keys()


def test_a_cell_on_several_nodes(slurm_profile):
    """Snakemake leaves it to the command to start the other nodes."""
    code, text = slurm_profile(
        "--dry-run", "--printshellcmds", "--config", "gpus_per_cell=16", "nodes_per_cell=2"
    )
    assert code == 0, text
    asked = re.search(r"rule train:\n(?: .*\n)*? +resources: (.*)$", text, re.M)[1].split(", ")
    assert {"nodes=2", "tasks=2", "mpi=srun", "gres=gpu:8", "tasks_per_gpu=0"} <= set(asked)
    assert "srun --nodes 2 --ntasks 2 --ntasks-per-node 1 --cpus-per-task 8 " in text
    assert "torchrun --nnodes 2 --rdzv-backend c10d " in text


@pytest.mark.parametrize("workers", [None, 6])
def test_a_paper_cell_of_photographs(slurm_profile, workers):
    """Jobs that decode ask for cores, and the GPU is given back before a cell is measured."""
    given = [] if workers is None else ["--config", f"workers={workers}"]
    code, text = slurm_profile(
        "--dry-run", "--configfile", ROOT / "config/paper/p2_training_mini_imagenet.yaml", *given
    )
    assert code == 0, text
    cpus = dict(re.findall(r"rule (\w+):\n(?: .*\n)*? +resources: .*cpus_per_task=(\d+)", text))
    assert cpus.keys() == {"prepare", "train", "embed", "merge"}
    assert all(int(count) == workers if workers else int(count) >= 1 for count in cpus.values())
    assert int(cpus["prepare"]) > 1
    # Jobs of a group are indented.
    assert re.search(r"^rule measure:\n(?: .*\n)*? +resources: .*gpu=1", text, re.M)
