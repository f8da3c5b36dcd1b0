"""Stage `regularity`: a network's similarities under SGD, step by step, beside their surrogate.

Theorem 1 of P2 (arXiv 2510.08852) bounds how far CL and NSCL drift apart under similarity descent.
P2 applies it to networks under regularity conditions: a bounded Jacobian J = ∂Σ/∂w, a small Taylor
remainder, a finite Ση². Here DCL and NSCL are trained on a small reference set from one start, with
the same batches and views, and these conditions are measured at every step. Similarity descent, the
surrogate, starts from the same Σ and takes the same batches and learning rates. See
`cltools.training.regularity`.

There is one row per step and objective. Norms are Frobenius norms of (M, 2M) matrices unless stated
otherwise. The columns are:

- tau, batch_size (B), images (M), seed, step (from 1), objective;
- lr (η), sum_lr (Ση) and sum_lr_squared (Ση²), up to and including this step;
- jacobian_norm: the spectral norm ‖J‖₂ before the step, an estimate from below. Its square is the
  norm of the operator J Jᵀ;
- amplification: ‖J Jᵀ G‖ / ‖G‖, where G is P2's gradient of the batch at the network's Σ before
  the step. To first order, the network's step is this many times as long as the surrogate's, which
  assumes 1;
- amplification_cosine: between J Jᵀ G and G; the surrogate assumes 1 here too;
- weight_step_cosine: between the step in the weights and -Jᵀ G, the step for P2's loss on Σ(w). It
  is below 1 because training uses the batch's own statistics, and anchors of the second view too;
- moved, preconditioned, other_gradient, remainder: the norms of the terms of the step,

      Σ(w_{t+1}) - Σ(w_t) = -η J Jᵀ G + E + R,

  in this order. E is the difference that the network's own gradient g makes in place of Jᵀ G, to
  first order: E = η J Jᵀ G - η J g;
- first_order: ‖η J g‖, the norm of J (w_{t+1} - w_t), of the first two terms on the right together;
- remainder_ratio: remainder / moved;
- displacement and surrogate_displacement: from Σ(w_0), after the step, of the network and of the
  surrogate; displacement_cosine: between the two;
- surrogate_error: between network and surrogate, after the step; surrogate_error_ratio: in units
  of displacement. A surrogate that stayed at Σ(w_0) would have 1;
- the same for both objectives: real_distance, ‖Σ(w^CL) - Σ(w^NSCL)‖ after the step;
  touched_distance, the same for the entries that a batch has used so far, the only ones that the
  surrogate moves; surrogate_distance, the same for the surrogate, which is what Theorem 1 bounds;
  log10_bound and log10_bound_realised, its bounds, described in `cltools.maths.surrogate.Descent`;
- the same for both objectives, for steps as long as J Jᵀ can make them: sum_lr_jacobian, Σ η‖J‖₂²
  with the larger ‖J‖₂ of the two networks; log10_bound_jacobian, log10_bound_realised with this sum
  in place of Ση; vacuous_orders_jacobian, by how many orders of magnitude it exceeds the largest
  possible distance. It is no theorem: J differs between the two networks, and E and R are left out.

A ratio or cosine is NaN where its denominator is 0.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from cltools.config.schema import defaults, with_defaults
from cltools.data.image_set import image_set, open_store
from cltools.maths.bounds import delta_pi, drift_bound, vacuous_orders
from cltools.maths.surrogate import (
    Descent,
    batch_gradient,
    batch_negatives,
    similarity_descent,
    similarity_steps,
    touched_entries,
)
from cltools.runtime.devices import choose_device
from cltools.runtime.errors import InputError
from cltools.runtime.progress import track
from cltools.runtime.sealed import write_table
from cltools.training.regularity import (
    FixedViews,
    Linearised,
    SimilarityMap,
    reference_set,
    spectral_norm,
    taylor_terms,
)
from cltools.training.trainer import CoupledTrainer

Array = NDArray[np.float64]
OBJECTIVES = ("dcl", "nscl")  # the surrogate's CL and NSCL, in its order


def run(
    *,
    cell: dict[str, Any],
    store: Path,
    output: Path,
    settings: Mapping[str, Any],
    device: str = "auto",
) -> None:
    """Train a cell's networks for some steps and write the columns of the module's docstring.

    `followed_cell` replaces the settings of the cell that the theory prescribes.

    Args:
        cell: a resolved cell.
        store: the store of its data set.
        output: the parquet file.
        settings: any keys of the schema's `regularity` but `set`, which is already in the cell.

    Raises:
        InputError: unknown settings, values out of range or that do not fit the data, a store of
            another data set, a batch of one class (NSCL is undefined on it), a loss that is not
            finite.
    """
    chosen = with_defaults(settings, "regularity")
    torch.set_num_threads(cell["threads"])
    chosen_device = choose_device(device)
    opened = open_store(store, cell)
    data = image_set(opened, cell, "train", chosen_device)
    images, size = chosen["reference_images"], cell["batch_size"]
    if not size <= images <= len(data.labels):
        raise InputError(
            f"config key regularity.reference_images is {images}, but must lie between batch_size"
            f" ({size}) and the {len(data.labels)} training images of the cell"
        )
    cell = followed_cell(cell, chosen["steps"])
    data = reference_set(data, images, cell["seed"])
    trainer = CoupledTrainer(cell, data, chosen_device)
    trainer.batches = dict.fromkeys(trainer.networks, FixedViews(cell, data, chosen_device))
    table = follow(trainer, chosen["steps"], chosen["power_iterations"], chosen["delta"])
    opened.check()
    write_table(output, table, {"table": "regularity"})


def followed_cell(cell: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The cell with the settings of the theory: DCL and NSCL, two views, plain SGD, no queue.

    Momentum or weight decay would need another surrogate. The learning rate starts at its peak,
    which follows the cell's rule, and falls along a cosine that ends with the last step.
    """
    return {
        **cell,
        "objectives": list(OBJECTIVES),
        "coupling": ["init", "batches", "views"],
        "views": 2,
        "objective_settings": {},
        **{key: defaults()[key] for key in ("framework", "queue_size", "key_momentum")},
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "warmup": "0 steps",
        "horizon": f"{steps} steps",
        "lr_schedule": "per_step",
    }


def follow(
    trainer: CoupledTrainer, steps: int, power_iterations: int, delta: float
) -> pl.DataFrame:
    """Train for `steps` steps and measure each; return the table of the module's docstring.

    The batches of the trainer are `FixedViews`. Measuring does not change the run. Raises
    InputError for a batch of one class and for a loss that is not finite.
    """
    cell, labels, fixed = trainer.cell, trainer.data.labels.numpy(), trainer.batches["dcl"]
    assert isinstance(fixed, FixedViews)
    similarities = SimilarityMap(trainer.networks["dcl"], fixed.views)
    points = {o: similarities.at(similarities.weights(n)) for o, n in trainer.networks.items()}
    start = _array(points["dcl"])
    batches = fixed.positions(range(steps)).numpy()
    lrs = np.array([trainer.lr_at(step) for step in range(steps)])
    try:
        descent = similarity_descent(start, labels, batches, lrs, cell["tau"], delta)
    except ValueError as error:
        raise InputError(
            f"regularity on {len(labels)} reference images, {cell['batch_size']} a batch: {error}:"
            " raise batch_size"
        ) from None

    rows = []
    touched = np.zeros(start.shape, dtype=bool)
    states = similarity_steps(start, labels, batches, lrs, cell["tau"])
    for step, state in enumerate(track(states, steps, "following", "step")):
        batch = batches[step]
        touched[touched_entries(batch, len(labels))] = True
        trainer.train_step()
        trainer.flush()  # stops at a loss that is not finite
        reached, surrogates = {}, (state.cl, state.nscl)
        for number, (objective, network) in enumerate(trainer.networks.items()):
            before, after = points[objective], similarities.at(similarities.weights(network))
            points[objective], reached[objective] = after, _array(after)
            negatives = batch_negatives(labels[batch])[number]
            rows.append(
                {
                    "step": step + 1,
                    "objective": objective,
                    "jacobian_norm": spectral_norm(before, power_iterations, cell["seed"]),
                    **_terms(
                        before, after, _gradient(before, batch, negatives, cell["tau"]), lrs[step]
                    ),
                    **_displacements(start, reached[objective], surrogates[number]),
                }
            )
        apart = reached["dcl"] - reached["nscl"]
        for row in rows[-len(OBJECTIVES) :]:
            row["real_distance"] = float(np.linalg.norm(apart))
            row["touched_distance"] = float(np.linalg.norm(apart[touched]))
    return _table(cell, rows, lrs, descent, len(labels))


def _array(point: Linearised) -> Array:
    """Its Σ (M, 2M), clipped to [-1, 1], which rounding may leave."""
    return point.sigma.clamp(-1, 1).cpu().numpy()


def _gradient(
    point: Linearised, batch: NDArray[np.int64], negatives: NDArray[np.bool_], tau: float
) -> Array:
    """P2's gradient G (M, 2M) of the batch at Σ, 0 for the entries that the batch does not use."""
    sigma = _array(point)
    entries = touched_entries(batch, len(sigma))
    gradient = np.zeros_like(sigma)
    gradient[entries] = batch_gradient(sigma[entries], negatives, tau)
    return gradient


def _terms(before: Linearised, after: Linearised, gradient: Array, lr: float) -> dict[str, float]:
    """The columns about the terms of a step and about J Jᵀ, with P2's `gradient` G (M, 2M)."""
    first_order, remainder = taylor_terms(before, after)
    in_weights = before.vjp(before.sigma.new_tensor(gradient))
    pushed = before.jvp(in_weights)
    back = pushed.cpu().numpy()
    step = (before.weights - after.weights).cpu().numpy()
    moved, left = float((after.sigma - before.sigma).norm()), float(remainder.norm())
    return {
        "moved": moved,
        "first_order": float(first_order.norm()),
        "preconditioned": float(lr * pushed.norm()),
        "other_gradient": float((first_order + lr * pushed).norm()),
        "remainder": left,
        "remainder_ratio": _ratio(left, moved),
        "amplification": _ratio(float(np.linalg.norm(back)), float(np.linalg.norm(gradient))),
        "amplification_cosine": _cosine(back, gradient),
        "weight_step_cosine": _cosine(step, in_weights.cpu().numpy()),
    }


def _displacements(start: Array, reached: Array, surrogate: Array) -> dict[str, float]:
    displacement = float(np.linalg.norm(reached - start))
    error = float(np.linalg.norm(reached - surrogate))
    return {
        "displacement": displacement,
        "surrogate_displacement": float(np.linalg.norm(surrogate - start)),
        "displacement_cosine": _cosine(reached - start, surrogate - start),
        "surrogate_error": error,
        "surrogate_error_ratio": _ratio(error, displacement),
    }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else np.nan


def _cosine(a: Array, b: Array) -> float:
    return _ratio(float(np.vdot(a, b)), float(np.linalg.norm(a) * np.linalg.norm(b)))


def _table(
    cell: Mapping[str, Any],
    rows: list[dict[str, Any]],
    lrs: Array,
    descent: Descent,
    images: int,
) -> pl.DataFrame:
    """The rows, and the columns that they share: keys of the run, learning rates, Theorem 1."""
    found = pl.DataFrame(rows)
    norms = found.group_by("step", maintain_order=True).agg(pl.col("jacobian_norm").max())
    shared = pl.DataFrame(
        {
            "step": norms["step"],
            "lr": lrs,
            "sum_lr": descent.sum_lr,
            "sum_lr_squared": np.cumsum(lrs**2),
            "surrogate_distance": descent.distance,
            "log10_bound": descent.log10_bound,
            "log10_bound_realised": descent.log10_bound_realised,
            **_jacobian_bound(cell, descent, lrs * norms["jacobian_norm"].to_numpy() ** 2, images),
        }
    )
    table = found.join(shared, on="step", maintain_order="left")
    first = ["step", "objective", "lr", "sum_lr", "sum_lr_squared"]
    last = ["real_distance", "touched_distance", *(c for c in shared.columns if c not in first)]
    return table.select(
        pl.lit(cell["tau"], pl.Float64).alias("tau"),
        pl.lit(cell["batch_size"], pl.Int64).alias("batch_size"),
        pl.lit(images, pl.Int64).alias("images"),
        pl.lit(cell["seed"], pl.Int64).alias("seed"),
        *first,
        pl.exclude(*first, *last),
        *last,
    )


def _jacobian_bound(
    cell: Mapping[str, Any], descent: Descent, steps: Array, images: int
) -> dict[str, Array]:
    """Theorem 1 with steps (T,), η‖J‖₂², in place of the learning rates."""
    total = np.cumsum(steps)
    largest = delta_pi(cell["tau"], np.maximum.accumulate(descent.largest_fraction))
    bound = np.asarray(drift_bound(cell["tau"], cell["batch_size"], total, largest).log10)
    return {
        "sum_lr_jacobian": total,
        "log10_bound_jacobian": bound,
        "vacuous_orders_jacobian": np.asarray(vacuous_orders(bound, 2 * images**2)),
    }
