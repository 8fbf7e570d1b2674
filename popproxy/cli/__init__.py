"""The command line."""

from popproxy.cli.main import main

__all__ = ["main"]
