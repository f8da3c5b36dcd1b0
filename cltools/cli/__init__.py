"""The `cltools` command."""

from cltools.cli.app import app, main

__all__ = ["app", "main"]
