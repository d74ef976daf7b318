"""Other people's clients, unmodified, each in an environment of its own under `.clients`.

`make clients` installs them: a virtual environment for each `NAME.txt` here, and the packages of
each `NAME/package.json`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HOME = HERE.parents[1] / ".clients"


def python(name: str) -> Path:
    """The interpreter of the environment that holds a client; skips the test where it is not."""
    found = HOME / name / "bin" / "python"
    if not (HOME / name / ".installed").exists():
        pytest.skip(f"needs the client {name}: run `make clients`")
    return found


def node(name: str) -> Path:
    """The folder with the `node_modules` of a client; skips the test where it is not."""
    found = HOME / name
    if shutil.which("node") is None or not (found / ".installed").exists():
        pytest.skip(f"needs Node.js and the client {name}: run `make clients`")
    return found
