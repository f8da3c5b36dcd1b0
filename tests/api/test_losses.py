"""The losses against a loop from the formula and what the pipeline measures; types and errors."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cltools
from cltools.maths.whole_set import whole_set_losses

LABELS = [0, 1, 2, 0, 1, 0]
TAU = 0.5
NAMES = ("dcl", "nscl", "scl", "nt_xent")
LABELED = ("nscl", "scl")
MODULES = {"dcl": "DCLLoss", "nscl": "NSCLLoss", "scl": "SCLLoss", "nt_xent": "NTXentLoss"}


def views(dtype=torch.float64, device="cpu", scale=3.0):
    """Two views (6, 5), of no particular norm."""
    draw = torch.Generator().manual_seed(0)
    return scale * torch.randn(2, 6, 5, generator=draw, dtype=torch.float64).to(device, dtype)


def loss(name, z1, z2, labels=LABELS, tau=TAU):
    further = {"labels": labels} if name in LABELED else {}
    return getattr(cltools, f"{name}_loss")(z1, z2, **further, tau=tau)


def by_loop(name, z1, z2):
    """The mean over anchors, one cosine at a time."""
    rows = [(label, i, list(map(float, z[i]))) for z in (z1, z2) for i, label in enumerate(LABELS)]

    def e(x, y):
        return math.exp(sum(map(math.prod, zip(x, y, strict=True))) / math.hypot(*x)
                        / math.hypot(*y) / TAU)  # fmt: skip

    terms = []
    for place, (label, i, x) in enumerate(rows):
        others = [(c, j, e(x, y)) for at, (c, j, y) in enumerate(rows) if at != place]
        (positive,) = (value for _, j, value in others if j == i)
        if name == "scl":
            same = [value for c, _, value in others if c == label]
            whole = sum(value for *_, value in others)
            terms.append(-sum(math.log(value / whole) for value in same) / len(same))
            continue
        below = sum(v for c, j, v in others if (c != label if name == "nscl" else j != i))
        terms.append(-math.log(positive / (below + positive * (name == "nt_xent"))))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_formula(name):
    z1, z2 = views()
    assert float(loss(name, z1, z2)) == pytest.approx(by_loop(name, z1, z2), abs=1e-12)
    further = [torch.tensor(LABELS)] if name in LABELED else []
    module = getattr(cltools, MODULES[name])(TAU)
    assert module(z1, z2, *further) == loss(name, z1, z2)
    assert repr(module) == f"{MODULES[name]}(tau=0.5)"


def test_equals_what_the_pipeline_measures():
    z = F.normalize(views(), dim=2)
    measured = whole_set_losses(z, torch.tensor(LABELS), [TAU])[TAU]
    assert float(loss("dcl", *z)) == pytest.approx(measured.dcl, abs=1e-12)
    assert float(loss("nscl", *z)) == pytest.approx(measured.nscl, abs=1e-12)
    gap = float(loss("dcl", *z) - loss("nscl", *z))
    assert 0 < gap < cltools.gap_bound(LABELS, TAU)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    """Against differences, with respect to projections before they are divided by their norms."""
    z1, z2 = (z.clone().requires_grad_() for z in views())
    assert torch.autograd.gradcheck(lambda a, b: loss(name, a, b), (z1, z2))
    z = views(torch.bfloat16)[0].requires_grad_()
    loss(name, z, views()[1].numpy()).backward()
    assert z.grad.dtype == torch.bfloat16
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_every_type_gives_the_same(name, device):
    z1, z2 = views()
    exact = float(loss(name, z1, z2))
    labels = torch.tensor(LABELS, device=device)
    for dtype, error in ((torch.bfloat16, 0.05), (torch.half, 0.005), (torch.float32, 1e-5)):
        own = views(dtype, device)
        found = loss(name, *own, labels)
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(exact, abs=error)
        # Nothing is rounded but the input.
        assert found == loss(name, *own.float(), labels)
        with torch.autocast(device.type, torch.bfloat16):
            assert loss(name, *own, labels) == found
    for convert in (torch.Tensor.numpy, torch.Tensor.tolist, list):
        assert float(loss(name, convert(z1), convert(z2))) == pytest.approx(exact, abs=1e-12)
    single = loss(name, z1.float().numpy(), z2.half().numpy())
    assert single.dtype == torch.float32
    assert not single.requires_grad


@pytest.mark.parametrize(
    "labels",
    [
        np.array(LABELS, dtype=np.float32),
        [f"class {c}" for c in LABELS],
        np.array([f"class {c}" for c in LABELS], dtype=object),
        torch.tensor(LABELS, dtype=torch.uint8),
        [torch.tensor(c) for c in LABELS],
    ],
)
def test_labels_of_any_kind(labels):
    assert loss("nscl", *views(), labels) == loss("nscl", *views(), LABELS)


Z1, Z2 = views()
NOT_FINITE = torch.cat([Z1[:-1], torch.full((1, 5), torch.nan)])


@pytest.mark.parametrize(
    ("name", "changed", "sentence"),
    [
        ("dcl", {"z2": Z2[:5]}, r"must both be \(images, dimensions\), not \(6, 5\) and \(5, 5\)"),
        ("dcl", {"z1": Z1[0], "z2": Z2[0]}, r"not \(5,\) and \(5,\)"),
        ("dcl", {"z1": Z1[:, :0], "z2": Z2[:, :0]}, "must both be"),
        ("dcl", {"z1": Z1[:1], "z2": Z2[:1]}, "at least two images"),
        ("dcl", {"z2": Z2.to("meta")}, "z1 is on cpu and z2 on meta: put both on one device"),
        ("dcl", {"z1": [[1, 2], [3]]}, "the rows of z1 must be of one length"),
        ("dcl", {"z1": [Z1[0], Z1[1, :2]]}, "the rows of z1 must be tensors of one length"),
        ("dcl", {"z1": Z1 > 0}, "z1 must hold real numbers, not torch.bool"),
        ("dcl", {"z1": [["a"]]}, "z1 must hold real numbers, not <U1"),
        ("dcl", {"z2": NOT_FINITE}, "z2 holds NaN, infinity, or rows that are"),
        ("scl", {"z1": (1e30 * Z1).half(), "z2": Z2.half()}, "z1 holds NaN, infinity, or rows"),
        ("dcl", {"z1": (1e-25 * Z1).float(), "z2": Z2.float()}, "z1 holds .* too small"),
        ("dcl", {"tau": 0}, "tau must be a number above 0, not 0"),
        ("nt_xent", {"tau": math.nan}, "tau must be a number above 0, not nan"),
        ("dcl", {"tau": LABELS}, r"tau must be a number above 0, not \[0, 1"),
        ("nscl", {"labels": None}, "labels are missing"),
        ("scl", {"labels": [0, 1, 2, 0, 1, None]}, "labels are missing for some images"),
        ("scl", {"labels": [0, 1, 2, 0, 1, math.nan]}, "labels are missing for some images"),
        ("scl", {"labels": [0, 1]}, r"labels of shape \(2,\) are not one for each of 6 images"),
        ("nscl", {"labels": np.eye(6)}, r"labels of shape \(6, 6\) are not one"),
        ("nscl", {"labels": [4] * 6}, "undefined on a batch of one class"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(name, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        loss(name, **{"z1": Z1, "z2": Z2, **changed})


def test_a_module_refuses_a_wrong_temperature_at_once():
    with pytest.raises(ValueError, match="tau must be a number above 0, not -1"):
        cltools.DCLLoss(-1)
