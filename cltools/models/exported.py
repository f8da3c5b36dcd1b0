"""Our encoders under the names of other libraries, and how to build and load them there.

An encoder has a counterpart in a library if the library's own code builds it, but for its first
layers: the `cifar` stem of a ResNet is a 3 x 3 convolution without pooling, which neither timm nor
torchvision has an option for. What then has to be changed is part of the code that loads it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from cltools.config.architectures import TIMM, TRANSFORMERS, Transformer
from cltools.models.sources import Pictures
from cltools.runtime.errors import InputError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"  # files of a folder
# Side of the images, and of the patches, is in these names, but set to that of the cell.
TIMM_VITS = {64: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224"}
# Parts of timm's names of the tensors of a ViT, and torchvision's; names begin with those that do
# not begin with a point.
TORCHVISION_NAMES = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj.": "conv_proj.",
    "blocks.": "encoder.layers.encoder_layer_",
    "norm.": "encoder.ln.",
    ".norm": ".ln_",
    ".attn.qkv.": ".self_attention.in_proj_",
    ".attn.proj.": ".self_attention.out_proj.",
    ".mlp.fc1.": ".mlp.0.",
    ".mlp.fc2.": ".mlp.3.",
}


class Exported(NamedTuple):
    """Weights under the names of a library, its config, and Python that loads both into `model`."""

    weights: dict[str, Tensor]
    config: dict[str, Any]
    code: str


def exported(
    to: str, cell: Mapping[str, Any], weights: Mapping[str, Tensor], pictures: Pictures
) -> Exported:
    """A trained network's encoder for "timm" or "torchvision".

    `weights` are those of the network, `pictures` what the store says of its images. Raises
    InputError for an encoder that has no counterpart there.
    """
    return {"timm": _for_timm, "torchvision": _for_torchvision}[to](cell, weights, pictures)


def images_about(pictures: Pictures) -> dict[str, Any]:
    """How images are prepared, for configs: sides and statistics, with the channels first."""
    height, width, channels = pictures.image_shape
    return {
        "input_size": [channels, height, width],
        "resize": pictures.resize,
        "interpolation": "bilinear",
        "mean": list(pictures.mean),
        "std": [s or 1.0 for s in pictures.std],
    }


def _for_timm(
    cell: Mapping[str, Any], weights: Mapping[str, Tensor], pictures: Pictures
) -> Exported:
    name, channels = cell["architecture"], pictures.image_shape[2]
    changes: list[str] = []
    if name.startswith(TIMM):
        from cltools.models.timm_encoder import timm_arguments

        architecture, part = name.removeprefix(TIMM), "encoder.model."
        arguments = timm_arguments(architecture, pictures.image_shape, cell["patch"])
    elif name in TRANSFORMERS:
        vit, part = TRANSFORMERS[name], "encoder.vit."
        architecture, arguments = TIMM_VITS[vit.features], _vit_for_timm(vit, weights, pictures)
    else:
        _refuse_resnets(cell, "timm")
        architecture, arguments, part = name, {"in_chans": channels}, "encoder."
        changes = _stem(cell, channels)
    found = {k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)}
    config = _timm_config(architecture, arguments, pictures)
    if changes:
        config["changes_to_what_timm_builds"] = changes
    code = ["import timm"]
    if changes:
        code += ["import torch", "from safetensors.torch import load_file", ""]
        code += ['model = timm.create_model("local-dir:.")', *changes, _load()]
    else:
        code += ["", 'model = timm.create_model("local-dir:.", pretrained=True)']
    code += [
        "model.eval()",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    ]
    return Exported(found, config, "\n".join(code))


def _timm_config(
    architecture: str, arguments: Mapping[str, Any], pictures: Pictures
) -> dict[str, Any]:
    """The config.json from which timm builds a model, with a `pretrained_cfg` for the images."""
    import timm  # imported here because it takes seconds

    about = images_about(pictures)
    kept = ("first_conv", "classifier", "pool_size", "fixed_input_size")
    known = timm.get_pretrained_cfg(architecture)
    of_model = known.to_dict() if known else {}  # type: ignore[no-untyped-call]
    size, resize = about["input_size"][1], about.pop("resize")
    return {
        "architecture": architecture,
        "num_classes": 0,
        "model_args": {**arguments, "num_classes": 0},
        "pretrained_cfg": {
            **{key: of_model[key] for key in kept if key in of_model},
            **about,
            "crop_pct": size / (resize or size),
            "crop_mode": "center",
            "num_classes": 0,
        },
    }


def _vit_for_timm(
    vit: Transformer, weights: Mapping[str, Tensor], pictures: Pictures
) -> dict[str, Any]:
    height, width, channels = pictures.image_shape
    return {
        "img_size": [height, width],
        "patch_size": _patch(weights),
        "in_chans": channels,
        "embed_dim": vit.features,
        "depth": vit.layers,
        "num_heads": vit.heads,
    }


def _patch(weights: Mapping[str, Tensor]) -> int:
    return weights["encoder.vit.patch_embed.proj.weight"].shape[-1]


def _for_torchvision(
    cell: Mapping[str, Any], weights: Mapping[str, Tensor], pictures: Pictures
) -> Exported:
    name, (height, width, channels) = cell["architecture"], pictures.image_shape
    if name.startswith(TIMM):
        raise InputError(
            f"{name} is a model of timm, which torchvision may not have: export it with --to timm "
            "or --to safetensors"
        )
    if name in TRANSFORMERS:
        if height != width:
            raise InputError(
                f"torchvision has no ViT for images of {height} × {width} pixels: export it with "
                "--to timm or --to safetensors"
            )
        vit, patch, part = TRANSFORMERS[name], _patch(weights), "encoder.vit."
        building = [
            "model = torchvision.models.VisionTransformer(",
            f"    image_size={height}, patch_size={patch}, num_layers={vit.layers},",
            f"    num_heads={vit.heads}, hidden_dim={vit.features}, mlp_dim={4 * vit.features},",
            ")",
            "model.heads = torch.nn.Identity()",
        ]
        if channels != 3:
            building.append(
                f"model.conv_proj = torch.nn.Conv2d({channels}, {vit.features}, {patch}, {patch})"
            )
        renamed: Callable[[str], str] = _under_torchvisions_name
    else:
        _refuse_resnets(cell, "torchvision")
        part, renamed = "encoder.", str
        building = [f"model = torchvision.models.{name}()", "model.fc = torch.nn.Identity()"]
        building += _stem(cell, channels, always=channels != 3)
    found = {renamed(k.removeprefix(part)): v for k, v in weights.items() if k.startswith(part)}
    code = ["import torch", "import torchvision", "from safetensors.torch import load_file", ""]
    code += [*building, _load(), "model.eval()"]
    config = {"library": "torchvision", "building": building, **images_about(pictures)}
    return Exported(found, config, "\n".join(code))


def _load() -> str:
    return f'model.load_state_dict(load_file("{WEIGHTS}"))'


def _under_torchvisions_name(name: str) -> str:
    for theirs, others in TORCHVISION_NAMES.items():
        if theirs.startswith(".") or name.startswith(theirs):
            name = name.replace(theirs, others, 1)
    return name


def _refuse_resnets(cell: Mapping[str, Any], library: str) -> None:
    """Raise InputError for a ResNet whose stages no published network has."""
    if cell["architecture"] == "small_resnet" or cell["width"] != 1:
        wide = f" of width {cell['width']}" if cell["width"] != 1 else ""
        raise InputError(
            f"{cell['architecture']}{wide} has no counterpart in {library}: export it with "
            "--to safetensors"
        )


def _stem(cell: Mapping[str, Any], channels: int, always: bool = False) -> list[str]:
    """What makes the first layers of a ResNet those of a cell, as lines of Python."""
    if cell["stem"] == "cifar":
        return [
            f"model.conv1 = torch.nn.Conv2d({channels}, 64, 3, padding=1, bias=False)",
            "model.maxpool = torch.nn.Identity()",
        ]
    if always:
        return [
            f"model.conv1 = torch.nn.Conv2d({channels}, 64, 7, 2, padding=3, bias=False)",
        ]
    return []
