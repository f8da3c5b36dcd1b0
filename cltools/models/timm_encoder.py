"""`architecture: timm:NAME`: any image model of timm as the encoder of a cell.

Its initial weights are drawn by timm's own scheme for that model, which rules for single kinds of
layers could not repeat; see `cltools.maths.randomness.initialize`.

Dropout and stochastic depth are switched off, because nothing may draw random numbers in training.
"""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from cltools.config.architectures import TIMM
from cltools.maths.randomness import drawing
from cltools.models.names import timm_name
from cltools.models.weights import first_line
from cltools.runtime.errors import InputError


class TimmEncoder(nn.Module):
    """Images (n, c, h, w) to features h (n, features), by a model of timm without its classifier.

    name: the model in timm, e.g. "resnet10t". image_shape: (h, w, c); models of a fixed size are
    built for it. patch: side of the patches of a model that has them; None leaves the model's own.

    Raises InputError where timm has no such model, and where it does not take such images or
    patches, puts out no vector per image, or draws random numbers in training.
    """

    def __init__(self, name: str, image_shape: tuple[int, int, int], patch: int | None = None):
        super().__init__()
        self._make = partial(_model, name, image_shape, patch)
        with drawing("timm"):
            self.model = self._make()
        self.features = _width(self.model, name, image_shape)

    def draw_weights(self) -> None:
        self.model.load_state_dict(self._make().state_dict())

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model(x)
        return features

    def layers(self) -> dict[str, nn.Module]:
        """Name -> module of the stages or blocks that timm itself takes features from.

        None of models whose maps have the channels last, which others would average wrongly.
        """
        modules = dict(self.model.named_modules())
        taken: Any = getattr(self.model, "feature_info", [])
        names = [info["module"] for info in taken if info["module"] in modules]
        last = getattr(self.model, "output_fmt", None) == "NHWC"
        return {} if last else {name: modules[name] for name in names}


@cache
def timm_size(
    name: str, side: int, channels: int, patch: int | None
) -> tuple[int, int, int, tuple[int, ...]]:
    """(operations of one image, parameters, features, widths of layers) of an encoder.

    It is built, but not filled. Raises InputError as `TimmEncoder`.
    """
    from torch.utils.flop_counter import FlopCounterMode  # most cells do not need it

    widths: list[int] = []

    def note(module: nn.Module, given: Any, out: Tensor) -> None:
        widths.append(out.shape[1 if out.ndim == 4 else -1])

    with torch.device("meta"):
        encoder = TimmEncoder(name, (side, side, channels), patch).eval()
        for module in encoder.layers().values():
            module.register_forward_hook(note)
        with FlopCounterMode(display=False) as counted:
            encoder(torch.empty(1, channels, side, side))
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return counted.get_total_flops(), parameters, encoder.features, tuple(widths)


def timm_arguments(
    name: str, image_shape: tuple[int, int, int], patch: int | None
) -> dict[str, Any]:
    """What timm builds a model for such images with: channels, and sizes where it takes them.

    Raises InputError where timm has no such model.
    """
    import timm  # imported here because it takes seconds

    height, width, channels = image_shape
    options: dict[str, Any] = {} if patch is None else {"patch_size": patch}
    found: dict[str, Any] = timm.models.resolve_model_input_args(
        timm_name(name), {"input_size": (channels, height, width)}, **options
    )
    return {k: v for k, v in found.items() if k not in ("model_name", "pretrained_cfg")}


def _model(name: str, image_shape: tuple[int, int, int], patch: int | None) -> nn.Module:
    """A new model of timm."""
    import timm

    arguments = timm_arguments(name, image_shape, patch)
    try:
        model: nn.Module = timm.create_model(name, **arguments, num_classes=0)
    except TypeError as error:
        if patch is None or "patch_size" not in str(error):
            raise _unfit(name, image_shape, error) from error
        raise InputError(
            f"config key patch is {patch}, but {TIMM}{name} takes no size of patches: leave it out"
        ) from None
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise _unfit(name, image_shape, error) from error
    _switch_off_randomness(model)
    _stride_outside(model)
    return model


def _switch_off_randomness(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for rate in ("drop_prob", "drop_rate"):  # of timm's DropPath and DropBlock; of models
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)


def _stride_outside(model: nn.Module) -> None:
    """Let narrow 1 x 1 convolutions with a stride be ones with stride 1 of every stride-th pixel.

    `training.networks.EveryOther` says why.
    """
    for module in model.modules():
        if type(module) is not nn.Conv2d or module.in_channels >= 64:
            continue
        if module.kernel_size == (1, 1) and module.padding == (0, 0) and max(module.stride) > 1:
            module.register_forward_pre_hook(partial(_every, module.stride))
            module.stride = (1, 1)


def _every(stride: tuple[int, ...], module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0][:, :, :: stride[0], :: stride[1]]


@torch.no_grad()
def _width(model: nn.Module, name: str, image_shape: tuple[int, int, int]) -> int:
    """The number of features, found by two images.

    timm's `num_features` is that before the last layers of some models. Raises InputError as
    `TimmEncoder`.
    """
    height, width, channels = image_shape
    images = torch.zeros(2, channels, height, width)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    try:
        features = model.train()(images)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unfit(name, image_shape, error) from error
    for buffer_name, buffer in model.named_buffers():
        buffer.copy_(before[buffer_name])  # statistics of batch normalization
    if not torch.equal(state, torch.get_rng_state()):
        raise InputError(
            f"config key architecture is {TIMM}{name}, which draws random numbers in training, so "
            "that runs could not be resumed: choose another model"
        )
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise InputError(
            f"config key architecture is {TIMM}{name}, which puts out no vector for each image: "
            "choose another model"
        )
    return features.shape[1]


def _unfit(name: str, image_shape: tuple[int, int, int], error: Exception) -> InputError:
    height, width, _ = image_shape
    return InputError(
        f"{TIMM}{name} does not take images of {height} × {width} pixels ({first_line(error)}): "
        "set config key architecture to another model, or patch to a smaller one if it has patches"
    )
