"""Coupled training of own modules, data and objectives."""

import io
import re
import runpy
from functools import partial

import numpy as np
import pytest
import torch
from fake_gpu import GPU, FakeGpu
from places import ROOT
from small import small_cell
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from cltools.api.training import CoupledTrainer, ViewLoader
from cltools.data.image_set import image_set, open_store
from cltools.maths.alignment import alignment
from cltools.maths.objectives import checked_contrastive_loss
from cltools.training import own_batches
from cltools.training import trainer as pipeline

IMAGES, CLASSES = 48, 3
X = torch.randn(IMAGES, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(IMAGES) % CLASSES
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Small(nn.Module):
    """With batch statistics, dropout and a head."""

    def __init__(self, features=True):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.projector, self.head = nn.Linear(8, 4), nn.Linear(4, CLASSES)
        self.features = features

    def forward(self, x):
        h = self.encoder(x)
        z = self.projector(h)
        return (h, z) if self.features else z

    def class_logits(self, z):
        return self.head(z)


class Noisy(Dataset):
    """Two views of an image, which draw from torch's global generator."""

    def __len__(self):
        return IMAGES

    def __getitem__(self, i):
        view = [X[i] + 0.3 * torch.randn(6) for _ in range(2)]
        return *view, LABELS[i]


def noisy(image):
    return image + 0.3 * torch.randn(6)


def own_dcl(z1, z2, labels):
    return checked_contrastive_loss("dcl", torch.stack([z1, z2]), labels, 0.5)


DATA = {
    "views of own images": lambda: ViewLoader(X, LABELS, transform=noisy, batch_size=16),
    "a loader": lambda: DataLoader(Noisy(), batch_size=16, shuffle=True),
    "a loader with a generator": lambda: DataLoader(
        Noisy(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
}


def trainer(objectives=("dcl", "nscl"), data=None, networks=Small, **options):
    data = DATA["views of own images"]() if data is None else data
    options = {"optimizer": SGD, "device": "cpu", **options}
    return CoupledTrainer(networks, list(objectives), data, **options)


def assert_same_bytes(one, other):
    """Of tensors, alone or in states with other things, which are equal too."""
    leaves, others = tree_leaves(one), tree_leaves(other)
    for a, b in zip(leaves, others, strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b


def weights(made, objective):
    return {name: value.clone() for name, value in made.networks[objective].state_dict().items()}


class OfPipeline(nn.Module):
    """A network of the pipeline, as a module of one's own."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        h = self.network.encoder(images)
        return h, self.network.projector(h)  # not normalized

    def class_logits(self, z):
        return self.network.class_logits(z)


@pytest.mark.parametrize("settings", [
    {"view_forward": "together"}, {"view_forward": "apart", "views": 3}, {"precision": "bfloat16"},
])  # fmt: skip
def test_it_is_the_pipelines_trainer(digits, device, settings):
    """Same networks, batches and rates: the same weights, buffers, losses and norms, to the bit."""
    names = ["dcl", "nscl", "scl", "ce", "nt_xent"]
    cell = small_cell(
        objectives=names, optimizer="sgd", weight_decay=0.0, horizon="9 steps", warmup="2 steps",
        **settings,
    )  # fmt: skip
    images = image_set(open_store(digits, cell), cell, "train", device)
    theirs = pipeline.CoupledTrainer(cell, images, device)
    batches = [theirs.batches["dcl"].at(step) for step in range(4)]
    shape = (cell["views"], cell["batch_size"])
    made = CoupledTrainer(
        {name: OfPipeline(theirs._network(name)) for name in names},
        names,
        [(views.unflatten(0, shape), images.labels[positions]) for views, positions in batches],
        optimizer=partial(torch.optim.SGD, lr=1.0, momentum=cell["momentum"], fused=True),
        scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=theirs.lr_at),
        tau=cell["tau"],
        same_init=False,  # only the network of CE has a head
        device=device,
        **{k: cell[k] for k in ("view_forward", "precision")},
    )
    for _ in range(4):
        theirs.train_step()
    made.train(epochs=1)
    for name in names:
        assert_same_bytes(
            dict(made.networks[name].network.state_dict()),
            dict(theirs.networks[name].state_dict()),
        )
    log, own = theirs.log(4), made.log
    for column in ("dcl", "nscl", "scl", "nt_xent", "grad_norm"):
        assert np.array_equal(own[column].to_numpy(), log[column], equal_nan=True), column
    ce = own.filter(model="ce")
    assert np.array_equal(ce["loss"], log["ce"][log["model"] == "ce"])
    assert own.filter(model="scl")["loss"].equals(own.filter(model="scl")["scl"])


@pytest.mark.parametrize("data", DATA)
def test_together_is_alone(device, data):
    """For each kind of objective, whatever state torch's generators are in."""
    names = ["dcl", "nscl", own_dcl, "ce"]
    data = DATA[data]()
    torch.manual_seed(1)
    together = trainer(names, data, device=device)
    together.train(steps=5)
    for number, name in enumerate(names):
        torch.manual_seed(2 + number)
        alone = trainer([name], data, device=device)
        before = torch.get_rng_state()
        alone.train(steps=5)
        assert torch.equal(torch.get_rng_state(), before)
        called = name if isinstance(name, str) else "own_dcl"
        assert_same_bytes(weights(together, called), weights(alone, called))
        assert together.log.filter(model=called).equals(alone.log, null_equal=True)
    apart = trainer(["dcl"], data, device=device, seed=1)
    apart.train(steps=5)
    assert not apart.log["loss"].equals(together.log.filter(model="dcl")["loss"])


def test_random_layers_draw_the_same_numbers_for_each_objective(device):
    drawn = []

    class Drawing(Small):
        def forward(self, x):
            drawn.append(torch.rand(3, device=x.device))
            return super().forward(x)

    made = trainer(["dcl", "nscl"], networks=Drawing, device=device)
    start = [weights(made, name) for name in ("dcl", "nscl")]
    assert_same_bytes(*start)
    made.train(steps=2)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[1], drawn[2])


def saved(made):
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("data", DATA)
def test_stopped_and_continued_is_uninterrupted(device, data):
    def begun():
        return trainer(
            ["dcl", "nscl"],
            DATA[data](),
            device=device,
            scheduler=lambda one: torch.optim.lr_scheduler.OneCycleLR(one, 0.3, total_steps=12),
        )

    whole = begun()
    whole.train(epochs=4)
    assert whole.step == 12
    first = begun()
    for step in first.iterate(epochs=4):
        if step == 4:
            break
    first.features(first._data.data)  # which reads the data and changes nothing
    state = saved(first)
    second = begun()
    torch.manual_seed(5)
    second.load_state_dict(state)
    second.train(steps=6)  # the end of an epoch
    third = begun()
    third.load_state_dict(saved(second))
    third.train(epochs=4)
    first.train(epochs=4)  # without a state
    for made in (third, first):
        assert_same_bytes(saved(made), saved(whole))
        assert made.log.equals(whole.log, null_equal=True)
    third.train(epochs=4)
    assert third.step == 12
    losses = whole.log.filter(model="dcl")["loss"].to_list()
    assert len(set(losses)) == 12  # no epoch is that before


def test_workers_of_a_loader(device):
    """Their draws follow from the seed too; where they outlive an epoch, there is no state."""
    load = partial(DataLoader, Noisy(), batch_size=16, shuffle=True, num_workers=1)
    one, other = (trainer(data=load(), device=device) for _ in range(2))
    one.train(steps=4)
    other.train(steps=2)
    again = trainer(data=load(), device=device)
    again.load_state_dict(saved(other))
    again.train(steps=4)
    assert_same_bytes(saved(again), saved(one))
    lasting = trainer(data=load(persistent_workers=True), device=device)
    lasting.train(steps=1)
    with pytest.raises(ValueError, match="set persistent_workers=False"):
        lasting.state_dict()


def test_own_objective(device):
    made = trainer(["dcl", own_dcl], device=device)
    made.train(steps=3)
    assert_same_bytes(weights(made, "dcl"), weights(made, "own_dcl"))
    log = made.log.filter(model="own_dcl")
    assert log["loss"].equals(log["dcl"])


def test_objectives_by_name_and_more_views(device):
    """One objective twice, from different weights; a function gets all views."""
    seen = []

    def mine(z1, z2, z3, labels):
        seen.append((z1.shape, z3.shape, labels))
        return (z1 - z2).square().mean() + (z1 - z3).square().mean()

    data = ViewLoader(X, transform=noisy, batch_size=12, views=3)
    networks = {"one": Small(), "two": Small(), "mine": Small(features=False)}
    made = CoupledTrainer(
        networks, {"one": "dcl", "two": "dcl", "mine": mine}, data,
        optimizer=SGD, same_init=False, device=device,
    )  # fmt: skip
    made.train(epochs=1)
    assert made.networks["one"] is networks["one"]
    assert not torch.equal(networks["one"].head.weight, networks["two"].head.weight)
    assert seen[0] == ((12, 4), (12, 4), None)
    log = made.log
    assert log["dcl"].is_finite().all()
    assert log["nscl"].is_nan().all()
    assert log["gap"].is_nan().all()


def test_modules_of_a_mapping_start_from_the_first(device):
    networks = {"dcl": Small(), "nscl": Small()}
    start = {name: value.clone() for name, value in networks["dcl"].state_dict().items()}
    made = trainer(networks=networks, device=device)
    for name in networks:
        assert_same_bytes({k: v.cpu() for k, v in weights(made, name).items()}, start)


def test_what_a_loader_may_give():
    views = torch.rand(2, 4, 3)
    labels = torch.tensor([0, 1, 0, 1], dtype=torch.uint8)
    forms = [
        (views[0], views[1], labels), [views[0], views[1], labels.numpy()], (views, labels),
        ([views[0].numpy(), views[1].numpy()], labels), (list(views), labels),
    ]  # fmt: skip
    for form in forms:
        found, own = own_batches.views_and_labels(form)
        assert_same_bytes(found, list(views))
        assert_same_bytes(own, labels.long())
    for form in (tuple(views), list(views), [list(views)]):
        found, own = own_batches.views_and_labels(form)
        assert_same_bytes(found, list(views))
        assert own is None


PAIR, Y = (torch.rand(4, 6), torch.rand(4, 6)), torch.arange(4) % 2


@pytest.mark.parametrize(("batch", "message"), [
    (PAIR, "nscl needs labels, but the batch of step 0 has none"),
    ((*PAIR, Y * 0), "nscl is undefined at step 0, whose batch is of one class"),
    ((*PAIR, Y[:3]), r"epoch 0: \(Tensor \(4, 6\), Tensor \(4, 6\), Tensor \(3,\)\) does"),
    ((PAIR[0], PAIR[1][:3], Y), "give .view1, view2, labels"),
    ((PAIR[0], Y), "give .view1, view2, labels"),
    ((PAIR[0],), "give .view1, view2, labels"),
    (PAIR[0], "batch 0 of epoch 0: Tensor"),
    ({"view1": PAIR[0]}, "batch 0 of epoch 0: dict does not fit: give"),
    ((*PAIR, Y, Y), "give .view1, view2, labels"),
    ((*PAIR, Y.float()), "labels are torch.float32: give the number of each image's class"),
    ((PAIR[0][:1], PAIR[1][:1], Y[:1]), "one image has no"),
])  # fmt: skip
def test_batches_that_do_not_fit(batch, message):
    """They are refused before any objective has made a step, and the trainer stays usable."""
    made = trainer(data=[batch])
    start = weights(made, "dcl")
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            made.train(steps=1)
    assert_same_bytes(weights(made, "dcl"), start)
    assert made.step == made.state_dict()["step"] == len(made.log) == 0


@pytest.mark.parametrize(("options", "message"), [
    ({"objectives": ["ncsl"]}, "objective ncsl is 'ncsl': use one of dcl, nscl"),
    ({"objectives": ["dcl", "dcl"]}, "two objectives are called dcl: give a mapping"),
    ({"objectives": [lambda a, b, y: 0]}, "has no name: give a mapping"),
    ({"objectives": []}, "no objectives"),
    ({"data": iter([])}, "data is an iterator, which can be passed through once only"),
    ({"data": 3}, "data must be an iterable of batches, not int"),
    ({"optimizer": SGD(Small().parameters())}, "optimizer must be a function from parameters"),
    ({"networks": lambda: 3}, "networks must give a torch module, not int"),
    ({"networks": lambda: nn.LazyLinear(3)}, "the network of dcl has no weights yet"),
    ({"networks": nn.Flatten}, "the network of dcl has no weights that require a gradient"),
    ({"networks": {"dcl": Small()}}, r"networks for \['dcl'\], but objectives \['dcl', 'nscl'\]"),
    ({"networks": dict.fromkeys(("dcl", "nscl"), Small())}, "networks of dcl and nscl share weigh"),
    ({"networks": {"dcl": Small(), "nscl": nn.Linear(6, 4)}}, "cannot have the same weights .Miss"),
    ({"tau": 0}, "temperature must be positive"),
    ({"precision": "half"}, "precision is 'half': use one of float32, tf32, bfloat16"),
    ({"view_forward": "both"}, "view_forward is 'both': use one of together, apart"),
])  # fmt: skip
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options)


@pytest.mark.parametrize(("options", "message"), [
    ({"networks": lambda: nn.Linear(6, 4), "objectives": ["ce"]}, "no method class_logits"),
    ({"networks": lambda: nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (2, 2)))},
     r"gives z \(32, 2, 2\), which must be \(n, d\)"),
    ({"networks": lambda: nn.Sequential(nn.Linear(6, 4), nn.Flatten(0))}, "must give z of shape"),
    ({"objectives": {"mine": lambda a, b, y: 1.0}}, "objective mine must give a tensor with one"),
    ({"objectives": {"mine": lambda a, b, y: a}}, "objective mine must give a tensor with one num"),
])  # fmt: skip
def test_outputs_that_do_not_fit(options, message):
    options = {"networks": Small, "objectives": ["dcl"], **options}
    with pytest.raises(ValueError, match=message):
        CoupledTrainer(data=DATA["a loader"](), optimizer=SGD, device="cpu", **options).train(
            steps=1
        )


def test_a_loss_that_is_not_finite_is_named(device):
    def mine(z1, z2, labels):
        return (z1 - z2).square().mean() + (torch.inf if len(calls) == 3 else 0)

    calls = []
    made = trainer(["dcl", mine], device=device)
    made.networks["mine"].register_forward_pre_hook(lambda *_: calls.append(0))
    with pytest.raises(ValueError, match="the mine loss is not finite at step 2: lower"):
        made.train(steps=5)
    assert len(made.log) == 10
    for use in (made.state_dict, partial(made.train, steps=6)):
        with pytest.raises(ValueError, match="the mine loss is not finite at step 2"):
            use()


def test_a_step_that_was_interrupted(device):
    """What stopped between two objectives is not gone on from, but a state before it is."""
    made, whole = (trainer(device=device) for _ in range(2))
    made.train(steps=2)
    state = made.state_dict()

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = made.networks["nscl"].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        made.train(steps=3)
    hook.remove()
    for use in (made.state_dict, partial(made.train, steps=3)):
        with pytest.raises(ValueError, match="step 2 was interrupted"):
            use()
    made.load_state_dict(state)
    made.train(steps=4)
    whole.train(steps=4)
    assert_same_bytes(made.state_dict(), whole.state_dict())


def test_data_that_are_interrupted_are_read_again(device):
    """A batch that did not come is not left out."""

    class Failing(Noisy):
        fail = False

        def __getitem__(self, i):
            if self.fail:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    images = Failing()
    made = trainer(data=DataLoader(images, batch_size=16, shuffle=True), device=device)
    whole = trainer(data=DATA["a loader"](), device=device)
    made.train(steps=2)
    images.fail = True
    with pytest.raises(KeyboardInterrupt):
        made.train(steps=4)
    images.fail = False
    for one in (made, whole):
        one.train(steps=4)
    assert_same_bytes(made.state_dict(), whole.state_dict())


def test_states_that_do_not_fit():
    made = trainer()
    made.train(steps=2)
    state = made.state_dict()
    with pytest.raises(ValueError, match="not the state_dict of a CoupledTrainer"):
        made.load_state_dict({})
    with pytest.raises(ValueError, match="the state is of a run with seed 0, not 1"):
        trainer(seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"with objectives \[\('dcl', 'dcl'\), .*, not \[.*scl"):
        trainer(["scl"]).load_state_dict(state)
    with pytest.raises(ValueError, match="data gives other batches in epoch 0"):
        trainer(data=DATA["a loader"]()).load_state_dict(state)
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
    with pytest.raises(ValueError, match="other schedulers"):
        trainer(scheduler=constant).load_state_dict(state)
    with pytest.raises(ValueError, match="give either steps or epochs"):
        made.train()
    with pytest.raises(ValueError, match="data gives no batch in epoch 0"):
        trainer(data=[]).train(epochs=1)


def test_features_and_their_alignment(device):
    made = trainer(["dcl", "nscl"], device=device)
    made.train(steps=3)
    h, z = made.features(X), made.features([(X[:30], LABELS[:30]), [X[30:]]], "z")
    assert {name: x.shape for name, x in h.items()} == {"dcl": (IMAGES, 8), "nscl": (IMAGES, 8)}
    network = made.networks["nscl"]
    assert network.training
    network.eval()
    with torch.no_grad():
        expected = [one.cpu() for one in network(X.to(device))]
    torch.testing.assert_close(torch.from_numpy(h["nscl"]), expected[0])
    unit = nn.functional.normalize(expected[1], dim=1)
    torch.testing.assert_close(torch.from_numpy(z["nscl"]), unit)
    assert made.alignment(X) == alignment(h, device=device)
    plain = trainer(["dcl"], networks=partial(Small, features=False), device=device)
    assert plain.features(X)["dcl"].shape == (IMAGES, 4)
    with pytest.raises(ValueError, match="the network of dcl gives no h"):
        plain.features(X, "h")
    with pytest.raises(ValueError, match="no images"):
        plain.features([])


def test_an_image_has_its_view_whatever_batch_it_falls_in():
    """And the whole epoch follows from one number of torch's generator."""

    def epoch(size):
        torch.manual_seed(0)
        loader = ViewLoader(X, torch.arange(IMAGES), transform=noisy, batch_size=size)
        views = list(zip(*loader, strict=True))
        assert len(views[0]) == len(loader)
        first, second, numbers = (torch.cat(one) for one in views)
        return first[numbers.argsort()], second[numbers.argsort()], numbers

    (a1, a2, a), (b1, b2, b) = epoch(12), epoch(16)
    assert torch.equal(a, b)
    assert torch.equal(a1, b1)
    assert torch.equal(a2, b2)
    assert not torch.equal(a1, a2)
    assert torch.equal((a1 - X).argsort(0).argsort(0).unique(), torch.arange(IMAGES))
    assert sorted(a.tolist()) == list(range(IMAGES))


@pytest.mark.parametrize(("options", "message"), [
    ({"labels": LABELS[:3]}, r"labels \(3,\) are not one for each of 48 images"),
    ({"labels": LABELS.double()}, "labels are torch.float64"),
    ({"batch_size": 49}, "batch_size is 49: of 48 images, a batch can hold 2 to 48"),
    ({"views": 1}, "views is 1: contrastive objectives need at least two"),
    ({"transform": lambda x: x[: int(torch.randint(1, 6, ()))]}, "tensors or arrays of one shape"),
    ({"transform": lambda x: None}, "tensors or arrays of one shape"),
])  # fmt: skip
def test_views_that_do_not_fit(options, message):
    options = {"images": X.numpy(), "transform": noisy, "batch_size": 16, **options}
    with pytest.raises(ValueError, match=message):
        list(ViewLoader(**options))


def test_a_step_does_not_wait_for_the_device(monkeypatch):
    """And mixes none: whole steps on a fake GPU."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", (torch.Generator(),))
    names = ["dcl", "nscl", "scl", own_dcl]
    made = trainer(names, data=[(X, X.flip(0), LABELS)], networks=partial(nn.Linear, 6, 4))
    with FakeGpu() as gpu:
        made.device = GPU
        for name, network in made.networks.items():
            made.optimizers[name] = SGD(network.to(GPU).parameters())
        gpu.troubles.clear()
        for _ in range(3):
            batch = made._batch([X, X.flip(0)], LABELS)
            made._train_step(batch)
    assert gpu.operators > 100
    assert not gpu.troubles


@pytest.mark.parametrize("deterministic", [True, False])
def test_settings_of_torch_are_as_before(deterministic):
    """They are those of the pipeline within a step alone."""

    def settings():
        return torch.get_deterministic_debug_mode(), torch.backends.cudnn.allow_tf32

    def watch(*_):
        seen.add(settings())

    seen, before = set(), settings()
    torch.set_deterministic_debug_mode(1)
    torch.backends.cudnn.allow_tf32 = True
    try:
        made = trainer(deterministic=deterministic)
        made.networks["dcl"].register_forward_hook(watch)
        made.train(steps=1)
        made.features(X)
        assert seen == {(2, False) if deterministic else (1, True)}
        assert settings() == (1, True)
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_the_section_of_the_page_trains(capsys, tmp_path):
    section = (ROOT / "docs/python.md").read_text().split("## Coupled training of your own modules")
    (code,) = re.findall(r"^```python\n(.+?)^```$", section[1].split("\n## ")[0], re.M | re.S)
    (tmp_path / "example.py").write_text(code)
    log = runpy.run_path(str(tmp_path / "example.py"))["trainer"].log.filter(model="dcl")
    assert log["loss"][-1] < log["loss"][0]
    assert 0 < float(capsys.readouterr().out.splitlines()[-1]) < 1
