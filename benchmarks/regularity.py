"""How far networks under plain SGD are from similarity descent, beside Theorem 1's number.

    python benchmarks/regularity.py                # 3 minutes

Each run is one of `cltools regularity`, with the settings of config/laptop/digits.yaml but for
those in RUNS. "stated" and "realised" are the drift of the similarities that a batch has used,
divided by the bound with the classes' true fractions and by the one with those of the batches: the
smallest and the largest ratio over the steps of all seeds.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from measuring import add_json, write_numbers

from cltools.config.experiment import load_experiment, read_config
from cltools.stages import prepare, regularity

CONFIG = Path(__file__).parents[1] / "config/laptop/digits.yaml"


class Runs(NamedTuple):
    tau: float
    batch_size: int
    steps: int
    seeds: int


RUNS = [
    Runs(0.5, 32, 30, 3),
    Runs(1.0, 32, 30, 3),
    Runs(0.5, 64, 6, 1),
    Runs(1.0, 64, 6, 1),
    Runs(0.1, 32, 30, 1),
]


def tables(runs: Runs, folder: Path) -> pl.DataFrame:
    """The rows of all seeds; `stated`, `realised` are the ratios."""
    found = []
    for seed in range(runs.seeds):
        config: dict[str, Any] = read_config(CONFIG)
        size = {"batch_size": runs.batch_size, "base_batch": runs.batch_size}
        config["regularity"] = {"set": {**size, "tau": runs.tau, "seed": seed}}
        cell = load_experiment(config).regularity_cell
        assert cell is not None
        output = folder / "regularity.parquet"
        regularity.run(
            cell=cell, store=folder / "digits", output=output, settings={"steps": runs.steps}
        )
        found.append(pl.read_parquet(output))
    drift = pl.col("touched_distance")
    return pl.concat(found).with_columns(
        stated=drift / 10 ** pl.col("log10_bound"),
        realised=drift / 10 ** pl.col("log10_bound_realised"),
    )


def ends(values: pl.Series) -> list[float]:
    return [values.min(), values.max()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_json(parser)
    chosen = parser.parse_args()

    rows, every = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ((store, definition),) = load_experiment(read_config(CONFIG)).stores.items()
        prepare.run(name=store, definition=definition, store=folder / "digits")
        for runs in RUNS:
            table = tables(runs, folder)
            every.append(table)
            largest = math.log10(2 * math.sqrt(2) * table["images"][0])
            rows.append(
                {
                    **runs._asdict(),
                    "stated": ends(table["stated"]),
                    "realised": ends(table["realised"]),
                    "last_exceeded": table.filter(pl.col("stated") > 1)["step"].max(),
                    "says_nothing": bool((table["log10_bound"] > largest).all()),
                }
            )
            print(rows[-1], flush=True)
    table = pl.concat(every)
    first = every[0].filter(step=1).mean()
    numbers = {
        "images": table["images"][0],
        "runs": rows,
        "cosine": ends(table["amplification_cosine"]),
        "orders_jacobian": ends(table["vacuous_orders_jacobian"]),
        "remainder_of_first_order": first["remainder"][0] / first["first_order"][0],
        "remainder_of_moved": first["remainder"][0] / first["moved"][0],
    }
    print({name: value for name, value in numbers.items() if name != "runs"})
    write_numbers(chosen.json, numbers)


if __name__ == "__main__":
    main()
