"""Models of other libraries, by name.

- `timm:NAME` is a model of timm, without its classifier. `timm:local-dir:FOLDER` and
  `timm:hf-hub:REPO` are names too.
- `torchvision:NAME` is a model of torchvision that classifies images. Its features are what goes
  into its last linear layer.
- `hf:REPO` is a repository of the Hugging Face hub, or a folder like one, of a model of timm or,
  where transformers is installed, of that library.
- `MODULE:FUNCTION` is what a function without arguments returns, of a module that Python finds in
  the working directory or among the installed ones.

Images are resized, cropped and normalized by the library's own code for evaluation, as the
weights' own settings say. With random weights, mean and standard deviation are those of the store.
A model of `MODULE:FUNCTION` gets images as networks of cells do, unless it has a `pretrained_cfg`
as models of timm have.
"""

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cltools.data.decoding import center
from cltools.maths.randomness import drawing
from cltools.models.names import timm_name, torchvision_name
from cltools.models.outputs import linear_layers
from cltools.models.weights import first_line, load_into, weights_hash
from cltools.runtime.errors import InputError
from cltools.runtime.files import sha256_file

FORMS = "timm:NAME, torchvision:NAME, hf:REPO or MODULE:FUNCTION"
Prepare = Callable[[Image.Image], Tensor]


class Pictures(Protocol):
    """What a store says of its images; `data.store.ImageStore` explains each."""

    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def mean(self) -> list[float]: ...
    @property
    def std(self) -> list[float]: ...
    @property
    def resize(self) -> int | None: ...


@dataclass(frozen=True)
class Wanted:
    """A model as it is asked for.

    weights: "default" (the library's own, downloaded by it if need be), "none" (random ones, from
    the seed) or a file. size: side of its images in pixels; None leaves the model's own.
    """

    model: str
    weights: str = "default"
    seed: int = 0
    size: int | None = None

    @property
    def pretrained(self) -> bool:
        return self.weights == "default"


@dataclass(frozen=True)
class Foreign:
    """A model of another library, in eval mode, on the CPU.

    prepare: from an image to the network's input (c, h, w). channels: of that image, 1 or 3.
    before: the module whose input is the features; None if they are the network's output.
    channels_last: whether its maps are (h, w, c). about: what files say of it, for JSON.
    """

    network: nn.Module
    prepare: Prepare
    channels: int
    before: str | None = None
    channels_last: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)


def load(wanted: Wanted, pictures: Pictures) -> Foreign:
    """The model, with its weights.

    Raises InputError for a model that does not exist, for weights that do not fit it or cannot be
    had, and for images of 3 channels where the model takes 1.
    """
    library, _, name = wanted.model.partition(":")
    if not name:
        raise InputError(f"--model {wanted.model} names no model: give {FORMS}")
    make = _LIBRARIES.get(library, _module)
    with drawing("model", wanted.seed, wanted.model):
        found = make(name, wanted, pictures)
    network = found.network.float().eval().requires_grad_(False)
    if pictures.image_shape[2] > found.channels:
        raise InputError(
            f"{wanted.model} takes gray images, but the store has colored ones: choose another "
            "model"
        )
    given: dict[str, Any] = {"from": {"default": "the library", "none": "random"}.get(
        wanted.weights, Path(wanted.weights).name
    )}  # fmt: skip
    if wanted.weights == "none":
        given["seed"] = wanted.seed
    elif not wanted.pretrained:
        given["file_sha256"] = sha256_file(Path(wanted.weights))
    given["sha256"] = weights_hash(network)
    about = {"model": wanted.model, **found.about, "weights": given}
    return Foreign(network, found.prepare, found.channels, found.before, found.channels_last, about)


# --- timm ------------------------------------------------------------------------------------


def _timm(name: str, wanted: Wanted, pictures: Pictures) -> Foreign:
    import timm  # imported here because it takes seconds

    if ":" not in name:
        timm_name(name)
    with _from_the_library(wanted):
        arguments = timm.models.resolve_model_input_args(name)
        if wanted.size is not None:
            channels = arguments["pretrained_cfg"]["input_size"][0]
            size = {"input_size": (channels, wanted.size, wanted.size)}
            arguments = timm.models.resolve_model_input_args(name, size)
        arguments["num_classes"] = 0
        network = timm.create_model(**arguments, pretrained=wanted.pretrained)
    return _of_timm(network, wanted, pictures, f"timm {timm.__version__}")


def _of_timm(network: nn.Module, wanted: Wanted, pictures: Pictures, library: str) -> Foreign:
    """A network with a `pretrained_cfg`, with its weights from a file if they are wanted."""
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    cfg: Any = network.pretrained_cfg
    channels = cfg["input_size"][0]
    classifier = cfg.get("classifier") or ()
    _load_file(network, wanted, [classifier] if isinstance(classifier, str) else list(classifier))
    given: dict[str, Any] = {}
    if wanted.size is not None:
        given["input_size"] = (channels, wanted.size, wanted.size)
    if wanted.weights == "none":
        given |= _statistics(pictures, channels)
    config = resolve_model_data_config(network, given)  # type: ignore[no-untyped-call]
    return Foreign(
        network,
        create_transform(**config, is_training=False),
        channels,
        channels_last=getattr(network, "output_fmt", None) == "NHWC",
        about={"library": library, "input": _plain(config)},
    )


# --- torchvision -----------------------------------------------------------------------------


def _torchvision(name: str, wanted: Wanted, pictures: Pictures) -> Foreign:
    import torchvision

    published = torchvision.models.get_model_weights(torchvision_name(name)).DEFAULT
    options = {}
    if wanted.size is not None and name.startswith("vit_") and not wanted.pretrained:
        options["image_size"] = wanted.size
    with _from_the_library(wanted):
        network = torchvision.models.get_model(
            name, weights=published if wanted.pretrained else None, **options
        )
    linear = linear_layers(network)
    _load_file(network, wanted, linear[-1:])
    transform = published.transforms()
    given: dict[str, Any] = {}
    if wanted.size is not None:
        kept = transform.resize_size[0] / transform.crop_size[0]  # as much of the image as before
        given = {"crop_size": wanted.size, "resize_size": round(wanted.size * kept)}
    if wanted.weights == "none":
        given |= _statistics(pictures, 3)
    transform = published.transforms(**given)
    settings = ("crop_size", "resize_size", "interpolation", "mean", "std")
    return Foreign(
        network,
        transform,
        3,
        before=linear[-1] if linear else None,
        channels_last=isinstance(network, torchvision.models.SwinTransformer),
        about={
            "library": f"torchvision {torchvision.__version__}",
            "input": _plain({key: getattr(transform, key) for key in settings}),
        },
    )


# --- the Hugging Face hub --------------------------------------------------------------------


def _hugging_face(repo: str, wanted: Wanted, pictures: Pictures) -> Foreign:
    config = _hub_config(repo, wanted)
    if "architecture" in config:
        where = "local-dir" if Path(repo).is_dir() else "hf-hub"
        return _timm(f"{where}:{repo}", wanted, pictures)
    if find_spec("transformers") is None:
        raise InputError(
            f"{wanted.model} is no model of timm: install transformers (pip install transformers), "
            "which the other models of the hub need"
        )
    return _transformers(repo, wanted, pictures)


def _hub_config(repo: str, wanted: Wanted) -> dict[str, Any]:
    """The config.json of a repository or folder, which says which library its model is of."""
    with _from_the_library(wanted):
        if Path(repo).is_dir():
            file = Path(repo) / "config.json"
        else:
            from huggingface_hub import hf_hub_download

            name, _, revision = repo.partition("@")
            file = Path(hf_hub_download(name, "config.json", revision=revision or None))
        found: dict[str, Any] = json.loads(file.read_text())
    return found


def _transformers(repo: str, wanted: Wanted, pictures: Pictures) -> Foreign:
    import transformers

    name, _, revision = repo.partition("@")
    options = {"revision": revision} if revision else {}
    if wanted.size is not None:
        raise InputError(f"--image-size is not for {wanted.model}: leave it out")
    with _from_the_library(wanted):
        if wanted.pretrained:
            network = transformers.AutoModel.from_pretrained(name, **options)
        else:
            config = transformers.AutoConfig.from_pretrained(name, **options)
            network = transformers.AutoModel.from_config(config)
        processor = transformers.AutoImageProcessor.from_pretrained(name, **options)
    _load_file(network, wanted, [])
    if wanted.weights == "none":
        given = _statistics(pictures, 3)
        processor.image_mean, processor.image_std = list(given["mean"]), list(given["std"])

    def prepare(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    return Foreign(
        network,
        prepare,
        3,
        about={
            "library": f"transformers {version('transformers')}",
            "input": _plain(processor.to_dict()),
        },
    )


# --- a function ------------------------------------------------------------------------------


def _module(name: str, wanted: Wanted, pictures: Pictures) -> Foreign:
    """What the function `name` of a module returns; the module is in `wanted.model`."""
    module = wanted.model.partition(":")[0]
    function = _function(module, name, wanted.model)
    network = function()
    if not isinstance(network, nn.Module):
        raise InputError(
            f"--model {wanted.model} returns {type(network).__name__}: let the function return a "
            "torch.nn.Module"
        )
    if isinstance(getattr(network, "pretrained_cfg", None), Mapping):
        return _of_timm(network, wanted, pictures, module)
    _load_file(network, wanted, [])
    height, width, channels = pictures.image_shape
    size, resize = (height, width), pictures.resize
    if wanted.size is not None:
        size, resize = (wanted.size, wanted.size), wanted.size
    given = _statistics(pictures, channels)
    mean, std = (torch.tensor(given[key])[:, None, None] for key in ("mean", "std"))

    def prepare(image: Image.Image) -> Tensor:
        if image.size != size[::-1] or resize not in (None, size[0]):
            image = center(image, size[0], resize)
        pixels = torch.from_numpy(np.array(image)).view(*size, channels)
        return (pixels.permute(2, 0, 1).float().div_(255) - mean) / std

    about = {"size": list(size), "resize": resize, **_plain(given)}
    return Foreign(network, prepare, channels, about={"library": module, "input": about})


def _function(module: str, name: str, model: str) -> Callable[[], Any]:
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"--model {model} cannot be imported ({first_line(error)}): give {FORMS}"
        ) from None
    finally:
        sys.path.pop(0)
    function = getattr(found, name, None)
    if not callable(function):
        raise InputError(f"the module {module} has no function {name}: check --model {model}")
    made: Callable[[], Any] = function
    return made


# --- what all of them need -------------------------------------------------------------------

_LIBRARIES: dict[str, Callable[[str, Wanted, Pictures], Foreign]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _hugging_face,
}


@contextmanager
def _from_the_library(wanted: Wanted) -> Iterator[None]:
    """Raise InputError for all that goes wrong while a library makes a model and loads weights.

    Each library, and each way to have no network, has errors of its own.
    """
    of_hub = logging.getLogger("huggingface_hub")
    before = of_hub.level
    of_hub.setLevel(logging.ERROR)  # it tells of every attempt to connect, twice
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        remedy = "check its name and --image-size"
        if wanted.pretrained or wanted.model.startswith("hf:"):
            remedy = (
                "what is not in the cache of its library is downloaded, so check its name and the "
                "network, or give --weights FILE or --weights none"
            )
        raise InputError(
            f"--model {wanted.model} cannot be loaded ({first_line(error)}): {remedy}"
        ) from error
    finally:
        of_hub.setLevel(before)


def _load_file(network: nn.Module, wanted: Wanted, heads: list[str]) -> None:
    if wanted.weights not in ("default", "none"):
        load_into(network, Path(wanted.weights), wanted.model, heads)


def _statistics(pictures: Pictures, channels: int) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of a store's images, with gray as so many equal channels.

    A channel with one value only is 0 everywhere once its mean is subtracted.
    """
    repeat = channels // len(pictures.mean) or 1
    return {
        "mean": tuple(pictures.mean) * repeat,
        "std": tuple(s or 1.0 for s in pictures.std) * repeat,
    }


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them."""
    found: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return found
