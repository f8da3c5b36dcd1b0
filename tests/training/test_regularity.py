"""Σ(w), its Jacobian and its remainder on small networks, and the run beside its surrogate."""

from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from precise import RECIPE, in_float64, make_float_double
from small import small_cell

from cltools.data.image_set import image_set, open_store
from cltools.maths.randomness import generator, initialize
from cltools.maths.surrogate import (
    batch_gradient,
    batch_negatives,
    similarities_of_views,
    similarity_descent,
    similarity_steps,
    touched_entries,
)
from cltools.measurements.descriptions import COLUMNS
from cltools.runtime.errors import InputError
from cltools.stages import regularity
from cltools.stages.regularity import follow, followed_cell
from cltools.training.networks import build_network
from cltools.training.regularity import (
    FixedViews,
    SimilarityMap,
    reference_set,
    spectral_norm,
    taylor_terms,
)
from cltools.training.trainer import CoupledTrainer

CPU = torch.device("cpu")
IMAGES, SIZE, STEPS = 16, 8, 4


cell = partial(
    small_cell,
    horizon=1,
    batch_size=SIZE,
    base_batch=SIZE,
    projector_hidden=8,
    projector_dim=4,
    lr=0.1,
)


def trainer_of(store, images=IMAGES, steps=STEPS, **settings):
    """A trainer on fixed views of a reference set, as the stage makes it."""
    followed = followed_cell(cell(**settings), steps)
    data = image_set(open_store(store, followed), followed, "train", CPU)
    data = reference_set(data, images, followed["seed"])
    trainer = CoupledTrainer(followed, data, CPU)
    trainer.batches = dict.fromkeys(trainer.networks, FixedViews(followed, data, CPU))
    return trainer


def states(trainer):
    return {
        f"{objective}.{name}": value.clone()
        for objective, network in trainer.networks.items()
        for name, value in network.state_dict().items()
    }


@pytest.fixture(scope="module")
def tiny():
    """Σ(w) of two views of four random images, w, and a direction in the space of w."""
    settings = cell(projector_hidden=4, projector_dim=3)
    network = build_network(settings, (4, 4, 1), 10, "dcl")
    initialize(network, 0)
    views = torch.randn(2, 4, 1, 4, 4, generator=generator("test"))
    similarities = SimilarityMap(network, views)
    weights = similarities.weights(network)
    direction = torch.randn(weights.shape, dtype=weights.dtype, generator=generator("test", 1))
    return similarities, weights, direction / direction.norm()


@pytest.fixture(scope="module")
def jacobian(tiny):
    """∂ vec Σ / ∂w (32, P), entry by entry."""
    similarities, weights, _ = tiny
    return torch.func.jacrev(similarities)(weights).flatten(0, 1)


def test_products_are_those_of_the_explicit_jacobian(tiny, jacobian):
    similarities, weights, direction = tiny
    point = similarities.at(weights)
    assert torch.equal(point.sigma, similarities(weights))
    torch.testing.assert_close(point.jvp(direction).flatten(), jacobian @ direction)
    cotangent = torch.randn(4, 8, dtype=torch.float64, generator=generator("test", 2))
    torch.testing.assert_close(point.vjp(cotangent), jacobian.T @ cotangent.flatten())


def test_spectral_norm_is_that_of_the_explicit_jacobian(tiny, jacobian):
    similarities, weights, _ = tiny
    point = similarities.at(weights)
    exact = torch.linalg.matrix_norm(jacobian, 2).item()
    estimates = [spectral_norm(point, iterations, seed=0) for iterations in (1, 2, 5, 60)]
    assert estimates == sorted(estimates)
    assert estimates[-1] <= exact * (1 + 1e-12)
    assert estimates[-1] == pytest.approx(exact, rel=1e-3)
    with pytest.raises(ValueError, match="1 step or more"):
        spectral_norm(point, 0, seed=0)


def test_jacobian_against_finite_differences(tiny):
    similarities, weights, direction = tiny
    small = 1e-6
    ahead, behind = (
        similarities(weights + small * direction),
        similarities(weights - small * direction),
    )
    torch.testing.assert_close(
        similarities.at(weights).jvp(direction),
        (ahead - behind) / (2 * small),
        atol=1e-7,
        rtol=1e-6,
    )


def test_remainder_is_of_second_order_in_the_weights(tiny):
    similarities, weights, direction = tiny
    point = similarities.at(weights)
    norms = [
        taylor_terms(point, similarities.at(weights + length * direction))[1].norm().item()
        for length in (1e-4, 5e-5, 2.5e-5)
    ]
    assert norms[0] / norms[1] == pytest.approx(4, rel=0.02)
    assert norms[1] / norms[2] == pytest.approx(4, rel=0.02)


def test_halving_the_learning_rate_quarters_the_remainder(digits, monkeypatch):
    """With a smooth activation: the kinks of ReLU leave remainders of nearly first order."""
    monkeypatch.setattr(F, "relu", lambda x, inplace: F.silu(x))
    monkeypatch.setattr(torch.nn.ReLU, "forward", lambda self, x: F.silu(x))
    remainders = {
        lr: follow(trainer_of(digits, steps=1, lr=lr), 1, 1, 0.05)["remainder"].to_numpy()
        for lr in (1e-4, 5e-5)
    }
    np.testing.assert_allclose(remainders[1e-4] / remainders[5e-5], 4, rtol=0.03)


def test_sigma_is_that_of_the_network_on_the_reference_set(digits):
    trainer = trainer_of(digits)
    network, views = trainer.networks["dcl"], trainer.batches["dcl"].views
    similarities = SimilarityMap(network, views)
    sigma = similarities(similarities.weights(network)).numpy()
    with torch.no_grad():
        z = network.train()(views.flatten(0, 1))[1]
    expected = similarities_of_views(z.view(2, IMAGES, -1).numpy())
    assert sigma.shape == (IMAGES, 2 * IMAGES)
    np.testing.assert_allclose(sigma, expected, atol=1e-5)


def test_reference_set_is_even_over_classes(digits):
    data = image_set(open_store(digits, cell()), cell(), "train", CPU)
    chosen = reference_set(data, 23, seed=0)
    assert torch.bincount(chosen.labels).tolist() == [3, 3, 3, *[2] * 7]
    assert (chosen.samples.diff() > 0).all()
    where = torch.isin(data.samples, chosen.samples)
    assert torch.equal(chosen.labels, data.labels[where])
    assert torch.equal(chosen.images, data.images[where])
    assert not torch.equal(chosen.samples, reference_set(data, 23, seed=1).samples)
    assert torch.equal(reference_set(data, 120, seed=0).samples, data.samples)


def test_epoch_0_is_the_coupled_trainer_s(digits, monkeypatch):
    """The same batches, views and steps; after it, the views stay what they were."""
    make_float_double(monkeypatch)
    ours = in_float64(trainer_of(digits, recipe=RECIPE))
    plain = in_float64(CoupledTrainer(ours.cell, ours.data, CPU))
    for step in range(plain.steps_per_epoch):
        views, images = plain.batches["dcl"].at(step)
        torch.testing.assert_close(ours.batches["dcl"].at(step)[0], views)
        assert torch.equal(ours.batches["dcl"].at(step)[1], images)
        ours.train_step()
        plain.train_step()
    trained = states(plain)
    for name, value in states(ours).items():
        torch.testing.assert_close(value, trained[name], atol=1e-10, rtol=1e-10)
    order = ours.batches["dcl"].positions(range(STEPS))
    assert torch.equal(ours.data.labels[order], plain.batches["dcl"].labels(STEPS))
    fixed = ours.batches["dcl"].views[:, order[-1]].flatten(0, 1)
    assert torch.equal(ours.batches["dcl"].at(STEPS - 1)[0], fixed)


def test_measuring_leaves_the_run_alone(digits):
    """Weights and running statistics end up with the bytes of a run that nobody measured."""
    measured, plain = trainer_of(digits), trainer_of(digits)
    follow(measured, STEPS, 2, 0.05)
    for _ in range(STEPS):
        plain.train_step()
    expected = states(plain)
    assert all(torch.equal(value, expected[name]) for name, value in states(measured).items())
    assert expected["dcl.encoder.bn1.num_batches_tracked"] == STEPS


def test_the_table_from_its_definitions(digits):
    trainer = trainer_of(digits)
    similarities = SimilarityMap(trainer.networks["dcl"], trainer.batches["dcl"].views)
    labels, batches = (
        trainer.data.labels.numpy(),
        trainer.batches["dcl"].positions(range(STEPS)).numpy(),
    )
    reached = {o: [similarities.weights(n)] for o, n in trainer.networks.items()}
    for _ in range(STEPS):
        trainer.train_step()
        for objective, network in trainer.networks.items():
            reached[objective].append(similarities.weights(network))
    sigma = {o: [similarities(w).numpy() for w in ws] for o, ws in reached.items()}
    table = follow(trainer_of(digits), STEPS, 2, 0.05)
    assert table["step"].to_list() == [s for s in range(1, STEPS + 1) for _ in "ab"]
    assert table["objective"].to_list() == ["dcl", "nscl"] * STEPS

    lrs = table.filter(pl.col("objective") == "dcl")["lr"].to_numpy()
    assert lrs == pytest.approx(0.05 * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS)))
    start = sigma["dcl"][0]
    assert np.array_equal(start, sigma["nscl"][0])
    start = start.clip(-1, 1)
    descent = similarity_descent(start, labels, batches, lrs, 0.5)
    for number, objective in enumerate(["dcl", "nscl"]):
        rows = table.filter(pl.col("objective") == objective)
        ours = np.array(sigma[objective])

        def same(column, values, rows=rows):
            np.testing.assert_allclose(rows[column].to_numpy(), values, rtol=1e-6, err_msg=column)

        def norms(matrices):
            return [np.linalg.norm(m) for m in matrices]

        surrogate = [s[number].copy() for s in similarity_steps(start, labels, batches, lrs, 0.5)]
        same("surrogate_distance", descent.distance)
        same("log10_bound", descent.log10_bound)
        same("log10_bound_realised", descent.log10_bound_realised)
        same("sum_lr", np.cumsum(lrs))
        same("sum_lr_squared", np.cumsum(lrs**2))
        same("real_distance", norms(np.array(sigma["dcl"]) - np.array(sigma["nscl"]))[1:])
        apart = np.array(sigma["dcl"]) - np.array(sigma["nscl"])
        used = [set() for _ in range(STEPS)]
        for step, batch in enumerate(batches):
            pairs = {(i, j + v * IMAGES) for i in batch for j in batch for v in (0, 1)}
            used[step] = used[step - 1] | pairs
        same(
            "touched_distance",
            [
                np.sqrt(sum(d[entry] ** 2 for entry in entries))
                for d, entries in zip(apart[1:], used, strict=True)
            ],
        )
        same("moved", norms(np.diff(ours, axis=0)))
        same("displacement", norms(ours[1:] - start))
        same("surrogate_displacement", norms(np.array(surrogate) - start))
        same("surrogate_error", norms(ours[1:] - surrogate))
        inner = np.einsum("tij,tij->t", ours[1:] - start, np.array(surrogate) - start)
        lengths = rows["displacement"] * rows["surrogate_displacement"]
        same("displacement_cosine", inner / lengths.to_numpy())
        same("surrogate_error_ratio", (rows["surrogate_error"] / rows["displacement"]).to_numpy())
        same("remainder_ratio", (rows["remainder"] / rows["moved"]).to_numpy())

        # The third step, from the explicit gradient: weights 2 to 3 by batch 2.
        block = touched_entries(batches[2], IMAGES)
        negatives = batch_negatives(labels[batches[2]])[number]
        gradient = torch.zeros(start.shape, dtype=torch.float64)
        gradient[block] = torch.from_numpy(batch_gradient(ours[2][block], negatives, 0.5))
        point = similarities.at(reached[objective][2])
        pulled = point.vjp(gradient)
        pushed = point.jvp(pulled)
        step = reached[objective][2] - reached[objective][3]
        row = rows.row(2, named=True)
        cosine = F.cosine_similarity
        assert row["amplification"] == pytest.approx((pushed.norm() / gradient.norm()).item())
        assert row["amplification_cosine"] == pytest.approx(
            cosine(pushed.flatten(), gradient.flatten(), dim=0).item()
        )
        assert row["weight_step_cosine"] == pytest.approx(cosine(step, pulled, dim=0).item())
        assert row["jacobian_norm"] == pytest.approx(spectral_norm(point, 2, seed=0))


def test_the_terms_of_a_step_from_the_explicit_jacobian(digits):
    """Products of whole matrices, for 8 images: J of `torch.autograd` has 128 rows."""
    images, size, lr = 8, 4, 0.1
    make = partial(trainer_of, digits, images=images, steps=1, batch_size=size, base_batch=size)
    trainer = make()
    similarities = SimilarityMap(trainer.networks["dcl"], trainer.batches["dcl"].views)
    before = similarities.weights(trainer.networks["dcl"])
    jacobian = torch.autograd.functional.jacobian(similarities, before).flatten(0, 1)
    preconditioner = jacobian @ jacobian.T
    trainer.train_step()
    (batch,) = trainer.batches["dcl"].positions(range(1)).numpy()
    start, labels = similarities(before), trainer.data.labels.numpy()
    table = follow(make(), 1, 200, 0.05)
    assert table["lr"].to_list() == [lr, lr]
    norm = torch.linalg.eigvalsh(preconditioner)[-1].item()
    assert table["jacobian_norm"].to_numpy() ** 2 == pytest.approx(norm, rel=1e-3)

    for number, objective in enumerate(["dcl", "nscl"]):
        row = table.row(number, named=True)
        after = similarities.weights(trainer.networks[objective])
        block = touched_entries(batch, images)
        gradient = torch.zeros_like(start)
        negatives = batch_negatives(labels[batch])[number]
        gradient[block] = torch.from_numpy(batch_gradient(start[block].numpy(), negatives, 0.5))
        ours = preconditioner @ gradient.flatten()
        moved = (similarities(after) - start).flatten()
        first = jacobian @ (after - before)
        expected = {
            "moved": moved,
            "first_order": first,
            "preconditioned": lr * ours,
            "other_gradient": first + lr * ours,
            "remainder": moved - first,
        }
        found = {name: row[name] for name in expected}
        assert found == pytest.approx({n: v.norm().item() for n, v in expected.items()}, rel=1e-6)
        cosine = F.cosine_similarity(ours, gradient.flatten(), dim=0).item()
        assert row["amplification_cosine"] == pytest.approx(cosine)


def test_the_bound_with_steps_as_long_as_the_jacobian_makes_them(digits):
    table = follow(trainer_of(digits), STEPS, 2, 0.05)
    labels = trainer_of(digits).data.labels.numpy()
    batches = trainer_of(digits).batches["dcl"].positions(range(STEPS)).numpy()
    total, largest = 0.0, 0.0
    for step, batch in enumerate(batches):
        rows = table.filter(step=step + 1)
        total += rows["lr"][0] * max(rows["jacobian_norm"]) ** 2
        largest = max(largest, np.bincount(labels[batch]).max() / SIZE)
        delta = 2 * np.exp(2 / 0.5) * largest / (1 - largest)
        log = total / (2 * 0.5**2 * SIZE) + np.log(total * delta / (0.5 * np.sqrt(SIZE)))
        assert rows["sum_lr_jacobian"].to_list() == pytest.approx([total] * 2)
        assert rows["log10_bound_jacobian"].to_list() == pytest.approx([log / np.log(10)] * 2)
        beyond = log / np.log(10) - np.log10(2 * np.sqrt(2) * IMAGES)
        assert rows["vacuous_orders_jacobian"].to_list() == pytest.approx([beyond] * 2)


def test_both_start_from_one_jacobian(digits):
    first = follow(trainer_of(digits, classes=2), 1, 2, 0.05)
    assert first["jacobian_norm"].n_unique() == 1
    assert first["remainder"].n_unique() == 2


def test_with_a_class_per_image_the_two_are_one(digits):
    table = follow(trainer_of(digits, images=10), STEPS, 1, 0.05)
    assert (table["real_distance"] == 0).all()
    assert (table["surrogate_distance"] == 0).all()
    assert (table["displacement"] > 0).all()


def test_steps_follow_p2_s_gradient_where_the_batch_is_the_reference_set(digits):
    """Then only the anchors differ, and Jᵀ G is nearly what the weights do."""
    whole = follow(trainer_of(digits, batch_size=IMAGES, lr=1e-3), 3, 1, 0.05)
    part = follow(trainer_of(digits, batch_size=4, lr=1e-3), 3, 1, 0.05)
    assert whole["weight_step_cosine"].min() > 0.9
    assert part["weight_step_cosine"].max() < whole["weight_step_cosine"].min()


SETTINGS = {"steps": 3, "reference_images": IMAGES, "power_iterations": 1}


def test_stage_writes_the_same_bytes_twice(digits, tmp_path):
    for name in ("a", "b"):
        regularity.run(
            cell=cell(),
            store=digits,
            output=tmp_path / f"{name}.parquet",
            settings=SETTINGS,
            device="cpu",
        )
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = pl.read_parquet(tmp_path / "a.parquet")
    assert table.height == 6
    assert table.columns == list(COLUMNS["regularity"])
    assert all(table.select(pl.exclude("objective").is_finite().all()).row(0))


def test_stage_takes_any_cell_for_plain_sgd(digits, tmp_path):
    """What the theory prescribes is set, whatever the cell says of it."""
    lars = cell(optimizer="lars", momentum=0.5, weight_decay=0.1, views=3, warmup=3, horizon=9)
    regularity.run(
        cell=lars, store=digits, output=tmp_path / "a.parquet", settings=SETTINGS, device="cpu"
    )
    regularity.run(
        cell=cell(), store=digits, output=tmp_path / "b.parquet", settings=SETTINGS, device="cpu"
    )
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"reference_images": 7}, {}, r"between batch_size \(8\) and the 120 training images"),
        ({"reference_images": 121}, {}, "reference_images is 121"),
        ({"image": 8}, {}, "regularity.image is unknown"),
        ({"steps": 0}, {}, "regularity.steps is 0"),
        ({"delta": 1}, {}, "regularity.delta is 1"),
        ({"steps": 20}, {"classes": 2, "batch_size": 2}, "of one class.*raise batch_size"),
        ({}, {"lr": 1e30}, "loss is not finite at step 1"),
        ({}, {"dataset": "other"}, "holds 'digits'"),
    ],
)
def test_stage_refuses_bad_input(digits, settings, changes, message, tmp_path):
    output = tmp_path / "out.parquet"
    with pytest.raises(InputError, match=message):
        regularity.run(
            cell=cell(**changes),
            store=digits,
            output=output,
            settings={**SETTINGS, **settings},
            device="cpu",
        )
    assert not any(tmp_path.iterdir())
