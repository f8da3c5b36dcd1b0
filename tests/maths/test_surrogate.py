"""Similarity descent: its gradients, P2's inequalities on hundreds of runs, and planted faults."""

import numpy as np
import polars as pl
import pytest
import torch

from cltools.maths import surrogate
from cltools.maths.objectives import contrastive_loss, pair_masks
from cltools.maths.surrogate import batch_gradient, similarities_of_views, similarity_descent
from cltools.runtime.errors import InputError
from cltools.stages import surrogate as stage
from cltools.stages.surrogate import gaussian_views

ROUNDING = 1e-9  # relative; what float64 sums over a reference set may be off by, amply


def configuration(seed):
    """A random reference set, batches, learning rates and temperature: (C, τ, B, η) all vary."""
    rng = np.random.default_rng(seed)
    classes, images = int(rng.integers(2, 21)), int(rng.integers(24, 60))
    size, steps = int(rng.integers(8, 25)), 12
    z, labels = gaussian_views(classes, images, 8, rng.uniform(0.1, 2), 0.3, rng)
    batches = np.array([rng.permutation(images)[:size] for _ in range(steps)])
    tau = float(np.exp(rng.uniform(np.log(0.05), np.log(10))))
    # From steps that hardly move an entry to steps that take most of them to the edge.
    lrs = rng.uniform(0.5, 1.5, steps) * size * tau * 10 ** rng.uniform(-4, 1)
    return similarities_of_views(z), labels, batches, lrs, tau


def two_classes(labels, batches):
    return all(len(np.unique(labels[batch])) > 1 for batch in batches)


CONFIGURATIONS = [
    c for c in map(configuration, range(420)) if two_classes(labels=c[1], batches=c[2])
]


@pytest.mark.parametrize("name", ["dcl", "nscl"])
@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_gradient_is_that_of_the_objective(name, tau):
    """Σ's rows are the first views' rows of the logits, of which `objectives` has the loss."""
    rng = np.random.default_rng(0)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    size = len(labels)
    sigma = torch.from_numpy(rng.uniform(-1, 1, (2 * size, 2 * size))).requires_grad_()
    masks = pair_masks(labels, views=2)
    contrastive_loss(name, sigma / tau, masks).backward()
    negatives = (masks.other_image if name == "dcl" else masks.other_class)[:size].numpy()
    ours = batch_gradient(sigma.detach().numpy()[:size], negatives, tau)
    # `objectives` means over the anchors of both views, P2's theory over those of the first.
    np.testing.assert_allclose(ours, 2 * sigma.grad[:size].numpy(), atol=1e-14)


def test_one_step_by_autograd_from_the_formula():
    sigma, labels, batches, lrs, tau = configuration(3)
    batch, lr, images = batches[0], lrs[0], len(labels)
    states = []
    for negative in (lambda i, t: t != i, lambda i, t: labels[t] != labels[i]):
        state = torch.from_numpy(sigma).clone().requires_grad_()
        loss = 0.0
        for i in batch:
            others = [t for t in batch if negative(i, t)]
            total = sum(
                (state[i, t] / tau).exp() + (state[i, t + images] / tau).exp() for t in others
            )
            loss = loss - torch.log((state[i, i + images] / tau).exp() / total) / len(batch)
        (gradient,) = torch.autograd.grad(loss, state)
        states.append((gradient, (state - lr * gradient).clamp(-1, 1).detach()))
    (cl_gradient, cl), (nscl_gradient, nscl) = states
    step = similarity_descent(sigma, labels, batches[:1], lrs[:1], tau)
    assert step.gradient_gap[0] == pytest.approx((cl_gradient - nscl_gradient).norm().item())
    assert step.distance[0] == pytest.approx((cl - nscl).norm().item())


def holds(run):
    """Whether all inequalities that are certain hold at all steps, up to rounding."""
    with np.errstate(divide="ignore"):
        log10_distance = np.log10(run.distance)
    return bool(
        (run.gradient_gap <= run.gradient_gap_bound * (1 + ROUNDING)).all()
        and (run.distance <= run.step_bound * (1 + ROUNDING)).all()
        and (log10_distance <= run.log10_bound_realised + ROUNDING).all()
    )


def test_every_inequality_holds_on_hundreds_of_runs():
    runs = [similarity_descent(*c) for c in CONFIGURATIONS]
    assert len(runs) > 400
    assert all(map(holds, runs))
    # They are tried hard: runs that drift far, and gaps near their bound. (It cannot be reached
    # with many negatives: P2 bounds the 2-norm of p - q by the 1-norm.)
    assert max(run.distance[-1] for run in runs) > 10
    assert max((run.gradient_gap / run.gradient_gap_bound).max() for run in runs) > 0.1


def test_theorem_1_as_stated_holds_wherever_it_claims_something():
    claimed = 0
    for c in CONFIGURATIONS:
        run = similarity_descent(*c)
        claimed += np.isfinite(run.log10_bound[0])
        with np.errstate(divide="ignore"):
            assert (np.log10(run.distance) <= run.log10_bound + 1e-9).all()
    assert claimed > 100


def broken_runs():
    return sum(not holds(similarity_descent(*c)) for c in CONFIGURATIONS)


def test_a_wrong_temperature_of_nscl_is_found(monkeypatch):
    def faulty(block, negatives, tau):
        is_cl = negatives.sum() == 2 * len(block) * (len(block) - 1)
        return batch_gradient(block, negatives, tau if is_cl else 0.5 * tau)

    monkeypatch.setattr(surrogate, "batch_gradient", faulty)
    assert broken_runs() > 50  # not where τ is so small that Δ allows anything


def test_forgetting_the_same_class_mass_is_found(monkeypatch):
    monkeypatch.setattr(surrogate, "delta_pi", lambda tau, pi_max, *_: 0.0 * np.asarray(pi_max))
    assert broken_runs() > 0.95 * len(CONFIGURATIONS)


def test_other_batches_for_nscl_are_found(monkeypatch):
    """The bound is of shared batches: a gradient of shuffled anchors is outside it."""

    def faulty(block, negatives, tau):
        gradient = batch_gradient(block, negatives, tau)
        is_cl = negatives.sum() == 2 * len(block) * (len(block) - 1)
        return gradient if is_cl else np.roll(gradient, 1, axis=0)

    monkeypatch.setattr(surrogate, "batch_gradient", faulty)
    assert broken_runs() > 100


def test_with_a_class_per_image_the_two_are_one():
    sigma, labels, batches, lrs, tau = configuration(5)
    run = similarity_descent(sigma, np.arange(len(labels)), batches, lrs, tau)
    assert (run.distance == 0).all()
    assert (run.gradient_gap == 0).all()


def test_the_input_is_left_alone():
    sigma, labels, batches, lrs, tau = configuration(5)
    before = sigma.copy()
    similarity_descent(sigma, labels, batches, lrs, tau)
    assert np.array_equal(sigma, before)


def test_what_does_not_fit_is_refused():
    sigma, labels, batches, lrs, tau = configuration(5)
    with pytest.raises(ValueError, match=r"\(N, 2N\)"):
        similarity_descent(sigma[:, :-1], labels, batches, lrs, tau)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        similarity_descent(sigma * 2, labels, batches, lrs, tau)
    with pytest.raises(ValueError, match="twice"):
        similarity_descent(sigma, labels, batches[:, [0, 0, 1]], lrs, tau)
    with pytest.raises(ValueError, match=r"\(T, B\)"):
        similarity_descent(sigma, labels, batches, lrs[1:], tau)
    with pytest.raises(ValueError, match="two of the"):
        similarity_descent(sigma, labels, batches + len(labels), lrs, tau)
    with pytest.raises(ValueError, match="one class"):
        similarity_descent(sigma, np.zeros_like(labels), batches, lrs, tau)
    with pytest.raises(ValueError, match="tau"):
        similarity_descent(sigma, labels, batches, lrs, 0.0)
    with pytest.raises(ValueError, match="learning rates"):
        similarity_descent(sigma, labels, batches, -lrs, tau)
    with pytest.raises(ValueError, match=r"\(2, N, d\)"):
        similarities_of_views(np.ones((3, 4, 5)))
    with pytest.raises(ValueError, match="norm 0"):
        similarities_of_views(np.zeros((2, 4, 5)))


SMALL = {
    "classes": [2, 4],
    "taus": [0.5, 1.0],
    "batch_sizes": [12],
    "sum_lrs": [0.5, 50],
    "seeds": [0, 1],
    "steps": 5,
    "images": 24,
}


def test_stage_writes_a_row_per_run_and_step(tmp_path):
    stage.run(settings=SMALL, output=tmp_path / "a.parquet")
    stage.run(settings=SMALL, output=tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = pl.read_parquet(tmp_path / "a.parquet")
    keys = ["classes", "tau", "batch_size", "total_lr", "seed", "step"]
    assert table.height == table.select(keys).n_unique() == 16 * 5
    last = table.filter(pl.col("step") == 5)
    assert last["sum_lr"].to_list() == pytest.approx(last["total_lr"].to_list())
    assert (table["distance"] <= table["step_bound"] * (1 + 1e-9)).all()
    # The same batches whatever the rest of the cell.
    per_batch = table.group_by("classes", "seed", "step").agg(pl.col("largest_fraction").n_unique())
    assert (per_batch["largest_fraction"] == 1).all()


def test_stage_takes_features(tmp_path):
    z, labels = gaussian_views(3, 30, 4, 0.5, 0.1, np.random.default_rng(0))
    np.save(tmp_path / "z.npy", z)
    np.save(tmp_path / "labels.npy", labels)
    files = {"features": str(tmp_path / "z.npy"), "labels": str(tmp_path / "labels.npy")}
    rest = {key: SMALL[key] for key in ("taus", "batch_sizes", "sum_lrs", "steps")}
    stage.run(settings={**files, **rest, "seeds": [0]}, output=tmp_path / "out.parquet")
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table.height == 4 * 5
    assert table["classes"].unique().to_list() == [3]
    with pytest.raises(InputError, match=r"surrogate\.batch_sizes is \[31\], .* at most the 30"):
        stage.run(settings={**files, "batch_sizes": [31]}, output=tmp_path / "out.parquet")
    np.save(tmp_path / "labels.npy", labels[1:])
    with pytest.raises(InputError, match="30 integer labels"):
        stage.run(settings={**files, **rest}, output=tmp_path / "out.parquet")
    (tmp_path / "labels.npy").write_text("no")
    with pytest.raises(InputError, match=r"not a \.npy file"):
        stage.run(settings={**files, **rest}, output=tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": [1.0]}, r"config key surrogate\.tau is unknown: did you mean taus"),
        ({"taus": [0.0]}, r"config key surrogate\.taus\.0 is 0.0"),
        ({"taus": 1.0}, r"config key surrogate\.taus is 1.0"),
        ({"taus": []}, r"config key surrogate\.taus is wrong"),
        ({"taus": [1.0, 1.0]}, r"config key surrogate\.taus is wrong"),
        ({"batch_sizes": [16, 16]}, r"config key surrogate\.batch_sizes is wrong"),
        ({"batch_sizes": [400]}, r"surrogate\.batch_sizes is \[400\], .* at most the 200 of"),
        ({"classes": [1]}, r"config key surrogate\.classes\.0 is 1, but must be at least 2"),
        ({"classes": [201]}, r"surrogate\.classes is \[201\], .* at most the 200 of"),
        ({"seeds": [True]}, r"config key surrogate\.seeds\.0 is True"),
        ({"spread": -1}, r"config key surrogate\.spread is -1"),
        ({"delta": 1}, r"config key surrogate\.delta is 1, but must be less than 1"),
        ({"features": "z.npy"}, "given together"),
        ({"features": "z.npy", "labels": "y.npy"}, "z.npy does not exist"),
        (
            {"features": "z.npy", "labels": "y.npy", "images": 3},
            r"surrogate\.images is for drawn clusters",
        ),
        ({"classes": [2], "batch_sizes": [2]}, "one class"),
    ],
)
def test_stage_refuses_bad_settings(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        stage.run(settings=settings, output=tmp_path / "out.parquet")
    assert not any(tmp_path.iterdir())


def test_an_archive_is_no_array_of_features(tmp_path):
    np.savez(tmp_path / "z.npz", z=np.ones((2, 3, 4)))
    settings = {"features": str(tmp_path / "z.npz"), "labels": str(tmp_path / "y.npy")}
    with pytest.raises(InputError, match=r"z\.npz is not a \.npy file of numbers"):
        stage.run(settings=settings, output=tmp_path / "out.parquet")
