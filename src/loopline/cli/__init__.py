"""The command line: `loopline --help`."""

from __future__ import annotations

from loopline.cli.commands import main

__all__ = ["main"]
