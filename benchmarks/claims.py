"""How often claims are decided wrongly, and how often real effects are found, by simulation.

    python benchmarks/claims.py                      # 10,000 experiments a line

Every claim says that the median over seeds of its effect is above 0. The effects are drawn, so that
it is known which claims are true.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np
from measuring import add_json, write_numbers
from numpy.typing import NDArray

from cltools.maths.evidence import (
    FAILS,
    HOLDS,
    Region,
    bh_levels,
    evidence,
    holm_levels,
    p_of_all,
    verdict,
)

Effects = NDArray[np.float64]
# From a generator and the numbers of claims and of seeds: effects (claims, seeds) of an experiment.
Law = Callable[[np.random.Generator, int, int], Effects]
# The share of wrong decisions by law, seeds and number of claims.
Rates = dict[tuple[str, int, int], float]
CLAIMS, TRUE = 26, 16
SIGN_TESTS: dict[tuple[int, int], float] = {}  # numbers of seeds and of effects above 0 -> p
DRAW = 2.0  # spread over draws of classes, in spreads over seeds with the same classes


def normal(rng: np.random.Generator, claims: int, seeds: int) -> Effects:
    return rng.normal(size=(claims, seeds))


def exponential(rng: np.random.Generator, claims: int, seeds: int) -> Effects:
    return rng.exponential(size=(claims, seeds))


def lognormal(rng: np.random.Generator, claims: int, seeds: int) -> Effects:
    return rng.lognormal(size=(claims, seeds))


def own_draws(rng: np.random.Generator, claims: int, seeds: int) -> Effects:
    """Every seed has its own classes, which change all effects of this seed."""
    return normal(rng, claims, seeds) + DRAW * normal(rng, 1, seeds)


def one_draw(rng: np.random.Generator, claims: int, seeds: int) -> Effects:
    """All seeds have the same classes: they are not independent."""
    return normal(rng, claims, seeds) + DRAW * normal(rng, 1, 1)


def minus(law: Law, center: float) -> Law:
    return lambda rng, claims, seeds: law(rng, claims, seeds) - center


# What is on the border, and effects for which this is so.
NULLS: dict[str, Law] = {
    "median: normal": normal,
    "median: exponential": minus(exponential, math.log(2)),
    "median: lognormal": minus(lognormal, 1),
    "median: normal, own class draws": own_draws,
}
OTHERS: dict[str, Law] = {
    "mean: exponential": minus(exponential, 1),
    "mean: lognormal": minus(lognormal, math.exp(0.5)),
    "median: normal, one class draw": one_draw,
}


def p_values(effects: Effects) -> NDArray[np.float64]:
    """Two-sided p (claims,) of effects (claims, seeds).

    Those of a sign test are computed once for each number of effects above 0.
    """
    above, first, place = np.unique(
        (effects > 0).sum(axis=1), return_index=True, return_inverse=True
    )
    seeds = effects.shape[1]
    for count, one in zip(above, effects[first], strict=True):
        if (seeds, count) not in SIGN_TESTS:
            SIGN_TESTS[seeds, count] = p_of_all([evidence(one, Region(low=0))])
    return np.array([SIGN_TESTS[seeds, count] for count in above])[place]


def wrong_at_all(
    rng: np.random.Generator, law: Law, seeds: int, experiments: int, sizes: list[int]
) -> list[float]:
    """The share of experiments with any decision, for each number of primary claims in `sizes`."""
    wrong = np.zeros(len(sizes))
    for _ in range(experiments):
        p = p_values(law(rng, max(sizes), seeds))
        wrong += [(p[:size] <= holm_levels(p[:size])).any() for size in sizes]
    return list(wrong / experiments)


def among_true(
    rng: np.random.Generator, effect: float, shared: float, seeds: int, experiments: int
) -> tuple[float, float]:
    """Mean share of wrong decisions among those made, and share of the true claims found.

    TRUE of the claims have a median of `effect` spreads, the others of 0. `shared` is the part of
    the variance that all claims of a seed have in common.
    """
    wrong, found = [], []
    for _ in range(experiments):
        x = math.sqrt(1 - shared) * normal(rng, CLAIMS, seeds)
        x += math.sqrt(shared) * normal(rng, 1, seeds)
        x[:TRUE] += effect
        p = p_values(x)
        decided = p <= bh_levels(p)
        # A true claim may be decided the wrong way round.
        right = decided[:TRUE] & (np.median(x[:TRUE], axis=1) > 0)
        wrong.append((decided.sum() - right.sum()) / max(1, decided.sum()))
        found.append(right.mean())
    return float(np.mean(wrong)), float(np.mean(found))


def too_small(
    rng: np.random.Generator, median: float, seeds: int, experiments: int
) -> dict[str, float]:
    """Verdicts on a single primary claim if one spread is the smallest effect that matters."""
    region = Region(low=0, matters=1)
    effects = normal(rng, experiments, seeds) + median
    found = [verdict(evidence(one, region), 0.05) for one in effects]
    return {name: found.count(name) / experiments for name in (HOLDS, FAILS)}


def power(rng: np.random.Generator, effect: float, seeds: int, experiments: int) -> float:
    """How often a single primary claim with an effect of so many spreads is found to hold."""
    x = normal(rng, experiments, seeds) + effect
    return float(((p_values(x) <= 0.05) & (np.median(x, axis=1) > 0)).mean())


def print_wrong(rng: np.random.Generator, laws: dict[str, Law], experiments: int) -> Rates:
    sizes = [1, 5, CLAIMS]
    found: Rates = {}
    head = "".join(f"{f'{size} claim' + 's' * (size > 1):>11}" for size in sizes)
    print(f"{'on the border':34}{'seeds':>6}{head}")
    for name, law in laws.items():
        for seeds in (3, 5, 8, 10, 20):
            rates = wrong_at_all(rng, law, seeds, experiments, sizes)
            print(f"{name:34}{seeds:6}" + "".join(f"{rate:11.3f}" for rate in rates), flush=True)
            found |= {(name, seeds, size): rate for size, rate in zip(sizes, rates, strict=True)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=10_000, help="for each line")
    add_json(parser)
    chosen = parser.parse_args()
    experiments = chosen.experiments
    rng = np.random.default_rng(0)

    print("Primary claims (Holm): share of experiments with any decision, which is a wrong one")
    nulls = print_wrong(rng, NULLS, experiments)
    print("\nThe same where an assumption does not hold, or the question is another one")
    others = print_wrong(rng, OTHERS, experiments)

    print(f"\nFurther claims (Benjamini and Hochberg): {TRUE} of {CLAIMS} are true")
    print(f"{'effect / spread':>16}{'shared':>8}{'seeds':>7}{'wrong':>8}{'found':>8}")
    further = []
    for effect in (1.0, 2.0, 3.0):
        for shared in (0.0, 0.5):
            for seeds in (8, 10, 20):
                wrong, found = among_true(rng, effect, shared, seeds, experiments)
                print(f"{effect:16}{shared:8}{seeds:7}{wrong:8.3f}{found:8.3f}", flush=True)
                further.append(wrong)

    print("\nA single primary claim, where an effect of 1 spread is the smallest that matters")
    print(f"{'effect / spread':>16}{'seeds':>7}{'holds':>8}{'fails':>8}")
    for effect in (-0.5, 0.0, 0.5, 1.0, 2.0):
        for seeds in (8, 12, 20):
            found = too_small(rng, effect, seeds, experiments)
            print(f"{effect:16}{seeds:7}{found[HOLDS]:8.3f}{found[FAILS]:8.3f}")

    print("\nA single primary claim: how often it is found to hold")
    print(f"{'effect / spread':>16}{'seeds':>7}{'found':>8}")
    found_of = {}
    for effect in (1.0, 2.0, 3.0):
        for seeds in (6, 8, 10, 20):
            found_of[effect, seeds] = power(rng, effect, seeds, experiments)
            print(f"{effect:16}{seeds:7}{found_of[effect, seeds]:8.3f}")

    skewed, one_draw = "mean: lognormal", "median: normal, one class draw"
    own_draws = [rate for (law, _, size), rate in nulls.items() if "draws" in law and size == 1]
    numbers = {
        "experiments": experiments,
        "any_wrong": max(nulls.values()),
        "further_wrong": max(further),
        "two_spreads_found": found_of[2.0, 8],
        "one_spread_found": found_of[1.0, 8],
        "mean_8_seeds": others[skewed, 8, 1],
        "mean_20_seeds": others[skewed, 20, 1],
        "one_class_draw": others[one_draw, 8, 1],
        "own_class_draws": max(own_draws),
    }
    write_numbers(chosen.json, numbers)


if __name__ == "__main__":
    main()
