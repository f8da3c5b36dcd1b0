"""Packages that only some commands need, each with the extra of cltools that installs it."""

from cltools.runtime.errors import InputError

# Package, as it is imported -> extra. `pyproject.toml` says what else belongs to an extra.
EXTRAS = {
    "matplotlib": "plots",
    "plotly": "plots",
    "jinja2": "plots",
    "umap": "umap",
}


def missing_extra(error: Exception) -> InputError | None:
    """An InputError where a package of an extra is not installed; None for any other error."""
    module = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    package = module.partition(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    return InputError(
        f"the package {package} is not installed: it belongs to the extra `{extra}` of cltools, "
        f"which `uv sync --extra {extra}` installs in a checkout"
    )
