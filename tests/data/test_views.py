"""Views against torchvision's transforms, and the randomness rule."""

import pytest
import torch
import torchvision.transforms.v2 as tv
import torchvision.transforms.v2.functional as tvf
from torch.utils._python_dispatch import TorchDispatchMode

from cltools.config.recipes import RECIPES
from cltools.data.views import (
    ADJUSTMENTS,
    COLUMN_COUNT,
    Recipe,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    change_colors,
    crop_and_flip,
    epoch_views,
    gaussian_blur,
    grayscale,
    render,
    view_parameters,
)
from cltools.maths.randomness import batch_order, generator, initialize, view_uniforms


def images(count=6, channels=3, height=9, width=7, seed=0):
    return torch.rand(count, channels, height, width, generator=generator("test", seed))


def recipe(family="cifar", **changes):
    return Recipe.from_settings({**RECIPES[family], **changes})


def parameters(count, chosen, height=32, width=32, seed=0):
    return view_parameters(view_uniforms(seed, 0, 0, count, COLUMN_COUNT), chosen, height, width)


@pytest.mark.parametrize(
    ("ours", "theirs", "amount"),
    [
        (adjust_brightness, tvf.adjust_brightness, 1.3),
        (adjust_brightness, tvf.adjust_brightness, 0.2),
        (adjust_contrast, tvf.adjust_contrast, 0.6),
        (adjust_saturation, tvf.adjust_saturation, 1.4),
        (adjust_hue, tvf.adjust_hue, 0.13),
        (adjust_hue, tvf.adjust_hue, -0.4),
    ],
)
def test_adjustments_equal_torchvision(ours, theirs, amount, device):
    x = images().to(device)
    x[0] = 0.4  # a gray image has no hue
    x[1, :, 0] = 0.0  # black has no saturation
    factor = torch.full((6, 1, 1, 1), amount, device=device)
    assert torch.allclose(ours(x, factor), theirs(x, amount), atol=2e-6)


def test_contrast_of_grey_images_equals_torchvision(device):
    x = images(channels=1).to(device)
    factor = torch.full((6, 1, 1, 1), 0.7, device=device)
    assert torch.allclose(adjust_contrast(x, factor), tvf.adjust_contrast(x, 0.7), atol=2e-6)


def test_blur_and_grayscale_equal_torchvision(device):
    x = images(height=12, width=12).to(device)
    for kernel, sigma in ((3, 1.5), (5, 0.4)):
        ours = gaussian_blur(x, torch.full((6,), sigma, device=device), kernel)
        assert torch.allclose(ours, tvf.gaussian_blur(x, kernel, sigma), atol=1e-6)
    assert torch.allclose(grayscale(x), tvf.rgb_to_grayscale(x), atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (24, 28), (64, 48)])
def test_crop_resize_and_flip_equal_torchvision(size, device):
    """Whatever the box: the two matrices are antialiased bilinear interpolation."""
    chosen = recipe()
    p, x = parameters(200, chosen), images(200, height=32, width=32).to(device)
    out = crop_and_flip(x, p, size)
    for i in range(len(x)):
        box = [int(v[i]) for v in (p.top, p.left, p.height, p.width)]
        expected = tvf.resized_crop(x[i : i + 1], *box, list(size), antialias=True)
        expected = expected.flip(3) if p.flip[i] else expected
        assert torch.allclose(out[i], expected[0], atol=1e-5)
    assert 0.3 < p.flip.float().mean() < 0.7


def test_crop_distribution_is_torchvisions():
    count = 12000
    for height, width in ((32, 32), (20, 48)):
        chosen = recipe()
        p = parameters(count, chosen, height, width)
        theirs = tv.RandomResizedCrop(32, scale=chosen.crop_scale, ratio=chosen.crop_ratio)
        torch.manual_seed(0)
        boxes = [theirs.make_params([torch.empty(3, height, width)]) for _ in range(count)]
        for name in ("top", "left", "height", "width"):
            ours = getattr(p, name).float()
            expected = torch.tensor([box[name] for box in boxes]).float()
            scale = expected.std()
            assert abs(ours.mean() - expected.mean()) < 0.05 * scale
            assert abs(ours.std() - expected.std()) < 0.05 * scale
        assert ((p.top + p.height) <= height).all()
        assert ((p.left + p.width) <= width).all()


def test_jitter_distribution_is_torchvisions():
    p = parameters(6000, recipe(brightness=0.4, hue=0.1))
    assert p.brightness.min() >= 0.6
    assert p.brightness.max() <= 1.4
    assert p.hue.abs().max() <= 0.1
    assert abs(float(p.jitter.float().mean()) - 0.8) < 0.03
    orders, counts = torch.unique(p.order, dim=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 150


def test_render_is_the_chain_of_its_parts(device):
    """Sample by sample through torchvision's functions, in the drawn order."""
    chosen = recipe("imagenet", blur_probability=0.5)
    x = images(40, height=16, width=16).to(device)
    p = parameters(40, chosen, 16, 16)
    out = render(x, p, chosen, (16, 16))
    steps = [tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue]
    for i in range(len(x)):
        box = [int(v[i]) for v in (p.top, p.left, p.height, p.width)]
        one = tvf.resized_crop(x[i : i + 1], *box, [16, 16], antialias=True)
        one = one.flip(3) if p.flip[i] else one
        factors = [float(v[i]) for v in (p.brightness, p.contrast, p.saturation, p.hue)]
        for code in p.order[i].tolist() if p.jitter[i] else []:
            one = steps[code](one, factors[code])
        if p.gray[i]:
            one = tvf.rgb_to_grayscale(one, num_output_channels=3)
        if p.blur[i]:
            one = tvf.gaussian_blur(one, chosen.blur_kernel, float(p.sigma[i]))
        assert torch.allclose(out[i], one[0], atol=1e-4)
    assert p.gray.any()
    assert p.blur.any()


def change_rows(views, p, chosen):
    """What `change_colors` computes, by writing each change into the rows that it concerns."""
    colored = views.shape[1] == 3

    def apply(where, change):
        rows = where.nonzero()[:, 0]
        if len(rows):
            views[rows] = change(views[rows], rows)

    for position in range(4):
        for code, (name, adjust, for_gray) in enumerate(ADJUSTMENTS):
            if getattr(chosen, name) > 0 and (colored or for_gray):
                amount = getattr(p, name)[:, None, None, None]
                apply(
                    p.jitter & (p.order[:, position] == code),
                    lambda x, rows, adjust=adjust, amount=amount: adjust(x, amount[rows]),
                )
    if colored:
        apply(p.gray, lambda x, _: grayscale(x).expand_as(x))
    apply(p.blur, lambda x, rows: gaussian_blur(x, p.sigma[rows], chosen.blur_kernel))
    return views


NO_CHANGE = {"jitter_probability": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0}


@pytest.mark.parametrize(
    ("family", "changes", "shape"),
    [
        *((family, {}, (64, 1 if family == "digits" else 3, 12, 12)) for family in RECIPES),
        ("imagenet", {"blur_probability": 0.5}, (64, 3, 9, 11)),
        ("imagenet", dict.fromkeys(NO_CHANGE, 1.0), (33, 3, 9, 7)),
        ("imagenet", {"blur_probability": 0.5}, (40, 1, 9, 9)),  # gray images have no gray round
        ("imagenet", {"hue": 0.0, "contrast": 0.0}, (40, 3, 9, 9)),
        ("imagenet", {"blur_probability": 0.5}, (1, 3, 8, 8)),
        ("cifar", NO_CHANGE, (8, 3, 8, 8)),
        ("cifar", {**NO_CHANGE, "grayscale_probability": 0.5}, (8, 3, 8, 8)),
    ],
)
def test_colors_are_changed_as_row_by_row(family, changes, shape):
    chosen = recipe(family, **changes)
    for seed in range(3):
        x, p = images(*shape, seed), parameters(shape[0], chosen, *shape[2:], seed)
        assert torch.equal(change_colors(x.clone(), p, chosen), change_rows(x.clone(), p, chosen))


def test_colors_are_changed_without_scattered_writes():
    """On a GPU each of those is about 20 kernels, and each copy from the CPU costs time as well."""
    chosen = recipe("imagenet", blur_probability=0.5)
    p, functions, copies = parameters(60, chosen, 8, 8), [], []
    meta = torch.device("meta")

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device == meta:
                functions.append(function)
                if any(isinstance(x, torch.Tensor) and x.device != meta for x in args):
                    copies.append(function)
            return out

    with Watch():
        change_colors(torch.empty(60, 3, 8, 8, device=meta), p, chosen)
    assert functions.count(torch.ops.aten.index_select.out) == 7
    assert not {f for f in functions if f.name().startswith("aten::index_put")}
    assert len(copies) == 2


def test_a_sample_gets_its_view_whatever_the_batch_and_the_subset(device):
    chosen = recipe("digits")
    x = images(100, channels=1, height=8, width=8).to(device)
    everything = epoch_views(3, 5, 2, 100, torch.arange(100), chosen, 8, 8)
    kept = torch.arange(10, 100, 3)
    subset = epoch_views(3, 5, 2, 100, kept, chosen, 8, 8)
    some = torch.tensor([7, 1, 20])
    for view in (0, 1):
        alone = render(x[kept[some]], subset.rows(view, some), chosen, (8, 8))
        among = render(x, everything.rows(view, torch.arange(100)), chosen, (8, 8))
        # The parameters are the same numbers (below); sums in another batch may round differently.
        assert torch.allclose(alone, among[kept[some]], atol=1e-6)
    for name in ("top", "width", "order", "brightness", "sigma"):
        own = getattr(subset.rows(1, some), name)
        assert torch.equal(own, getattr(everything.rows(1, kept[some]), name))
    both = subset.rows(slice(None), some)
    assert torch.equal(both.top[:3], subset.rows(0, some).top)
    assert torch.equal(both.top[3:], subset.rows(1, some).top)


def test_every_draw_is_a_function_of_its_key():
    torch.manual_seed(1)
    first = (batch_order(0, 1, 50, 8), view_uniforms(0, 1, 0, 50, 4))
    torch.manual_seed(2)
    torch.rand(7)
    second = (batch_order(0, 1, 50, 8), view_uniforms(0, 1, 0, 50, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for changed in (batch_order(0, 2, 50, 8), batch_order(1, 1, 50, 8)):
        assert not torch.equal(first[0], changed)
    for key in ((0, 1, 1), (0, 2, 0), (1, 1, 0)):
        assert not torch.equal(first[1], view_uniforms(*key, 50, 4))
    assert len(set(first[0].flatten().tolist())) == 48  # without replacement, last batch dropped


def test_initial_weights_depend_on_seed_and_name_alone():
    from cltools.training.networks import ARCHITECTURES, Network, Projector, ResNet

    def network(classes, seed, global_seed):
        torch.manual_seed(global_seed)
        encoder = ResNet(ARCHITECTURES["small_resnet"], "cifar", 1, 3)
        model = Network(encoder, Projector([encoder.features, 16, 8]), classes)
        initialize(model, seed)
        return model.state_dict()

    one, other = network(None, 0, 1), network(10, 0, 2)
    assert one.keys() < other.keys()  # CE has a head besides
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    differs = network(None, 1, 1)
    assert not torch.equal(one["encoder.conv1.weight"], differs["encoder.conv1.weight"])
    with pytest.raises(TypeError, match="no initialization rule"):
        initialize(torch.nn.Sequential(torch.nn.PReLU()), 0)
