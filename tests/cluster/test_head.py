"""Snakemake as a job of its own (`slurm/head.sbatch`), with commands that stand for Slurm's.

tests/workflow/test_slurm.py has it on a real Slurm.
"""

import os
import signal
import subprocess

import pytest
from places import ROOT
from waiting import HANGS, wait_until

# Each writes down how it was called. `squeue` says what is in files that the tests write.
COMMANDS = {
    "squeue": 'case "$*" in *%l*) cat limit ;; *) cat queue ;; esac',
    "sbatch": "echo 8",
    "scontrol": 'echo "   StdOut=$PWD/log"',
    "scancel": "true",
    "sleep": "false",
    # Runs until it is told to end, or ends at once with what the file says.
    "snakemake": """
case "$*" in *--unlock*) exit ;; esac
[[ ! -s code ]] || exit "$(cat code)"
trap 'exit 1' TERM
touch started
while true; do /bin/sleep 0.05; done
""",
}


@pytest.fixture
def head(tmp_path):
    """Starts the head job 7; returns its process. `called` reads what was called."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in COMMANDS.items():
        call = f'echo {name} "$@" >> {tmp_path}/called\n'
        (commands / name).write_text(f"#!/usr/bin/env bash\nset -e\n{call}{text}\n")
        (commands / name).chmod(0o755)
    for name, text in (("limit", "2-00:00:00"), ("queue", ""), ("code", ""), ("log", "")):
        (tmp_path / name).write_text(text)

    def start(**variables):
        environment = {
            **os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
            "SLURM_JOB_PARTITION": "long", "SLURM_JOB_ACCOUNT": "mine", **variables,
        }  # fmt: skip
        return subprocess.Popen(
            [ROOT / "slurm/head.sbatch", "--profile", "slurm", "--configfile", "a b.yaml"],
            cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def called(tmp_path, name):
    lines = (tmp_path / "called").read_text().splitlines()
    return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


RUN = "--profile slurm --configfile a b.yaml --slurm-jobname-prefix cltools-7"


@pytest.mark.parametrize("code", [0, 1])
def test_it_ends_with_the_workflow(head, code, tmp_path):
    """Done or failed for good, nothing follows."""
    (tmp_path / "code").write_text(str(code))
    process = head()
    assert process.wait(HANGS) == code
    assert called(tmp_path, "snakemake") == [RUN]
    assert not called(tmp_path, "sbatch")


def test_its_successor_waits_for_its_jobs(head, tmp_path):
    process = head()
    wait_until((tmp_path / "started").exists, "Snakemake runs")
    (tmp_path / "queue").write_text("21 cltools-7_uuid\n22 cltools-7_uuid\n23 cltools-70_uuid\n")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(HANGS) == 0
    (after,) = called(tmp_path, "sbatch")
    assert after.startswith(
        "--parsable --dependency afterany:7:21:22 --time 2-00:00:00 --mem 8192 "
    )
    assert "--partition long --account mine " in after
    assert after.endswith("head.sbatch --profile slurm --configfile a b.yaml")


@pytest.mark.parametrize(
    "before", [{"CLTOOLS_HEAD": "cltools-3"}, {"SLURM_RESTART_COUNT": "1"}], ids=str
)
def test_one_that_follows_unlocks_the_folder(head, before, tmp_path):
    (tmp_path / "code").write_text("1")
    assert head(**before).wait(HANGS) == 1
    unlocked, ran = called(tmp_path, "snakemake")
    assert unlocked == "--profile slurm --configfile a b.yaml --unlock"
    assert ran.startswith("--profile slurm --configfile a b.yaml --slurm-jobname-prefix cltools-")


def test_one_that_follows_too_early_waits_again(head, tmp_path):
    (tmp_path / "queue").write_text("21 cltools-3_uuid\n")
    assert head(CLTOOLS_HEAD="cltools-3").wait(HANGS) == 0
    assert not called(tmp_path, "snakemake")
    (after,) = called(tmp_path, "sbatch")
    assert "--dependency afterany:7:21 " in after


def test_a_node_without_a_name_does_not_end_it(head, tmp_path):
    (tmp_path / "code").write_text("1")
    (tmp_path / "log").write_text("sbatch call:\n sbatch -p gpu --exclude=None assigned --wrap\n")
    assert head().wait(HANGS) == 0
    assert len(called(tmp_path, "sbatch")) == 1


def test_too_little_time_is_refused(head, tmp_path):
    (tmp_path / "limit").write_text("15:00")
    process = head()
    assert process.wait(HANGS) == 2
    assert "Error: the head job has a time of 15:00: give it 20 minutes" in process.stderr.read()
    assert not called(tmp_path, "snakemake")
