"""What a run says at its start and end, from result folders and records of a known state."""

import logging
import os

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from cltools.cli.console import OneLinePerJob, Started, end_lines, failure_lines, start_lines
from cltools.cluster.estimates import Bench
from cltools.cluster.forecast import Todo, by_stage, jobs_of, machine_here, side_by_side, tasks_of
from cltools.config.experiment import load_experiment
from cltools.layout import Results
from cltools.runtime.progress import rough_time

CONFIG = {
    "experiment": "tiny",
    "datasets": {"digits": {"source": "digits", "recipe": "digits"}},
    "base": {"dataset": "digits", "batch_size": 50, "horizon": 4},
    "sweeps": {"base": {"vary": {"seed": [0, 1]}}},
    "merge": {"sweeps": ["base"]},
    "cells_per_job": 2,
}
EXPERIMENT = load_experiment(CONFIG)


def started(folder, **changes):
    plain = {"cores": 2, "configs": [folder / "my config.yaml"], "changed": False, "folder": folder}
    return Started(**{**plain, **changes})


def test_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("UV", "uv")
    first, time, how, watch, status = start_lines(
        EXPERIMENT, tmp_path / "results", started(tmp_path)
    )
    assert first.startswith("tiny: 2 cells, none finished; ")
    assert time.startswith("About ")
    assert " on 2 cores (mostly " in time
    assert "rough estimate" in how
    assert watch == "Watch it from another terminal: uv run cltools watch 'my config.yaml'"
    assert status == "See what is done, cell by cell: uv run cltools status 'my config.yaml'"


def test_commands_fit_where_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.delenv("UV", raising=False)
    there = tmp_path / "there"
    moved = started(tmp_path, configs=[there / "c.yaml"])
    *_, status = start_lines(EXPERIMENT, there / "results", moved)
    assert status.endswith(f": cltools status there/c.yaml --results {there / 'results'}")
    *_, note = start_lines(EXPERIMENT, tmp_path / "results", started(tmp_path, changed=True))
    assert note == "CONFIG is one file with all settings of this run"
    _, time, *_ = start_lines(EXPERIMENT, tmp_path / "results", started(tmp_path, cores=None))
    assert "as the cluster allows" in time


def test_the_end(tmp_path):
    (_, more) = end_lines(EXPERIMENT, tmp_path)
    assert "The report needs the other stages" in more
    made = Results(tmp_path).experiment("tiny")
    made.path.mkdir()
    made.report.touch()
    assert list(end_lines(EXPERIMENT, tmp_path))[1] == f"Report:  {made.report}"


def test_a_failure_names_the_log_to_read(tmp_path):
    for name, text in (("one", "Error: too large\n"), ("two", "all well\n"), ("old", "Error: x\n")):
        log = Results(tmp_path).logs / "train" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text)
    os.utime(log, (10, 10))
    said = list(failure_lines(tmp_path, since=20, log=["snakemake.log"]))
    assert said[:3] == ["1 job failed", "  train: Error: too large",
                        f"    read {log.with_name('one.log')}"]  # fmt: skip
    assert "start the same command again" in said[-1]
    assert "  read snakemake.log" in failure_lines(tmp_path / "none", 0, ["snakemake.log"])


def record(event=None, text="", **about):
    made = logging.makeLogRecord({"msg": text, "event": event, **about})
    return made


def test_one_line_for_each_job():
    said = []
    brief = OneLinePerJob(said.append)
    info = {"jobid": 3, "rule_name": "plot", "wildcards": {"experiment": "tiny", "figure": "few"}}
    assert not brief.filter(record(LogEvent.JOB_INFO, **info))
    assert not brief.filter(record(LogEvent.JOB_STARTED, "Execute 1 jobs..."))
    assert not brief.filter(record(text="Select jobs to execute..."))
    assert not brief.filter(record(LogEvent.JOB_FINISHED, "Finished jobid: 3", job_id=3))
    assert not brief.filter(record(LogEvent.PROGRESS, done=1, total=9))
    assert [line.split("  ")[1] for line in said] == ["1 of 9 jobs: plot few"]
    assert brief.filter(record(LogEvent.JOB_ERROR, jobid=3))
    assert brief.filter(record(text="Building DAG of jobs..."))


def test_the_forecast_counts_what_is_left(tmp_path):
    def manifest(name):
        return Results(tmp_path).store(name).manifest

    tasks = tasks_of(EXPERIMENT, manifest, Bench())
    everything = Todo.all_of(EXPERIMENT, figures=5)
    stages, fewer = (
        by_stage(jobs_of(EXPERIMENT, tasks, todo, machine_here(0), manifest))
        for todo in (
            everything,
            everything._replace(stores=[], cells={**everything.cells, "train": list(tasks)[:1]}),
        )
    )
    assert list(stages) == [
        "prepare", "train", "embed", "measure", "theory", "merge", "plot", "report",
    ]  # fmt: skip
    assert fewer["train"] == pytest.approx(stages["train"] / 2)
    assert "prepare" not in fewer
    jobs = jobs_of(EXPERIMENT, tasks, everything, machine_here(0), manifest)
    assert side_by_side(jobs, 1) == pytest.approx(sum(stages.values()))
    assert side_by_side(jobs, 1000) == max(job.seconds for job in jobs)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "10 s"), (44, "40 s"), (200, "3 min"), (8000, "2 h"), (3e6, "35 days")],
)
def test_rough_times(seconds, text):
    assert rough_time(seconds) == text
