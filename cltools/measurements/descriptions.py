"""What every table, column, metric and variant means: the text of docs/tables.md.

A metric or column that is written but not described here fails a test. Names may be patterns with
`*`: `shots_*` is each number of shots. Columns that are settings of a cell are described in the
schema of configs.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Described(NamedTuple):
    """A metric of the measures, or a quantity of the theory: variants are name -> meaning."""

    meaning: str
    unit: str
    variants: Mapping[str, str]


# fmt: off
TABLES = {
    "measures": "Every measured number: one row per cell, checkpoint, objective and measure.",
    "log": "Training: one row per cell, step and model. The values are those before the step.",
    "live": "Training while it runs: one row per model and 50 steps, for people and trackers.",
    "theory": "The papers' inequalities: one row per inequality, cell and checkpoint.",
    "claims": "Verdicts: one row per part of a claim, for each data set and sweep.",
    "layers": "As `measures`, layer by layer. A row compares a layer of an objective with a layer "
              "of the reference, or with itself before training.",
    "project": "Features in the plane: one row per image, objective and checkpoint.",
    "surrogate": "Similarity descent: one row per run and step.",
    "minimise": "Free embeddings: one row per run and iteration.",
    "regularity": "A small network beside similarity descent: one row per step and objective.",
}

# Columns of cells that are no settings.
CELL_COLUMNS = {
    "cell": "name of the cell, and of its folder",
    "sweeps": "list of the sweeps of the config that the cell belongs to",
    "dataset": "name of the data set in the config",
    "architecture": "encoder and width, such as `small_resnet ×1`, and a projector that is not the "
    "papers': `small_resnet ×1, no projector`",
    "classes": "number of classes C",
    "coupling": "which randomness all objectives share: `init`, `batches`, `views`, joined by +",
    "peak_lr": "largest learning rate η",
    "train_images": "number of training images N",
    "total_steps": "training steps of the whole run",
}
WHEN = {
    "step": "training steps done",
    "epoch": "the same in passes over the training images",
}
MEASURED = {
    **WHEN,
    "split": "`train` or `test` images; empty where no images are involved (weights)",
    "objective": "the objective that trained the network",
    "reference": "what it is compared with: an objective; `init`, its own initial weights; empty: "
                 "nothing",
    "features": "`h` of the encoder or `z` of the projector; empty where none are involved",
    "metric": "what was measured (below)",
    "variant": "which of several ways to compute it (below)",
    "value": "the number",
    "ci_low": "lower end of its 90 % interval over images; null where there is none",
    "ci_high": "upper end of this interval",
    "n": "number of images",
}
NORM = "Frobenius norm of a difference of similarities"
DRIFT = {
    "sum_lr": "Ση, sum of the learning rates up to and including this step",
    "log10_bound": "log10 of Theorem 1's bound on the distance, as stated",
    "log10_bound_realised": "the same with the class fractions of the batches that were drawn",
}
SPREAD = {
    "z_std": "spread of z in the batch: standard deviation, mean over dimensions",
    "z_rank": "effective rank of z in the batch",
}
COLUMNS: dict[str, dict[str, str]] = {
    "measures": MEASURED,
    "layers": {
        **MEASURED,
        "features": "name of the objective's layer: `stem`, each block, `h`, `projector` "
        "(`projector.0` and `projector.1` where it has two hidden layers), `z`",
        "reference_features": "name of the layer that it is compared with",
        "depth": "number of the layer `features`, from the images on, beginning with 0",
    },
    "log": {
        "step": "number of the step, from 0",
        "epoch": WHEN["epoch"],
        "lr": "learning rate η of the step",
        "sum_lr": DRIFT["sum_lr"],
        "n_max": "images of the largest class in the batch",
        "batch_classes": "number of classes in the batch",
        "model": "the objective that trains the network",
        "grad_norm": "Euclidean norm of the gradient of the model's own loss",
        "dcl": "DCL loss of the batch, on the projections of the model, in nats; NaN for CE",
        "nscl": "NSCL loss, in nats; NaN for a batch of one class",
        "scl": "SCL loss, in nats",
        "nt_xent": "NT-Xent loss, in nats",
        "nscl_with_positive": "NSCL loss with the positive in the denominator, in nats",
        "nt_xent_double_positive": "NT-Xent loss with the positive twice, in nats",
        "ce": "cross entropy of the model `ce`, in nats",
        "supcon_in": "SupCon loss with the mean inside the logarithm, in nats",
        "vicreg": "VICReg loss of the model `vicreg`; a column only where it is trained",
        "barlow_twins": "the same of Barlow Twins",
        "byol": "the same of BYOL",
        "simsiam": "the same of SimSiam",
        **SPREAD,
        "gap_bound": "bound on `dcl` − `nscl` for this batch, in nats",
    },
    "live": {
        **WHEN,
        "model": "the objective that trains the network",
        "loss": "its own loss, mean over the steps since the last row, in nats",
        "dcl": "DCL loss, mean, in nats",
        "nscl": "NSCL loss, mean, in nats",
        "gap": "`dcl` − `nscl`, in nats",
        "grad_norm": "norm of the gradient, mean",
        "lr": "learning rate of the last step",
        **SPREAD,
        "steps_per_second": "steps per second, with the time of saves",
    },
    "theory": {
        **WHEN,
        "split": MEASURED["split"],
        "objective": MEASURED["objective"],
        "features": MEASURED["features"],
        "source": "theorem of P1 (arXiv 2506.04411) or P2 (arXiv 2510.08852)",
        "quantity": "what is bounded (below)",
        "variant": "which form of the bound (below)",
        "kind": "`bound`: proved for what is measured. `network`: proved for similarity descent, "
                "compared with a network. `estimate`: some constants are estimated. "
                "`not_comparable`: the bound is about something else, so nothing is claimed",
        "side": "whether the bound is an `upper` or a `lower` one",
        "bound": "the bound, in the unit of the quantity; infinity if too large to write",
        "log10_bound": "log10 of the bound; null for a bound of 0 or below",
        "measured": "the measured value",
        "vacuous_orders": "orders of magnitude between the bound and the largest possible value; "
                          "above 0 the bound says nothing",
        "holds": "whether the inequality held; null where nothing is claimed",
    },
    "claims": {
        "claim": "name of the claim in `cltools/claims/claims.yaml`",
        "verdict": "of the claim: `holds`, `does not hold`, `undecided` or `not tested here`",
        "family": "`primary` or `further` claims, which are corrected apart; empty for bounds",
        "dataset": "data set of these cells",
        "sweep": "sweep of these cells",
        "cells": "settings that these cells share, in words",
        "arm_verdict": "verdict on the claim in this data set and sweep",
        "part": "which part of the claim this row is about",
        "part_verdict": "verdict on this part",
        "reason": "why it is not decided, or what the verdict does not say",
        "statistic": "kind of effect: `level`, `difference`, `change`, `share`, `trend`, "
                     "`correlation`, `halving` or `bound`",
        "claimed": "where the effect must lie",
        "unit": "unit of the effect; empty for that of the metric",
        "reading": "the effect as a sentence; empty for bounds",
        "effect": "median of the effect over seeds; for a bound, the smallest margin to it",
        "low": "lower end of its interval over seeds; null for too few seeds",
        "high": "upper end of this interval",
        "level": "least coverage of this interval",
        "seeds": "number of seeds",
        "inside": "number of seeds whose effect lies where it must",
        "rows": "number of rows of the tables that were read",
        "violations": "number of rows that violate a bound; null for other statistics",
        "p": "p value of the claim in this data set and sweep, before correction",
        "p_holm": "p value of a primary claim, corrected by Holm's method",
        "p_bh": "p value of a further claim, corrected by the method of Benjamini and Hochberg",
        "statement": "the claim as a sentence",
        "source": "where the papers make it",
        "paper": "the papers' numbers",
        "figure": "the figure to look at",
    },
    "project": {
        "cell": CELL_COLUMNS["cell"],
        **WHEN,
        "objective": MEASURED["objective"],
        "method": "`pca` (principal components) or `umap`",
        "split": "`train` or `test` images",
        "features": "`h` or `z`",
        "share": "share of the variance that is in the plane; null for UMAP",
        "sample": "number of the image in its split",
        "class": "number of its class",
        "x": "first coordinate; all points have a root mean square distance of 1 from 0",
        "y": "second coordinate",
    },
    "surrogate": {
        "classes": "number of classes of the drawn clusters",
        "tau": "temperature τ",
        "batch_size": "images per batch B",
        "total_lr": "Ση of the whole run",
        "seed": "seed of clusters and batches",
        "images": "number of images",
        "step": "number of the step, from 1",
        "distance": f"distance of CL's and NSCL's similarities after the step ({NORM})",
        "step_bound": "bound on `distance`, from the distance before the step and the batch",
        "gradient_gap": "Frobenius norm of the difference of the two gradients",
        "gradient_gap_bound": "bound on `gradient_gap`",
        "largest_fraction": "share of the batch that the largest class in it has",
        **DRIFT,
    },
    "minimise": {
        "objective": "the objective that is minimized",
        "classes": "number of classes C",
        "dimension": "dimension d of the embeddings",
        "tau": "temperature τ; null for CE",
        "seed": "seed of the start",
        "per_class": "images per class",
        "iteration": "number of the iteration; 0 is the start",
        "phase": "`start`, `descent` (gradient descent) or `newton` (L-BFGS)",
        "minimum_loss": "least possible NSCL loss, in nats; null for others and for d < C − 1",
        "time": "sum of the learning rates of gradient descent so far; null afterwards",
        "loss": "the loss, in nats",
        "etf_deviation": "distance of class means from a simplex, relative; 0 at a simplex",
        "within_class_spread": "share of the variance that lies within classes, 0 to 1",
        "view_distance": "mean squared distance between views of an image, 0 to 4",
    },
    "regularity": {
        "tau": "temperature τ",
        "batch_size": "images per batch B",
        "images": "number of reference images M",
        "seed": "seed",
        "step": "number of the step, from 1",
        "objective": "`dcl` or `nscl`",
        "lr": "learning rate η of the step",
        "sum_lr": DRIFT["sum_lr"],
        "sum_lr_squared": "the same of η²",
        "jacobian_norm": "spectral norm ‖J‖ of the Jacobian of the similarities in the weights, "
                         "before the step; an estimate from below",
        "moved": "how far the similarities moved in the step, ‖Σ after − Σ before‖",
        "first_order": "the part of this that is linear in the step of the weights",
        "preconditioned": "norm of η J Jᵀ G, the step that the theory follows to first order",
        "other_gradient": "norm of what the network's own gradient adds to first order",
        "remainder": "norm of what is not linear (Taylor's remainder)",
        "remainder_ratio": "`remainder` / `moved`",
        "amplification": "‖J Jᵀ G‖ / ‖G‖: how many times longer the step is than in similarity "
                         "descent, which assumes 1",
        "amplification_cosine": "cosine between J Jᵀ G and G; similarity descent assumes 1",
        "weight_step_cosine": "cosine between the step of the weights and −Jᵀ G",
        "displacement": "distance of the network's similarities from their start",
        "surrogate_displacement": "the same for similarity descent",
        "displacement_cosine": "cosine between the two displacements",
        "surrogate_error": "distance between network and similarity descent",
        "surrogate_error_ratio": "`surrogate_error` / `displacement`",
        "real_distance": f"distance of the similarities of the two networks ({NORM})",
        "touched_distance": "the same for the pairs of images that batches have used so far",
        "surrogate_distance": "the same for similarity descent, which is what Theorem 1 bounds",
        "log10_bound": DRIFT["log10_bound"],
        "log10_bound_realised": DRIFT["log10_bound_realised"],
        "sum_lr_jacobian": "Σ η‖J‖², with the larger ‖J‖ of the two networks",
        "log10_bound_jacobian": "`log10_bound_realised` with this sum in place of Ση",
        "vacuous_orders_jacobian": "by how many orders of magnitude this exceeds the largest "
                                   "possible distance",
    },
}

ONE = "0 to 1"
CKA_RANGE = "0 to 1; debiased also slightly below 0"
ACCURACY = "share of images, 0 to 1"
P_VALUE = "p value, 0 to 1"
COSINE_CKA = {
    "cosine_biased": "on cosines, biased: the papers' definition",
    "cosine_debiased": "on cosines, debiased: cite this one",
}
CKA = {
    **COSINE_CKA,
    "raw_biased": "on features as they are, biased: what the authors' code computes",
    "raw_debiased": "on features as they are, debiased",
}
PEARSON = {"pearson_cosine": "Pearson correlation of cosine distances"}
TRAINING_TAU = {"training_tau": "at the temperature of training"}
TAUS = {**TRAINING_TAU, "tau_1": "at τ = 1"}
SHOTS = {"shots_*": "with so many labeled images per class"}
BOUND_FROM_DISTANCE = {
    "corollary": "(1 − ρ)/(1 + ρ), the papers' bound",
    "tight": "√(1 − ρ²), the best bound from the same distance",
}
LAMBDA = {"lambda_*": "at so large a share λ of the objective's weights"}
FEW_SHOT = {
    "few_shot_nccc": "Few-shot accuracy of the nearest class center",
    "few_shot_linear_probe": "Few-shot accuracy of a linear probe",
    "few_shot_nccc_one_split": "As `few_shot_nccc`, but labeled images are test images as well",
}
WAYS = {"all_way": "all classes", "two_way": "two classes at a time"}
LABELS = {
    "shuffled": "the labels in random order",
    "unbalanced": "random labels with half of the images in one class",
    "clustered": "k-means clusters of the model's own z",
}

METRICS: dict[str, Described] = {
    "cka": Described("Centered kernel alignment: similarity of two representations", CKA_RANGE, {
        **CKA,
        "residual_biased": "without class means, biased",
        "residual_debiased": "without class means, debiased",
    }),
    "rsa": Described("Representational similarity analysis: correlation of distances", "−1 to 1", {
        **PEARSON,
        "residual_pearson": "without class means",
        "spearman_cosine": "rank correlation, of a sample of pairs of images",
    }),
    "rsa_error": Described("Standard error of `rsa` from sampling pairs of images", "as `rsa`", {
        "spearman_cosine": "of the rank correlation"}),
    "cka_to_init": Described("CKA of a network with its own initial weights", CKA_RANGE, CKA),
    "rsa_to_init": Described("RSA of a network with its own initial weights", "−1 to 1", PEARSON),
    "cka_null": Described(
        "Mean CKA after images are shuffled within classes: that of class means alone",
        CKA_RANGE, COSINE_CKA),
    "rsa_null": Described("The same of RSA", "−1 to 1", PEARSON),
    "cka_null_p": Described(
        "How often such a shuffle reaches the measured CKA", P_VALUE, COSINE_CKA),
    "rsa_null_p": Described("How often such a shuffle reaches the measured RSA", P_VALUE, PEARSON),
    "rsa_mantel_p": Described(
        "How often a shuffle of all images reaches the measured RSA (Mantel's test)", P_VALUE,
        PEARSON),
    "similarity_gap": Described("Distance of the similarity matrix from the reference's", "none", {
        "frobenius": "Frobenius norm ‖Σ − Σ′‖: the drift",
        "rho": "ρ, relative, after centering",
        "r": "r, relative, of the centered entries above the diagonal",
    }),
    "similarity_norm": Described(
        "Norm of the reference's similarity matrix, which ρ and r are relative to", "none", {
            "centred": "of the centered matrix",
            "off_diagonal_scatter": "of the centered entries above the diagonal",
        }),
    "cka_lower_bound": Described("Lower bound on CKA from ρ; NaN where ρ ≥ 1", ONE,
                                 BOUND_FROM_DISTANCE),
    "rsa_lower_bound": Described("Lower bound on RSA, from r in place of ρ; NaN where r ≥ 1", ONE,
                                 BOUND_FROM_DISTANCE),
    "representation_angle": Described("Angle between representations", "degrees", {
        "similarities": "between the centered similarity matrices: arccos of the biased CKA",
        "features": "between the two feature vectors of an image, mean",
    }),
    "zero_norm_rows": Described("Images whose features are all 0", "images", {"count": "number"}),
    "dcl_loss": Described("DCL loss over the whole set", "nats", TAUS),
    "nscl_loss": Described("NSCL loss over the whole set", "nats", TAUS),
    "gap": Described("Loss gap DCL − NSCL over the whole set", "nats", TAUS),
    "gap_bound": Described("Bound on `gap`", "nats", TAUS),
    **{f"gap_{kind}_labels": Described(f"`gap` with other labels: {words}", "nats", TAUS)
       for kind, words in LABELS.items()},
    **{f"gap_bound_{kind}_labels": Described(f"Bound on `gap_{kind}_labels`", "nats", TAUS)
       for kind in LABELS},
    "batch_dcl_loss": Described("DCL loss, mean over batches", "nats", TRAINING_TAU),
    "batch_nscl_loss": Described("NSCL loss, mean over batches", "nats", TRAINING_TAU),
    "batch_gap": Described("Loss gap, mean over batches", "nats", TRAINING_TAU),
    "batch_gap_bound": Described("Bound on `batch_gap`", "nats", TRAINING_TAU),
    **{f"authors_{name}": Described(
        f"{what} as the authors average it: the positive in the denominator, an augmented and a "
        "plain view", "nats", {"tau_1": TAUS["tau_1"]})
       for name, what in (("dcl_loss", "DCL loss"), ("nscl_loss", "NSCL loss"),
                          ("gap", "Loss gap"))},
    "dropped_negatives": Described(
        "Share of pairs of training images that the objective does not use as negatives", ONE, {
            "share": "of all pairs",
            "same_class": "of the pairs of one class",
            "other_class": "of the pairs of two classes",
        }),
    "nccc": Described("Accuracy of the nearest class center", ACCURACY, {"accuracy": "accuracy"}),
    "linear_probe": Described("Accuracy of a linear classifier on the features", ACCURACY,
                              {"accuracy": "accuracy"}),
    "knn": Described("Accuracy of the vote of the nearest training images", ACCURACY,
                     {"k_*": "of so many images"}),
    **{f"{metric}_{way}": Described(f"{words}, {ways}; the interval is over draws of labeled "
                                    "images", ACCURACY, SHOTS)
       for metric, words in FEW_SHOT.items() for way, ways in WAYS.items()},
    "cdnv": Described("Class-distance normalized variance; 0 if each class is a point", "none", {
        "pairs": "mean over pairs of classes",
        "directional": "variance along the line between the two means alone",
        "root": "with the standard deviation in place of the variance, as P1's bound needs it",
    }),
    "nc1": Described("Variance within classes relative to that between them", "none", {
        "pseudo_inverse": "tr(Σ_W Σ_B⁺) / C",
        "quotient": "tr Σ_W / tr Σ_B",
    }),
    "nc2": Described("How far class means are from a simplex; 0 at a simplex", "none", {
        "equinorm": "spread of their norms, relative",
        "equiangular": "mean distance of their cosines from −1/(C − 1)",
        "equiangular_sd": "spread of their cosines",
    }),
    "nc3": Described("Distance of CE's linear layer from the class means", "0 to 2",
                     {"head": "of CE's own layer"}),
    "nc4": Described("How often CE's linear layer disagrees with the nearest class center",
                     ACCURACY, {"head": "of CE's own layer"}),
    "etf_deviation": Described("Distance of the class means from a simplex, relative", "none",
                               {"gram": "of their matrix of cosines"}),
    "within_class_spread": Described("Variance within classes, of all variance", ONE,
                                     {"share": "tr Σ_W / tr Σ_T"}),
    "class_mean_angle": Described("Angle between two centered class means", "degrees", {
        "smallest": "of all pairs", "mean": "of all pairs", "largest": "of all pairs"}),
    "class_mean_cosine": Described(
        "Cosine of two centered class means, for at most ten classes", "−1 to 1",
        {"classes_*_*": "of these two classes, numbered as in the cell"}),
    "effective_rank": Described("How many directions the features use", "directions",
                                {"covariance": "of all images"}),
    "view_distance": Described("Distance between views of an image", "squared, 0 to 4", {
        "squared": "mean of 2 − 2 cos",
        "relative": "divided by that between different images: about 1 if views are no closer",
    }),
    "uniformity": Described("How evenly z is spread over the sphere; lower is more even", "nats",
                            {"t_2": "log mean exp(−2 ‖z_i − z_j‖²)"}),
    "weight_gap": Described("Distance of the weights from the reference's, relative", "0 to 2",
                            {"mean_layer": "mean over layers of the encoder"}),
    "weight_gap_layer": Described("The same of one layer", "0 to 2", {"encoder.*": "its name"}),
    "weight_distance": Described("Distance of all trained weights from the reference's", "none",
                                 {"euclidean": "of encoder and projector"}),
    "weight_angle": Described("Angle between the weights of two encoders", "degrees", {
        "weights": "of the weights",
        "from_init": "of the paths from the common initial weights",
    }),
    "merged_nccc": Described("`nccc` of a network between the reference and the objective",
                             ACCURACY, LAMBDA),
    "merged_linear_probe": Described("`linear_probe` of this network", ACCURACY, LAMBDA),
    "merged_cka": Described("CKA of this network with the reference, biased", ONE, LAMBDA),
    "merged_cka_to_objective": Described("CKA of this network with the objective, biased", ONE,
                                         LAMBDA),
}

THEOREM_1 = {
    "theorem_1_stated": "ρ or r from Theorem 1's bound on the drift, as stated",
    "theorem_1_realised": "the same with the class fractions of the batches that were drawn",
}
DRIFTS = {
    "stated": "Theorem 1 as stated",
    "realised": "with the class fractions of the batches that were drawn",
    "effective_step": "with lr / (1 − momentum) as the step",
}
OF_SHOTS = {
    "best_shots_*": "the least of the bound over its free constant a, with so many shots",
    "displayed_shots_*": "the form that P1 displays, with so many shots",
}
QUANTITIES: dict[str, Described] = {
    "gap": Described("Loss gap DCL − NSCL over the whole set (also at least 0)", "nats", TAUS),
    "batch_gap": Described("Loss gap, mean over batches", "nats", TRAINING_TAU),
    **{f"gap_{kind}_labels": METRICS[f"gap_{kind}_labels"] for kind in LABELS},
    "cka": Described("CKA with DCL, biased, on cosines", ONE,
                     {**BOUND_FROM_DISTANCE, **THEOREM_1}),
    "rsa": Described("RSA with DCL; r in place of ρ", "−1 to 1",
                     {**BOUND_FROM_DISTANCE, **THEOREM_1}),
    "drift": Described("Distance of DCL's and NSCL's similarities of z, training images, plain SGD",
                       "Frobenius norm", DRIFTS),
    "drift_not_comparable": Described(
        "The same of h, of test images or of other optimizers, which no theorem is about",
        "Frobenius norm", DRIFTS),
    "batch_composition": Described(
        "Largest difference of a class's share of a batch from its share of all images", ONE,
        {"largest": "over all batches so far"}),
    "centring": Described("Distance of centered similarity matrices; bounded by that without "
                          "centering", "Frobenius norm", {"difference": "from DCL's"}),
    "reweighting": Described("Difference of two softmax weights in the proof of Theorem 1", "none",
                             {"batch": "of the anchor nearest to the bound"}),
    "smoothness_of_gradient": Described(
        "Difference of gradients at two similarity matrices, in the proof of Theorem 1", "none", {
            "dcl_gradient": "of DCL's gradient", "nscl_gradient": "of NSCL's gradient"}),
    **{f"few_shot_error_{way}": Described(
        f"Few-shot error of the nearest class center, {ways}, all images from the test set",
        ACCURACY, OF_SHOTS) for way, ways in WAYS.items()},
    **{f"few_shot_error_from_train_{way}": Described(
        f"The same, {ways}, with labeled training images, which the proposition is not about",
        ACCURACY, OF_SHOTS) for way, ways in WAYS.items()},
    "smoothness": Described("β of the bound on weights: largest curvature of the loss", "none",
                            {"largest_eigenvalue": "of the Hessian, by power iterations"}),
    "gradient_norm": Described("G of the bound on weights: norm of the gradient", "none",
                               {"largest": "of all steps so far"}),
    "weight_distance": Described("Distance of NSCL's weights from DCL's", "Euclidean norm",
                                 {"form": "form of Theorem 2 with the estimated β and G"}),
}
# fmt: on
