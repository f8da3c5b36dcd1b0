"""A view of an experiment on the terminal, while it is being computed."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cltools.config.experiment import Experiment
from cltools.layout import Results
from cltools.runtime.progress import time_text
from cltools.stages import status
from cltools.training.live import LiveRow, read_live, run_until

COLORS = {
    "done": "green", "running": "cyan", "begun": "yellow", "failed": "red", "stale": "magenta",
    "waiting": "dim",
}  # fmt: skip
BARS = "▁▂▃▄▅▆▇█"
CURVE_BYTES = 1 << 16  # at the end of each live file, some 150 rows of four models
MOST_ROWS = 30  # of cells that train, and of errors


def watch(
    experiment: Experiment, results: Path, seconds: float, once: bool, console: Console
) -> None:
    """Show the view again every so many seconds, until Ctrl-C; once where there is no terminal."""
    if once or not console.is_terminal:
        console.print(view(experiment, results, console.width))
        return
    with Live(console=console, auto_refresh=False, screen=True) as screen:
        while True:
            screen.update(view(experiment, results, console.width), refresh=True)
            time.sleep(seconds)


def view(experiment: Experiment, results: Path, width: int) -> RenderableType:
    """Stages and states in numbers, cells that train, and what failed, `width` characters wide."""
    report = status.run(experiment=experiment, results=results)
    drawn = sum(report["figures"].values())
    parts: list[RenderableType] = [
        Text(f"{report['experiment']}: {len(report['cells'])} cells, ", style="bold")
        + Text(f"{drawn} of {len(report['figures'])} figures drawn"),
        _counts(report["counts"]),
    ]
    training = {
        cell: stages["train"]
        for cell, stages in report["cells"].items()
        if stages["train"]["state"] in ("running", "begun")
    }
    if training:
        parts.append(_training(experiment, results, training, width))
    parts += _shortened(list(_failures(report["cells"])), "errors")
    return Group(*parts)


def _counts(counts: Mapping[str, Mapping[str, int]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage")
    for state in status.STATES:
        table.add_column(state, justify="right")
    for stage, found in counts.items():
        numbers = (Text(str(found.get(s, 0)), COLORS[s] if s in found else "dim")
                   for s in status.STATES)  # fmt: skip
        table.add_row(stage, *numbers)
    return table


def _training(
    experiment: Experiment, results: Path, cells: Mapping[str, Mapping[str, Any]], width: int
) -> RenderableType:
    """One line for each cell, with the loss of the reference."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("cell", overflow="fold", max_width=max(20, width // 3))
    for name in ("state", "step", "", "loss", "gap", "steps/s", "left", "course of the loss"):
        table.add_column(name, no_wrap=True)
    for cell, train in list(cells.items())[:MOST_ROWS]:
        plan = experiment.plans[cell]
        run = run_until(Results(results).cell(cell).run, plan.until.slug)
        models = plan.cell["objectives"]
        model = experiment.reference if experiment.reference in models else models[0]
        table.add_row(
            cell,
            Text(train["state"], COLORS[train["state"]]),
            _step(train),
            _bar(train),
            *_live_cells(train["live"], model),
            sparkline(_losses(read_live(run, CURVE_BYTES), model)),
        )
    more = len(cells) - MOST_ROWS
    return Group(table, Text(f"and {more} more cells that train")) if more > 0 else table


def _step(train: Mapping[str, Any]) -> str:
    if train["step"] is None:
        return ""
    return f"{train['step']}/{train['steps']}" if train["steps"] else str(train["step"])


def _bar(train: Mapping[str, Any]) -> RenderableType:
    if not train["step"] or not train["steps"]:
        return ""
    return ProgressBar(total=train["steps"], completed=train["step"], width=12)


def _live_cells(speed: Mapping[str, Any] | None, model: str) -> list[str]:
    """Loss, gap, steps per second and time left; empty where they are not known."""
    if speed is None:
        return [""] * 4
    loss = speed["losses"].get(model)
    gap, rate, left = (speed[key] for key in ("gap", "steps_per_second", "seconds_left"))
    return [
        "" if loss is None else f"{model} {loss:.3g}",
        "" if gap is None else f"{gap:.3g}",
        "" if rate is None else f"{rate:.3g}",
        "" if left is None else time_text(left),
    ]


def _losses(rows: Iterable[LiveRow], model: str) -> list[float]:
    """The model's own loss, row by row, without those that are undefined."""
    return [row.loss for row in rows if row.model == model and math.isfinite(row.loss)]


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """A curve of finite values as a line of at most `width` characters, each the mean of some."""
    count = min(width, len(values))
    edges = [len(values) * k // count for k in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    top = len(BARS) - 1
    heights = (round(top * (m - low) / (high - low)) if high > low else 0 for m in means)
    return "".join(BARS[height] for height in heights)


def _failures(cells: Mapping[str, Mapping[str, Any]]) -> Iterator[Text]:
    """One line for each error; cells of one job have one log, whose error stands once."""
    seen = set()
    for cell, stages in cells.items():
        for stage, found in stages.items():
            if found["state"] == "failed" and found["log"] not in seen:
                seen.add(found["log"])
                yield Text(
                    f"{cell} {stage}: {found['error']} (see {found['log']})", COLORS["failed"]
                )


def _shortened(lines: list[Text], what: str) -> list[Text]:
    left = len(lines) - MOST_ROWS
    return [*lines[:MOST_ROWS], *([Text(f"and {left} more {what}")] if left > 0 else [])]
