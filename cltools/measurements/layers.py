"""Alignment layer by layer: with the layers of the reference, and with the network's own start."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from cltools.maths.alignment.features import class_index, same_images
from cltools.maths.alignment.measures import Measure, measure_of
from cltools.maths.alignment.moments import Moments, Pair, moments_of
from cltools.maths.alignment.residuals import residual_measures
from cltools.maths.alignment.samples import sample_of, sampled_images
from cltools.maths.blocks import CPU, RowSource
from cltools.maths.intervals import FEWEST_IMAGES, intervals_of
from cltools.measurements.alignment import INTERVAL_DRAWS, PAPERS_MEASURES
from cltools.measurements.table import SCHEMA, Row, others

Layers = Mapping[str, Mapping[str, RowSource]]  # objective -> layer -> (n, d)
# `features` is the layer of the objective, and `depth` its number from the images on;
# `reference_features` is the layer of the reference.
LAYER_SCHEMA = {**SCHEMA, "reference_features": pl.String, "depth": pl.Int64}
MOMENTS_BYTES = 4 << 30  # of the d x d' matrices that are summed up in one pass over the images


@dataclass(frozen=True)
class LayerOutputs:
    """What the layers of several networks put out for the same n images.

    networks: objective -> layer -> (n, d), the same layers for all.
    starts: the same before training; empty where that was not kept. Objectives that start from the
        same weights may share one mapping.
    labels: (n,) classes of the images.
    reference: the objective that all are compared with.
    """

    networks: Layers
    starts: Layers
    labels: NDArray[np.generic]
    reference: str
    device: torch.device = CPU

    @property
    def layers(self) -> list[str]:
        """The layers' names, from the images on."""
        return list(next(iter(self.networks.values())))

    @property
    def others(self) -> list[str]:
        """All objectives but the reference."""
        return others(self.networks, self.reference)


def layer_rows(outputs: LayerOutputs, every_pair: bool) -> Iterator[Row]:
    """CKA and RSA of every layer.

    A layer of each objective is compared with the same layer of the reference, with an interval
    over images, also after class means are subtracted; and with the same layer at its own start
    (`cka_to_init`, `rsa_to_init`). With `every_pair`, each is compared with all other layers of the
    reference as well, and the layers of the reference with each other.
    """
    sources = {
        _name(o, layer): x for o, own in outputs.networks.items() for layer, x in own.items()
    }
    rows = _same_rows(outputs, sources)
    if every_pair and outputs.reference in outputs.networks:
        rows = chain(rows, _other_rows(outputs, sources))
    for row in rows:
        yield row | {"depth": outputs.layers.index(row["features"])}


def tidy_layers(rows: Iterable[Row]) -> pl.DataFrame:
    """The rows as a table with all columns; missing text is "", missing numbers are null."""
    empty = {name: "" if dtype == pl.String else None for name, dtype in LAYER_SCHEMA.items()}
    return pl.DataFrame([{**empty, **row} for row in rows], schema=LAYER_SCHEMA)


def _same_rows(outputs: LayerOutputs, sources: Mapping[str, RowSource]) -> Iterator[Row]:
    """The same layer: before training, and of the reference and each other objective."""
    begun = {_start(outputs, o, layer): x for o in outputs.starts
             for layer, x in outputs.starts[o].items()}  # fmt: skip
    for layer in outputs.layers:
        starts = [(_start(outputs, o, layer), _name(o, layer)) for o in outputs.starts]
        pairs = [(_name(outputs.reference, layer), _name(o, layer)) for o in outputs.others]
        values: dict[Pair, dict[Measure, float]] = {}
        for pair, moments in _moments(outputs, {**sources, **begun}, [*starts, *pairs]):
            found = {m: measure_of(m, pair, moments.whole) for m in PAPERS_MEASURES}
            if pair[0] in begun:
                for (metric, variant), value in found.items():
                    row = _row(pair, (f"{metric}_to_init", variant), value)
                    yield row | {"reference": "init"}
                continue
            values[pair] = found
            for measure, value in residual_measures(pair, moments).items():
                yield _row(pair, measure, value)
        intervals = _intervals(outputs, sources, values)
        for pair, found in values.items():
            for measure, value in found.items():
                yield _row(pair, measure, value) | intervals.get(pair, {}).get(measure, {})


def _other_rows(outputs: LayerOutputs, sources: Mapping[str, RowSource]) -> Iterator[Row]:
    """Different layers: of the reference and each objective, and of the reference itself."""
    pairs = [
        (_name(outputs.reference, a), _name(o, b))
        for o in outputs.networks
        for i, a in enumerate(outputs.layers)
        for j, b in enumerate(outputs.layers)
        if i != j and (o != outputs.reference or i < j)
    ]
    for pair, moments in _moments(outputs, sources, pairs):
        for measure in PAPERS_MEASURES:
            yield _row(pair, measure, measure_of(measure, pair, moments.whole))


def _intervals(
    outputs: LayerOutputs,
    sources: Mapping[str, RowSource],
    values: Mapping[Pair, Mapping[Measure, float]],
) -> dict[Pair, dict[Measure, Row]]:
    """90 % intervals over images, as columns; none for too few images to draw from."""
    n = len(outputs.labels)
    if n < FEWEST_IMAGES or not values:
        return {}
    names = dict.fromkeys(name for pair in values for name in pair)
    sample = sample_of({x: sources[x] for x in names}, sampled_images(n), True, outputs.device)
    found = intervals_of(sample, n, values, draws=INTERVAL_DRAWS)
    return {
        pair: {m: {"ci_low": i.low, "ci_high": i.high} for m, i in of_pair.items()}
        for pair, of_pair in found.items()
    }


def _moments(
    outputs: LayerOutputs, sources: Mapping[str, RowSource], pairs: Sequence[Pair]
) -> Iterator[tuple[Pair, Moments]]:
    """The moments of each pair; one pass over the images for as many as memory allows."""
    index, _ = class_index(outputs.labels, len(outputs.labels))
    for group in _groups(pairs, {name: x.shape[1] for name, x in sources.items()}):
        own = same_images({name: sources[name] for pair in group for name in pair})
        moments = moments_of(own, group, index, True, outputs.device)
        yield from ((pair, moments) for pair in group)


def _groups(pairs: Sequence[Pair], widths: Mapping[str, int]) -> Iterator[list[Pair]]:
    """The pairs in groups whose matrices together take at most `MOMENTS_BYTES`, or one alone."""
    group: list[Pair] = []
    taken: set[Pair] = set()
    size = 0
    for a, b in pairs:
        wanted = {(a, a), (b, b), (a, b)}
        more = sum(8 * widths[x] * widths[y] for x, y in wanted - taken)
        if group and size + more > MOMENTS_BYTES:
            yield group
            group, taken, size = [], set(), 0
            more = sum(8 * widths[x] * widths[y] for x, y in wanted)
        group.append((a, b))
        taken |= wanted
        size += more
    if group:
        yield group


def _row(pair: Pair, measure: Measure, value: float) -> Row:
    (reference, first), (objective, second) = map(_parts, pair)
    return {
        "objective": objective, "reference": reference, "features": second,
        "reference_features": first, "metric": measure[0], "variant": measure[1], "value": value,
    }  # fmt: skip


def _name(objective: str, layer: str) -> str:
    """One layer of one network, as moments name it."""
    return f"{objective} {layer}"


def _start(outputs: LayerOutputs, objective: str, layer: str) -> str:
    """The same of an untrained network; networks that share one mapping share its name."""
    return f"init{id(outputs.starts[objective])} {layer}"


def _parts(name: str) -> tuple[str, str]:
    objective, _, layer = name.partition(" ")
    return objective, layer
