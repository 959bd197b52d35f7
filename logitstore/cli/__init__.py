"""The commands of `logitstore`."""

from logitstore.cli.app import main

__all__ = ["main"]
