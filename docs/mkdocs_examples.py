"""Examples in docstrings become a section of their own, as mkdocstrings expects them."""

import textwrap
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Moves what follows the first `>>>` of a docstring below a heading."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of a function or class."""
        if obj.docstring and ">>>" in obj.docstring.value:
            text, prompt, example = obj.docstring.value.partition(">>>")
            indented = textwrap.indent(prompt + example, "    ")
            obj.docstring.value = f"{text}Examples:\n{indented}"
