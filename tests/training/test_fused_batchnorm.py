"""The kernels of SyncBatchNorm compute what the plain operations do.

torch has these kernels for CUDA only. Here they are replaced by what its documentation and its CUDA
code say they compute; where there is a GPU, the kernels themselves are compared.
"""

import pytest
import torch
from ranks import on_ranks
from torch import nn

from cltools.training import batchnorm
from cltools.training.batchnorm import share_statistics
from cltools.training.distributed import join_ranks

NAMES = ("batch_norm_stats", "batch_norm_gather_stats_with_counts", "batch_norm_elemt",
         "batch_norm_backward_reduce", "batch_norm_backward_elemt")  # fmt: skip
SHAPES = [(12, 5, 4, 3), (12, 5)]


def wide(x):
    return x if x.dtype == torch.float64 else x.float()


def along(x, channels):
    return channels.view(-1, *[1] * (x.ndim - 2))


def over(x):
    return [dim for dim in range(x.ndim) if dim != 1]


def batch_norm_stats(x, eps):
    variance, mean = torch.var_mean(wide(x), over(x), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x, means, scales, running_mean, running_var, momentum, eps, counts
):
    assert means.shape == scales.shape == (len(counts), x.shape[1])
    assert counts.dtype == means.dtype == running_mean.dtype
    share, count = counts[:, None] / counts.sum(), counts.sum()
    mean = (share * means).sum(dim=0)
    variance = (share * (1 / scales**2 - eps + (means - mean) ** 2)).sum(dim=0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * count / (count - 1), momentum)
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(x, weight, bias, mean, scale, eps):
    y = (wide(x) - along(x, mean)) * along(x, scale * weight) + along(x, bias)
    return y.to(x.dtype)


def batch_norm_backward_reduce(gradient, x, mean, scale, weight, of_x, of_weight, of_bias):
    assert gradient.shape == x.shape
    centered = wide(x) - along(x, mean)
    sum_g, sum_gx = wide(gradient).sum(over(x)), (wide(gradient) * centered).sum(over(x))
    return sum_g, sum_gx, (sum_gx * scale).to(weight.dtype), sum_g.to(weight.dtype)


def batch_norm_backward_elemt(gradient, x, mean, scale, weight, sum_g, sum_gx, counts):
    assert counts.dtype == torch.int32
    count = counts.sum()
    centered = wide(x) - along(x, mean)
    projected = along(x, scale**2 * sum_gx / count) * centered
    return ((wide(gradient) - along(x, sum_g / count) - projected) * along(x, scale * weight)).to(
        x.dtype
    )


@pytest.fixture
def kernels(monkeypatch):
    take_over(monkeypatch)


def take_over(patch):
    """Take the path of CUDA, with these kernels."""
    for name in NAMES:
        patch.setattr(torch, name, globals()[name])
    patch.setattr(batchnorm, "fused", lambda x: True)


class Alone:
    """One process, as the only rank."""

    size = 1

    def stack(self, own):
        return own[None]

    def sum(self, own):
        return own.clone()


def passed(x, ranks, dtype=torch.float64):
    """Output, gradients and running statistics of a layer that has seen x of one rank."""
    kind = nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d
    layer = nn.Sequential(kind(x.shape[1]).to(x.device, dtype))
    draw = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data += torch.randn(parameter.shape, generator=draw).to(parameter)
    share_statistics(layer, ranks)
    x = x.detach().requires_grad_()
    y = layer(x)
    torch.autograd.backward((y * torch.linspace(-1, 1, y.numel()).view(y.shape).to(y)).sum())
    made = {"y": y, "x": x.grad, "weight": layer[0].weight.grad, "bias": layer[0].bias.grad}
    return {**made, **dict(layer[0].named_buffers())}


def drawn(shape, layout=torch.contiguous_format):
    draw = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(shape, generator=draw, dtype=torch.float64)
    return x.to(memory_format=layout) if len(shape) == 4 else x


def parts_by_both(shape):
    """What this rank computes of its part by the plain operations, and by the kernels."""
    ranks, _ = join_ranks("cpu")
    x = ranks.share(drawn(shape))
    made = []
    for path in ("plain", "fused"):
        with pytest.MonkeyPatch.context() as patch:
            if path == "fused":
                take_over(patch)
            found = passed(x, ranks)
            made.append({name: value.detach().numpy() for name, value in found.items()})
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_compute_what_plain_operations_do(shape):
    """In float64, on two ranks with other images."""
    for plain, fused in on_ranks(2, parts_by_both, shape):
        for name, value in plain.items():
            torch.testing.assert_close(
                torch.from_numpy(fused[name]), torch.from_numpy(value), rtol=1e-11, atol=1e-12
            )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_rank_is_batchnorm(kernels, layout):
    """And the memory layout is kept."""
    x = drawn(SHAPES[0], layout)
    found = passed(x, Alone())
    layer = nn.BatchNorm2d(x.shape[1]).double()
    draw = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data += torch.randn(parameter.shape, generator=draw).to(parameter)
    torch.testing.assert_close(found["y"], layer(x), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found["running_var"], layer.running_var, rtol=1e-11, atol=1e-12)
    assert found["y"].is_contiguous(memory_format=layout)


def test_bfloat16_keeps_its_type(kernels):
    """Statistics and parameters stay float32, as under autocast."""
    found = passed(drawn(SHAPES[0]).bfloat16(), Alone(), torch.float32)
    types = {name: value.dtype for name, value in found.items()}
    assert types["y"] == types["x"] == torch.bfloat16
    assert types["weight"] == types["bias"] == types["running_var"] == torch.float32


def test_which_path_is_taken(monkeypatch):
    """The kernels on CUDA alone, and not while the compiler traces the layer."""
    x = drawn(SHAPES[0])
    assert not batchnorm.fused(x)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        on_gpu = torch.empty(SHAPES[0], device="cuda")
    assert batchnorm.fused(on_gpu)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not batchnorm.fused(on_gpu)


def test_torch_has_these_kernels():
    """With the arguments that are passed here."""
    for name in NAMES:
        (schema,) = (getattr(torch.ops.aten, name).default._schema,)
        count = globals()[name].__code__.co_argcount
        assert len(schema.arguments) == count, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernels_of_the_gpu(monkeypatch, dtype, layout):
    """Kernels and plain operations on CUDA, and the plain ones in float64 on the CPU."""
    x = drawn((64, 32, 16, 16), layout)
    exact = passed(x, Alone())
    fused = passed(x.cuda().to(dtype), Alone(), torch.float32)
    monkeypatch.setattr(batchnorm, "fused", lambda x: False)
    plain = passed(x.cuda().to(dtype), Alone(), torch.float32)
    eps = torch.finfo(dtype).eps
    for name, value in exact.items():
        scale = value.abs().double().max()
        for made in (fused, plain):
            assert (made[name].cpu().double() - value).abs().max() <= 64 * eps * scale, name
