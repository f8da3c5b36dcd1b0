"""Names of models in other libraries."""

import difflib
from collections.abc import Iterable

from cltools.runtime.errors import InputError


def timm_name(name: str) -> str:
    """This name of a model of timm, e.g. "resnet18" or "resnet18.a1_in1k".

    Raises InputError where timm has none of this name; its remedy is a name that is similar.
    """
    import timm  # imported here because it takes seconds

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown("timm", name, timm.list_models())
    return name


def torchvision_name(name: str) -> str:
    """This name of a model of torchvision that classifies images. Raises InputError likewise."""
    import torchvision  # imported here because it takes seconds

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise unknown("torchvision", name, names)
    return name


def unknown(library: str, name: str, names: Iterable[str]) -> InputError:
    """The error that a library has no model of this name."""
    close = difflib.get_close_matches(name, list(names), n=1)
    remedy = f"did you mean {close[0]}?" if close else "give the name of one that it has"
    return InputError(f"{library} has no model {name!r}: {remedy}")
