"""Made-up tidy tables whose means over seeds are known, for tests of what reads such tables."""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import polars as pl

from cltools.layout import TABLES

SWEEPS: dict[str, dict[str, Any]] = {
    "base": {"label": "base", "factors": ["seed"]},
    "classes_steps": {
        "label": "matched steps",
        "factors": ["classes", "seed"],
        "classes": [2, 4, 6, 8, 10],
    },
    "classes_epochs": {
        "label": "matched epochs",
        "factors": ["classes", "seed"],
        "classes": [2, 4, 6, 8, 10],
    },
    "temperature": {"label": "temperature", "factors": ["tau", "seed"]},
    "batch": {"label": "batch size", "factors": ["batch_size", "lr_rule", "seed"]},
    "coupling": {"label": "coupling", "factors": ["coupling", "seed"]},
    "networks": {"label": "networks", "factors": ["architecture", "seed"]},
    "schedule": {"label": "learning rate", "factors": ["lr_schedule", "seed"]},
}
OBJECTIVES = ("dcl", "nscl", "scl", "ce")
EPOCHS = (0, 1, 2, 5, 10, 20, 50, 100, 200)
STEPS_PER_EPOCH = 6
SPREAD = 0.015  # one seed further is this much more

# How far each objective has left DCL when training ends, and its accuracy at the base cell.
DRIFT = {"nscl": 0.12, "scl": 0.55, "ce": 0.42}
ACCURACY = {"dcl": 0.86, "nscl": 0.93, "scl": 0.955, "ce": 0.945}
# Labels of their own, and the second DCL: drift, and the share of negatives that is dropped.
CONTROLS = {
    "nscl:shuffled": (0.15, 0.1),
    "nscl:noise50": (0.14, 0.1),
    "nscl:random2": (0.2, 0.5),
    "nscl:coarse2": (0.4, 0.5),
    "nscl:clusters10": (0.13, 0.11),
    "dcl_twin": (0.18, 0.0),
}
COLLAPSE = {  # before training
    ("cdnv", "pairs"): 2.0,
    ("cdnv", "directional"): 0.3,
    ("etf_deviation", "gram"): 1.2,
    ("within_class_spread", "share"): 0.8,
}
SIMPLEX_ANGLE = math.degrees(math.acos(-1 / 9))
SIMPLEX_COSINE = -1 / 3  # of four classes, whose cosines all start at one
ANGLES = {"smallest": -50.0, "largest": 50.0}  # off that of a simplex, before training
SHOTS = (1, 10, 100)
FEW_SHOT = [
    f"few_shot_{probe}_{ways}"
    for probe in ("nccc", "linear_probe")
    for ways in ("all_way", "two_way")
]
LINE = (0.0, 0.5, 1.0)  # of merged networks
LAYERS = ("stem", "layer1.0", "h", "projector", "z")


def cell(**changed: Any) -> dict[str, Any]:
    """The columns that describe one cell; `changed` says where it leaves the base cell."""
    chosen = {
        "sweeps": ["base"],
        "dataset": "digits",
        "architecture": "small_cnn",
        "classes": 10,
        "class_draw": 0,
        "framework": "simclr",
        "coupling": "init + batches + views",
        "tau": 0.5,
        "batch_size": 256,
        "lr_rule": "linear",
        "lr_schedule": "per_step",
        "lr": 0.3,
        "seed": 0,
        "train_images": 1440,
        "total_steps": EPOCHS[-1] * STEPS_PER_EPOCH,
    } | changed
    name = "-".join(str(v) for k, v in chosen.items() if k != "sweeps")
    return {"cell": "+".join(chosen["sweeps"]) + "-" + name} | chosen


def cells(seeds: int = 5) -> list[dict[str, Any]]:
    """A whole experiment: the base sweep, C in two arms, three τ, three B under two rules."""
    found = []
    for seed in range(seeds):
        found.append(cell(seed=seed, sweeps=list(SWEEPS)))
        found.append(cell(seed=seed, sweeps=["networks"], architecture="small_vit"))
        found.append(cell(seed=seed, sweeps=["schedule"], lr_schedule="constant"))
        found += [
            cell(seed=seed, sweeps=["coupling"], coupling=level) for level in ("init", "nothing")
        ]
        for arm in ("classes_steps", "classes_epochs"):
            found += [
                cell(seed=seed, sweeps=[arm], classes=c, train_images=144 * c) for c in (2, 4, 6, 8)
            ]
        found += [cell(seed=seed, sweeps=["temperature"], tau=tau) for tau in (0.1, 1.0)]
        found += [
            cell(seed=seed, sweeps=["batch"], batch_size=b, lr_rule=rule)
            for b in (64, 128, 256)
            for rule in ("linear", "sqrt")
            if (b, rule) != (256, "linear")
        ]
    return found


def progress(epoch: float) -> float:
    """How much of training is done, from 0 to 1."""
    return math.log1p(epoch) / math.log1p(EPOCHS[-1])


def alignment(one: dict[str, Any], objective: str, epoch: float) -> float:
    """The mean over seeds of the made-up CKA with DCL (1 − RSA is 0.8 of 1 − CKA)."""
    harder = 1 - 0.4 * math.log10(one["tau"] / 0.5) + 0.02 * (10 - one["classes"])
    harder += 0.25 * (one["architecture"] == "small_vit")
    harder += {"init": 0.5, "nothing": 1.0}.get(one["coupling"], 0.0)
    harder += 0.1 * math.log2(one["batch_size"] / 256) * (one["lr_rule"] == "linear")
    harder += 0.3 * (one["lr_schedule"] == "constant")
    return 1 - DRIFT[objective] * progress(epoch) * harder


def nscl_loss(objective: str, epoch: float) -> float:
    """The mean over seeds of the made-up NSCL loss in the authors' way."""
    return 5.0 - (1.2 if objective == "nscl" else 1.0) * progress(epoch)


def few_shot_error(objective: str, shots: int, features: str = "h") -> float:
    """The mean over seeds of the made-up error, of either probe and at any number of classes."""
    return (1 - ACCURACY[objective]) * ({"h": 1, "z": 1.1}[features] + 2 / shots)


def measures(
    of: Iterable[dict[str, Any]] | None = None, epochs: Sequence[float] = EPOCHS
) -> pl.DataFrame:
    """The table `measures.parquet`; means over seeds 0 … n − 1 are those of the formulas here."""
    of = list(cells() if of is None else of)
    seeds = {one["seed"] for one in of}
    centre = sum(seeds) / len(seeds)
    found = []
    for one in of:
        off = SPREAD * (one["seed"] - centre)
        for epoch in epochs:
            at = {"step": round(epoch * STEPS_PER_EPOCH), "epoch": float(epoch)}
            wobble = off if epoch else 0.0
            for row in _at_epoch(one, epoch, wobble):
                found.append(one | at | row)
    none = {"reference": "", "features": "", "split": "", "ci_low": None, "ci_high": None, "n": 360}
    return pl.DataFrame(
        [none | row for row in found],
        schema_overrides={"ci_low": pl.Float64, "ci_high": pl.Float64},
        infer_schema_length=None,
    )


def _at_epoch(one: dict[str, Any], epoch: float, off: float) -> Iterable[dict[str, Any]]:
    done, c = progress(epoch), one["classes"]
    for objective in OBJECTIVES:
        for split in ("train", "test"):
            here = {"objective": objective, "split": split, "features": "h"}
            moved = {"metric": "cka_to_init", "variant": "cosine_biased"}
            yield here | moved | {"value": 1 - 0.7 * done + off}
            for (metric, variant), start in COLLAPSE.items():
                value = start * (1 - ACCURACY[objective] * done) * math.exp(off)
                about = {"metric": metric, "variant": variant}
                yield here | about | {"value": value}
                yield here | about | {"features": "z", "value": 0.9 * value}
            if c == 4:
                value = 1 + (SIMPLEX_COSINE - 1) * done * ACCURACY[objective]
                value -= 0.02 * (split == "test")
                for i, j in combinations(range(4), 2):
                    about = {"metric": "class_mean_cosine", "variant": f"classes_{i}_{j}"}
                    yield here | about | {"value": value}
            for variant, open_by in ANGLES.items():
                value = SIMPLEX_ANGLE + open_by * (1 - done) + off
                about = {"metric": "class_mean_angle", "variant": variant}
                yield here | about | {"value": value}
                yield here | about | {"features": "z", "value": value - 1}
            accuracy = {"variant": "accuracy", "n": 1440 if split == "train" else 360}
            top = ACCURACY[objective] + 0.03 * (split == "train")
            for metric, less in (("nccc", 0.04), ("linear_probe", 0.0)):
                value = 1 / c + (top - less - 1 / c) * done + 0.3 * off
                yield here | accuracy | {"metric": metric, "value": value}
            if split == "test" and epoch == EPOCHS[-1]:
                for metric, shots, features in product(FEW_SHOT, SHOTS, ("h", "z")):
                    value = 1 - few_shot_error(objective, shots, features) - 0.1 * off
                    few = {"metric": metric, "variant": f"shots_{shots}", "features": features}
                    yield here | few | {"value": value}
            if objective != "dcl":
                cka = alignment(one, objective, epoch) + off
                to = here | {"reference": "dcl"}
                for variant, less in (
                    ("cosine_biased", 0),
                    ("cosine_debiased", 0.02),
                    ("residual_biased", 0.1),
                    ("residual_debiased", 0.12),
                ):
                    value = cka - less * done
                    yield to | {"metric": "cka", "variant": variant, "value": value}
                rsa = 1 - 0.8 * (1 - cka)
                for metric, variant, value in (
                    ("rsa", "pearson_cosine", rsa),
                    ("rsa", "residual_pearson", rsa - 0.1 * done),
                    ("cka_null", "cosine_biased", 0.5 * cka),
                    ("rsa_null", "pearson_cosine", 0.5 * rsa),
                ):
                    yield to | {"metric": metric, "variant": variant, "value": value}
            if objective in ("dcl", "nscl"):
                for variant, tau in (("training_tau", one["tau"]), ("tau_1", 1.0)):
                    bound = math.log1p(math.exp(2 / tau) / (c - 1))
                    untrained = math.log(c / (c - 1))
                    gap = untrained + 0.4 * (bound - untrained) * done * (1 + off)
                    loss = {
                        "dcl_loss": 3 - done + gap,
                        "nscl_loss": 3.0 - done,
                        "gap": gap,
                        "gap_bound": bound,
                    }
                    for metric, value in loss.items():
                        about = {"features": "z", "metric": metric, "variant": variant}
                        yield here | about | {"value": value}
                about = {"features": "z", "metric": "authors_nscl_loss", "variant": "tau_1"}
                yield here | about | {"value": nscl_loss(objective, epoch) + off}
        if objective != "dcl":
            gap = {"nscl": 0.88, "scl": 0.97, "ce": 1.1}[objective] * done + off
            to = {"objective": objective, "reference": "dcl", "split": ""}
            yield to | {"metric": "weight_gap", "variant": "mean_layer", "value": gap}


def controls(of: Iterable[dict[str, Any]], epochs: Sequence[float] = EPOCHS) -> pl.DataFrame:
    """Rows of `measures.parquet` of models that `measures` has not: controls of the labels."""
    found = []
    for one, epoch, (objective, (drift, share)) in product(of, epochs, CONTROLS.items()):
        at = {"step": round(epoch * STEPS_PER_EPOCH), "epoch": float(epoch)}
        off = SPREAD * one["seed"] * (epoch > 0)
        cka = 1 - drift * progress(epoch) + off
        to = {"reference": "dcl", "features": "h", "split": "test"}
        values = {("cka", "cosine_biased"): cka, ("rsa", "pearson_cosine"): 0.8 * cka}
        rows = [to | {"metric": m, "variant": v, "value": x} for (m, v), x in values.items()]
        dropped = {"metric": "dropped_negatives", "variant": "share", "value": share}
        rows.append({"reference": "", "features": "", "split": "train"} | dropped)
        found += [one | at | {"objective": objective, "n": 360} | row for row in rows]
        if objective == "nscl:shuffled":
            found.append(found[-1] | {"objective": "nscl"})
    return pl.DataFrame(found)


def pairs(of: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Rows of `measures.parquet`: the last alignment of objectives other than DCL, `pair_cka`."""
    found = []
    for one, (a, b) in product(of, combinations(OBJECTIVES[1:], 2)):
        at = {"step": one["total_steps"], "epoch": float(EPOCHS[-1]), "split": "test", "n": 360}
        about = {"objective": b, "reference": a, "features": "h"}
        for metric, variant, less in (
            ("cka", "cosine_debiased", 0), ("cka", "residual_debiased", 0.1),
            ("rsa", "pearson_cosine", 0.2),
        ):  # fmt: skip
            value = pair_cka(a, b) - less
            found.append(one | at | about | {"metric": metric, "variant": variant, "value": value})
    return pl.DataFrame(found)


def pair_cka(a: str, b: str) -> float:
    """The made-up CKA of two objectives, neither of them DCL."""
    return 1 - abs(DRIFT[a] - DRIFT[b])


def merged(of: Iterable[dict[str, Any]] | None = None) -> pl.DataFrame:
    """Rows of `measures.parquet` that stage `merge` makes of the base cells among `of`.

    Accuracy has its maximum at the midpoint.
    """
    found = []
    for one in cells() if of is None else of:
        if "base" not in one["sweeps"]:
            continue
        at = {"step": one["total_steps"], "epoch": float(EPOCHS[-1]), "objective": "nscl"}
        for split, weight in product(("train", "test"), LINE):
            middle = 1 - abs(2 * weight - 1)
            values = {
                "merged_nccc": 0.8 + 0.1 * middle,
                "merged_linear_probe": 0.85 + 0.05 * middle,
                "merged_cka": 1 - 0.2 * weight,
            }
            about = {"split": split, "reference": "dcl", "features": "h"}
            about["variant"] = f"lambda_{weight:.2f}"
            for metric, value in values.items():
                found.append(one | at | about | {"metric": metric, "value": value, "n": 360})
    return pl.DataFrame(found)


def layers(of: Iterable[dict[str, Any]] | None = None) -> pl.DataFrame:
    """The table `layers.parquet` of the base cells among `of`, as `layer_cka` says."""
    found = []
    for one in cells() if of is None else of:
        if "base" not in one["sweeps"]:
            continue
        for objective, epoch in product(OBJECTIVES, EPOCHS):
            at = {"step": epoch * STEPS_PER_EPOCH, "epoch": float(epoch), "split": "test", "n": 360}
            about = {"objective": objective, "variant": "cosine_debiased"}
            for other, layer in product(LAYERS, LAYERS):
                i, j = LAYERS.index(other), LAYERS.index(layer)
                pair = {"features": layer, "reference_features": other, "depth": j}
                if i == j:
                    begun = {"metric": "cka_to_init", "reference": "init"}
                    found.append(one | at | about | pair | begun | {"value": 1 - progress(epoch)})
                if (objective == "dcl" and i >= j) or (i != j and epoch != EPOCHS[-1]):
                    continue
                value = layer_cka(objective, i, j) * (1 - progress(epoch) / 2)
                with_dcl = {"metric": "cka", "reference": "dcl", "value": value}
                found.append(one | at | about | pair | with_dcl)
    return pl.DataFrame(found)


def layer_cka(objective: str, other: int, layer: int) -> float:
    """The made-up CKA of a layer with another one of DCL, by their numbers."""
    return 1 - DRIFT.get(objective, 0) * layer / len(LAYERS) - 0.1 * abs(other - layer)


def training_log(of: Iterable[dict[str, Any]] | None = None, every: int = 1) -> pl.DataFrame:
    """The table `training_log.parquet` of the base cells among `of`, a row each `every` steps."""
    found = []
    for one in cells() if of is None else of:
        if "base" not in one["sweeps"]:
            continue
        for step in range(0, one["total_steps"] + 1, every):
            epoch = step / STEPS_PER_EPOCH
            noise = 0.1 * math.sin(12.9898 * step) + 0.05 * one["seed"]
            for model in OBJECTIVES:
                nscl = 5.0 - (2.2 if model == "nscl" else 1.8) * progress(epoch) + noise
                found.append(
                    one
                    | {
                        "step": step,
                        "epoch": epoch,
                        "model": model,
                        "lr": 0.3,
                        "sum_lr": 0.3 * step,
                        "grad_norm": 1.0,
                        "dcl": nscl + 0.1 + 0.3 * progress(epoch),
                        "nscl": nscl,
                        "scl": nscl + 1.0,
                        "ce": 2.3 - progress(epoch) if model == "ce" else None,
                        "gap_bound": math.log1p(math.exp(2 / one["tau"]) / (one["classes"] - 1)),
                        "batch_classes": one["classes"],
                    }
                )
    return pl.DataFrame(found, infer_schema_length=None)


def theory(of: Iterable[dict[str, Any]] | None = None) -> pl.DataFrame:
    """The table `theory.parquet`: a gap that keeps its bound, two drifts 10 times beyond theirs."""
    found = []
    for one in cells() if of is None else of:
        here = one | {"step": 100, "epoch": 20.0, "split": "test", "features": "z"}
        gap = {"source": "P1 Theorem 1", "quantity": "gap", "variant": "tau_1", "kind": "bound"}
        drift = {
            "source": "P2 Theorem 1",
            "quantity": "drift",
            "variant": "stated",
            "kind": "network",
        }
        other = drift | {"quantity": "drift_not_comparable", "kind": "not_comparable"}
        for about, bound, measured in ((gap, 1.0, 0.1), (drift, 5.0, 50.0), (other, 5.0, 50.0)):
            row = {
                "objective": "nscl",
                "side": "upper",
                "bound": bound,
                "log10_bound": math.log10(bound),
                "measured": measured,
                "vacuous_orders": -1.0,
                "holds": None if about is other else measured <= bound,
            }
            found.append(here | about | row)
        # One split has too few images for the largest number of shots.
        few_shot_rows = [
            (features, f"few_shot_error{of}_{ways}", shots, "not_comparable" if of else "bound")
            for features in ("h", "z")
            for of, ways, shots in product(("", "_from_train"), ("all_way", "two_way"), SHOTS)
            if of or shots < SHOTS[-1]
        ]
        for features, quantity, shots, kind in few_shot_rows:
            few_shot = {
                "objective": "nscl",
                "features": features,
                "source": "P1 Proposition 1",
                "quantity": quantity,
                "variant": f"best_shots_{shots}",
                "kind": kind,
                "side": "upper",
                "bound": 10 / shots,
                "log10_bound": 1 - math.log10(shots),
                "measured": few_shot_error("nscl", shots, features),
                "vacuous_orders": 1 - math.log10(shots),
                "holds": True if kind == "bound" else None,
            }
            found.append(here | few_shot)
    return pl.DataFrame(found)


def surrogate() -> pl.DataFrame:
    """The table `surrogate.parquet`: distance Ση / 100, bounds Ση and 2 Ση (none at B = 16)."""
    found = []
    for tau, size, total, step in product((0.5, 1.0), (16, 64), (1.0, 100.0), (1, 2, 4)):
        sum_lr = total * step / 4
        found.append(
            {
                "classes": 10,
                "tau": tau,
                "batch_size": size,
                "total_lr": total,
                "seed": 0,
                "images": 200,
                "step": step,
                "distance": sum_lr / 100,
                "sum_lr": sum_lr,
                "log10_bound": math.inf if size == 16 else math.log10(2 * sum_lr),
                "log10_bound_realised": math.log10(sum_lr),
            }
        )
    return pl.DataFrame(found)


def regularity() -> pl.DataFrame:
    """The table `regularity.parquet`: networks 1,000 times further apart than their surrogates.

    At the last two of three steps they are further apart than the stated bound allows.
    """
    found = []
    for step, objective in product((1, 2, 3), ("dcl", "nscl")):
        found.append(
            {
                "tau": 0.5,
                "batch_size": 32,
                "images": 64,
                "seed": 0,
                "step": step,
                "objective": objective,
                "sum_lr": 0.1 * step,
                "displacement": 10.0 * step,
                "surrogate_displacement": 0.1 * step,
                "amplification_cosine": 0.1,
                "real_distance": 7.0 * step,
                "touched_distance": 5.0 * step,
                "surrogate_distance": 0.005 * step,
                "log10_bound": math.log10(8 + 0.1 * step),
                "log10_bound_realised": math.log10(2 + 0.1 * step),
            }
        )
    return pl.DataFrame(found)


def minimise() -> pl.DataFrame:
    """The table `minimise.parquet`: spread is halved after 2 (SCL), 4 (NSCL) and 8 (CE) steps."""
    halving = {"dcl": math.inf, "nscl": 4, "scl": 2, "ce": 8}
    found = []
    for objective, classes in product(halving, (4, 10)):
        for dimension, tau in product((classes - 1, classes), (0.1, 0.5)):
            if objective == "ce" and tau == 0.1:
                continue
            for iteration in range(14):
                # A little beyond the half at that step: the first step below it is meant.
                left = 0.499 ** (iteration / halving[objective])
                last = iteration == 13
                found.append(
                    {
                        "objective": objective,
                        "classes": classes,
                        "dimension": dimension,
                        "tau": None if objective == "ce" else tau,
                        "seed": 0,
                        "per_class": 5,
                        "iteration": iteration,
                        "phase": "newton" if last else "descent" if iteration else "start",
                        "minimum_loss": None,
                        "time": None if last else 0.1 * iteration,
                        "loss": 1.0,
                        "etf_deviation": left,
                        "within_class_spread": 0.9 * left,
                        "view_distance": 2 * left,
                    }
                )
    return pl.DataFrame(found, infer_schema_length=None)


def project(of: Iterable[dict[str, Any]] | None = None) -> pl.DataFrame:
    """The table `project.parquet` of the first cell: two classes at seven checkpoints."""
    one = next(iter(cells() if of is None else of))
    found = []
    for objective, epoch in product(OBJECTIVES, EPOCHS[:7]):
        for sample in range(6):
            side = 1 if sample % 2 else -1
            found.append(
                {
                    "cell": one["cell"],
                    "step": epoch * STEPS_PER_EPOCH,
                    "epoch": float(epoch),
                    "objective": objective,
                    "method": "pca",
                    "split": "test",
                    "features": "h",
                    "share": 0.5,
                    "sample": sample,
                    "class": sample % 2,
                    "x": side * (1 - 0.1 * sample),
                    "y": 0.1 * epoch / 50,
                }
            )
    return pl.DataFrame(found)


def write(folder: Path, seeds: int = 5) -> dict[str, Path]:
    """Write all tables of a whole experiment; returns their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    made = cells(seeds)
    found = {
        "measures": pl.concat(
            [measures(made), merged(made), controls(made), pairs(made)], how="diagonal"
        ),
        "log": training_log(made),
        "theory": theory(made),
        "surrogate": surrogate(),
        "minimise": minimise(),
        "regularity": regularity(),
        "project": project(made),
        "layers": layers(made),
    }
    paths = {name: folder / TABLES[name] for name in found}
    for name, table in found.items():
        table.write_parquet(paths[name])
    return paths
