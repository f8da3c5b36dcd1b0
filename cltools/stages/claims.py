"""Stage `claims`: which of the papers' claims hold in an experiment, from its tables."""

from collections.abc import Mapping
from pathlib import Path

from cltools.claims import FILE, load_claims
from cltools.claims.evaluate import evaluate
from cltools.claims.report import markdown
from cltools.layout import of_experiment, readable
from cltools.runtime.files import whole_file
from cltools.runtime.sealed import write_table
from cltools.tidy import read_experiment, read_plan


def run(
    *, plan: Path, tables: Mapping[str, Path | None], output: Path, claims: Path = FILE
) -> None:
    """Write the verdicts to `output` (parquet) and, beside it, a readable table (`.md`).

    `plan` is the file that `cltools plan` wrote. `tables` are the experiment's tables by name.
    Claims that need a table which is None are not tested. Raises InputError for claims that do not
    fit the tables, and for files that are missing or damaged.
    """
    chosen = load_claims(claims)
    planned = read_plan(plan)
    sweeps = {sweep["name"]: sweep for sweep in planned["sweeps"]}
    found = {
        name: read_experiment(path, "log" if name == "training_log" else name, plan)
        for name, path in tables.items()
        if path is not None
    }
    table = evaluate(chosen, found, sweeps)
    text = markdown(planned["experiment"], table, chosen.error_rate)
    with whole_file(readable(output)) as scratch:
        scratch.write_text(text)
    write_table(output, table, of_experiment("claims", plan))
